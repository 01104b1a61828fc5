"""The demo's scene: what it promises, and that colour, depth and cameras agree."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.data import load_scene
from hashfield.data.dataset import Scene
from hashfield.data.demo_scene import CAMERA_DISTANCE, make_demo_scene, save_nerf_synthetic
from hashfield.geometry.cameras import Camera, camera_rays

Made = tuple[Scene, dict[str, list[np.ndarray]]]


@pytest.fixture(scope="module")
def made() -> Made:
    """All 68 views, small."""
    return make_demo_scene(size=100)


def surface(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """Points [n, 3] of the world that a view sees."""
    origin, direction = camera_rays(camera, torch.float64)
    t = torch.from_numpy(depth).double().reshape(-1, 1)
    points = origin.reshape(-1, 3) + direction.reshape(-1, 3) * t
    return points[t[:, 0] > 0].numpy()


def test_counts_sizes_and_cameras(made: Made):
    scene, depths = made
    assert len(scene.splits["train"]) == 60 and len(scene.splits["test"]) == 8
    assert scene.has_alpha and scene.spaces.aabb_scale == 1
    for split, views in scene.splits.items():
        for camera, depth in zip(views.cameras, depths[split], strict=True):
            assert depth.shape == (100, 100) and depth.dtype == np.float32
            assert camera.position.norm().item() == pytest.approx(CAMERA_DISTANCE)
            assert camera.position[2] > 0 and camera.up[2] > 0


def test_every_picture_is_covered_by_at_least_a_third_and_cut_by_no_border(made: Made):
    for views in made[0].splits.values():
        for image in views.images:
            alpha = image[..., 3]
            assert (alpha > 127).mean() >= 1 / 3
            assert not (alpha[0].any() or alpha[-1].any() or alpha[:, 0].any() or alpha[:, -1].any())


def test_the_scene_lies_well_inside_its_box(made: Made):
    scene, depths = made
    for camera, depth in zip(scene.splits["train"].cameras, depths["train"], strict=True):
        points = torch.from_numpy(surface(camera, depth))
        assert points.abs().max() < 1.2
        unit = scene.spaces.world_to_unit(points)
        assert unit.min() > 0.1 and unit.max() < 0.9


def test_depth_and_alpha_agree(made: Made):
    scene, depths = made
    for image, depth in zip(scene.splits["test"].images, depths["test"], strict=True):
        assert (depth[image[..., 3] == 255] > 0).all()
        assert (depth[image[..., 3] == 0] == 0).all()


def test_depth_is_exact_on_the_plinth(made: Made):
    """Points of its rim, where no other solid stands, lie in one plane from wherever they are seen."""
    scene, depths = made
    for camera, depth in zip(scene.splits["test"].cameras, depths["test"], strict=True):
        points = surface(camera, depth)
        radius = np.hypot(points[:, 0], points[:, 1])
        rim = points[(radius > 1.01) & (radius < 1.11) & (points[:, 2] < -0.4) & (points[:, 2] > -0.6)]
        assert len(rim) > 50 and np.abs(rim[:, 2] + 0.52).max() < 5e-6


def test_shine_depends_on_the_view_and_solids_hide_one_another(made: Made):
    """The same points, seen from two sides: some are hidden, and of the others some look different."""
    scene, depths = made
    views = scene.splits["test"]
    points = surface(views.cameras[0], depths["test"][0])
    color = views.images[0][depths["test"][0] > 0][:, :3].astype(int)
    other = views.cameras[1]
    at = (torch.from_numpy(points) - other.position) @ other.camera_to_world[:, :3]
    pixel = (at[:, :2] / at[:, 2:] * other.fx + other.cx).floor().long().clamp(0, 99).numpy()
    seen = depths["test"][1][pixel[:, 1], pixel[:, 0]]
    gap = at.norm(dim=1).numpy() - seen
    assert 0.03 < (gap > 0.1).mean() < 0.9
    same = np.abs(gap) < 0.01
    change = np.abs(color[same] - views.images[1][pixel[same, 1], pixel[same, 0], :3]).max(axis=1)
    assert np.median(change) < 12 and (change > 40).mean() > 0.01


def test_the_seed_decides(made: Made):
    again, _ = make_demo_scene(size=40, n_train=2, n_test=1)
    same, _ = make_demo_scene(size=40, n_train=2, n_test=1)
    other, _ = make_demo_scene(1, size=40, n_train=2, n_test=1)
    first, second, third = (s.splits["train"] for s in (again, same, other))
    assert all((a == b).all() for a, b in zip(first.images, second.images, strict=True))
    assert first.cameras == second.cameras and first.cameras != third.cameras


def test_training_and_test_views_differ(made: Made):
    train, test = (torch.stack([c.position for c in made[0].splits[s].cameras]) for s in ("train", "test"))
    assert torch.cdist(test, train).min() > 0.05


def test_what_is_written_is_read_back(tmp_path: Path):
    scene, _ = make_demo_scene(size=40, n_train=3, n_test=2)
    save_nerf_synthetic(scene, tmp_path)
    back = load_scene(tmp_path)
    assert back.has_alpha and back.spaces == scene.spaces
    for split in ("train", "test"):
        a, b = scene.splits[split], back.splits[split]
        assert all((x == y).all() for x, y in zip(a.images, b.images, strict=True))
        for x, y in zip(a.cameras, b.cameras, strict=True):
            assert torch.allclose(x.camera_to_world, y.camera_to_world, atol=1e-9)
            assert x.fx == pytest.approx(y.fx, abs=1e-9)
