"""The training box that is chosen by itself, on captures made by formula: rooms, streets, orbits, views to one side."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from hashfield.data.training_box import ChosenBox, choose_box, doubt_of_size
from hashfield.geometry.cameras import Camera, look_at
from hashfield.geometry.spaces import Spaces, choose_aabb_scale


class Capture(NamedTuple):
    """Cameras and what they see."""

    cameras: list[Camera]
    points: np.ndarray
    """What structure from motion finds."""
    near: np.ndarray
    """What the box must hold: all surfaces that are not far away."""
    depth: float
    """How far from the cameras things usually are."""


X, Y, Z = np.eye(3)
_ELSEWHERE = np.array([10.0, -4.0, 2.0])  # worlds of structure from motion have their origin anywhere


def capture(
    position: np.ndarray, target: np.ndarray, points: np.ndarray, near: np.ndarray, depth: float, up: int = 2
) -> Capture:
    """A capture, moved away from the world's origin.

    Args:
        position, target: [n, 3]: Where cameras stand and what they look at.
        points, near, depth: As `Capture` has them.
        up: Axis that is up.
    """
    cameras = [
        Camera(look_at(p.tolist(), t.tolist(), torch.eye(3, dtype=torch.float64)[up]), 640, 480, 500, 500, 320, 240)
        for p, t in zip(position + _ELSEWHERE, target + _ELSEWHERE, strict=True)
    ]
    return Capture(cameras, points + _ELSEWHERE, near + _ELSEWHERE, depth)


def walls(random: np.random.Generator, on_one: float = 0.0, n: int = 4000) -> np.ndarray:
    """Points on floor, ceiling and walls of a room of 6 x 5 x 2.8.

    Args:
        random: Where from.
        on_one: Share of them on one wall.
        n: How many.
    """
    half = np.array([3, 2.5, 1.4])
    points = random.uniform(-1, 1, (n, 3)) * half
    axis, side = random.integers(0, 3, n), random.choice([-1, 1], n)
    lucky = random.random(n) < on_one
    axis[lucky], side[lucky] = 0, 1
    points[np.arange(n), axis] = side * half[axis]
    return points


def captures() -> dict[str, Capture]:
    """All of them."""
    random = np.random.default_rng(0)

    def shaken(n: int, size: float = 1.0) -> np.ndarray:
        return size * random.normal(size=(n, 3))

    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), 0.15 * np.sin(3 * angle)], 1)
    room = walls(random)
    walk = random.uniform(-1, 1, (60, 3)) * [2, 1.6, 0.3]
    still = shaken(40, 0.03)
    found = {
        "a room, outwards": capture(0.5 * ring, 3 * ring + shaken(40, 0.3), room, room, 2.5),
        "a room with one wall of texture": capture(0.5 * ring, 3 * ring, walls(random, 0.8), room, 2.5),
        "a walk through a room": capture(walk, walk + shaken(60) * [1, 1, 0.2], room, room, 2.5),
        "a room, across": capture([2.7, 2.2, 1] * ring, shaken(40, 0.3), room, room, 2.5),
        "a room from one place": capture(still, still + ring, room, room, 2.5),
    }
    along = np.linspace(-50, 50, 60)[:, None] * X
    n = 4000
    street = np.stack(
        [random.uniform(-60, 80, n), random.choice([-8, 8], n) + 0.3 * random.normal(size=n),
         random.uniform(-1.5, 9, n)], 1,
    )  # fmt: skip
    horizon = random.uniform([300, -300, 0], [900, 300, 50], (150, 3))
    one_side = street[street[:, 1] > 0]
    corner = np.concatenate([0.5 * along + [0, -25, 0], 0.5 * along[:, [1, 0, 2]] + [25, 0, 0]])
    ahead = np.repeat([[20.0, 0, 0], [0, 20, 0]], 60, axis=0)
    block = np.concatenate([street * [0.5, 1, 1] + [0, -25, 0], (street * [0.5, 1, 1])[:, [1, 0, 2]] + [25, 0, 0]])
    found |= {
        "along a street": capture(
            along + shaken(60, 0.1), along + 20 * X + shaken(60), np.concatenate([street, horizon]), street, 12
        ),
        "aside along a street": capture(along, along + 8 * Y + shaken(60, 0.6), one_side, one_side, 8),
        "around a corner": capture(corner, corner + ahead + shaken(120), block, block, 12),
    }
    ball = shaken(2500)
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    ground = np.column_stack([random.uniform(-8, 8, (1500, 2)), np.full(1500, -1.0)])
    hills = shaken(1200) * [1, 1, 0.3]
    hills *= random.uniform(40, 200, (1200, 1)) / np.linalg.norm(hills, axis=1, keepdims=True)
    bend = np.linspace(-0.35, 0.35, 25)
    arc = 3 * np.stack([np.sin(bend), -np.cos(bend), 0 * bend], 1)
    behind = random.uniform([-5, 4, -2], [5, 4.1, 3], (800, 3))
    found |= {
        "an orbit before hills": capture(
            3 * ring + Z, shaken(40, 0.15), np.concatenate([ball, ground, hills]),
            np.concatenate([ball, ground]), 3,
        ),
        "an object in a room": capture(
            1.2 * ring + 0.3 * Z, shaken(40, 0.1), np.concatenate([0.3 * ball, room[:1500]]),
            np.concatenate([0.3 * ball, room]), 1.2,
        ),
        "a piece of an arc": capture(
            arc, shaken(25, 0.1), np.concatenate([ball, behind]), np.concatenate([ball, behind]), 3
        ),
    }  # fmt: skip
    grid = random.uniform([-0.3, -0.02, -0.2], [0.3, 0.02, 0.2], (20, 3))
    depth = random.uniform(2, 6, (3000, 1))
    scene = depth * np.column_stack([random.uniform(-0.6, 0.6, 3000), np.ones(3000), random.uniform(-0.45, 0.45, 3000)])
    high = random.uniform([-50, -50, 60], [50, 50, 61], (64, 3))
    land = random.uniform([-75, -75, 0], [75, 75, 12], (n, 3))
    return found | {
        "to one side, parallel": capture(grid, grid + 4 * Y, scene, scene, 4),
        "to one side, shaken": capture(grid, grid + 4 * Y + shaken(20, 0.25), scene, scene, 4),
        "to one side, to a point": capture(grid, 4 * Y + shaken(20, 0.03), scene, scene, 4),
        "to one side, a fan": capture(grid, 4 * grid + 4 * Y, scene, scene, 4),
        "over land": capture(high, high - 60 * Z + shaken(64, 2.0), land, land, 55, up=1),
    }


CAPTURES = captures()
FAR = {"along a street": 12.0, "an orbit before hills": 30.0}
"""Captures with points far away, and how much larger than what is near their box may be."""


def held(spaces: Spaces, near: np.ndarray) -> float:
    """Share of the points that lie in the box."""
    place = spaces.world_to_unit(torch.from_numpy(near))
    return float(((place > 0) & (place < 1)).all(dim=1).double().mean())


def too_large(box: ChosenBox, made: Capture) -> float:
    """How many times larger the box is than it must be for cameras and what is near, if its centre stays."""
    position = torch.stack([camera.position for camera in made.cameras]).numpy()
    far = np.abs(np.concatenate([made.near, position]) - box.spaces.box_center_world.numpy()).max(axis=1)
    return 0.5 * box.spaces.aabb_scale / box.spaces.scale / float(np.quantile(far, 0.98))


@pytest.mark.parametrize("name", CAPTURES)
def test_the_box_by_points(name: str) -> None:
    made = CAPTURES[name]
    box = choose_box(made.cameras, made.points, "points", has_alpha=False)
    assert held(box.spaces, made.near) > 0.98, box
    assert 1.0 < too_large(box, made) < FAR.get(name, 2.7), box
    assert 0.25 < made.depth * box.spaces.scale < 2.0, "things are as large as presets expect them"


@pytest.mark.parametrize("name", sorted(set(CAPTURES) - {"a room from one place"}))
def test_the_box_by_cameras_alone(name: str) -> None:
    made = CAPTURES[name]
    box = choose_box(made.cameras, None, "", has_alpha=False)
    assert held(box.spaces, made.near) > 0.95, box
    assert too_large(box, made) < 11, box
    assert 0.05 < made.depth * box.spaces.scale < 4.0, box


@pytest.mark.parametrize("name", sorted(set(CAPTURES) - {"a room from one place"}))
def test_the_box_around_the_middle_of_the_cameras(name: str) -> None:
    """As a file of nerfstudio has it that states no box: the origin is the middle of the cameras, the largest
    coordinate is 1."""
    made = CAPTURES[name]
    position = torch.stack([camera.position for camera in made.cameras])
    middle = position.mean(dim=0)
    scale = 1 / float((position - middle).abs().max())
    cameras = [
        camera.moved(torch.cat([camera.camera_to_world[:, :3], (scale * (camera.position - middle))[:, None]], 1))
        for camera in made.cameras
    ]
    aabb_scale, _ = choose_aabb_scale(cameras, Spaces())
    assert aabb_scale <= 32
    assert held(Spaces(aabb_scale=aabb_scale), scale * (made.near - middle.numpy())) > 0.95


@pytest.mark.parametrize(
    ("name", "center", "size", "without_points"),
    [
        ("a room, across", "what the cameras look at", "twice as far as the cameras; ", "which look inwards"),
        ("a room, outwards", "middle of the cameras, as they look outwards", "holds 98 %", "which look outwards"),
        ("to one side, shaken", "middle of the points, as they look one way", "twice as far", "which look one way"),
        ("an orbit before hills", "what the cameras look at", "holds 98 % of points", "which look inwards"),
    ],
)
def test_the_reason_is_told(name: str, center: str, size: str, without_points: str) -> None:
    made = CAPTURES[name]
    box = choose_box(made.cameras, made.points, "points", has_alpha=False)
    assert box.center_reason == center and box.size_reason.startswith(size)
    assert choose_box(made.cameras, None, "", False).size_reason == f"from the cameras, {without_points}"
    assert choose_box(made.cameras, None, "", True).size_reason == "images have alpha"


def test_an_object_cut_out_by_alpha_fills_its_box() -> None:
    made = CAPTURES["an object in a room"]
    ball = made.near[:2500]
    box = choose_box(made.cameras, ball, "points", has_alpha=True)
    half = 0.5 * box.spaces.aabb_scale / box.spaces.scale
    assert held(box.spaces, ball) == 1.0 and half < 0.4


def test_a_single_camera_and_cameras_at_one_place_have_a_box() -> None:
    made = CAPTURES["a room, across"]
    for cameras in (made.cameras[:1], made.cameras[:1] * 3):
        for points in (None, made.points, made.points[:1]):
            assert choose_box(cameras, points, "points", False).spaces.aabb_scale >= 1


def test_what_the_size_of_the_box_rests_on_is_told() -> None:
    doubts = {name: doubt_of_size(made.cameras) for name, made in CAPTURES.items()}
    outwards = {name for name, doubt in doubts.items() if doubt is not None}
    assert outwards == {
        "a room, outwards", "a room with one wall of texture", "a walk through a room", "a room from one place",
        "around a corner",
    }  # fmt: skip
    assert all("the size of the box is a guess" in str(doubts[name]) for name in outwards)
    one_place = [
        camera.moved(torch.cat([camera.camera_to_world[:, :3], torch.ones(3, 1, dtype=torch.float64)], 1))
        for camera in CAPTURES["a room from one place"].cameras
    ]
    assert str(doubt_of_size(one_place)).startswith("warning: all cameras stand at one place")
