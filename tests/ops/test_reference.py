"""The references against loops and formulas written independently, and their first and second derivatives."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hashfield import ops
from hashfield.errors import ConfigError
from hashfield.geometry.grid_layout import GridLayout, per_level_scale_between
from hashfield.geometry.rays import Rays, RaySamples
from hashfield.kernels.reference.grid_encode import vertex_index
from hashfield.kernels.reference.rounding import round_to_bfloat16
from hashfield.ops.backend import Backend
from hashfield.ops.total_variation import cube_sides
from tests import tolerances
from tests.ops.cases import FINE, HASH_2D, HASH_3D, random_samples, unit_vectors
from tests.ops.compare import relative_error

PRIMES = (1, 2654435761, 805459861, 3674653429)


def encode_by_loops(x: np.ndarray, table: np.ndarray, layout: GridLayout, smooth: bool) -> list[float]:
    """The encoding of one position, one corner at a time, in Python's own integers and floats."""
    out = []
    for level in range(layout.n_levels):
        offset, size = int(layout.level_offsets[level]), int(layout.entries[level])
        resolution = int(layout.resolutions[level])
        q = [float(layout.scales[level]) * float(c) + 0.5 for c in x]
        features = [0.0] * layout.n_features_per_level
        for corner in itertools.product((0, 1), repeat=layout.n_dims):
            weight, vertex = 1.0, []
            for side, coordinate in zip(corner, q, strict=True):
                f = coordinate - math.floor(coordinate)
                f = f * f * (3 - 2 * f) if smooth else f
                weight *= f if side else 1 - f
                vertex.append((math.floor(coordinate) + side) % 2**32)
            if layout.type == "Hash" and resolution**layout.n_dims > size:
                index = 0
                for v, prime in zip(vertex, PRIMES, strict=False):
                    index ^= v * prime % 2**32
            else:
                index = sum(v * resolution**d for d, v in enumerate(vertex)) % 2**32
            for f, value in enumerate(table[offset + index % size]):
                features[f] += weight * float(value)
        out += features
    return out


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        HASH_2D,
        HASH_3D,
        GridLayout(4, 2, 2, 8, 3, 1.7),
        GridLayout(3, 3, 1, 8, 5, 1.6, "Tiled"),
        GridLayout(2, 3, 8, 8, 5, 1.6, "Dense"),
    ],
    ids=lambda layout: f"{layout.n_dims}d_{layout.type}",
)
def test_grid_encode_against_loops(layout: GridLayout, smooth: bool, generator: torch.Generator) -> None:
    x = torch.rand(12, layout.n_dims, generator=generator, dtype=torch.float64) * 3 - 1
    x[0], x[1] = 0.0, 1.0
    table = torch.randn(layout.n_entries, layout.n_features_per_level, generator=generator).double()
    out = ops.grid_encode(x, table, layout, interpolation="smoothstep" if smooth else "linear", backend="reference")
    expected = [encode_by_loops(row, table.numpy(), layout, smooth) for row in x.numpy()]
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=tolerances.FLOAT64)


def test_grid_encode_float32_is_near_float64(generator: torch.Generator) -> None:
    x = torch.rand(4096, 3, generator=generator)
    table = torch.rand(FINE.n_entries, 4, generator=generator) * 2 - 1
    single = ops.grid_encode(x, table, FINE, backend="reference").view(-1, FINE.n_levels, 4)
    double = ops.grid_encode(x.double(), table.double(), FINE, backend="reference").view_as(single)
    for level, resolution in enumerate(FINE.resolutions.tolist()):
        error = relative_error(single[:, level], double[:, level])
        assert error <= resolution * tolerances.FLOAT32_ENCODING_PER_CELL


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_position_without_a_cell_counts_as_cell_zero(value: float, generator: torch.Generator) -> None:
    table = torch.rand(HASH_3D.n_entries, 4, generator=generator)
    x = torch.tensor([[value, 0.3, 0.6]], requires_grad=True)
    # q = 0 on every level needs another x on each: compare level by level.
    out = ops.grid_encode(x, table, HASH_3D, backend="reference").view(HASH_3D.n_levels, 4)
    for level, scale in enumerate(HASH_3D.scales.tolist()):
        at_zero = torch.tensor([[-0.5 / scale, 0.3, 0.6]], dtype=torch.float64)
        expected = ops.grid_encode(at_zero, table.double(), HASH_3D, backend="reference")
        torch.testing.assert_close(
            out[level].double(), expected.view(-1, 4)[level], rtol=0, atol=tolerances.FAST_OUTPUT, check_dtype=False
        )
    out.sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0] == 0
    assert x.grad[0, 1:].abs().min() > 0


