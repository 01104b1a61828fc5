"""Photos of the whole sphere: what the readers make of them, and that a scene is learned from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.data import load_scene
from hashfield.data.dataset import PosedImages
from hashfield.geometry.cameras import panorama
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from tests.data.colmap_files import ring, write_binary
from tests.data.small_scenes import document, picture, save, write_json
from tests.tasks.scenes import small_scene, tiny_config

SIZE = (24, 12)


def photos(folder: Path, n: int) -> Path:
    for index in range(n):
        save(folder / f"images/{index:04d}.png", picture(index, *SIZE, alpha=False), "RGB")
    return folder


@pytest.mark.parametrize("top", [{"camera_model": "EQUIRECTANGULAR"}, {"latlong": True}])
def test_both_names_of_a_panorama(tmp_path: Path, top: dict[str, object]) -> None:
    values = document(9, **top)
    for name in ("fl_x", "fl_y", "w", "h"):
        del values[name]
    if "latlong" not in top:  # as nerfstudio writes them; they mean something else than in other models
        values |= {
            "w": SIZE[0],
            "h": SIZE[1],
            "fl_x": SIZE[0] / 2,
            "fl_y": SIZE[1],
            "cx": SIZE[0] / 2,
            "cy": SIZE[1] / 2,
        }
    write_json(photos(tmp_path, 9) / "transforms.json", values)
    scene = load_scene(tmp_path)
    for camera in scene.splits["train"].cameras:
        assert camera == panorama(camera.camera_to_world, *SIZE)
    assert not [note for note in scene.notes if note.startswith("warning")], scene.notes
    # the box reaches beyond the cameras, which look everywhere
    reach = float(torch.stack([c.position for c in scene.splits["train"].cameras]).abs().max())
    assert scene.spaces.distance_scene_to_world(0.5 * scene.spaces.aabb_scale) > 2 * reach


def test_colmap_panoramas(tmp_path: Path) -> None:
    model = ring(9, "EQUIRECTANGULAR", [float(side) for side in SIZE])
    model.cameras = [(number, name, *SIZE, parameters) for number, name, _, _, parameters in model.cameras]
    write_binary(photos(tmp_path, 9) / "sparse/0", model)
    for camera in load_scene(tmp_path).splits["train"].cameras:
        assert camera == panorama(camera.camera_to_world, *SIZE)


def test_a_scene_is_learned_from_panoramas() -> None:
    """Panoramas made of a scene by formula, from within its box: the whole way from pixels to judged pictures."""
    whole = small_scene()
    teacher = NerfTask(tiny_config(), whole)
    teacher.begin()
    for step in range(60):
        teacher.step(step, step / 60)
    model = teacher.model()
    splits = {}
    for name, views in whole.splits.items():
        cameras = tuple(panorama(camera.camera_to_world, 64, 32) for camera in views.cameras)
        made = [model.frame(camera, ("color", "opacity"), (0.0, 0.0, 0.0)) for camera in cameras]
        images = tuple(
            (255 * np.concatenate([found["color"], np.ones_like(found["opacity"])[..., None]], -1).clip(0, 1)).astype(
                np.uint8
            )
            for found in made
        )
        splits[name] = PosedImages(cameras, images, views.names)
    task = NerfTask(tiny_config(), replace(whole, splits=splits, has_alpha=False), background="black")
    task.begin()
    first = evaluate_views(task.model(), splits["test"])["psnr"]
    for step in range(120):
        task.step(step, step / 120)
    assert evaluate_views(task.model(), splits["test"])["psnr"] > max(24.0, first + 3)
