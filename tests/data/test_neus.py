"""What the reader makes of NeuS's cameras_sphere.npz with photos and masks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.data import ReadOptions, load_scene
from hashfield.errors import DataError
from hashfield.geometry.cameras import flip_opengl
from tests.data.colmap_files import write_neus
from tests.data.small_scenes import FOCAL, HEIGHT, WIDTH, opengl_pose, picture


@pytest.mark.parametrize("name", ["cameras_sphere.npz", "cameras.npz"])
def test_projections_are_taken_apart(tmp_path: Path, name: str) -> None:
    folder = write_neus(tmp_path / "scan1", name=name)
    for named in (folder, folder / name):
        scene = load_scene(named)
        assert (scene.name, scene.form, scene.has_alpha) == ("scan1", "NeuS", True)
        assert scene.splits["test"].names == ("image/000.png", "image/008.png")
        for camera, photo in zip(scene.splits["train"].cameras, scene.splits["train"].names, strict=True):
            pose = flip_opengl(torch.tensor(opengl_pose(int(Path(photo).stem), 9), dtype=torch.float64)[:3])
            torch.testing.assert_close(camera.camera_to_world[:, :3], pose[:, :3], rtol=0, atol=1e-9)
            shift = torch.tensor([10.0, 20, 30], dtype=torch.float64)
            torch.testing.assert_close(camera.position, 100 * pose[:, 3] + shift, rtol=0, atol=1e-6)
            optics = (camera.fx, camera.fy, camera.cx, camera.cy)
            np.testing.assert_allclose(optics, (FOCAL, FOCAL + 1, WIDTH / 2, HEIGHT / 2), rtol=1e-9)
        # the box is the cube around the sphere of scale_mat
        assert scene.spaces.aabb_scale == 1
        torch.testing.assert_close(scene.spaces.box_center_world.double(), torch.tensor([10.0, 20, 30]).double())
        assert scene.spaces.distance_scene_to_world(1.0) == pytest.approx(300)


def test_masks_cut_the_object_out_or_leave_pixels_out(tmp_path: Path) -> None:
    folder = write_neus(tmp_path)
    scene = load_scene(folder)
    image = scene.splits["train"].images[0]
    assert np.array_equal(image[..., :3], picture(1, alpha=False)[..., :3])
    assert (image[:, : WIDTH // 2, 3] == 0).all() and (image[:, WIDTH // 2 :, 3] == 255).all()
    assert scene.splits["train"].masks is None
    as_mask = load_scene(folder, ReadOptions(alpha="mask"))
    masks = as_mask.splits["train"].masks
    assert not as_mask.has_alpha and masks is not None and as_mask.spaces.aabb_scale > 1
    assert all(not mask[:, : WIDTH // 2].any() and mask[:, WIDTH // 2 :].all() for mask in masks)
    small = load_scene(folder, ReadOptions(downscale=2)).splits["train"].images[0]
    assert (small[:, : WIDTH // 4, 3] == 0).all() and (small[:, WIDTH // 4 :, 3] == 255).all()


def test_without_masks_the_background_is_learned_too(tmp_path: Path) -> None:
    scene = load_scene(write_neus(tmp_path, masks=False))
    assert not scene.has_alpha and scene.spaces.aabb_scale > 1
    assert scene.spaces.distance_scene_to_world(1.0) == pytest.approx(300)


def rewrite(folder: Path, **changes: object) -> None:
    with np.load(folder / "cameras_sphere.npz") as stored:
        matrices = dict(stored)
    for name, value in changes.items():
        matrices.pop(name) if value is None else matrices.update({name: np.asarray(value)})
    np.savez(folder / "cameras_sphere.npz", **matrices)


SKEWED = np.array([[15.0, 1, 6, 0], [0, 15, 4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"world_mat_3": None}, "8 cameras, but there are other numbers of photos \\(9 in image\\)"),
        ({"world_mat_3": np.full((4, 4), np.nan)}, "'world_mat_3': not finite"),
        ({"world_mat_3": np.zeros((4, 4))}, r"camera 3 \(003.png\): 'world_mat': the projection is singular"),
        ({"world_mat_3": SKEWED}, "skewed pixels"),
        ({"world_mat_3": np.zeros((3, 3))}, "'world_mat_3': expected 4x4 numbers"),
        ({"world_mat_3": np.zeros((400, 400))}, "'world_mat_3': 1280128 bytes are more"),
        ({"world_mat_3": ["a"] * 16}, "'world_mat_3': expected 4x4 numbers"),
        ({"scale_mat_0": np.zeros((4, 4))}, "'scale_mat_0': a sphere of radius 0"),
    ],
)
def test_wrong_matrices_are_named(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    folder = write_neus(tmp_path)
    rewrite(folder, **changes)
    with pytest.raises(DataError, match=reason) as caught:
        load_scene(folder)
    assert "\n" not in str(caught.value)


def test_missing_masks_and_broken_archives_are_named(tmp_path: Path) -> None:
    folder = write_neus(tmp_path)
    (folder / "mask/004.png").unlink()
    with pytest.raises(DataError, match=r"no mask in mask for 004\.png"):
        load_scene(folder)
    (folder / "cameras_sphere.npz").write_bytes(b"PK but no archive")
    with pytest.raises(DataError, match="not a NumPy archive"):
        load_scene(folder)