def test_bfloat16_lookup_rounds_to_nearest_even_and_passes_gradients() -> None:
    step = 2.0**-8  # a bfloat16 has 8 significant bits
    x = torch.tensor([1 + step, 1 + 3 * step, 1 + 1.01 * step, -1 - step], requires_grad=True)
    rounded = round_to_bfloat16(x)
    assert rounded.tolist() == [1.0, 1 + 4 * step, 1 + 2 * step, -1.0]
    cotangent = torch.tensor([1 + 2.0**-20, 2.0, 3.0, 4.0])
    (rounded * cotangent).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, cotangent)


def test_bfloat16_table_gradient_is_that_of_float32(generator: torch.Generator) -> None:
    x = torch.rand(50, 3, generator=generator)
    grads = []
    for precision in ("float32", "bfloat16"):
        table = torch.ones(HASH_3D.n_entries, 4, requires_grad=True)
        out = ops.grid_encode(x, table, HASH_3D, precision=precision, backend="reference")
        out.square().sum().backward()
        grads.append(table.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_table_rounded_beforehand_is_read_and_the_gradient_is_the_tables(
    backend: Backend, generator: torch.Generator
) -> None:
    x = torch.rand(50, 3, generator=generator, requires_grad=True)
    table = torch.rand(HASH_3D.n_entries, 4, generator=generator, requires_grad=True)
    cotangent = torch.rand(50, HASH_3D.n_output, generator=generator)

    def found(table_bf16: Tensor | None) -> list[Tensor]:
        out = ops.grid_encode(x, table, HASH_3D, precision="bfloat16", table_bf16=table_bf16, backend=backend)
        return [out, *torch.autograd.grad((out * cotangent).sum(), [table, x])]

    rounded = table.detach().to(torch.bfloat16)
    for value, expected in zip(found(rounded), found(None), strict=True):
        assert torch.equal(value, expected)
    twice = found(2 * rounded)  # another table than the first: it is this one that is looked up
    assert torch.equal(twice[0], 2 * found(None)[0])
    assert torch.equal(twice[1], found(None)[1])


TINY = {d: GridLayout(d, 2, 2, 6, 3, 1.9) for d in (2, 3)}


def _away_from_faces(layout: GridLayout, n: int, generator: torch.Generator) -> Tensor:
    kept: list[Tensor] = []
    while len(kept) < n:
        x = torch.rand(layout.n_dims, generator=generator, dtype=torch.float64) * 2 - 0.5
        q = torch.from_numpy(layout.scales.astype(np.float64))[:, None] * x + 0.5
        if bool(((q - q.floor() - 0.5).abs() < 0.4).all()):
            kept.append(x)
    return torch.stack(kept)


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_grid_encode_derivatives(interpolation: ops.Interpolation, n_dims: int, generator: torch.Generator) -> None:
    layout = TINY[n_dims]
    x = _away_from_faces(layout, 3, generator).requires_grad_()
    table = torch.randn(layout.n_entries, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def encode(x: Tensor, table: Tensor) -> Tensor:
        return ops.grid_encode(x, table, layout, interpolation=interpolation, backend="reference")

    assert gradcheck(encode, (x, table))
    assert gradgradcheck(encode, (x, table))


def test_nearest_has_no_gradient_to_positions(generator: torch.Generator) -> None:
    x = torch.rand(4, 2, generator=generator, requires_grad=True)
    table = torch.rand(HASH_2D.n_entries, 2, generator=generator)
    out = ops.grid_encode(x, table, HASH_2D, interpolation="nearest", backend="reference")
    assert not out.requires_grad


@pytest.mark.op("grid_encode")
def test_nearest_is_constant_around_vertices(backend: ops.Backend, generator: torch.Generator) -> None:
    layout = GridLayout(2, 1, 2, 8, 9, 1.0)  # 8 cells a unit: vertices at (k - 0.5) / 8
    table = torch.rand(layout.n_entries, 2, generator=generator, requires_grad=True)
    vertex = torch.randint(1, 8, (50, 2), generator=generator)
    x = ((vertex - 0.5 + 0.49 * (2 * torch.rand(50, 2, generator=generator) - 1) + 0.5) / 8).requires_grad_()
    out = ops.grid_encode(x, table, layout, interpolation="nearest", backend=backend)
    expected = table[vertex[:, 0] + 9 * vertex[:, 1]]
    assert torch.equal(out, expected)
    out.square().sum().backward()
    assert x.grad is None and table.grad is not None
    reached = torch.zeros(layout.n_entries, dtype=torch.bool)
    reached[vertex[:, 0] + 9 * vertex[:, 1]] = True
    assert torch.equal(table.grad.abs().amax(1) > 0, reached)


@pytest.mark.parametrize(
    "encode",
    [
        lambda x: ops.identity_encode(x, scale=3.0, offset=0.5),
        lambda x: ops.frequency_encode(x, n_frequencies=4),
        lambda x: ops.triangle_wave_encode(x, n_frequencies=4),
        lambda x: ops.one_blob_encode(x, n_bins=5),
    ],
    ids=["identity", "frequency", "triangle_wave", "one_blob"],
)
def test_elementwise_derivatives(encode: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    # A multiple of 1/64 and a bit more: away from every kink of the waves and every edge of the blobs' bins.
    steps = torch.randint(-16, 80, (6, 2), generator=generator).double()
    x = ((steps + 0.37) / 64).requires_grad_()
    assert gradcheck(encode, x)
    assert gradgradcheck(encode, x)


def test_triangle_wave_slope_on_both_sides_and_on_the_kinks() -> None:
    # v = x/2, x + 1/4, 2x + 1/2: the sign is that of floor(2 v), also on a kink itself.
    x = torch.tensor([[0.0], [0.3], [0.5], [0.75], [1.0]], dtype=torch.float64, requires_grad=True)
    for k in range(3):
        out = ops.triangle_wave_encode(x, n_frequencies=3)[:, k]
        (slope,) = torch.autograd.grad(out.sum(), x)
        v = x.detach()[:, 0] * 2.0 ** (k - 1) + k / 4
        sign = torch.where((2 * v).floor() % 2 == 0, -1.0, 1.0)
        assert torch.equal(slope[:, 0], sign.double() * 2 ** (k + 1))


def test_one_blob_bins_sum_to_one_and_wrap(generator: torch.Generator) -> None:
    x = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    bins = ops.one_blob_encode(x, n_bins=7).view(200, 3, 7)
    torch.testing.assert_close(bins.sum(2), torch.ones(200, 3, dtype=torch.float64))
    assert bins.min() > -tolerances.FLOAT64
    # A shift by whole bins rolls them.
    shifted = ops.one_blob_encode((x + 3 / 7) % 1.0, n_bins=7).view(200, 3, 7)
    torch.testing.assert_close(shifted, bins.roll(3, 2))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_spherical_harmonics_are_orthonormal(degree: int) -> None:
    # Exact quadrature: Gauss-Legendre in z times equal angles, for products of degree up to 6.
    z, weight = np.polynomial.legendre.leggauss(8)
    angle = np.arange(16) * (2 * np.pi / 16)
    r = np.sqrt(1 - z**2)[:, None]
    x, y = r * np.cos(angle), r * np.sin(angle)
    directions = np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], -1).reshape(-1, 3)
    weights = np.repeat(weight * (2 * np.pi / 16), 16)
    values = ops.spherical_harmonics(torch.from_numpy(directions), degree=degree, backend="reference").numpy()
    np.testing.assert_allclose(
        (values * weights[:, None]).T @ values, np.eye(degree**2), rtol=0, atol=tolerances.FLOAT64
    )


def test_spherical_harmonics_derivatives(generator: torch.Generator) -> None:
    directions = unit_vectors(generator, 3).double().requires_grad_()

    def harmonics(d: Tensor) -> Tensor:
        return ops.spherical_harmonics(d, backend="reference")

    assert gradcheck(harmonics, directions)
    assert gradgradcheck(harmonics, directions)


@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid", "exp"])
def test_mlp_against_loops(activation: ops.Activation, generator: torch.Generator) -> None:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 3), (4, 5), (2, 4))]
    apply = {
        "none": lambda v: v,
        "relu": lambda v: np.maximum(v, 0),
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "exp": np.exp,
    }[activation]
    out = ops.mlp(x, weights, activation="relu", output_activation=activation, backend="reference")
    for i, row in enumerate(x.numpy()):
        h = np.maximum(weights[0].numpy() @ row, 0)
        h = np.maximum(weights[1].numpy() @ h, 0)
        np.testing.assert_allclose(out[i], apply(weights[2].numpy() @ h), rtol=tolerances.FLOAT64)


