"""World, scene and unit: golden values of instant-ngp, round trips, what a change of units may not change."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera, camera_table, flip_opengl, look_at, rays_from_pixels
from hashfield.geometry.spaces import (
    Spaces,
    check_rays_meet_box,
    choose_aabb_scale,
    is_aabb_scale,
    share_of_rays_meeting_box,
)
from tests.geometry.test_cameras import FOX_POSE

some_spaces = st.builds(
    Spaces,
    scale=st.floats(1e-3, 1e3),
    offset=st.tuples(*[st.floats(-5, 5)] * 3),
    aabb_scale=st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]),
)
points = st.lists(st.tuples(*[st.floats(-100, 100)] * 3), min_size=1, max_size=5)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ring(n: int, radius: float, *, outward: bool = False, height: float = 1.0, focal: float = 30.0) -> list[Camera]:
    """Cameras on a circle around the z axis that look at the origin, or away from it."""
    cameras = []
    for index in range(n):
        angle = 2 * math.pi * index / n
        position = double([radius * math.cos(angle), radius * math.sin(angle), height])
        target = 2 * position if outward else double([0.0, 0.0, 0.0])
        cameras.append(Camera(look_at(position, target), 32, 24, focal, focal, 16.0, 12.0))
    return cameras


# --- golden values


def test_fox_matrix_equals_golden_values() -> None:
    camera = Camera(flip_opengl(FOX_POSE), 1080, 1920, 1375.52, 1374.49, 540.0, 960.0)
    scene = Spaces().camera_table_to_scene(camera_table([camera]))[0, :12].reshape(3, 4)
    golden = double(
        [
            [0.446419, 0.0367545, 0.8940689, -1.3082317],
            [-0.0624257, -0.9954425, 0.0720918, 0.1768752],
            [0.8926439, -0.087996, -0.44209, 1.5455586],
        ]
    )
    torch.testing.assert_close(scene, golden, rtol=0, atol=1e-7)


def test_identity_rotation_equals_golden_values() -> None:
    pose = torch.eye(4, dtype=torch.float64)[:3]
    pose[:, 3] = double([1.0, 2.0, 3.0])
    camera = Camera(flip_opengl(pose), 8, 8, 8.0, 8.0, 4.0, 4.0)
    scene = Spaces().camera_table_to_scene(camera_table([camera]))[0, :12].reshape(3, 4)
    golden = double([[0, -1, 0, 1.16], [0, 0, -1, 1.49], [1, 0, 0, 0.83]])
    torch.testing.assert_close(scene, golden, rtol=0, atol=1e-15)


def test_points_by_hand() -> None:
    spaces = Spaces(scale=0.2, offset=(0.5, 1.3, 0.2), aabb_scale=2)
    scene = spaces.world_to_scene(double([1.0, 2.0, 3.0]))
    torch.testing.assert_close(scene, double([1.7, 0.8, 0.7]))
    torch.testing.assert_close(spaces.scene_to_unit(scene), double([1.1, 0.65, 0.6]))
    assert torch.equal(spaces.direction_world_to_scene(double([1, 2, 3])), double([2, 3, 1]))


@pytest.mark.parametrize(
    ("aabb_scale", "box", "n_cascades", "cone"),
    [(1, (0.0, 1.0), 1, 0.0), (2, (-0.5, 1.5), 2, 1 / 256), (128, (-63.5, 64.5), 8, 1 / 256)],
)
def test_box(aabb_scale: int, box: tuple[float, float], n_cascades: int, cone: float) -> None:
    spaces = Spaces(aabb_scale=aabb_scale)
    assert (spaces.box_min, spaces.box_max) == ((box[0],) * 3, (box[1],) * 3)
    assert spaces.n_cascades == n_cascades
    assert spaces.cone_angle == cone
    assert torch.equal(spaces.scene_to_unit(double([spaces.box_min, spaces.box_max])), double([[0] * 3, [1] * 3]))
    assert torch.equal(Spaces().box_center_world, double([0.0, 0.0, 0.0]))


# --- round trips and invariants


@given(spaces=some_spaces, points=points)
def test_points_round_trip(spaces: Spaces, points: list[tuple[float, ...]]) -> None:
    world = double(points)
    scene = spaces.world_to_scene(world)
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * (1 + 5 / spaces.scale)}
    torch.testing.assert_close(spaces.scene_to_world(scene), world, **tolerance)
    torch.testing.assert_close(spaces.unit_to_world(spaces.world_to_unit(world)), world, **tolerance, msg=None)
    torch.testing.assert_close(
        spaces.unit_to_scene(spaces.scene_to_unit(scene)), scene, rtol=1e-12, atol=1e-12 * spaces.aabb_scale
    )
    assert torch.equal(spaces.direction_scene_to_world(spaces.direction_world_to_scene(world)), world)


@given(spaces=some_spaces, value=st.floats(1e-3, 1e3))
def test_lengths_and_densities_round_trip(spaces: Spaces, value: float) -> None:
    assert spaces.distance_scene_to_world(spaces.distance_world_to_scene(value)) == pytest.approx(value)
    assert spaces.density_scene_to_world(spaces.density_world_to_scene(value)) == pytest.approx(value)
    optical = spaces.density_scene_to_world(value) * spaces.distance_scene_to_world(0.7)
    assert optical == pytest.approx(0.7 * value), "density times length is the same in both spaces"
    tensor = double([value])
    assert torch.equal(spaces.distance_world_to_scene(tensor), tensor * spaces.scale)


@given(spaces=some_spaces, points=points)
def test_distances_scale(spaces: Spaces, points: list[tuple[float, ...]]) -> None:
    world = double([*points, (0.0, 0.0, 0.0)])
    apart = torch.cdist(world, world)
    apart_scene = torch.cdist(spaces.world_to_scene(world), spaces.world_to_scene(world))
    torch.testing.assert_close(spaces.distance_world_to_scene(apart), apart_scene, rtol=1e-6, atol=1e-6)


@given(spaces=some_spaces, seed=st.integers(0, 1000))
def test_rays_are_the_same_in_both_spaces(spaces: Spaces, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = camera_table(ring(4, 3.0))
    index = torch.randint(4, (10,), generator=generator)
    pixel = torch.rand(10, 2, generator=generator, dtype=torch.float64) * 24
    origin, direction = rays_from_pixels(table, index, pixel)
    scene = spaces.camera_table_to_scene(table)
    origin_scene, direction_scene = rays_from_pixels(scene, index, pixel)
    torch.testing.assert_close(direction_scene, spaces.direction_world_to_scene(direction))
    t = 2.5
    point = spaces.world_to_scene(origin + t * direction)
    torch.testing.assert_close(origin_scene + spaces.distance_world_to_scene(t) * direction_scene, point)
    torch.testing.assert_close(spaces.camera_table_to_world(scene), table, rtol=1e-9, atol=1e-9 / spaces.scale)


def test_the_table_is_not_changed_and_gradients_pass() -> None:
    table = camera_table(ring(2, 3.0))
    before = table.clone()
    leaf = table.requires_grad_()
    Spaces(scale=2.0).camera_table_to_scene(leaf).sum().backward()
    assert torch.equal(table, before)
    assert leaf.grad is not None
    expected = torch.ones(2, 24, dtype=torch.float64)
    expected[:, [3, 7, 11]] = 2.0
    assert torch.equal(leaf.grad, expected)


def test_float32_and_empty_points() -> None:
    spaces = Spaces()
    assert spaces.world_to_scene(torch.zeros(0, 3)).shape == (0, 3)
    assert spaces.world_to_unit(torch.zeros(2, 5, 3)).dtype == torch.float32


# --- files


@given(spaces=some_spaces)
def test_dict_round_trip_through_json(spaces: Spaces) -> None:
    assert Spaces.from_dict(json.loads(json.dumps(spaces.to_dict()))) == spaces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.0}, "scale: expected a number from 1e-09 to 1e\\+09, got 0.0"),
        ({"scale": math.nan}, "scale"),
        ({"scale": "big"}, "spaces"),
        ({"offset": (1.0, 2.0)}, "spaces"),
        ({"offset": (1.0, 2.0, math.inf)}, "offset: expected three finite numbers"),
        ({"aabb_scale": 3}, "aabb_scale: expected a power of two in 1..128, got 3"),
        ({"aabb_scale": 256}, "aabb_scale"),
        ({"aabb_scale": True}, "aabb_scale"),
        ({"aabb_scale": 2.0}, "aabb_scale"),
        ({"box": 1}, "unknown field 'box'"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Spaces.from_dict({**Spaces().to_dict(), **changes})


def test_is_aabb_scale() -> None:
    assert [value for value in range(-2, 300) if is_aabb_scale(value)] == [1, 2, 4, 8, 16, 32, 64, 128]


# --- choice and checks


@pytest.mark.parametrize(
    ("radius", "outward", "chosen"),
    [
        (0.1, False, 2),  # nothing smaller than 2
        (4.0, False, 8),  # colmap2nerf's distance: 1.32 in the scene, half side at least 2.64
        (4.0, True, 32),
        (12.0, False, 16),
        (1e6, False, 128),
    ],
)
def test_choice_of_the_box(radius: float, outward: bool, chosen: int) -> None:
    assert choose_aabb_scale(ring(12, radius, outward=outward, height=0.01), Spaces()) == (
        chosen, f"which look {'outwards' if outward else 'inwards'}",
    )  # fmt: skip
    assert choose_aabb_scale([], Spaces())[0] == 2


def test_choice_of_the_box_holds_all_cameras() -> None:
    for radius in (0.5, 1.0, 3.0, 7.0, 50.0):
        cameras = ring(9, radius)
        spaces = Spaces(aabb_scale=choose_aabb_scale(cameras, Spaces())[0])
        position = spaces.world_to_unit(torch.stack([camera.position for camera in cameras]))
        assert bool(((position > 0) & (position < 1)).all())


def test_share_of_rays() -> None:
    assert share_of_rays_meeting_box(ring(5, 4.0, focal=100.0), Spaces()) == 1.0
    assert share_of_rays_meeting_box(ring(5, 0.5, height=0.1), Spaces()) == 1.0, "from inside"
    assert share_of_rays_meeting_box(ring(5, 4.0, outward=True), Spaces()) == 0.0
    assert 0.2 < share_of_rays_meeting_box(ring(5, 4.0, focal=20.0), Spaces()) < 0.8
    assert share_of_rays_meeting_box([], Spaces()) == 0.0
    straight = Camera(look_at([0.0, -4.0, 0.0], [0.0, 0.0, 0.0]), 1, 1, 1e6, 1e6, 0.5, 0.5)
    assert share_of_rays_meeting_box([straight], Spaces()) == 1.0, "parallel to two axes"


def test_rays_that_miss_are_explained() -> None:
    check_rays_meet_box(ring(3, 4.0), Spaces())
    check_rays_meet_box([], Spaces())
    with pytest.raises(DataError) as error:
        check_rays_meet_box(ring(3, 4.0), Spaces(offset=(100.0, 0.5, 0.5)), "fox/transforms.json")
    text = str(error.value)
    assert text.startswith("fox/transforms.json: no view ray meets the training box, a cube of half side 1.52")
    assert "(-302, 0, 0)" in text
    assert "--aabb-scale" in text
    assert "\n" not in text
    with pytest.raises(DataError, match="OpenCV poses"):
        check_rays_meet_box(ring(3, 4.0, outward=True), Spaces())
    with pytest.raises(DataError, match="state scale and offset in the data file so that"):
        check_rays_meet_box(ring(3, 4.0), Spaces(offset=(1e4, 0.5, 0.5), aabb_scale=128))
