"""What a caller is told about wrong arguments, and empty inputs, which are not wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hashfield import ops
from hashfield.errors import ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import Rays, RaySamples
from hashfield.geometry.spaces import n_cascades_of
from hashfield.ops.occupancy import BYTES_PER_CASCADE, check_aabb_scale

L = GridLayout(3, 2, 2, 6, 4, 2.0)
P, D, TABLE = torch.rand(5, 3), torch.rand(5, 3), torch.rand(L.n_entries, 2)
W = [torch.rand(8, 4), torch.rand(3, 8)]
SAMPLES = RaySamples(torch.rand(4), torch.rand(4), torch.tensor([0, 1, 4]))
RAYS = Rays(P, D, torch.zeros(5), torch.ones(5))
BITS = torch.zeros(BYTES_PER_CASCADE, dtype=torch.uint8)
MARCH: dict[str, Any] = {"aabb_scale": 1, "cone_angle": 0.0}


def _variation(**changes: Any) -> float:
    corners = torch.zeros(2, 3, dtype=torch.int64)
    usual: dict[str, Any] = {"grad": torch.zeros_like(TABLE), "corners": corners, "sides": [1, 2], "weight": 1.0}
    return ops.total_variation(TABLE, layout=L, **{**usual, **changes})


WRONG: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: ops.grid_encode(P[:, :2], TABLE, L),
        "grid_encode: positions_unit: expected shape [n, 3], got [5, 2]",
    ),
    (
        lambda: ops.grid_encode(P, TABLE[:5], L),
        f"grid_encode: table: expected shape [{L.n_entries}, 2], got [5, 2]",
    ),
    (
        lambda: ops.grid_encode(P, TABLE, L, precision="bfloat16", table_bf16=TABLE),
        "grid_encode: table_bf16: expected bfloat16, got float32",
    ),
    (
        lambda: ops.grid_encode(P, TABLE, L, table_bf16=TABLE.bfloat16()),
        "grid_encode: table_bf16: is read with precision 'bfloat16' only",
    ),
    (
        lambda: ops.grid_encode(P, TABLE.double(), L),
        "grid_encode: table: expected float32 like positions_unit, got float64",
    ),
    (
        lambda: ops.grid_encode(P.half(), TABLE, L),
        "grid_encode: positions_unit: expected float32 or float64, got float16",
    ),
    (
        lambda: ops.grid_encode(P, TABLE.to("meta"), L),
        "grid_encode: table: expected device cpu like positions_unit, got meta",
    ),
    (
        lambda: ops.grid_encode(P.tolist(), TABLE, L),  # pyright: ignore[reportArgumentType]
        "grid_encode: positions_unit: expected a tensor, got list",
    ),
    (
        lambda: ops.grid_encode(P, TABLE, L, interpolation="cubic"),  # pyright: ignore[reportArgumentType]
        "grid_encode: interpolation: expected one of 'linear', 'smoothstep', 'nearest', got 'cubic'",
    ),
    (
        lambda: ops.grid_encode(P, TABLE, L, precision="float16"),  # pyright: ignore[reportArgumentType]
        "grid_encode: precision: expected one of 'float32', 'bfloat16', got 'float16'",
    ),
    (lambda: ops.identity_encode(P[0]), "identity_encode: x: expected shape [n, n_dims], got [3]"),
    (lambda: ops.frequency_encode(P[0]), "frequency_encode: x: expected shape [n, n_dims], got [3]"),
    (
        lambda: ops.frequency_encode(P, n_frequencies=0),
        "frequency_encode: n_frequencies: expected a finite number of at least 1, got 0",
    ),
    (
        lambda: ops.triangle_wave_encode(P.half()),
        "triangle_wave_encode: x: expected float32 or float64, got float16",
    ),
    (
        lambda: ops.triangle_wave_encode(P, n_frequencies=-1),
        "triangle_wave_encode: n_frequencies: expected a finite number of at least 1, got -1",
    ),
    (
        lambda: ops.one_blob_encode(P, n_bins=0),
        "one_blob_encode: n_bins: expected a finite number of at least 1, got 0",
    ),
    (
        lambda: _variation(sides=[1]),
        "total_variation: sides: expected 2 counts of at least 1, got [1]",
    ),
    (
        lambda: _variation(corners=torch.tensor([[0, 0, 0], [0, 7, 0]])),
        "total_variation: corners: a cube reaches beyond the vertices of its level",
    ),
    (
        lambda: _variation(grad=TABLE.clone()[:3]),
        f"total_variation: grad: expected shape [{L.n_entries}, 2], got [3, 2]",
    ),
    (
        lambda: ops.spherical_harmonics(D, degree=9),
        "spherical_harmonics: degree: expected an integer from 1 to 8, got 9",
    ),
    (
        lambda: ops.spherical_harmonics(D[0]),
        "spherical_harmonics: directions: expected shape [n, 3], got [3]",
    ),
    (lambda: ops.mlp(P, W), "mlp: weights[0]: expected shape [n_out of weights[0], 3], got [8, 4]"),
    (
        lambda: ops.mlp(torch.rand(5, 4), [W[0], W[0]]),
        "mlp: weights[1]: expected shape [n_out of weights[1], 8], got [8, 4]",
    ),
    (lambda: ops.mlp(P, []), "mlp: weights: expected at least one matrix, got none"),
    (lambda: ops.mlp(P[0], W), "mlp: x: expected shape [n, n_in], got [3]"),
    (
        lambda: ops.mlp(torch.rand(5, 4), W, output_activation="cosine"),  # pyright: ignore[reportArgumentType]
        "mlp: output_activation: expected one of 'none', 'relu', 'sigmoid', 'exp', 'leaky_relu', 'silu', "
        "'sine', 'squareplus', 'softplus', 'tanh', got 'cosine'",
    ),
    (
        lambda: ops.encoded_mlp(P, TABLE, [torch.rand(8, 5)], L),
        "encoded_mlp: weights[0]: expected shape [n_out of weights[0], 4], got [8, 5]",
    ),
    (
        lambda: ops.color_mlp(P, D, W),
        "color_mlp: weights[0]: expected shape [n_out of weights[0], 19], got [8, 4]",
    ),
    (lambda: ops.color_mlp(P, D[:4], W), "color_mlp: directions: expected shape [n=5, 3], got [4, 3]"),
    (
        lambda: ops.composite(torch.rand(4, 3), torch.rand(3), SAMPLES, torch.rand(3)),
        "composite: density: expected shape [n_samples=4], got [3]",
    ),
    (
        lambda: ops.composite(torch.rand(4, 3), torch.rand(4), SAMPLES, torch.rand(3, 3)),
        "composite: background: expected shape [2, 3], got [3, 3]",
    ),
    (
        lambda: ops.composite(
            torch.rand(4, 3),
            torch.rand(4),
            RaySamples(SAMPLES.t, SAMPLES.dt, torch.tensor([0, 1, 3])),
            torch.rand(3),
        ),
        "composite: samples.ray_offsets: expected 0 first and n_samples=4 last, got [0, 3]",
    ),
    (
        lambda: ops.composite(torch.rand(4, 3), torch.rand(4), SAMPLES, torch.rand(3), min_transmittance=2.0),
        "composite: min_transmittance: expected 0 to 1, got 2.0",
    ),
    (
        lambda: ops.march(RAYS, BITS, aabb_scale=3, cone_angle=0.0),
        "aabb_scale: expected a power of two from 1 to 128, got 3",
    ),
    (
        lambda: ops.march(RAYS, BITS, aabb_scale=2, cone_angle=0.0),
        f"march: bits: expected shape [{2 * BYTES_PER_CASCADE}], got [{BYTES_PER_CASCADE}]",
    ),
    (lambda: ops.march(RAYS, BITS.int(), **MARCH), "march: bits: expected uint8, got int32"),
    (
        lambda: ops.march(RAYS, BITS, **MARCH, step_scale=0.0),
        "march: step_scale: expected a finite number of more than 0, got 0.0",
    ),
    (
        lambda: ops.march(RAYS, BITS, aabb_scale=1, cone_angle=float("nan")),
        "march: cone_angle: expected a finite number of at least 0, got nan",
    ),
    (
        lambda: ops.march(RAYS, BITS, **MARCH, jitter=torch.zeros(3)),
        "march: jitter: expected shape [n_rays=5], got [3]",
    ),
    (
        lambda: ops.march(RAYS, BITS, **MARCH, max_samples_per_ray=0),
        "march: max_samples_per_ray: expected a finite number of at least 1, got 0",
    ),
    (
        lambda: ops.ray_box(P, D, torch.zeros(2), torch.ones(3)),
        "ray_box: box_min: expected shape [3], got [2]",
    ),
    (lambda: ops.morton3(P), "morton3: cell: expected int32 or int64, got float32"),
    (
        lambda: ops.pack_bits(torch.zeros(100), 0.5),
        "pack_bits: values: expected a positive multiple of 128^3 = 2097152 cells, got 100",
    ),
    (
        lambda: ops.is_occupied(P, BITS, 2),
        f"is_occupied: bits: expected shape [{2 * BYTES_PER_CASCADE}], got [{BYTES_PER_CASCADE}]",
    ),
    (
        lambda: ops.adam(P.clone(), P, P.clone(), P.clone(), learning_rate=0.1),
        "adam: expected exactly one of counts and step",
    ),
    (
        lambda: ops.adam(P.T, P.T, P.T.clone(), P.T.clone(), step=1, learning_rate=0.1),
        "adam: param: expected a contiguous tensor, it is changed in place",
    ),
    (
        lambda: ops.adam(P.clone(), P[:4], P.clone(), P.clone(), step=1, learning_rate=0.1),
        "adam: grad: expected shape [5, 3], got [4, 3]",
    ),
    (
        lambda: ops.adam(P.clone(), P, P.clone(), P.clone(), step=1, learning_rate=0.1, beta2=1.0),
        "adam: beta2: expected a number in [0, 1), got 1.0",
    ),
    (
        lambda: ops.adam(P.clone(), P, P.clone(), P.clone(), step=0, learning_rate=0.1),
        "adam: step: expected a finite number of at least 1, got 0",
    ),
    (
        lambda: ops.camera_rays(torch.zeros(1, 12), torch.zeros(5, dtype=torch.int64), torch.zeros(5, 2)),
        "camera_rays: table: expected shape [n_cameras, 24], got [1, 12]",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [pytest.param(call, text, id=text.split(", got")[0]) for call, text in WRONG]
)
def test_wrong_argument_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("backend", ["reference", None])
def test_empty_inputs_are_legal(backend: ops.Backend | None) -> None:
    none = torch.zeros(0, 3)
    assert ops.grid_encode(none, TABLE, L, backend=backend).shape == (0, 4)
    assert ops.spherical_harmonics(none, backend=backend).shape == (0, 16)
    assert ops.mlp(torch.zeros(0, 4), W, backend=backend).shape == (0, 3)
    assert [x.shape[0] for x in ops.ray_box(none, none, P[0], P[1])] == [0, 0]
    rays = Rays(none, none, torch.zeros(0), torch.zeros(0))
    samples = ops.march(rays, BITS, **MARCH, backend=backend)
    assert (samples.n_rays, samples.n_samples) == (0, 0)
    assert samples.ray_offsets.tolist() == [0]
    shown = ops.composite(none, torch.zeros(0), samples, torch.zeros(3), backend=backend)
    assert [x.shape[0] for x in shown] == [0, 0, 0, 0]
    assert ops.morton3(none.long()).shape == (0,)
    assert ops.is_occupied(none, BITS, 1).shape == (0,)


def test_rays_without_samples_show_the_background() -> None:
    samples = RaySamples(torch.zeros(0), torch.zeros(0), torch.tensor([0, 0, 0]))
    background = torch.rand(2, 3)
    for backend in ("reference", None):
        shown = ops.composite(torch.zeros(0, 3), torch.zeros(0), samples, background, backend=backend)
        torch.testing.assert_close(shown.color, background)
        assert shown.opacity.tolist() == shown.depth.tolist() == [0, 0]


def test_n_cascades_of_a_box() -> None:
    assert [n_cascades_of(a) for a in (1, 2, 4, 8, 16, 32, 64, 128)] == [1, 2, 3, 4, 5, 6, 7, 8]
    for wrong in (0, -1, 3, 256):
        with pytest.raises(ShapeError, match="power of two"):
            check_aabb_scale(wrong)