def test_mlp_derivatives(generator: torch.Generator) -> None:
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in ((5, 4), (2, 5))]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return ops.mlp(x, weights, output_activation="sigmoid", backend="reference")

    assert gradcheck(run, (x, *weights))
    assert gradgradcheck(run, (x, *weights))


def test_mlp_in_bfloat16_rounds_inputs_of_every_layer(generator: torch.Generator) -> None:
    x, weights = (
        torch.randn(8, 6, generator=generator),
        [torch.randn(s, generator=generator) for s in ((7, 6), (2, 7))],
    )

    def rounded(v: Tensor) -> Tensor:
        return v.bfloat16().float()

    expected = rounded(torch.relu(rounded(x) @ rounded(weights[0]).T)) @ rounded(weights[1]).T
    out = ops.mlp(x, weights, precision="bfloat16", backend="reference")
    torch.testing.assert_close(out, expected)
    assert not torch.equal(out, rounded(out))


def composite_by_loops(
    color: np.ndarray,
    density: np.ndarray,
    t: np.ndarray,
    dt: np.ndarray,
    offsets: list[int],
    background: np.ndarray,
    min_transmittance: float,
) -> tuple[np.ndarray, ...]:
    """One ray and one sample at a time."""
    n_rays = len(offsets) - 1
    out, opacity, depth = np.zeros((n_rays, 3)), np.zeros(n_rays), np.zeros(n_rays)
    weight = np.zeros(len(t))
    for ray in range(n_rays):
        transmittance, is_cut = 1.0, False
        for i in range(offsets[ray], offsets[ray + 1]):
            if transmittance < min_transmittance:
                is_cut = True
                break
            alpha = 1 - math.exp(-density[i] * dt[i])
            weight[i] = transmittance * alpha
            out[ray] += weight[i] * color[i]
            opacity[ray] += weight[i]
            depth[ray] += weight[i] * t[i]
            transmittance *= 1 - alpha
        if not is_cut:
            out[ray] += transmittance * background[ray]
    return out, opacity, depth, weight


