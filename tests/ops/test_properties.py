"""What must hold for all inputs, on every backend."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import RaySamples
from hashfield.ops.backend import Backend
from tests import tolerances
from tests.ops.cases import HASH_2D, HASH_3D, random_samples, unit_vectors
from tests.ops.compare import relative_error

# Fixtures here are names of backends and the poisoned buffers: nothing that one example leaves to the next.
# Derandomised, so that a change fails here for what it did and not for the day's luck; raise max_examples and
# drop `derandomize` to search further (300 random examples of each have passed).
quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

seeds = st.integers(0, 2**31 - 1)
layouts = st.builds(
    GridLayout,
    n_dims=st.sampled_from([2, 3]),
    n_levels=st.integers(1, 5),
    n_features_per_level=st.sampled_from([1, 2, 4, 8]),
    log2_hashmap_size=st.integers(3, 9),
    base_resolution=st.integers(1, 9),
    per_level_scale=st.floats(1.0, 2.5, width=32),
    type=st.sampled_from(["Hash", "Tiled", "Dense"]),
).filter(lambda layout: layout.n_parameters < 2**17)


def _inputs(layout: GridLayout, seed: int, n: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, layout.n_dims, generator=generator)
    return x, torch.rand(layout.n_entries, layout.n_features_per_level, generator=generator) * 2 - 1


@pytest.mark.op("grid_encode")
@given(layout=layouts, seed=seeds, smooth=st.booleans())
@quick
def test_any_layout_agrees_with_float64(backend: Backend, layout: GridLayout, seed: int, smooth: bool) -> None:
    x, table = _inputs(layout, seed)
    options: dict[str, Any] = {"interpolation": "smoothstep" if smooth else "linear"}
    out = ops.grid_encode(x, table, layout, backend=backend, **options)
    exact = ops.grid_encode(x.double(), table.double(), layout, backend="reference", **options)
    finest = int(layout.resolutions[-1])
    # Continuous in x, so even a position on a face is off by its own rounding only (1.5: slope of
    # smoothstep).
    bound = 1.5 * 2 * layout.n_dims * finest * 2.0**-24 + tolerances.SAME_NUMBER
    assert (out - exact).abs().max() <= bound


@pytest.mark.op("grid_encode")
@given(layout=layouts, seed=seeds, value=st.floats(-8, 8, width=32))
@quick
def test_constant_table_gives_that_constant(backend: Backend, layout: GridLayout, seed: int, value: float) -> None:
    x, table = _inputs(layout, seed)
    x.requires_grad_()
    out = ops.grid_encode(x, torch.full_like(table, value), layout, backend=backend)
    torch.testing.assert_close(out, torch.full_like(out, value), rtol=tolerances.SAME_NUMBER, atol=tolerances.SUBNORMAL)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.abs().max() <= tolerances.FAST_POSITION_GRADIENT * float(layout.scales[-1] + 1) * abs(value) + 1e-30


@pytest.mark.op("grid_encode")
@given(layout=layouts, seed=seeds)
@quick
def test_table_gradient_shares_out_the_cotangent(backend: Backend, layout: GridLayout, seed: int) -> None:
    # Weights of a cell's corners sum to 1, so what goes in comes out, level by level.
    x, table = _inputs(layout, seed)
    table.requires_grad_()
    out = ops.grid_encode(x, table, layout, backend=backend)
    cotangent = torch.rand(out.shape, generator=torch.Generator().manual_seed(seed + 1))
    (gradient,) = torch.autograd.grad(out, table, cotangent)
    per_level = torch.stack([g.sum(0) for g in gradient.split(layout.entries.tolist())]).flatten()
    torch.testing.assert_close(per_level, cotangent.sum(0), rtol=tolerances.FAST_OUTPUT, atol=tolerances.SAME_NUMBER)


@pytest.mark.op("grid_encode")
@given(
    layout=st.sampled_from(
        [HASH_2D, HASH_3D, GridLayout(3, 3, 2, 8, 5, 1.6, "Dense"), GridLayout(2, 3, 2, 8, 5, 1.6, "Tiled")]
    ),
    seed=seeds,
    exponent=st.integers(-20, 40),
    special=st.sampled_from([0.0, math.nan, math.inf]),
)
@quick
def test_any_position_is_safe(backend: Backend, layout: GridLayout, seed: int, exponent: int, special: float) -> None:
    # A read out of bounds would crash or bring in numbers beyond the table's; a write, spoil its neighbours.
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(65, layout.n_dims, generator=generator) - 0.5) * 2.0**exponent
    x[::5] = x[::5] + special
    table = torch.rand(layout.n_entries, layout.n_features_per_level, generator=generator)
    x.requires_grad_()
    table.requires_grad_()
    out = ops.grid_encode(x, table, layout, backend=backend)
    assert bool(torch.isfinite(out).all())
    assert out.min() >= -tolerances.SAME_NUMBER and out.max() <= 1 + tolerances.SAME_NUMBER
    x_gradient, table_gradient = torch.autograd.grad(out.sum(), (x, table))
    assert bool(torch.isfinite(x_gradient).all())
    torch.testing.assert_close(
        table_gradient.sum(), torch.tensor(float(out.numel())), rtol=tolerances.FAST_OUTPUT, atol=0
    )


@pytest.mark.op("grid_encode")
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_encoding_is_continuous_across_faces(
    backend: Backend, interpolation: ops.Interpolation, generator: torch.Generator
) -> None:
    scale = float(HASH_3D.scales[-1])
    face = (torch.floor(torch.rand(200, 3, generator=generator) * scale) - 0.5) / scale
    table = torch.rand(HASH_3D.n_entries, 4, generator=generator) * 2 - 1
    step = 1e-5
    below, above = (
        ops.grid_encode(face + s, table, HASH_3D, interpolation=interpolation, backend=backend) for s in (-step, step)
    )
    assert (above - below).abs().max() <= 2 * step * 1.5 * 3 * 2 * scale


@pytest.mark.op("grid_encode")
def test_smoothstep_gradient_vanishes_on_faces(backend: Backend, generator: torch.Generator) -> None:
    layout = GridLayout(3, 1, 2, 10, 9, 1.0)
    vertex = torch.randint(1, 8, (50, 3), generator=generator)
    x = ((vertex - 0.5) / float(layout.scales[0])).requires_grad_()
    table = torch.rand(layout.n_entries, 2, generator=generator)
    out = ops.grid_encode(x, table, layout, interpolation="smoothstep", backend=backend)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.abs().max() < tolerances.FAST_POSITION_GRADIENT


@pytest.mark.op("grid_encode")
def test_encoding_a_batch_in_parts_changes_nothing(backend: Backend, generator: torch.Generator) -> None:
    x = torch.rand(300, 3, generator=generator)
    table = torch.rand(HASH_3D.n_entries, 4, generator=generator)
    whole = ops.grid_encode(x, table, HASH_3D, backend=backend)
    parts = [ops.grid_encode(part, table, HASH_3D, backend=backend) for part in x.split([1, 64, 100, 135])]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(300, generator=generator)
    assert torch.equal(ops.grid_encode(x[order], table, HASH_3D, backend=backend), whole[order])


@pytest.mark.op("grid_encode")
def test_same_bits_every_time(backend: Backend, generator: torch.Generator) -> None:
    # The interpreter, which does one thing after another, only shows that nothing is left from call to call.
    x = torch.rand(2000 if backend != "triton" else 150, 3, generator=generator)
    runs = []
    for _ in range(3):
        table = torch.linspace(-1, 1, HASH_3D.n_parameters).view(-1, 4).requires_grad_()
        out = ops.grid_encode(x, table, HASH_3D, backend=backend)
        runs.append((out.detach(), *torch.autograd.grad(out.square().sum(), table)))
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def _scene(seed: int, n_rays: int = 20, top: float = 4.0) -> tuple[Tensor, Tensor, RaySamples, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    t, dt, offsets = random_samples(generator, n_rays)
    n = t.shape[0]
    density = torch.exp(torch.rand(n, generator=generator) * (top + 2) - 2)
    return (
        torch.rand(n, 3, generator=generator),
        density,
        RaySamples(t, dt, offsets),
        torch.rand(n_rays, 3, generator=generator),
    )


@pytest.mark.op("composite")
@given(seed=seeds, top=st.floats(-2, 12))
@quick
def test_weights_and_what_passes_sum_to_one(backend: Backend, seed: int, top: float) -> None:
    color, density, samples, _ = _scene(seed, top=top)
    shown = ops.composite(torch.zeros_like(color), density, samples, torch.ones(3), backend=backend)
    torch.testing.assert_close(
        shown.color[:, 0] + shown.opacity,
        torch.ones_like(shown.opacity),
        rtol=0,
        atol=tolerances.COMPOSITE_IDENTITY,
    )
    assert shown.weight.min() >= 0 if shown.weight.numel() else True


@pytest.mark.op("composite")
@given(seed=seeds, scale=st.floats(0.01, 100))
@quick
def test_larger_scene_of_thinner_stuff_looks_the_same(backend: Backend, seed: int, scale: float) -> None:
    color, density, samples, background = _scene(seed)
    larger = RaySamples(samples.t * scale, samples.dt * scale, samples.ray_offsets)
    a = ops.composite(color, density, samples, background, backend=backend)
    b = ops.composite(color, density / scale, larger, background, backend=backend)
    for x, y, factor in zip(a, b, (1, 1, scale, 1), strict=True):
        assert relative_error(y, x * factor) <= tolerances.FAST_OUTPUT


@pytest.mark.op("composite")
@given(seed=seeds)
@quick
def test_empty_space_changes_nothing(backend: Backend, seed: int) -> None:
    color, density, samples, background = _scene(seed)
    a = ops.composite(color, density, samples, background, backend=backend)
    # A sample of no density behind each of the others.
    doubled = RaySamples(
        torch.stack([samples.t, samples.t + samples.dt / 2], 1).flatten(),
        samples.dt.repeat_interleave(2),
        samples.ray_offsets * 2,
    )
    b = ops.composite(
        color.repeat_interleave(2, 0),
        torch.stack([density, torch.zeros_like(density)], 1).flatten(),
        doubled,
        background,
        backend=backend,
    )
    for x, y in ((a.color, b.color), (a.opacity, b.opacity), (a.depth, b.depth), (a.weight, b.weight[::2])):
        torch.testing.assert_close(x, y, rtol=tolerances.FAST_OUTPUT, atol=tolerances.SAME_NUMBER)
    assert (b.weight[1::2] == 0).all()


@pytest.mark.op("composite")
@given(seed=seeds, cut=st.floats(0, 1))
@quick
def test_cut_keeps_a_prefix_of_every_ray(backend: Backend, seed: int, cut: float) -> None:
    color, density, samples, background = _scene(seed)
    full = ops.composite(color, density, samples, background, backend=backend)
    shown = ops.composite(color, density, samples, background, min_transmittance=cut, backend=backend)
    kept = shown.weight > 0
    torch.testing.assert_close(shown.weight[kept], full.weight[kept])
    ray = samples.ray_index()
    same = ray.diff() == 0
    # Once dark, dark: no weight follows a sample without one. (Densities here are positive.)
    assert not (same & ~kept[:-1] & kept[1:]).any()


@pytest.mark.op("composite")
def test_wall_takes_everything(backend: Backend) -> None:
    samples = RaySamples(torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 0.1), torch.tensor([0, 3]))
    density = torch.tensor([0.0, 1e8, 5.0], requires_grad=True)
    color = torch.eye(3, requires_grad=True)
    shown = ops.composite(color, density, samples, torch.ones(3), backend=backend)
    assert shown.weight.tolist() == [0, 1, 0]
    assert shown.color.tolist() == [[0, 1, 0]]
    assert (shown.opacity.item(), shown.depth.item()) == (1, 2)
    gradients = torch.autograd.grad(shown.color.sum() + shown.depth.sum(), (density, color))
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.op("composite")
def test_rays_may_be_permuted(backend: Backend) -> None:
    color, density, samples, background = _scene(7)
    whole = ops.composite(color, density, samples, background, backend=backend)
    order = torch.randperm(samples.n_rays)
    counts = samples.ray_offsets.diff()
    take = torch.cat([torch.arange(*samples.ray_offsets[i : i + 2].tolist()) for i in order.tolist()])
    offsets = torch.zeros_like(samples.ray_offsets)
    offsets[1:] = counts[order].cumsum(0)
    moved = RaySamples(samples.t[take], samples.dt[take], offsets)
    shown = ops.composite(color[take], density[take], moved, background[order], backend=backend)
    assert torch.equal(shown.color, whole.color[order])
    assert torch.equal(shown.weight, whole.weight[take])


@pytest.mark.op("spherical_harmonics")
@given(seed=seeds)
@quick
def test_harmonics_add_up_to_a_constant(backend: Backend, seed: int) -> None:
    # Unsoeld: the squares of each degree sum to (2 l + 1) / (4 pi) in every direction.
    directions = unit_vectors(torch.Generator().manual_seed(seed), 20)
    squares = ops.spherical_harmonics(directions, backend=backend).square()
    for degree in range(4):
        total = squares[:, degree**2 : (degree + 1) ** 2].sum(1)
        torch.testing.assert_close(
            total, torch.full_like(total, (2 * degree + 1) / (4 * math.pi)), rtol=tolerances.FAST_OUTPUT, atol=0
        )


@given(seed=seeds)
@quick
def test_ray_leaves_a_box_on_its_faces(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    origin = (torch.rand(50, 3, generator=generator) * 6 - 3).double()
    direction = unit_vectors(generator, 50).double()
    corners = (torch.rand(2, 3, generator=generator) * 4 - 2).double().sort(0).values
    t_min, t_max = ops.ray_box(origin, direction, *corners)
    hit = t_max > t_min
    assert bool(((t_min == 0) & (t_max == 0))[~hit].all())
    inside = ((origin >= corners[0]) & (origin <= corners[1])).all(1)
    assert bool((t_min[inside] == 0).all()) and bool(hit[inside].all())
    for t, skip in ((t_min, inside), (t_max, torch.zeros_like(inside))):
        position = (origin + t[:, None] * direction)[hit & ~skip]
        to_face = (position[:, None] - corners).abs().amin((1, 2))
        assert to_face.numel() == 0 or to_face.max() < tolerances.FLOAT64_PLACE
        assert bool(
            (
                (position >= corners[0] - tolerances.FLOAT64_PLACE)
                & (position <= corners[1] + tolerances.FLOAT64_PLACE)
            ).all()
        )


@pytest.mark.op("adam")
@given(seed=seeds, step=st.integers(1, 1000))
@quick
def test_adam_leaves_zero_gradients_alone(backend: Backend, seed: int, step: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = [torch.randn(77, generator=generator) for _ in range(3)]
    state[2] = state[2].abs()
    before = [x.clone() for x in state]
    grad = torch.randn(77, generator=generator)
    grad[::2] = 0
    grad[::4] = -0.0
    ops.adam(state[0], grad, state[1], state[2], step=step, learning_rate=0.1, backend=backend)
    for now, then in zip(state, before, strict=True):
        assert torch.equal(now[::2], then[::2])
        assert bool((now[1::2] != then[1::2]).all())


@given(seed=seeds)
@quick
def test_adam_agrees_with_torch(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    param = torch.randn(9, generator=generator, dtype=torch.float64)
    other = torch.nn.Parameter(param.clone())
    optimiser = torch.optim.Adam([other], lr=0.05, betas=(0.9, 0.99), eps=1e-15, weight_decay=1e-3)
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(1, 6):
        grad = torch.randn(9, generator=generator, dtype=torch.float64)
        other.grad = grad.clone()
        optimiser.step()
        ops.adam(
            param,
            grad,
            m,
            v,
            step=step,
            learning_rate=0.05,
            l2=1e-3,
            skip_zero_gradient=False,
            backend="reference",
        )
    torch.testing.assert_close(param, other.detach(), rtol=tolerances.FLOAT64, atol=tolerances.FLOAT64)
