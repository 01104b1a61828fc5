"""Figures computed by other implementations, printed to six digits or so."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout, per_level_scale_between
from hashfield.geometry.rays import RaySamples
from hashfield.kernels.reference.grid_encode import cell_and_fraction, vertex_index
from hashfield.ops.backend import Backend
from tests import tolerances

PAPER = GridLayout(3, 16, 2, 19, 16, 1.38191283)
SMALL = GridLayout(2, 4, 2, 8, 4, 2.0)


def golden_table(layout: GridLayout) -> Tensor:
    """theta_k = f32(u / 2^24 * 2e-4 - 1e-4), u = ((k * 2654435761) mod 2^32) >> 8."""
    u = (np.arange(layout.n_parameters, dtype=np.uint64) * 2654435761 % 2**32) >> 8
    values = (u / 2**24 * 2e-4 - 1e-4).astype(np.float32)
    return torch.from_numpy(values).view(layout.n_entries, layout.n_features_per_level)


def close(actual: Tensor, expected: Any, unit: float = 1.0) -> None:
    """Within half a printed digit and the precision of a float32 position."""
    expected = torch.tensor(expected, dtype=torch.float64) * unit
    tolerance = 6e-6 * unit + tolerances.GOLDEN_RELATIVE * expected.abs().max()
    worst = (actual.double() - expected).abs().max()
    assert worst <= tolerance, f"off by {worst:.3g}, tolerance {tolerance:.3g}"


# level: cell, fraction, index of corner 000, of corner 111, two features * 1e5
PAPER_LEVELS = [
    ((2, 7, 12), (0.345000, 0.340000, 0.335000), 3186, 3459, (-1.76996, 2.42090)),
    ((3, 10, 17), (0.096605, 0.126436, 0.156267), 9226, 9779, (4.90152, 1.23444)),
    ((4, 13, 23), (0.135256, 0.977048, 0.818838), 22510, 23503, (0.57575, -6.66662)),
    ((5, 19, 33), (0.570583, 0.298258, 0.025932), 61839, 63732, (4.40964, -2.79930)),
    ((7, 26, 45), (0.554079, 0.651705, 0.749332), 158186, 161727, (-0.71161, 2.18841)),
    ((10, 36, 63), (0.295096, 0.813526, 0.331955), 430405, 95198, (-0.01329, -0.22232)),
    ((14, 50, 87), (0.082946, 0.856285, 0.629623), 395071, 206196, (-3.00293, 6.19574)),
    ((19, 70, 121), (0.317421, 0.262138, 0.206856), 8984, 490753, (0.69470, 2.01367)),
    ((26, 97, 167), (0.551010, 0.079353, 0.607696), 147000, 388113, (-0.10945, 2.92836)),
    ((36, 134, 231), (0.547199, 0.138397, 0.729584), 308721, 422778, (3.14337, -2.83304)),
    ((50, 185, 320), (0.361061, 0.350769, 0.340454), 232091, 113532, (2.16498, -2.38223)),
    ((69, 256, 442), (0.450623, 0.121826, 0.792999), 165383, 304160, (-2.93033, 4.73321)),
    ((95, 353, 612), (0.830734, 0.921234, 0.011719), 503162, 389483, (6.40479, 0.05881)),
    ((132, 489, 845), (0.285751, 0.071533, 0.857300), 288076, 229929, (3.24240, -4.39692)),
    ((182, 675, 1169), (0.663330, 0.837219, 0.011108), 275040, 69929, (-3.42811, 5.55357)),
    ((252, 933, 1615), (0.280838, 0.931396, 0.581909), 1554, 337835, (-3.92105, 0.42723)),
]


def test_table_of_the_golden_figures() -> None:
    first = golden_table(PAPER).flatten()[:4]
    close(first, [-1e-4, 2.360679e-5, -5.278641e-5, 7.082039e-5], 1.0)
    np.testing.assert_allclose(first.numpy(), [-1e-4, 2.360679e-5, -5.278641e-5, 7.082039e-5], rtol=1e-6)


@pytest.mark.parametrize("level", range(16))
def test_cells_fractions_and_indices(level: int) -> None:
    cell, fraction, first, last, _ = PAPER_LEVELS[level]
    x = torch.tensor([[0.123, 0.456, 0.789]])
    got_cell, got_fraction = cell_and_fraction(x, float(PAPER.scales[level]))
    assert tuple(got_cell[0].tolist()) == cell
    # An ulp of q at resolution 2048 is 1.2e-4, but the same arithmetic gives the same bits: six places.
    np.testing.assert_allclose(got_fraction[0].numpy(), fraction, atol=6e-7)
    corners = got_cell[:, None, :] + torch.tensor([[0, 0, 0], [1, 1, 1]])
    assert vertex_index(corners, PAPER, level)[0].tolist() == [first, last]


@pytest.mark.op("grid_encode")
def test_paper_grid(backend: Backend) -> None:
    x = torch.tensor([[0.123, 0.456, 0.789], [-0.3, 0.2, 1.4]])
    features = ops.grid_encode(x, golden_table(PAPER), PAPER, backend=backend).view(2, 16, 2)
    close(features[0], [level[-1] for level in PAPER_LEVELS], 1e-5)
    # Outside the box, where indices wrap.
    close(features[1, [0, 15]], [(3.18483, 0.54551), (1.79798, -0.47711)], 1e-5)


@pytest.mark.op("grid_encode")
@pytest.mark.parametrize(
    ("x", "interpolation", "expected"),
    [
        (
            (0.37, 0.81),
            "linear",
            (-5.6643, 6.6964, 4.8831, -1.2623, -0.1239, -7.7632, -0.4820, -7.7553),
        ),
        (
            (0.37, 0.81),
            "smoothstep",
            (-5.4796, 6.8811, 5.8458, -1.3718, -0.6300, -8.2693, -0.7114, -8.3157),
        ),
        ((0.37, 0.81), "nearest", (-7.5078, 4.8529, 6.3311, -1.3082, 2.5379, -5.1014, 7.9865, 0.3472)),
        ((0.0, 0.0), "linear", (-3.1966, 4.1641, 1.7879, -0.8515, 2.8403, 0.2010, -0.7829, 1.5778)),
        # The upper corners wrap around.
        ((1.0, 1.0), "linear", (0.9675, -1.6718, 2.6083, -5.0311, 0.2860, -2.3534, 1.1831, 3.5438)),
    ],
)
def test_small_grid(
    backend: Backend, x: tuple[float, float], interpolation: ops.Interpolation, expected: tuple[float, ...]
) -> None:
    out = ops.grid_encode(torch.tensor([x]), golden_table(SMALL), SMALL, interpolation=interpolation, backend=backend)
    np.testing.assert_allclose(out[0].numpy() * 1e5, expected, atol=6e-5)


# Parameters sin(i), i the flat index; three-dimensional points.
SINE_POINTS = ((0.137, 0.523, 0.891), (1.0, 0.0, 0.25), (-0.213, 1.307, 0.611))
SINE = GridLayout(3, 4, 2, 12, 16, 1.5)


def sine_table(layout: GridLayout) -> Tensor:
    """theta_i = sin(i), computed in float64."""
    values = np.sin(np.arange(layout.n_parameters, dtype=np.float64)).astype(np.float32)
    return torch.from_numpy(values).view(layout.n_entries, layout.n_features_per_level)


@pytest.mark.op("grid_encode")
@pytest.mark.parametrize(
    ("layout", "x", "interpolation", "expected"),
    [
        (
            SINE, SINE_POINTS[0], "linear",
            (0.188877, -0.180397, -0.037053, 0.464802, 0.087475, 0.234504, -0.285328, -0.688356),
        ),
        (
            SINE, SINE_POINTS[0], "smoothstep",
            (0.216776, -0.248358, -0.043101, 0.494518, 0.264288, 0.427997, -0.268537, -0.787772),
        ),
        (
            SINE, SINE_POINTS[0], "nearest",
            (-0.976714, -0.708255, 0.380416, 0.983745, -0.010479, -0.847087, -0.999875, -0.526907),
        ),
        (SINE, SINE_POINTS[1], "linear", (-0.10161, 0.14586, -0.05767, -0.42990, 0.10623, -0.15938, 0.44669, -0.07682)),
        (
            SINE, SINE_POINTS[2], "linear",
            (-0.16989, 0.00723, -0.48385, -0.24212, -0.36535, -0.13628, -0.32447, -0.21812),
        ),
        (
            GridLayout(2, 4, 2, 8, 8, 1.6), (0.37, 0.81), "linear",
            (0.58434, 0.35587, 0.71096, 0.06933, 0.08084, 0.24809, 0.50622, 0.43039),
        ),
        (GridLayout(4, 3, 1, 10, 4, 1.5), (0.37, 0.81, 0.25, 0.61), "linear", (0.25305, -0.12559, -0.35453)),
        (
            GridLayout(3, 3, 2, 19, 6, 1.7, "Tiled"), SINE_POINTS[0], "linear",
            (0.50258, -0.11256, -0.20153, -0.08205, -0.32538, -0.57471),
        ),
        (
            GridLayout(3, 3, 2, 19, 6, 1.7, "Dense"), SINE_POINTS[0], "linear",
            (0.50258, -0.11256, 0.00130, -0.08685, 0.13253, -0.44443),
        ),
    ],
)  # fmt: skip
def test_grids_of_sines(
    backend: Backend, layout: GridLayout, x: tuple[float, ...], interpolation: ops.Interpolation, expected: Any
) -> None:
    if layout.n_dims == 4 and backend != "reference":
        pytest.skip("left to the reference by design")
    out = ops.grid_encode(torch.tensor([x]), sine_table(layout), layout, interpolation=interpolation, backend=backend)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=8e-6)


@pytest.mark.parametrize(
    ("interpolation", "first", "second"),
    [
        ("linear", (-78.03566, 90.18058, 38.65031), (-8355.9, -602.2, 5117.8)),
        ("smoothstep", (-132.57652, 92.57884, 56.45132), (-22394.3, 6725.5, 3950.0)),
    ],
)
def test_first_and_second_derivatives_of_a_grid_of_sines(
    interpolation: ops.Interpolation, first: Any, second: Any
) -> None:
    x = torch.tensor([SINE_POINTS[0]], dtype=torch.float64, requires_grad=True)
    table = sine_table(SINE).double()
    out = ops.grid_encode(x, table, SINE, interpolation=interpolation, backend="reference")
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    np.testing.assert_allclose(gradient[0].detach(), first, rtol=2e-5)
    (curvature,) = torch.autograd.grad(gradient.sum(), x)
    np.testing.assert_allclose(curvature[0], second, atol=0.06, rtol=2e-5)


def test_elementwise_encodings() -> None:
    x = torch.tensor([[0.3, 0.7]])
    np.testing.assert_allclose(
        ops.frequency_encode(x, n_frequencies=3)[0],
        [
            *(0.8090170, 0.5877853, 0.9510565, -0.3090170, -0.5877853, -0.8090170),
            *(0.8090170, -0.5877853, -0.9510565, -0.3090170, 0.5877853, -0.8090170),
        ],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        ops.triangle_wave_encode(x, n_frequencies=4)[0], [0.4, -0.8, 0.6, 0.8, -0.4, 0.8, 0.6, -0.8], atol=1e-6
    )
    np.testing.assert_allclose(
        ops.one_blob_encode(torch.tensor([[0.3]]), n_bins=8)[0], [0, 0.16308, 0.77900, 0.05792, 0, 0, 0, 0], atol=6e-6
    )
    np.testing.assert_allclose(
        ops.one_blob_encode(torch.tensor([[0.02]]), n_bins=4)[0], [0.5740784, 0.0006022, 0, 0.4253194], atol=2e-7
    )


@pytest.mark.op("grid_encode")
def test_small_grid_gradient(backend: Backend) -> None:
    expected = [
        (0.1416, -0.0334),
        (0.1416, -0.0334),
        (-0.8315, -0.0300),
        (0.3305, -0.1560),
        (0.7082, -0.6687),
        (0.7082, -0.6687),
        (-0.0235, -1.4268),
        (-3.8055, -1.2408),
    ]
    table = golden_table(SMALL)
    for feature, row in enumerate(expected):
        x = torch.tensor([(0.37, 0.81)], requires_grad=True)
        ops.grid_encode(x, table, SMALL, backend=backend)[0, feature].backward()
        assert x.grad is not None
        np.testing.assert_allclose(x.grad[0].numpy() * 1e3, row, atol=6e-5)


def test_wrap_at_the_upper_corner() -> None:
    corner = []
    for level in range(4):
        cell, fraction = cell_and_fraction(torch.ones(1, 2), float(SMALL.scales[level]))
        assert cell[0].tolist() == [(3, 7, 15, 31)[level]] * 2
        assert fraction[0].tolist() == [0.5, 0.5]
        corner.append(int(vertex_index(cell[:, None, :] + 1, SMALL, level)))
    assert corner == [4, 8, 16, 0]


def test_spatial_hash() -> None:
    layout = GridLayout(3, 1, 2, 19, 2048, 1.0)
    vertices = torch.tensor([[[1, 2, 3], [100, 200, 300]]])
    assert vertex_index(vertices, layout, 0)[0].tolist() == [128476, 110768]
    layout = GridLayout(2, 1, 2, 15, 2048, 1.0)
    assert int(vertex_index(torch.tensor([[[5, 7]]]), layout, 0)) == 21458
    layout = GridLayout(4, 1, 2, 30, 256, 1.0)
    assert int(vertex_index(torch.tensor([[[1, 2, 3, 4]]]), layout, 0)) == 3228761608 % 2**30


@pytest.mark.op("spherical_harmonics")
def test_spherical_harmonics(backend: Backend) -> None:
    expected = [
        *(0.2820948, -0.2611690, 0.3917535, -0.1305845, 0.1560783, -0.4682350, 0.2928636, -0.2341175),
        *(-0.1170588, 0.0225280, 0.3310922, -0.5409528, 0.0641157, -0.2704764, -0.2483191, 0.1239038),
    ]
    direction = torch.tensor([[1.0, 2.0, 3.0]]) / 14**0.5
    np.testing.assert_allclose(ops.spherical_harmonics(direction, backend=backend)[0].numpy(), expected, atol=3e-7)


@pytest.mark.op("composite")
def test_compositing(backend: Backend) -> None:
    raw_density = torch.tensor([0.5, 2.0, 3.0], requires_grad=True)
    raw_color = torch.tensor([[0.2, -0.3, 1.0], [1.0, 0.5, -0.5], [-1.0, 0.0, 2.0]], requires_grad=True)
    samples = RaySamples(torch.tensor([1.0, 1.05, 1.1]), torch.full((3,), 0.05), torch.tensor([0, 3]))
    shown = ops.composite(
        torch.sigmoid(raw_color),
        torch.exp(raw_density),
        samples,
        torch.tensor([0.1, 0.2, 0.3]),
        backend=backend,
    )
    np.testing.assert_allclose(shown.color[0].detach(), (0.3832304, 0.4590038, 0.5903990), atol=2e-7)
    np.testing.assert_allclose(shown.weight.detach(), (0.0791297, 0.2844454, 0.4032964), atol=2e-7)
    np.testing.assert_allclose(1 - shown.opacity.detach(), [0.2331284], atol=2e-7)
    d = shown.color - torch.tensor([[0.3, 0.6, 0.9]])
    huber = torch.where(d.abs() <= 0.1, d * d / 0.2, d.abs() - 0.05).sum() / 5
    assert huber.item() == pytest.approx(0.0770467, abs=2e-7)
    huber.backward()
    assert raw_color.grad is not None and raw_density.grad is not None
    np.testing.assert_allclose(
        torch.cat([raw_color.grad, raw_density.grad[:, None]], 1).numpy(),
        [
            (0.0032603, -0.0038688, -0.0031116, 0.0005186),
            (0.0093094, -0.0133691, -0.0133691, 0.0232440),
            (0.0131992, -0.0201648, -0.0084687, -0.0346593),
        ],
        atol=2e-7,
    )


# 1 - beta2 in float32 is off by 1e-6 already, its square root by half of that.
ADAM = 2e-6


def _adam_walk(counts: bool, backend: Backend, **options: Any) -> list[float]:
    w, m, v = torch.tensor([1e-4]), torch.zeros(1), torch.zeros(1)
    k = torch.zeros(1, dtype=torch.int32) if counts else None
    seen = []
    for step, g in enumerate((1e-6, 0.0, 0.0, -3e-6, 2e-6), 1):
        ops.adam(
            w,
            torch.tensor([g]),
            m,
            v,
            k,
            step=None if counts else step,
            learning_rate=1e-2,
            backend=backend,
            **options,
        )
        seen.append(w.item())
    return seen


def test_adam_that_skips_with_its_own_counts() -> None:
    expected = [-0.0098999999, -0.0098999999, -0.0098999999, -0.0049670184, -0.0051547149]
    np.testing.assert_allclose(_adam_walk(True, "reference"), expected, rtol=ADAM)


@pytest.mark.op("adam")
def test_adam_that_never_skips(backend: Backend) -> None:
    expected = [-0.0098999999, -0.0166158013, -0.0218189479, -0.0176674869, -0.0176037641]
    walk = _adam_walk(False, backend, skip_zero_gradient=False)
    np.testing.assert_allclose(walk, expected, rtol=ADAM)


@pytest.mark.op("adam")
def test_adam_that_skips_with_one_count(backend: Backend) -> None:
    # No outside figure: by hand in double precision.
    w, m, v, expected = 1e-4, 0.0, 0.0, []
    for k, g in enumerate((1e-6, 0.0, 0.0, -3e-6, 2e-6), 1):
        if g:
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            w -= 1e-2 * (1 - 0.99**k) ** 0.5 / (1 - 0.9**k) * m / (v**0.5 + 1e-15)
        expected.append(w)
    np.testing.assert_allclose(_adam_walk(False, backend), expected, rtol=ADAM)


# Sizes ------------------------------------------------------------------------------------------------------


def test_paper_sizes() -> None:
    assert PAPER.n_parameters == 12_196_240
    scales = (15, 21.1106, 29.5549, 41.2243, 57.3502, 79.6349, 110.430, 152.987, 211.797, 293.067, 405.374)
    np.testing.assert_allclose(PAPER.scales[:11], scales, rtol=5e-6)
    assert PAPER.resolutions.tolist() == [
        16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048
    ]  # fmt: skip
    assert PAPER.entries.tolist() == [4096, 12168, 29792, 79512, 205384, *[524288] * 11]
    assert PAPER.is_hashed.tolist() == [False] * 5 + [True] * 11
    assert PAPER.level_offsets.tolist()[:7] == [0, 4096, 16264, 46056, 125568, 330952, 855240]
    assert PAPER.n_entries == 6_098_120


def test_base_json_sizes() -> None:
    layout = GridLayout()
    assert layout.n_parameters == 11_681_792
    assert layout.resolutions.tolist() == [16, 32, 64, 128, 256, 512, 1024, 2048]
    assert layout.entries.tolist() == [4096, 32768, 262144, *[524288] * 5]
    assert layout.is_hashed.tolist() == [False] * 3 + [True] * 5
    assert layout.level_offsets.tolist()[1:4] == [4096, 36864, 299008]


@pytest.mark.parametrize(
    ("aabb_scale", "eight", "sixteen"),
    [
        (1, (2, 2048, 11_681_792), (1.38191283, 2048, 12_196_240)),
        (2, (2.208179, 4096, 12_660_928), (1.44726920, 4096, 12_599_920)),
        (4, (2.43802738, 8193, 12_855_296), (1.51571655, 8192, 13_074_912)),
        (8, (2.69180036, 16384, 12_940_032), (1.58740103, 16384, 13_288_400)),
        (16, (2.97198844, 32768, 13_041_664), (1.66247582, 32768, 13_623_184)),
        (32, (3.28134155, 65536, 13_194_816), (1.74110115, 65536, 13_918_896)),
        (64, (3.62289453, 131072, 13_379_744), (1.82344484, 131072, 14_008_608)),
        (128, (4, 262144, 13_647_872), (1.90968323, 262144, 14_110_032)),
    ],
)
def test_sizes_of_larger_boxes(aabb_scale: int, eight: Any, sixteen: Any) -> None:
    for n_levels, n_features, (b, finest, n_parameters) in ((8, 4, eight), (16, 2, sixteen)):
        scale = per_level_scale_between(16, 2048 * aabb_scale, n_levels)
        assert scale == pytest.approx(b, abs=6e-8 * b + 5e-9)
        layout = GridLayout(3, n_levels, n_features, 19, 16, scale)
        assert (int(layout.resolutions[-1]), layout.n_parameters) == (finest, n_parameters)


@pytest.mark.parametrize(
    ("side", "b", "finest", "n_parameters", "n_hashed"),
    [
        (512, 1.20302498, 256, 425_472, 0),
        (1024, 1.25992107, 513, 1_423_440, 0),
        (2048, 1.31950796, 1025, 4_939_552, 0),
        (4096, 1.38191283, 2048, 17_625_040, 0),
        (8192, 1.4472692, 4096, 64_232_448, 0),
        (56718, 1.64653659, 28359, 181_416_352, 4),
    ],
)
def test_sizes_of_images(side: int, b: float, finest: int, n_parameters: int, n_hashed: int) -> None:
    scale = per_level_scale_between(16, side / 2, 16)
    assert scale == pytest.approx(b, abs=2e-7)
    layout = GridLayout(2, 16, 2, 24, 16, scale)
    assert (int(layout.resolutions[-1]), layout.n_parameters) == (finest, n_parameters)
    assert int(layout.is_hashed.sum()) == n_hashed


@pytest.mark.parametrize(
    ("layout", "n_parameters", "resolutions"),
    [
        (
            GridLayout(3, 20, 2, 16, 32, 1.5),
            2_555_904,
            [
                *(32, 48, 72, 108, 162, 243, 365, 547, 821, 1231),
                *(1846, 2768, 4152, 6228, 9342, 14013, 21019, 31529, 47293, 70939),
            ],
        ),
        (
            GridLayout(2, 16, 2, 15, 16, 1.5),
            708_368,
            [16, 24, 36, 54, 81, 122, 183, 274, 411, 616, 923, 1384, 2076, 3114, 4671, 7007],
        ),
        (
            GridLayout(3, 8, 2, 19, 16, 1.405, "Dense"),
            16_312_048,
            [16, 23, 32, 45, 63, 88, 124, 173],
        ),
        (GridLayout(3, 2, 8, 19, 128, 1.0, "Tiled"), 33_554_432, [128, 128]),
    ],
)
def test_sizes_of_other_grids(layout: GridLayout, n_parameters: int, resolutions: list[int]) -> None:
    assert layout.n_parameters == n_parameters
    assert layout.resolutions.tolist() == resolutions


@pytest.mark.parametrize(
    ("log2_size", "sixteen", "eight"),
    [
        (14, 491_280, 475_136),
        (15, 944_080, 933_888),
        (16, 1_796_048, 1_720_320),
        (17, 3_396_864, 3_293_184),
        (18, 6_429_072, 6_438_912),
        (21, 42_283_392, 43_139_072),
        (22, 78_948_048, 76_693_504),
        (24, 266_047_408, 278_020_096),
    ],
)
def test_sizes_over_table_size(log2_size: int, sixteen: int, eight: int) -> None:
    assert GridLayout(3, 16, 2, log2_size, 16, 1.38191283).n_parameters == sixteen
    assert GridLayout(log2_hashmap_size=log2_size).n_parameters == eight


def test_density_of_the_occupancy_threshold() -> None:
    from hashfield.kernels.reference.march import FINEST_STEP

    assert pytest.approx(0.00169145587, abs=1e-11) == FINEST_STEP
    assert pytest.approx(5.912, abs=5e-4) == 0.01 / FINEST_STEP