@pytest.mark.parametrize("min_transmittance", [0.0, 0.05, 0.5, 1.0])
def test_composite_against_loops(min_transmittance: float, generator: torch.Generator) -> None:
    t, dt, offsets = random_samples(generator, 30, longest=20)
    n = t.shape[0]
    color, background = torch.rand(n, 3, generator=generator), torch.rand(30, 3, generator=generator)
    density = torch.exp(torch.rand(n, generator=generator) * 6 - 2)
    arguments = [x.double() for x in (color, density, t, dt)]
    shown = ops.composite(
        *arguments[:2],
        RaySamples(*arguments[2:], offsets),
        background.double(),
        min_transmittance=min_transmittance,
        backend="reference",
    )
    expected = composite_by_loops(
        *(x.numpy() for x in arguments), offsets.tolist(), background.double().numpy(), min_transmittance
    )
    for actual, value in zip(shown, expected, strict=True):
        np.testing.assert_allclose(actual.numpy(), value, rtol=0, atol=tolerances.FLOAT64)


@pytest.mark.op("composite")
def test_ray_that_ends_dark_but_uncut_keeps_its_background(backend: ops.Backend) -> None:
    # Cut means that a sample went unused; here the last sample itself takes the light.
    samples = RaySamples(torch.ones(1), torch.ones(1), torch.tensor([0, 1]))
    density = -torch.log(torch.tensor([1e-3]))
    shown = ops.composite(torch.zeros(1, 3), density, samples, torch.ones(3), min_transmittance=1e-2, backend=backend)
    torch.testing.assert_close(shown.color, torch.full((1, 3), 1e-3), rtol=0, atol=tolerances.SAME_NUMBER)


