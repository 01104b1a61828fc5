"""Cameras and lenses: golden values from instant-ngp's fox, closed forms, round trips, gradients, checks."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hashfield.errors import ConfigError, ShapeError
from hashfield.geometry.cameras import (
    Camera,
    Lens,
    camera_rays,
    camera_table,
    camera_table_gradient,
    flip_opengl,
    look_at,
    panorama,
    pixel_centers,
    project,
    rays_from_pixels,
    rotation_fault,
)
from hashfield.geometry.lenses import MAX_RADIUS, lens_limit

IDENTITY = torch.eye(4, dtype=torch.float64)[:3]

# instant-ngp's fox: intrinsics of the file, pose of images/0001.jpg (OpenGL axes)
FOX_INTRINSICS = {"width": 1080, "height": 1920, "fx": 1375.52, "fy": 1374.49, "cx": 554.558, "cy": 965.268}
FOX_LENS = (0.0578421, -0.0805099, 0.0, 0.0, -0.000980296, 0.00015575)
FOX_POSE = torch.tensor(
    [
        [0.8926439112348871, 0.08799600283226543, 0.4420900262071262, 3.168359405609479],
        [0.4464189982715247, -0.03675452191179031, -0.8940689141475064, -5.4794898611466945],
        [-0.062425682580756266, 0.995442519072023, -0.07209178487538156, -0.9791660699008925],
    ],
    dtype=torch.float64,
)


def camera(lens: Lens = "pinhole", distortion: tuple[float, ...] = (), **changes: Any) -> Camera:
    values: dict[str, Any] = {
        "camera_to_world": look_at([1.0, -4.0, 2.0], [0.1, 0.2, 0.3]),
        "width": 64,
        "height": 48,
        "fx": 40.0,
        "fy": 42.0,
        "cx": 31.0,
        "cy": 25.0,
    }
    return Camera(**{**values, **changes}, lens=lens, distortion=distortion)


LENS_CASES: dict[str, tuple[Lens, tuple[float, ...]]] = {
    "pinhole": ("pinhole", ()),
    "opencv_none": ("opencv", ()),
    "opencv_fox": ("opencv", FOX_LENS),
    "opencv_barrel": ("opencv", (-0.28, 0.07, 0.0, 0.0, 0.003, -0.002)),
    "opencv_pincushion": ("opencv", (0.3, 0.1, 0.05, 0.02, 0.0, 0.0)),
    "opencv_tangential": ("opencv", (0.0, 0.0, 0.0, 0.0, 0.02, -0.03)),
    "fisheye_equidistant": ("fisheye", ()),
    "fisheye": ("fisheye", (0.0312, 0.0051, 0.0006, 0.0001, 0.0, 0.0)),
    "fisheye_narrowing": ("fisheye", (-0.05, 0.002, 0.0, 0.0, 0.0, 0.0)),
    "equirectangular": ("equirectangular", ()),
}
lens_cases = pytest.mark.parametrize("case", LENS_CASES)


def rays(cameras: list[Camera], pixel: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if index is None:
        index = torch.zeros(len(pixel), dtype=torch.long)
    return rays_from_pixels(camera_table(cameras), index, pixel)


# --- golden values


def test_fox_rays_equal_golden_values() -> None:
    fox = Camera(flip_opengl(FOX_POSE), **FOX_INTRINSICS, lens="opencv", distortion=FOX_LENS)
    pixel = torch.tensor([[0.5, 0.5], [539.5, 959.5], [1079.5, 1919.5]], dtype=torch.float64)
    origin, direction = rays([fox], pixel)
    golden = torch.tensor(  # scene axes: the world's, cycled
        [
            [0.5371019, 0.6168222, -0.5753711],
            [0.8889666, 0.076947, -0.4514615],
            [0.8547366, -0.5029288, -0.1284059],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(direction[:, [1, 2, 0]], golden, rtol=0, atol=1e-6)
    assert torch.equal(origin, FOX_POSE[:, 3].expand(3, 3))


def test_fox_plane_coordinates_equal_golden_values() -> None:
    fox = Camera(IDENTITY, **FOX_INTRINSICS, lens="opencv", distortion=FOX_LENS)
    _, direction = rays([fox], torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    plane = direction[0, :2] / direction[0, 2]
    expected = torch.tensor([-0.4009225, -0.6978331], dtype=torch.float64)
    torch.testing.assert_close(plane, expected, rtol=0, atol=1e-7)


def test_fisheye_golden_angle() -> None:
    lens = camera("fisheye", LENS_CASES["fisheye"][1], camera_to_world=IDENTITY, fx=100.0, fy=100.0)
    pixel = torch.tensor([[31.0 + 81.77848, 25.0]], dtype=torch.float64)
    _, direction = rays([lens], pixel)
    assert math.acos(float(direction[0, 2])) == pytest.approx(0.8, abs=1e-6)


def test_panorama_by_hand() -> None:
    around = panorama(IDENTITY, 8, 4)
    # forward, right, back, left; straight up and down; instant-ngp's latlong at (0.75, 0.25) of the picture
    pixel = torch.tensor([[4, 2], [6, 2], [8, 2], [2, 2], [4, 0], [4, 4], [6, 1]], dtype=torch.float64)
    _, direction = rays([around], pixel)
    half = math.sqrt(0.5)
    expected = [[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, -1, 0], [0, 1, 0], [half, -half, 0]]
    torch.testing.assert_close(direction, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert around.resized(16, 8) == panorama(IDENTITY, 16, 8)


def test_pinhole_by_hand() -> None:
    simple = Camera(IDENTITY, 4, 2, 2.0, 1.0, 2.0, 1.0)
    _, direction = rays([simple], torch.tensor([[2.0, 1.0], [4.0, 1.0], [2.0, 2.0]], dtype=torch.float64))
    half = math.sqrt(0.5)
    expected = torch.tensor([[0, 0, 1], [half, 0, half], [0, half, half]], dtype=torch.float64)
    torch.testing.assert_close(direction, expected, rtol=0, atol=1e-15)


# --- properties


@lens_cases
def test_projection_undoes_rays(case: str) -> None:
    lens = camera(*LENS_CASES[case])
    pixel = pixel_centers(lens.width, lens.height)
    index = torch.zeros(len(pixel), dtype=torch.long)
    origin, direction = rays([lens], pixel)
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(len(pixel), dtype=torch.float64))
    back, is_valid = project(camera_table([lens]), index, origin + 3.7 * direction)
    assert bool(is_valid.all())
    torch.testing.assert_close(back, pixel, rtol=0, atol=1e-10)


def fold_radius(lens: Camera, angle: float, limit: float) -> float:
    """Radius below `limit` at which a radial-tangential lens folds the image over along a direction, found by
    walking outwards with finite differences."""
    radius = torch.linspace(0.0, limit, 800, dtype=torch.float64)[:-1]
    plane = radius[:, None] * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    h, sides = 1e-6, torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    points = torch.nn.functional.pad(plane[:, None] + h * sides, (0, 1), value=1.0).reshape(-1, 3)
    pixel, _ = project(camera_table([lens]), torch.zeros(len(points), dtype=torch.long), points)
    right, left, down, up = pixel.reshape(-1, 4, 2).unbind(1)
    folded = (torch.linalg.det(torch.stack([right - left, down - up], dim=-1)) <= 0).nonzero()[:, 0]
    return float(radius[int(folded[0]) - 1]) if len(folded) else limit


@pytest.mark.parametrize("p", [(0.0, -0.016), (0.01, -0.016), (-0.05, 0.05)], ids=str)
def test_strong_lenses_are_inverted_up_to_their_fold(p: tuple[float, float]) -> None:
    strong = camera("opencv", (-0.25, 0.0, 0.0, 0.0, *p), camera_to_world=IDENTITY)
    limit = lens_limit("opencv", strong.distortion)
    angles = [math.tau * k / 48 for k in range(48)]
    folds = [fold_radius(strong, angle, limit) for angle in angles]
    assert min(folds) < 0.97 * limit < max(folds)  # tangential terms fold some sides before the radial limit
    plane = [
        (share * fold * math.cos(angle), share * fold * math.sin(angle), 1.0)
        for share in (0.0, 0.3, 0.7, 0.8, 0.9, 0.97, 0.99)
        for fold, angle in zip(folds, angles, strict=True)
    ]
    points = torch.tensor(plane, dtype=torch.float64)
    index = torch.zeros(len(points), dtype=torch.long)
    pixel, _ = project(camera_table([strong]), index, points)
    _, direction = rays([strong], pixel)
    torch.testing.assert_close(direction, points / points.norm(dim=1, keepdim=True), rtol=0, atol=1e-10)


def test_pixels_beyond_the_fold_of_a_strong_lens_are_finite_and_within_the_limit() -> None:
    strong = camera("opencv", (-0.25, 0.0, 0.0, 0.0, 0.01, -0.016), camera_to_world=IDENTITY, fx=20.0, fy=20.0)
    _, direction = rays([strong], pixel_centers(64, 48))
    reach = torch.hypot(direction[:, 0], direction[:, 1]) / direction[:, 2]
    assert float(reach.max()) == pytest.approx(lens_limit("opencv", strong.distortion))


coefficient = st.floats(-0.4, 0.4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lens=st.sampled_from(["opencv", "fisheye"]),
    k=st.tuples(coefficient, coefficient, coefficient, coefficient),
    p=st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02)),
    fraction=st.floats(0.0, 0.95),
    angle=st.floats(0.0, 2 * math.pi),
)
def test_any_lens_is_inverted_inside_its_limit(
    lens: Lens, k: tuple[float, ...], p: tuple[float, float], fraction: float, angle: float
) -> None:
    distortion = (*k, *((0.0, 0.0) if lens == "fisheye" else p))
    wide = camera(lens, distortion, camera_to_world=IDENTITY)
    limit = min(lens_limit(lens, distortion), 1.5)
    radius = fraction * (fold_radius(wide, angle, limit) if lens == "opencv" else limit)
    plane = (math.sin(radius), math.cos(radius)) if lens == "fisheye" else (radius, 1.0)
    point = torch.tensor([[plane[0] * math.cos(angle), plane[0] * math.sin(angle), plane[1]]]).double()
    table, index = camera_table([wide]), torch.zeros(1, dtype=torch.long)
    pixel, is_valid = project(table, index, point)
    assert bool(is_valid)
    _, direction = rays_from_pixels(table, index, pixel)
    if lens == "opencv" and any(p):
        # two directions may share a pixel; the one found must lead to it
        again, _ = project(table, index, direction)
        torch.testing.assert_close(again, pixel, rtol=0, atol=1e-7)
    else:
        torch.testing.assert_close(direction, point / point.norm(), rtol=0, atol=1e-8)


def test_fisheye_beyond_90_degrees() -> None:
    lens = camera("fisheye", (0.01, 0.0, 0.0, 0.0, 0.0, 0.0), camera_to_world=IDENTITY, fx=10.0, fy=10.0)
    pixel = torch.tensor([[31.0 + 21.0, 25.0], [31.0, 25.0 - 25.0]], dtype=torch.float64)
    origin, direction = rays([lens], pixel)
    assert bool((direction[:, 2] < -0.3).all())
    back, is_valid = project(camera_table([lens]), torch.zeros(2, dtype=torch.long), origin + direction)
    assert bool(is_valid.all())
    torch.testing.assert_close(back, pixel)


def test_lens_limit_by_hand() -> None:
    assert lens_limit("pinhole", ()) == 0
    assert lens_limit("opencv", (-1.0, 0, 0, 0, 0, 0)) == pytest.approx(math.sqrt(1 / 3))
    assert lens_limit("opencv", (0.1, 0, 0, 0, 0, 0)) == MAX_RADIUS
    assert lens_limit("fisheye", (0, 0, 0, 0, 0, 0)) == math.pi
    assert lens_limit("fisheye", (-0.2, 0, 0, 0, 0, 0)) == pytest.approx(math.sqrt(1 / 0.6))


@pytest.mark.parametrize("lens", ["opencv", "fisheye"])
def test_pixels_beyond_the_limit_are_held_there(lens: Lens) -> None:
    strong = camera(lens, (-0.5, 0, 0, 0, 0, 0), camera_to_world=IDENTITY, fx=20.0, fy=20.0)
    _, direction = rays([strong], pixel_centers(64, 48))
    assert bool(torch.isfinite(direction).all())
    lateral = torch.hypot(direction[:, 0], direction[:, 1])
    reach = torch.atan2(lateral, direction[:, 2]) if lens == "fisheye" else lateral / direction[:, 2]
    limit = lens_limit(lens, strong.distortion)
    assert float(reach.max()) == pytest.approx(limit)
    assert float((reach > 0.999 * limit).double().mean()) > 0.1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
@lens_cases
def test_odd_pixels_do_not_hang_or_raise(case: str, value: float) -> None:
    _, direction = rays([camera(*LENS_CASES[case])], torch.tensor([[value, 3.0]], dtype=torch.float64))
    assert direction.shape == (1, 3)


def test_a_table_without_limits_is_read_too() -> None:
    lens = camera("opencv", FOX_LENS)
    table = camera_table([lens])
    bare = table.clone()
    bare[:, 23] = 0
    pixel, index = pixel_centers(64, 48), torch.zeros(64 * 48, dtype=torch.long)
    for a, b in zip(rays_from_pixels(table, index, pixel), rays_from_pixels(bare, index, pixel), strict=True):
        torch.testing.assert_close(a, b)


def test_cameras_of_several_lenses_in_one_table() -> None:
    cameras = [camera(*case) for case in LENS_CASES.values()]
    pixel = torch.rand(200, 2, dtype=torch.float64) * torch.tensor([64.0, 48.0])
    index = torch.randint(len(cameras), (200,))
    origin, direction = rays(cameras, pixel, index)
    for number, lens in enumerate(cameras):
        chosen = index == number
        alone = rays([lens], pixel[chosen])
        torch.testing.assert_close(origin[chosen], alone[0])
        torch.testing.assert_close(direction[chosen], alone[1], rtol=0, atol=1e-14)
    back, is_valid = project(camera_table(cameras), index, origin + 2 * direction)
    assert bool(is_valid.all())
    torch.testing.assert_close(back, pixel, rtol=0, atol=1e-10)


@lens_cases
def test_float32_is_near_float64(case: str) -> None:
    table = camera_table([camera(*LENS_CASES[case])])
    pixel = pixel_centers(64, 48)
    index = torch.zeros(len(pixel), dtype=torch.int32)
    narrow = rays_from_pixels(table.float(), index, pixel.float())
    wide = rays_from_pixels(table, index, pixel)
    assert narrow[1].dtype == torch.float32
    torch.testing.assert_close(narrow[1].double(), wide[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(narrow[0].double(), wide[0])


def test_camera_rays_are_row_major_pixel_centres() -> None:
    lens = camera("opencv", FOX_LENS, width=5, height=3)
    pixel = torch.tensor([[x + 0.5, y + 0.5] for y in range(3) for x in range(5)], dtype=torch.float64)
    assert torch.equal(pixel_centers(5, 3), pixel)
    expected = rays([lens], pixel)
    for dtype in (torch.float32, torch.float64):
        origin, direction = camera_rays(lens, dtype)
        assert origin.dtype == direction.dtype == dtype
        assert torch.equal(origin, expected[0].to(dtype))
        torch.testing.assert_close(direction, expected[1].to(dtype))


@lens_cases
def test_no_rays(case: str) -> None:
    origin, direction = rays([camera(*LENS_CASES[case])], torch.zeros(0, 2, dtype=torch.float64))
    assert origin.shape == direction.shape == (0, 3)
    assert camera_table([]).shape == (0, 24)


@lens_cases
def test_resized_keeps_the_view(case: str) -> None:
    lens = camera(*LENS_CASES[case])
    small = lens.resized(16, 24)
    assert (small.width, small.height) == (16, 24)
    pixel = torch.rand(50, 2, dtype=torch.float64) * torch.tensor([64.0, 48.0])
    shrunk = pixel * torch.tensor([0.25, 0.5])
    torch.testing.assert_close(rays([lens], pixel)[1], rays([small], shrunk)[1])


def test_project_flags_what_a_lens_cannot_see() -> None:
    pinhole = camera(camera_to_world=IDENTITY)
    fisheye = camera("fisheye", (), camera_to_world=IDENTITY)
    limited = camera("opencv", (-1.0, 0, 0, 0, 0, 0), camera_to_world=IDENTITY)
    table = camera_table([pinhole, fisheye, limited])
    points = torch.tensor([[0.1, 0, 1], [0, 0, -1], [0, 0, 0], [0.1, 0, -1], [0.9, 0, 1]], dtype=torch.float64)
    flags = []
    for number in range(3):
        pixel, is_valid = project(table, torch.full((5,), number), points)
        assert torch.equal(torch.isnan(pixel).any(dim=1), ~is_valid)
        flags.append(is_valid.tolist())
    assert flags == [
        [True, False, False, False, True],
        [True, False, False, True, True],
        [True, False, False, False, False],
    ]


# --- gradients


@lens_cases
def test_gradients_of_rays(case: str) -> None:
    table = camera_table([camera(*LENS_CASES[case]), camera(*LENS_CASES[case], fx=37.0)])
    # the limit belongs to k, which gradcheck moves: one that stays right for all
    lens, limit = table[:, 16:17], table[:, 23:].clamp(max=1.5)
    pixel = torch.tensor([[3.0, 5.0], [31.0, 25.0], [60.0, 2.0], [40.0, 30.0]], dtype=torch.float64)
    index = torch.tensor([0, 1, 1, 0])
    if case.startswith("fisheye"):
        pixel[1] += 0.5  # on the axis the angle is not differentiable

    def function(left: Tensor, right: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
        return rays_from_pixels(torch.cat([left, lens, right, limit], dim=1), index, pixel)

    arguments = [part.clone().requires_grad_() for part in (table[:, :16], table[:, 17:23], pixel)]
    assert torch.autograd.gradcheck(function, arguments, eps=1e-6, atol=1e-6)


def test_gradient_is_finite_on_the_axis_and_beyond_the_limit() -> None:
    for lens in ("opencv", "fisheye"):
        strong = camera(lens, (-0.5, 0, 0, 0, 0, 0), fx=20.0, fy=20.0)
        table = camera_table([strong]).requires_grad_()
        pixel = torch.tensor([[strong.cx, strong.cy], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        _, direction = rays_from_pixels(table, torch.zeros(2, dtype=torch.long), pixel)
        direction.sum().backward()
        assert table.grad is not None
        assert pixel.grad is not None
        assert bool(torch.isfinite(table.grad).all())
        assert bool(torch.isfinite(pixel.grad).all())
        assert float(pixel.grad[0].norm()) > 0


# --- poses


def test_look_at_by_hand() -> None:
    pose = look_at([0.0, -2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    expected = torch.tensor([[1, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0]], dtype=torch.float64)
    assert torch.equal(pose, expected)
    assert rotation_fault(look_at([1.0, 2.0, 9.0], [1.0, 2.0, 3.0])[:, :3]) < 1e-12, "up along the view"
    with pytest.raises(ConfigError, match="coincide"):
        look_at([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])


def test_flip_opengl_is_its_own_inverse() -> None:
    flipped = flip_opengl(FOX_POSE)
    assert torch.equal(flip_opengl(flipped), FOX_POSE)
    assert torch.equal(flipped[:, [0, 3]], FOX_POSE[:, [0, 3]])
    assert torch.equal(flipped[:, 1:3], -FOX_POSE[:, 1:3])
    assert torch.equal(flip_opengl(torch.eye(4)).diagonal(), torch.tensor([1.0, -1.0, -1.0, 1.0]))


def test_axes_of_a_camera() -> None:
    lens = camera()
    assert torch.equal(lens.position, torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64))
    toward = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64) - lens.position
    torch.testing.assert_close(lens.forward, toward / toward.norm())
    assert float(lens.up[2]) > 0.5


# --- values in and out


@lens_cases
def test_dict_round_trip_through_json(case: str) -> None:
    lens = camera(*LENS_CASES[case])
    again = Camera.from_dict(json.loads(json.dumps(lens.to_dict())))
    assert again == lens
    assert hash(again) == hash(lens)
    assert again != lens.resized(32, 24)
    assert again != "camera"


def test_camera_keeps_its_own_pose() -> None:
    pose = IDENTITY.clone()
    lens = camera(camera_to_world=pose.requires_grad_())
    assert not lens.camera_to_world.requires_grad


BAD_CAMERAS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "pose_type": ({"camera_to_world": [[1.0]]}, ShapeError, "camera_to_world: .* got list"),
    "pose_dtype": ({"camera_to_world": IDENTITY.float()}, ShapeError, "float64 .* got torch.float32"),
    "pose_shape": ({"camera_to_world": torch.eye(4).double()}, ShapeError, r"\(3, 4\), got .*\(4, 4\)"),
    "pose_nan": ({"camera_to_world": IDENTITY * math.nan}, ConfigError, "not finite"),
    "pose_mirrored": ({"camera_to_world": IDENTITY * -1}, ConfigError, "not a rotation"),
    "pose_scaled": ({"camera_to_world": IDENTITY * 1.1}, ConfigError, "not a rotation"),
    "no_width": ({"width": 0}, ConfigError, "width: .* got 0"),
    "part_height": ({"height": 2.5}, ConfigError, "height: .* got 2.5"),
    "focal": ({"fx": 0.0}, ConfigError, "fx: expected a finite positive number, got 0.0"),
    "focal_nan": ({"fy": math.nan}, ConfigError, "fy: .* got nan"),
    "focal_tiny": ({"fx": 1e-9}, ConfigError, "fx: 1e-09 is out of all proportion to an image side of 64 pixels"),
    "focal_huge": ({"fy": 1e9}, ConfigError, "fy: 1e\\+09 is out of all proportion"),
    "center_far": ({"cx": -1e9}, ConfigError, "cx: -1e\\+09 is out of all proportion"),
    "center": ({"cx": math.inf}, ConfigError, "cx: expected a finite number, got inf"),
    "lens": ({"lens": "latlong"}, ConfigError, "lens: expected one of pinhole, opencv, fisheye"),
    "pinhole_k": ({"distortion": (0.1,) * 6}, ConfigError, "a pinhole has none"),
    "short": ({"lens": "opencv", "distortion": (0.1,)}, ConfigError, "6 values .* got 1"),
    "fisheye_p": ({"lens": "fisheye", "distortion": (0, 0, 0, 0, 0.1, 0)}, ConfigError, "no p1, p2"),
    "k_nan": ({"lens": "opencv", "distortion": (math.nan,) * 6}, ConfigError, "distortion: not finite"),
    "k_huge": ({"lens": "opencv", "distortion": (1e200,) * 6}, ConfigError, "distortion: .* 1e\\+06"),
}


@pytest.mark.parametrize("case", BAD_CAMERAS)
def test_bad_cameras_are_refused(case: str) -> None:
    changes, error, message = BAD_CAMERAS[case]
    values = {name: getattr(camera(), name) for name in Camera.__dataclass_fields__}
    with pytest.raises(error, match=message):
        Camera(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fov": 1}, "unknown field 'fov'"),
        ({"camera_to_world": "x"}, "camera: "),
        ({"camera_to_world": [[1, 2], [3]]}, "camera: "),
        ({"distortion": None}, "camera: "),
        ({"width": "wide"}, "camera: "),
        ({"lens": 3}, "lens: expected one of"),
    ],
)
def test_bad_dicts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Camera.from_dict({**camera().to_dict(), **changes})


def test_missing_field_is_named() -> None:
    values = camera().to_dict()
    del values["fx"]
    with pytest.raises(ConfigError, match="missing or unknown field 'fx'"):
        Camera.from_dict(values)


def test_shapes_are_checked() -> None:
    index = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"table: .*\(n_cameras, 24\)"):
        rays_from_pixels(torch.zeros(1, 23), index, torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="pixel"):
        rays_from_pixels(torch.zeros(1, 24), index, torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="table"):
        project(torch.zeros(1, 24, dtype=torch.long), index, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("lens", "distortion"),
    [("pinhole", ()), ("opencv", (0.1, -0.05, 0.01, 0.002, 0.003, -0.004)), ("fisheye", (0.1, -0.05, 0.01, 0.0, 0, 0))],
)
def test_table_gradient_is_that_of_finite_differences(lens, distortion):
    """Poses, focal lengths, principal point and coefficients, through rays that are made anew from a changed table."""
    n = 300
    generator = torch.Generator().manual_seed(0)
    cameras = [Camera(look_at(at, (0.1, 0.0, 0.2)), 100, 80, 90.0, 95.0, 48.0, 41.0, lens, distortion)
               for at in ((1.0, 2.0, 3.0), (-2.0, 1.0, 0.5))]  # fmt: skip
    table = camera_table(cameras)
    pixel = torch.rand(n, 2, generator=generator, dtype=torch.float64) * torch.tensor([100.0, 80.0])
    pixel[0] = torch.tensor([48.0, 41.0])  # on the axis
    index = torch.randint(0, 2, (n,), generator=generator)
    by_origin, by_direction = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)

    def loss(changed: torch.Tensor) -> float:
        origin, direction = rays_from_pixels(changed, index, pixel)
        return float((origin * by_origin).sum() + (direction * by_direction).sum())

    _, direction = rays_from_pixels(table, index, pixel)
    found = camera_table_gradient(table, index, direction, by_origin, by_direction)
    columns = [*range(16), *((17, 18, 19, 20) if lens != "pinhole" else ()), *((21, 22) if lens == "opencv" else ())]
    for row in range(2):
        for column in columns:
            step = torch.zeros_like(table)
            step[row, column] = 1e-5
            slope = (loss(table + step) - loss(table - step)) / 2e-5
            assert float(found[row, column]) == pytest.approx(slope, rel=1e-5, abs=1e-4), (row, column)


def test_table_gradient_of_a_pinhole_is_that_of_a_lens_without_distortion():
    at = look_at((1.0, 2.0, 3.0), (0.1, 0.0, 0.2))
    pinhole = Camera(at, 100, 80, 90.0, 95.0, 48.0, 41.0)
    lens = Camera(at, 100, 80, 90.0, 95.0, 48.0, 41.0, "opencv", (0.0,) * 6)
    generator = torch.Generator().manual_seed(0)
    pixel = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 80
    index, by = torch.zeros(50, dtype=torch.long), torch.randn(50, 3, generator=generator, dtype=torch.float64)
    tables = [camera_table([camera]) for camera in (pinhole, lens)]
    one, other = (camera_table_gradient(t, index, rays_from_pixels(t, index, pixel)[1], by, by) for t in tables)
    torch.testing.assert_close(one, other)
    assert float(one[0, 17].abs()) > 0
