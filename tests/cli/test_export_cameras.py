"""`hashfield export --cameras`: of a data set and of a run, and what the readers make of the files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.cli.main import run
from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.geometry.cameras import Camera
from hashfield.train.checkpoint import save_checkpoint
from tests.data.colmap_files import ring, write_capture, write_llff
from tests.data.small_scenes import HEIGHT, WIDTH, save, write_scene, write_synthetic


def cameras_of(scene: Scene) -> dict[str, Camera]:
    """By name of the file alone, since folders may differ."""
    found = {}
    for views in scene.splits.values():
        found.update({Path(name).name: camera for name, camera in zip(views.names, views.cameras, strict=True)})
    return found


def assert_same(first: dict[str, Camera], second: dict[str, Camera]) -> None:
    assert sorted(first) == sorted(second)
    for name, camera in first.items():
        other = second[name]
        torch.testing.assert_close(other.camera_to_world, camera.camera_to_world, rtol=0, atol=1e-9)
        assert (other.lens, other.width, other.height) == (camera.lens, camera.width, camera.height)
        optics = [(c.fx, c.fy, c.cx, c.cy, *c.distortion) for c in (other, camera)]
        np.testing.assert_allclose(optics[0], optics[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["transforms", "colmap", "colmap-text"])
def test_a_data_set_in_another_form_elsewhere(tmp_path: Path, form: str) -> None:
    data = write_capture(tmp_path / "data", ring(9, "OPENCV", [15, 15, 6, 4, 0.1, 0.2, 0.01, 0.02]))
    out = tmp_path / "elsewhere/out"
    arguments = ["export", str(data), "--cameras", str(out), "--form", form]
    assert run(arguments) == 0
    before, after = load_scene(data), load_scene(out)
    assert_same(cameras_of(before), cameras_of(after))
    assert [Path(name).name for name in after.splits["test"].names] == [
        Path(name).name for name in before.splits["test"].names
    ]
    assert np.isclose(after.spaces.scale, before.spaces.scale) and after.spaces.aabb_scale == before.spaces.aabb_scale
    assert run(arguments) == 2  # the files are there
    assert run([*arguments, "--overwrite"]) == 0


def test_a_folder_of_cut_out_objects_keeps_its_splits_and_box(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path / "data", {"train": 5, "test": 3})
    out = tmp_path / "cameras.json"
    assert run(["export", str(data), "--cameras", str(out)]) == 0
    before, after = load_scene(data), load_scene(out)
    assert after.has_alpha and after.spaces == before.spaces
    for split in ("train", "test"):
        for camera, other in zip(before.splits[split].cameras, after.splits[split].cameras, strict=True):
            torch.testing.assert_close(camera.camera_to_world, other.camera_to_world, rtol=0, atol=1e-9)


def test_only_points_on_surfaces_are_exported(tmp_path: Path) -> None:
    """LLFF's depths are turned into points for the box, but they are none of the scene's."""
    for name, data, n in (("a", write_llff(tmp_path / "llff"), 0), ("b", write_capture(tmp_path / "colmap"), 200)):
        assert run(["export", str(data), "--cameras", str(tmp_path / name), "--form", "colmap-text"]) == 0
        assert f"# Number of points: {n}," in (tmp_path / name / "sparse/0/points3D.txt").read_text()


def checkpoint_of(scene: Scene, path: Path, **changes: object) -> Path:
    """What `export --cameras` reads of a run's checkpoint."""
    told = {"name": scene.name, "path": str(scene.path), "folder": str(scene.folder)}
    photos = {split: list(views.names) for split, views in scene.splits.items()}
    cameras = {split: [camera.to_dict() for camera in views.cameras] for split, views in scene.splits.items()}
    metadata = {
        "task": "nerf", "spaces": scene.spaces.to_dict(), "cameras": cameras,
        "scene": {**told, "photos": photos, **changes},
    }  # fmt: skip
    save_checkpoint(path, {"a": torch.zeros(1)}, metadata)
    return path.parent


def test_a_run_on_smaller_photos_gives_the_cameras_of_the_whole_ones(tmp_path: Path) -> None:
    data = write_scene(tmp_path / "data", alpha=False, k1=0.1)
    mask = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    mask[:, :3, :3] = 0
    save(data / "mask.png", mask, "RGB")
    text = (data / "transforms.json").read_text()
    (data / "transforms.json").write_text(text.replace('"k1"', '"mask_path": "mask.png", "k1"'))
    small = load_scene(data, ReadOptions(downscale=3))  # 12 x 8 pixels become 4 x 2, and two rows are left over
    folder = checkpoint_of(small, tmp_path / "run/checkpoint.safetensors")
    assert run(["export", str(folder), "--cameras", str(tmp_path / "out")]) == 0
    after = load_scene(tmp_path / "out")
    assert_same(cameras_of(load_scene(data)), cameras_of(after))
    masks = after.splits["train"].masks
    assert masks is not None and all(not kept[:, :3].any() and kept[:, 3:].all() for kept in masks)


def test_what_cannot_be_exported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scene(tmp_path / "data")
    folder = checkpoint_of(load_scene(data), tmp_path / "run/checkpoint.safetensors", photos=None)
    for named, reason in ((folder, "which photos"), (tmp_path / "nothing", "no such file")):
        assert run(["export", str(named), "--cameras", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert reason in said and said.count("\n") == 1