@pytest.mark.parametrize("min_transmittance", [0.0, 0.1])
def test_composite_derivatives(min_transmittance: float, generator: torch.Generator) -> None:
    t, dt, offsets = (torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]).double(), torch.full((5,), 0.7).double(), None)
    offsets = torch.tensor([0, 3, 3, 5])
    color = torch.rand(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    density = torch.tensor([0.3, 4.0, 1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    background = torch.rand(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def run(color: Tensor, density: Tensor, background: Tensor) -> Any:
        shown = ops.composite(
            color,
            density,
            RaySamples(t, dt, offsets),
            background,
            min_transmittance=min_transmittance,
            backend="reference",
        )
        return tuple(shown)

    assert gradcheck(run, (color, density, background))
    assert gradgradcheck(run, (color, density, background))


def test_composite_has_no_gradient_to_t() -> None:
    t = torch.ones(1, requires_grad=True)
    samples = RaySamples(t, t, torch.tensor([0, 1]))
    for backend in ("reference", None):
        shown = ops.composite(torch.ones(1, 3), torch.ones(1), samples, torch.ones(3), backend=backend)
        assert not shown.depth.requires_grad


def test_ray_box_against_sampling(generator: torch.Generator) -> None:
    origin = torch.rand(300, 3, generator=generator).double() * 4 - 1.5
    direction = unit_vectors(generator, 300).double()
    low, high = torch.tensor([0.0, -0.5, 0.2]).double(), torch.tensor([1.0, 0.5, 1.0]).double()
    t_min, t_max = ops.ray_box(origin, direction, low, high)
    t = torch.linspace(0, 8, 4001, dtype=torch.float64)
    position = origin[:, None] + t[:, None] * direction[:, None]
    inside = ((position >= low) & (position <= high)).all(-1)
    for ray in range(300):
        where = t[inside[ray]]
        if where.numel() == 0:
            # A chord shorter than the sampling may be missed by it.
            assert t_max[ray] - t_min[ray] < 3e-3
        else:
            assert abs(where[0] - t_min[ray]) < 2.1e-3
            assert abs(where[-1] - t_max[ray]) < 2.1e-3


@pytest.mark.parametrize(
    ("origin", "direction", "expected"),
    [
        ((-1, 0.5, 0.5), (1, 0, 0), (1, 2)),
        ((0.5, 0.5, 0.5), (0, -1, 0), (0, 0.5)),
        ((2, 0.5, 0.5), (1, 0, 0), (0, 0)),
        ((-1, 1.5, 0.5), (1, 0, 0), (0, 0)),
        # Along a face counts as inside, along an edge too; a touched corner is a miss.
        ((-1, 1.0, 0.5), (1, 0, 0), (1, 2)),
        ((-1, 1.0, 0.0), (1, -0.0, 0), (1, 2)),
        ((-1, 1.0, 0.5), (0.5**0.5, 0.5**0.5, 0), (0, 0)),
        ((0.5, 0.5, 0.5), (0, 0, 0), (0, 0)),
        ((math.nan, 0.5, 0.5), (1, 0, 0), (0, 0)),
        ((0.5, 0.5, 0.5), (1, math.nan, 0), (0, 0)),
        ((math.inf, 0.5, 0.5), (-1, 0, 0), (0, 0)),
        # A component too small to divide by.
        ((-1, 0.5, 0.5), (1, 1e-45, 0), (1, 2)),
    ],
)
def test_ray_box_special_rays(origin: Any, direction: Any, expected: Any) -> None:
    box = torch.zeros(3), torch.ones(3)
    t_min, t_max = ops.ray_box(torch.tensor([origin]).float(), torch.tensor([direction]).float(), *box)
    assert (t_min.item(), t_max.item()) == pytest.approx(expected)


def test_adam_counts_are_kept_per_scalar() -> None:
    param, counts = torch.zeros(3), torch.zeros(3, dtype=torch.int32)
    moments = torch.zeros(3), torch.zeros(3)
    for grad in ([1.0, 0.0, -0.0], [1.0, 2.0, 0.0]):
        ops.adam(param, torch.tensor(grad), *moments, counts, learning_rate=0.1, backend="reference")
    assert counts.tolist() == [2, 1, 0]
    # The second scalar's first step, whenever it comes, is one of full length.
    np.testing.assert_allclose(param, [-0.2, -0.1, 0.0], rtol=tolerances.SAME_NUMBER)


@pytest.mark.op("adam")
def test_adam_spreads_numbers_that_are_none(backend: ops.Backend) -> None:
    # A NaN must show, not be skipped like a zero.
    param, zeros = torch.zeros(2), torch.zeros(2)
    grad = torch.tensor([math.nan, 1.0])
    ops.adam(param, grad, zeros.clone(), zeros.clone(), step=1, learning_rate=0.1, backend=backend)
    assert torch.isnan(param).tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_dims": 0}, "n_dims: expected an integer from 1 to 7, got 0"),
        ({"n_dims": 8}, "n_dims: expected an integer from 1 to 7, got 8"),
        ({"hash": "Sum"}, "hash: expected one of CoherentPrime, Prime, ReversedPrime, Rng, BaseConvert, got 'Sum'"),
        ({"n_levels": 0}, "n_levels: expected an integer from 1 to 128, got 0"),
        ({"n_levels": 2.0}, "n_levels: expected an integer from 1 to 128, got 2.0"),
        ({"n_features_per_level": 3}, "n_features_per_level: expected 1, 2, 4 or 8, got 3"),
        ({"log2_hashmap_size": 31}, "log2_hashmap_size: expected an integer from 1 to 30, got 31"),
        ({"base_resolution": 0}, "base_resolution: expected an integer from 1 to 16777216, got 0"),
        ({"per_level_scale": 0.5}, "per_level_scale: expected a finite number of at least 1, got 0.5"),
        ({"per_level_scale": math.nan}, "per_level_scale: expected a finite number of at least 1, got nan"),
        ({"type": "hash"}, "type: expected 'Hash', 'Tiled' or 'Dense', got 'hash'"),
        (
            {"n_levels": 40},
            "per_level_scale 2 over 40 levels from base_resolution 16 passes 2^30 vertices per axis; lower one of them",
        ),
        (
            {"n_levels": 128, "per_level_scale": 1e30},
            "per_level_scale 1e+30 over 128 levels from base_resolution 16 passes 2^30 vertices per axis; "
            "lower one of them",
        ),
        (
            {"type": "Dense"},
            "type 'Dense': the finest level has 2048 vertices per axis, more than the 1625 that a 3-D index "
            "can hold; use type 'Hash' or lower per_level_scale",
        ),
    ],
)
def test_wrong_layouts_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GridLayout(**options)
    assert str(caught.value) == message


def test_per_level_scale_of_one_level_and_of_nothing() -> None:
    assert per_level_scale_between(16, 2048, 1) == 1.0
    with pytest.raises(ConfigError, match="finest_resolution: expected at least base_resolution"):
        per_level_scale_between(16, 8, 4)


def test_layouts_are_values() -> None:
    assert GridLayout(n_levels=3) == GridLayout(n_levels=3)
    assert hash(GridLayout(n_levels=3)) == hash(GridLayout(n_levels=3))
    with pytest.raises(ValueError, match="read-only"):
        GridLayout().entries[0] = 1


def test_rays_and_samples_move_and_count() -> None:
    rays = Rays(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2), torch.ones(2), image_index=torch.ones(2).long())
    moved = rays.to("meta")
    assert (moved.origin.device.type, moved.n_rays) == ("meta", 2)
    assert moved.image_index is not None and moved.image_index.device.type == "meta"
    samples = RaySamples(torch.zeros(4), torch.ones(4), torch.tensor([0, 1, 1, 4]))
    assert (samples.n_rays, samples.n_samples) == (3, 4)
    assert samples.ray_index().tolist() == [0, 2, 2, 2]
    assert samples.to("meta").t.device.type == "meta"


@pytest.mark.parametrize(
    "layout", [HASH_3D, HASH_2D, GridLayout(3, 3, 2, 19, 4, 2.0, "Dense")], ids=["3d", "2d", "dense"]
)
def test_total_variation_is_that_of_the_whole_table(layout: GridLayout, generator: torch.Generator) -> None:
    shape = (layout.n_entries, layout.n_features_per_level)
    table = torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    sides = [min(3, r - 1) for r in layout.resolutions.tolist()]
    room = torch.tensor([r - s for r, s in zip(layout.resolutions.tolist(), sides, strict=True)])
    corners = (torch.rand(layout.n_levels, layout.n_dims, generator=generator) * room[:, None]).long()
    expected = torch.zeros((), dtype=torch.float64)
    for level, side in enumerate(sides):
        features = table.split(layout.entries.tolist())[level]
        for vertex in itertools.product(range(side + 1), repeat=layout.n_dims):
            for d in range(layout.n_dims):
                if vertex[d] < side:
                    pair = torch.tensor([vertex, [v + (k == d) for k, v in enumerate(vertex)]]) + corners[level]
                    a, b = features[vertex_index(pair[None], layout, level)[0]]
                    expected = expected + (a - b).square().sum() / side
    (gradient,) = torch.autograd.grad(expected, table)
    grad = torch.ones(shape, dtype=torch.float64)
    value = ops.total_variation(table.detach(), grad, layout, corners=corners, sides=sides, weight=0.5)
    assert value == pytest.approx(expected.item(), rel=tolerances.FLOAT64)
    torch.testing.assert_close(grad, 1 + 0.5 * gradient)
    assert torch.equal(grad == 1, gradient == 0)


def test_cubes_of_the_total_variation() -> None:
    # HashNeRF's levels: a tenth of the resolution within 15 and 50.
    layout = GridLayout(3, 16, 2, 19, 16, per_level_scale_between(16, 512, 16))
    sides = cube_sides(layout)
    assert sides[0] == 15 and sides[-1] == 50
    assert all(s == max(15, min(50, r // 10)) for s, r in zip(sides, layout.resolutions.tolist(), strict=True))
    assert cube_sides(GridLayout(3, 1, 2, 19, 8, 1.0)) == [7]
