"""What the reader makes of transforms.json: cameras, splits, spaces, in the three forms."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hashfield.data import READERS, PosedImages, Reader, ReadOptions, Scene, load_scene
from hashfield.data.files import Folder, natural_key, normalized
from hashfield.data.images import decode_rgba
from hashfield.data.json_fields import load_json
from hashfield.errors import ConfigError, DataError, ShapeError
from hashfield.geometry.cameras import Camera, camera_rays, camera_table, flip_opengl, look_at, project
from hashfield.geometry.spaces import Spaces
from tests.data.broken_cases import names
from tests.data.small_scenes import (
    FOCAL,
    HEIGHT,
    WIDTH,
    document,
    opengl_pose,
    picture,
    save,
    write_json,
    write_scene,
    write_synthetic,
)


def first_camera(folder: Path, top: dict[str, Any] | None = None, frame: dict[str, Any] | None = None) -> Camera:
    """The camera of frame 1 after these fields are set; None removes one."""

    def change(values: dict[str, Any]) -> None:
        for where, fields in ((values, top), (values["frames"][1], frame)):
            for name, value in (fields or {}).items():
                where[name] = value
                if value is None:
                    del where[name]

    scene = load_scene(write_scene(folder, change=change))
    return scene.splits["train"].cameras[0]


def read_names(scene: Scene) -> dict[str, list[str]]:
    return {split: list(views.names) for split, views in scene.splits.items()}


# --- the three forms


def test_instant_ngp_form(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path / "cat", aabb_scale=2))
    assert (scene.name, scene.form, scene.has_alpha) == ("cat", "instant-ngp", True)
    assert scene.path == (tmp_path / "cat").resolve()
    assert scene.spaces == Spaces(aabb_scale=2)
    assert read_names(scene) == {"train": names(1, 2, 3, 4, 5, 6, 7), "test": names(0, 8)}
    train = scene.splits["train"]
    assert len(train) == 7
    assert train.n_pixels == 7 * WIDTH * HEIGHT
    assert np.array_equal(train.images[2], picture(3))
    pose = torch.tensor(opengl_pose(3, 9), dtype=torch.float64)[:3]
    expected = Camera(flip_opengl(pose), WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    torch.testing.assert_close(train.cameras[2].camera_to_world, expected.camera_to_world, rtol=0, atol=1e-12)
    assert train.cameras[2].to_dict() | {"camera_to_world": 0} == expected.to_dict() | {"camera_to_world": 0}


def test_nerf_synthetic_form(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "lego", {"train": 12, "val": 2, "test": 3})
    scene = load_scene(folder)
    assert (scene.name, scene.form) == ("lego", "NeRF-synthetic")
    assert read_names(scene) == {
        "train": [f"train/r_{index}.png" for index in range(12)],
        "test": [f"test/r_{index}.png" for index in range(3)],
    }
    camera = scene.splits["test"].cameras[0]
    assert camera.fx == camera.fy == pytest.approx(0.5 * WIDTH / math.tan(0.35))
    assert (camera.cx, camera.cy, camera.lens) == (6, 4, "pinhole")
    assert scene.spaces == Spaces()
    for name in ("transforms_train.json", "transforms_test.json"):
        assert read_names(load_scene(folder / name)) == read_names(scene), "the set, whichever file is named"
    everything = load_scene(folder, ReadOptions(splits=("train", "val", "test")))
    assert {split: len(views) for split, views in everything.splits.items()} == {
        "train": 12,
        "val": 2,
        "test": 3,
    }


def test_each_split_file_has_its_own_angle(tmp_path: Path) -> None:
    write_synthetic(tmp_path, {"train": 3, "test": 2})
    values = json.loads((tmp_path / "transforms_test.json").read_text())
    write_json(tmp_path / "transforms_test.json", {**values, "camera_angle_x": 1.0})
    scene = load_scene(tmp_path)
    assert scene.splits["train"].cameras[0].fx == pytest.approx(6 / math.tan(0.35))
    assert scene.splits["test"].cameras[0].fx == pytest.approx(6 / math.tan(0.5))


def test_nerfstudio_form(tmp_path: Path) -> None:
    folder = write_scene(
        tmp_path,
        camera_model="OPENCV",
        distortion_params=[0.1, 0.02, 0.003, 0.0, 0.004, 0.005],
        applied_transform=[[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]],
        ply_file_path="points.ply",
        train_filenames=names(0, 1, 2),
        val_filenames=names(3),
        test_filenames=["./" + names(4)[0], names(5)[0].replace("/", "\\")],
    )
    scene = load_scene(folder, ReadOptions(splits=("train", "val", "test")))
    assert scene.form == "nerfstudio"
    assert read_names(scene) == {"train": names(0, 1, 2), "val": names(3), "test": names(4, 5)}
    camera = scene.splits["train"].cameras[0]
    assert (camera.lens, camera.distortion) == ("opencv", (0.1, 0.02, 0.003, 0.0, 0.004, 0.005))


def test_a_file_of_any_name(tmp_path: Path) -> None:
    write_scene(tmp_path, file="cat.json")
    scene = load_scene(tmp_path / "cat.json")
    assert scene.name == "cat"
    assert len(scene.splits["train"]) == 7


def test_transforms_train_wins_over_transforms(tmp_path: Path) -> None:
    write_scene(tmp_path)
    write_synthetic(tmp_path, {"train": 3, "test": 2})
    assert load_scene(tmp_path).form == "NeRF-synthetic"
    assert load_scene(tmp_path / "transforms.json").form == "instant-ngp"


# --- intrinsics


@pytest.mark.parametrize(
    ("top", "frame", "focal"),
    [
        ({}, {}, (15, 15)),
        ({"fl_y": None}, {}, (15, 15)),
        ({"fl_x": None}, {}, (15, 15)),
        ({"fl_y": 20.0}, {}, (15, 20)),
        ({"camera_angle_x": 1.0}, {}, (15, 15)),
        ({"x_fov": 90.0}, {}, (6, 15)),
        ({"x_fov": 90.0, "y_fov": 90.0, "camera_angle_x": 0.1}, {}, (6, 4)),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2}, {}, (6, 6)),
        ({"fl_x": None, "fl_y": None, "camera_angle_y": math.pi / 2}, {}, (4, 4)),
        ({"fl_x": None, "camera_angle_x": math.pi / 2}, {}, (6, 15)),
        ({}, {"fl_x": 9.0}, (9, 9)),
        ({}, {"fl_x": 9.0, "fl_y": 8.0}, (9, 8)),
        ({}, {"camera_angle_x": math.pi / 2}, (6, 6)),
        ({"x_fov": 90.0}, {"fl_y": 8.0}, (8, 8)),
    ],
)
def test_focal_lengths(tmp_path: Path, top: dict[str, Any], frame: dict[str, Any], focal: tuple[float, float]) -> None:
    camera = first_camera(tmp_path, top, frame)
    assert (camera.fx, camera.fy) == pytest.approx(focal)


@pytest.mark.parametrize(
    ("top", "frame", "center"),
    [
        ({}, {}, (6, 4)),
        ({"cx": 5.0}, {}, (5, 4)),
        ({"cx": 5.0, "cy": 3.0}, {"cy": 1.0}, (5, 1)),
        ({"w": None, "h": None, "cx": 5.0}, {}, (5, 4)),
    ],
)
def test_principal_point(
    tmp_path: Path, top: dict[str, Any], frame: dict[str, Any], center: tuple[float, float]
) -> None:
    camera = first_camera(tmp_path, top, frame)
    assert (camera.cx, camera.cy) == center


def test_sizes_are_rescaled_to_the_image(tmp_path: Path) -> None:
    camera = first_camera(tmp_path, {"w": 24.0, "h": 16.0, "cx": 10.0, "k1": 0.1})
    assert (camera.width, camera.height) == (12, 8)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (7.5, 7.5, 5, 4)
    assert camera.distortion[0] == 0.1, "distortion acts on plane coordinates and stays"


def test_angles_do_not_depend_on_the_stated_size(tmp_path: Path) -> None:
    angle = {"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2, "w": 24, "h": 16}
    assert first_camera(tmp_path, angle).fx == pytest.approx(6)


def test_a_frames_own_size_counts(tmp_path: Path) -> None:
    camera = first_camera(tmp_path, {"w": 6, "h": 4}, {"w": 24, "h": 16, "fl_x": 30.0, "fl_y": 32.0, "cx": 10.0})
    assert (camera.fx, camera.fy, camera.cx) == (15, 16, 5)
    top_only = first_camera(tmp_path / "b", {"w": 6, "h": 4}, {"w": 24, "h": 16})
    assert top_only.fx == 30, "the top level's focal length refers to the top level's size"


@pytest.mark.parametrize("size", [(11, 8), (13, 9), (25, 17), (121, 79)])
def test_rounded_sizes_have_the_same_aspect(tmp_path: Path, size: tuple[int, int]) -> None:
    camera = first_camera(tmp_path, {"w": size[0], "h": size[1]})
    assert camera.fx == pytest.approx(15 * 12 / size[0])
    assert camera.fy == pytest.approx(15 * 8 / size[1])


@pytest.mark.parametrize("size", [(12, 10), (8, 12), (120, 100), (1200, 600)])
def test_other_sizes_have_not(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"'w, h': another shape than the image: {size[0]}x{size[1]} stated"):
        first_camera(tmp_path, {"w": size[0], "h": size[1]})


K = {"k1": 0.1, "k2": 0.2, "p1": 0.01, "p2": 0.02}


@pytest.mark.parametrize(
    ("top", "frame", "lens", "distortion"),
    [
        ({}, {}, "pinhole", ()),
        ({name: 0.0 for name in K}, {}, "pinhole", ()),
        (K, {}, "opencv", (0.1, 0.2, 0, 0, 0.01, 0.02)),
        ({"k3": 0.3}, {}, "opencv", (0, 0, 0.3, 0, 0, 0)),
        (K, {"k1": 0.5}, "opencv", (0.5, 0, 0, 0, 0, 0)),
        (K, {"k1": 0.0, "k2": 0.0}, "opencv", (0.1, 0.2, 0, 0, 0.01, 0.02)),
        ({}, K, "opencv", (0.1, 0.2, 0, 0, 0.01, 0.02)),
        ({**K, "k3": 0.3, "k4": 0.4, "is_fisheye": True}, {}, "fisheye", (0.1, 0.2, 0.3, 0.4, 0, 0)),
        ({"is_fisheye": True}, {}, "fisheye", (0,) * 6),
        ({"is_fisheye": 1}, {"is_fisheye": False}, "pinhole", ()),
        ({"is_fisheye": False}, {"is_fisheye": True, "k4": 0.4}, "fisheye", (0, 0, 0, 0.4, 0, 0)),
        ({**K, "camera_model": "OPENCV_FISHEYE"}, {}, "fisheye", (0.1, 0.2, 0, 0, 0, 0)),
        ({**K, "camera_model": "opencv"}, {}, "opencv", (0.1, 0.2, 0, 0, 0.01, 0.02)),
        ({"camera_model": "PINHOLE"}, {}, "pinhole", ()),
        (
            {**K, "k4": 0.0, "k5": 0.0, "k6": 0.0, "camera_model": "FULL_OPENCV"},
            {},
            "opencv",
            (0.1, 0.2, 0, 0, 0.01, 0.02),
        ),
        ({"distortion_params": [1, 2, 3, 0, 5, 6], "k1": 9.0}, {}, "opencv", (1, 2, 3, 0, 5, 6)),
        ({"latlong": False, "ftheta_p0": None, "white_transparent": False}, {}, "pinhole", ()),
    ],
)
def test_lenses(
    tmp_path: Path, top: dict[str, Any], frame: dict[str, Any], lens: str, distortion: tuple[float, ...]
) -> None:
    def change(values: dict[str, Any]) -> None:
        values.update(top)
        values["frames"][1].update(frame)

    camera = load_scene(write_scene(tmp_path, change=change, aabb_scale=8)).splits["train"].cameras[0]
    assert camera.lens == lens
    assert camera.distortion == distortion


RATIONAL = {"k1": 0.1, "k2": 0.2, "p1": 0.01, "p2": 0.02, "k3": 0.3, "k4": 0.1, "k5": 0.02, "k6": 0.01}


@pytest.mark.parametrize("model", [None, "OPENCV", "FULL_OPENCV"])
def test_a_rational_lens_becomes_the_nearest_one(tmp_path: Path, model: str | None) -> None:
    change = {**RATIONAL, "fl_x": 15, "fl_y": 15, "cx": 6, "cy": 4, "camera_model": model}
    scene = load_scene(write_scene(tmp_path, change=lambda values: values.update(change), aabb_scale=8))
    camera = scene.splits["train"].cameras[0]
    point = camera.position + torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64) @ camera.camera_to_world[:, :3].T
    found, _ = project(camera_table([camera]), torch.zeros(1, dtype=torch.int64), point)
    # where OpenCV's formula has that direction
    r2 = 0.3**2 + 0.2**2
    ratio = (1 + r2 * (0.1 + r2 * (0.2 + r2 * 0.3))) / (1 + r2 * (0.1 + r2 * (0.02 + r2 * 0.01)))
    u = 0.3 * ratio + 2 * 0.01 * 0.3 * -0.2 + 0.02 * (r2 + 2 * 0.3**2)
    v = -0.2 * ratio + 2 * 0.02 * 0.3 * -0.2 + 0.01 * (r2 + 2 * 0.2**2)
    assert found[0].tolist() == pytest.approx([15 * u + 6, 15 * v + 4], abs=0.01)
    assert any("rational lenses (k4, k5, k6 as a denominator) are read as the nearest" in note for note in scene.notes)


FISHEYE624 = [0.03, -0.02, 0.004, -0.001, 0.0002, 0, 0.0003, -0.0002, 0.0002, 1e-05, -0.0003, 2e-05]


@pytest.mark.parametrize("model", [None, "FISHEYE624"])
@pytest.mark.parametrize("is_own", [False, True])
def test_nerfstudios_lens_of_twelve_numbers_becomes_the_nearest_one(
    tmp_path: Path, model: str | None, is_own: bool
) -> None:
    def change(values: dict[str, Any]) -> None:
        values.update({"fl_x": 15, "fl_y": 15, "cx": 6, "cy": 4, "camera_model": model})
        for scope in values["frames"] if is_own else [values]:
            scope["distortion_params"] = FISHEYE624

    scene = load_scene(write_scene(tmp_path, change=change, aabb_scale=8))
    camera = scene.splits["train"].cameras[0]
    point = camera.position + torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64) @ camera.camera_to_world[:, :3].T
    found, _ = project(camera_table([camera]), torch.zeros(1, dtype=torch.int64), point)
    # COLMAP's RAD_TAN_THIN_PRISM_FISHEYE is the same lens; its own code has the direction there
    assert found[0].tolist() == pytest.approx([10.335224, 1.109555], abs=0.01)
    assert any("lenses FISHEYE624 are read as the nearest lens that is supported" in note for note in scene.notes)


def test_a_frames_own_lens_stands_instead_of_the_twelve_numbers_of_all(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distortion_params"] = FISHEYE624
        values["frames"][1]["k1"] = 0.1
        values["frames"][2]["camera_model"] = "PINHOLE"

    cameras = load_scene(write_scene(tmp_path, change=change, aabb_scale=8)).splits["train"].cameras
    assert cameras[0].distortion == (0.1, 0, 0, 0, 0, 0)
    assert cameras[1].lens == "pinhole"
    assert all(camera.lens != "pinhole" and camera.distortion[0] != 0.1 for camera in cameras[2:])


# --- poses


def test_photos_from_one_place_have_a_box_that_is_a_guess(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for frame in values["frames"]:
            for row, value in zip(frame["transform_matrix"], (0.1, 0.2, 0.3), strict=False):
                row[3] = value

    scene = load_scene(write_scene(tmp_path / "a", change=change, alpha=False))
    assert [note for note in scene.notes if note.startswith("warning: all cameras stand at one place")]
    stated = load_scene(write_scene(tmp_path / "b", change=change, alpha=False, aabb_scale=8))
    assert not [note for note in stated.notes if "guess" in note]


def test_a_uniform_scale_is_removed_exactly(tmp_path: Path) -> None:
    plain = load_scene(write_scene(tmp_path / "a")).splits["train"].cameras[0]

    def change(values: dict[str, Any]) -> None:
        matrix = np.array(values["frames"][1]["transform_matrix"])
        matrix[:3, :3] *= 0.37
        values["frames"][1]["transform_matrix"] = matrix.tolist()

    scene = load_scene(write_scene(tmp_path / "b", change=change))
    camera = scene.splits["train"].cameras[0]
    torch.testing.assert_close(camera.camera_to_world, plain.camera_to_world, rtol=0, atol=1e-14)
    assert [note for note in scene.notes if note.startswith("warning")] == [
        "warning: a uniform scale was removed from the rotation of 1 of 9 frames: images/0001.png"
    ]


def test_rounded_rotations_are_made_exact_without_a_word(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for frame in values["frames"]:
            frame["transform_matrix"] = np.round(frame["transform_matrix"], 3).tolist()

    scene = load_scene(write_scene(tmp_path, change=change))
    rotation = scene.splits["train"].cameras[0].camera_to_world[:, :3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)
    assert len(scene.notes) == 4


def test_a_good_rotation_is_taken_as_it_is(tmp_path: Path) -> None:
    matrix = [[1.000001, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]]

    def change(values: dict[str, Any]) -> None:
        values["frames"][1]["transform_matrix"] = matrix

    camera = load_scene(write_scene(tmp_path, change=change)).splits["train"].cameras[0]
    assert torch.equal(flip_opengl(camera.camera_to_world), torch.tensor(matrix, dtype=torch.float64))


@pytest.mark.parametrize(
    ("top", "frame", "lens", "k1"),
    [
        ({"camera_model": "OPENCV", "k1": 0.1}, {"camera_model": "PINHOLE"}, "pinhole", None),
        ({"k1": 0.1}, {"camera_model": "PINHOLE"}, "pinhole", None),
        ({"camera_model": "OPENCV", "k1": 0.1}, {"camera_model": "pinhole", "k1": 0.0}, "pinhole", None),
        ({"camera_model": "OPENCV", "k1": 0.1}, {"camera_model": "OPENCV"}, "opencv", 0.1),
        ({"camera_model": "OPENCV", "k1": 0.1}, {"camera_model": "SIMPLE_RADIAL", "k1": 0.2}, "opencv", 0.2),
        ({"camera_model": "OPENCV", "k1": 0.1}, {"camera_model": "SIMPLE_RADIAL"}, "pinhole", None),
        ({"camera_model": "OPENCV", "k1": 0.1}, {"camera_model": "OPENCV_FISHEYE"}, "fisheye", 0.0),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1}, {"camera_model": "PINHOLE"}, "pinhole", None),
        ({"is_fisheye": True, "k1": 0.1}, {"camera_model": "PINHOLE"}, "pinhole", None),
    ],
)
def test_a_frame_that_names_its_model_uses_that_alone(
    tmp_path: Path, top: dict[str, Any], frame: dict[str, Any], lens: str, k1: float | None
) -> None:
    camera = first_camera(tmp_path, top, frame)
    assert (camera.lens, camera.distortion[:1]) == (lens, () if k1 is None else (k1,))


# --- order and splits


@given(st.permutations([f"img{index}.png" for index in (1, 2, 3, 10, 11, 20, 100)]))
def test_natural_order(shuffled: list[str]) -> None:
    ordered = sorted(shuffled, key=natural_key)
    assert ordered == [f"img{index}.png" for index in (1, 2, 3, 10, 11, 20, 100)]


def test_natural_order_of_odd_names() -> None:
    unordered = ["b/1", "a/10", "a/9", "a/9a", "a", "", "10", "9", "a/009"]
    assert sorted(unordered, key=natural_key) == ["", "9", "10", "a", "a/009", "a/9", "a/9a", "a/10", "b/1"]


def test_every_8th_existing_view_in_natural_order_is_held_out(tmp_path: Path) -> None:
    write_scene(tmp_path, 20, name="images/{}.png", change=lambda values: values["frames"].reverse())
    (tmp_path / "images/0.png").unlink()
    (tmp_path / "images/5.png").unlink()
    scene = load_scene(tmp_path)
    assert read_names(scene)["test"] == ["images/1.png", "images/10.png", "images/18.png"]
    assert len(scene.splits["train"]) == 15
    assert not set(scene.splits["train"].names) & set(scene.splits["test"].names)
    assert "splits: every 8th view in natural order is held out for testing, 3 of 18" in scene.notes


def test_n_frames_counts_before_missing_files(tmp_path: Path) -> None:
    write_scene(tmp_path, 12, n_frames=5)
    (tmp_path / names(2)[0]).unlink()
    assert read_names(load_scene(tmp_path)) == {"train": names(1, 3, 4), "test": names(0)}
    assert read_names(load_scene(write_scene(tmp_path / "b", 3, n_frames=50)))["train"] == names(1, 2)


@pytest.mark.parametrize(
    ("lists", "train", "test"),
    [
        ({"train": names(1, 2), "test": names(0)}, names(1, 2), names(0)),
        ({"train": names(1, 2), "val": names(3)}, names(1, 2), names(3)),
        ({"train": names(1, 2)}, names(1, 2), names(0, 3, 4)),
        ({"test": names(1, 2)}, names(0, 3, 4), names(1, 2)),
        ({"val": names(1, 2)}, names(0, 3, 4), names(1, 2)),
        ({"val": names(1), "test": names(2)}, names(0, 3, 4), names(2)),
        ({"train": names(0, 1, 2), "test": names(2, 3)}, names(0, 1), names(2, 3)),
    ],
)
def test_lists_of_names(tmp_path: Path, lists: dict[str, list[str]], train: list[str], test: list[str]) -> None:
    fields = {f"{split}_filenames": listed for split, listed in lists.items()}
    assert read_names(load_scene(write_scene(tmp_path, 5, **fields))) == {"train": train, "test": test}


def test_lists_with_missing_images(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, 5, train_filenames=names(0, 1, 2), test_filenames=names(3, 4))
    (folder / names(4)[0]).unlink()
    assert read_names(load_scene(folder)) == {"train": names(0, 1, 2), "test": names(3)}
    (folder / names(3)[0]).unlink()
    scene = load_scene(folder)
    assert read_names(scene) == {"train": names(1, 2), "test": names(0)}
    assert "warning: none of the test images exists, so some training views are held out" in scene.notes


def test_the_same_frame_twice_counts_once(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, 5, change=lambda values: values["frames"].append(values["frames"][3]))
    assert len(load_scene(folder).splits["train"]) == 4


def test_val_serves_as_test_without_being_read_twice(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, {"train": 3, "val": 2})
    scene = load_scene(folder, ReadOptions(splits=("val", "test")))
    assert scene.splits["val"].images[0] is scene.splits["test"].images[0]
    assert set(scene.splits) == {"val", "test"}


def test_only_the_splits_asked_for_are_decoded(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, {"train": 3, "test": 2})
    (folder / "train/r_0.png").write_text("broken")
    assert set(load_scene(folder, ReadOptions(splits=("test",))).splits) == {"test"}
    with pytest.raises(DataError, match=r"transforms_train\.json: frame 0 \(\./train/r_0\)"):
        load_scene(folder)


# --- spaces


@pytest.mark.parametrize(
    ("fields", "spaces", "note"),
    [
        (
            {},
            Spaces(),
            r"scale 0.33 (default), offset 0.5 0.5 0.5 (default), aabb_scale 1 (images have alpha)",
        ),
        ({"scale": 0.5}, Spaces(scale=0.5), "scale 0.5 (transforms.json)"),
        ({"offset": 0.4}, Spaces(offset=(0.4,) * 3), "offset 0.4 0.4 0.4 (transforms.json)"),
        ({"offset": [0.4, 0.5, 0.6]}, Spaces(offset=(0.4, 0.5, 0.6)), "offset 0.4 0.5 0.6 (transforms.json)"),
        ({"aabb_scale": 4.0}, Spaces(aabb_scale=4), "aabb_scale 4 (transforms.json)"),
        (
            {"aabb": [[-2, -1, 0], [2, 1, 2]], "scale": 9.0, "offset": 7.0},
            Spaces(scale=0.25, offset=(0.5, 0.5, 0.25)),
            "scale 0.25 (aabb in transforms.json), offset 0.5 0.5 0.25 (aabb in transforms.json)",
        ),
    ],
)
def test_spaces_and_where_they_come_from(tmp_path: Path, fields: dict[str, Any], spaces: Spaces, note: str) -> None:
    scene = load_scene(write_scene(tmp_path, **fields))
    assert scene.spaces == spaces
    assert any(line.startswith("spaces: ") and note in line for line in scene.notes), scene.notes


def write_ply(path: Path, points: np.ndarray) -> None:
    """A file of points as Open3D writes them for nerfstudio."""
    header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "".join(
        f"property uint8 {color}\n" for color in ("red", "green", "blue")
    )
    lines = "".join(f"{x} {y} {z} 1 2 3\n" for x, y, z in points)
    path.write_text(f"{header}end_header\n{lines}")


def test_nerfstudios_worlds_have_any_size_and_place(tmp_path: Path) -> None:
    """Its files state no box, and their poses are in the units of structure from motion."""
    moved = np.array([30.0, -20.0, 5.0])

    def change(values: dict[str, Any]) -> None:
        for frame in values["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, 3] = 10 * pose[:3, 3] + moved
            frame["transform_matrix"] = pose.tolist()

    top = {"camera_model": "OPENCV", "ply_file_path": "sparse_pc.ply"}
    folder = write_scene(tmp_path, 20, alpha=False, change=change, **top)
    scene = load_scene(folder)
    assert any("sparse_pc.ply (ply_file_path) does not exist" in note for note in scene.notes)
    assert scene.spaces.box_center_world.numpy() == pytest.approx(moved, abs=0.01)
    assert scene.spaces.distance_scene_to_world(0.5 * scene.spaces.aabb_scale) > 80
    random = np.random.default_rng(0)
    write_ply(folder / "sparse_pc.ply", moved + random.uniform(-120, 120, (500, 3)))
    scene = load_scene(folder)
    assert scene.spaces.distance_scene_to_world(0.5 * scene.spaces.aabb_scale) == pytest.approx(1.1 * 119, rel=0.02)
    assert 0.9 < 42.7 * scene.spaces.scale < 1.9, "cameras stand where presets expect them"
    assert any("holds 98 % of 500 points of sparse_pc.ply" in note for note in scene.notes)
    (folder / "sparse_pc.ply").write_text("ply\nformat ascii 1.0\nelement vertex 3\nend_header\n")
    assert any("sparse_pc.ply (ply_file_path) cannot be read: " in note for note in load_scene(folder).notes)
    values = json.loads((folder / "transforms.json").read_text())
    write_json(folder / "transforms.json", {**values, "aabb_scale": 64})
    assert load_scene(folder).spaces == Spaces(aabb_scale=64), "who states something has instant-ngp's defaults"


def test_aabb_scale_is_overridden(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, aabb_scale=2)
    scene = load_scene(folder, ReadOptions(aabb_scale=16))
    assert scene.spaces.aabb_scale == 16
    assert any("aabb_scale 16 (--aabb-scale)" in note for note in scene.notes)
    far = write_scene(tmp_path / "far", offset=[30, 0.5, 0.5], aabb_scale=1)
    with pytest.raises(DataError, match="no view ray meets"):
        load_scene(far)
    assert load_scene(far, ReadOptions(aabb_scale=128)).spaces.aabb_scale == 128
    assert load_scene(far, ReadOptions(splits=("test",))), "a trained model brings its own box"


def test_a_few_transparent_pixels_are_no_silhouette(tmp_path: Path) -> None:
    write_scene(tmp_path, alpha=False)
    opaque = load_scene(tmp_path)
    assert (opaque.has_alpha, opaque.spaces.aabb_scale) == (False, 8)
    pixels = picture(4, alpha=False)
    pixels[2, 3, 3] = 254
    save(tmp_path / names(4)[0], pixels)
    scene = load_scene(tmp_path)
    assert (scene.has_alpha, scene.spaces.aabb_scale) == (False, 8)
    assert any(note.startswith("warning: 1 of 864 pixels (0.12 %) are not opaque") for note in scene.notes)
    for index in range(9):
        pixels[:2, :4, 3] = 0  # a corner, 8 %, as undistortion leaves it
        save(tmp_path / names(index)[0], pixels)
    assert load_scene(tmp_path).has_alpha is False
    for index in range(9):
        pixels[:3, :, 3] = 0  # 37 %
        save(tmp_path / names(index)[0], pixels)
    assert load_scene(tmp_path).has_alpha is True


def test_one_stray_camera_does_not_choose_the_box(tmp_path: Path) -> None:
    plain = load_scene(write_scene(tmp_path / "a", 30, alpha=False))

    def far(values: dict[str, Any]) -> None:
        pose = np.array(values["frames"][11]["transform_matrix"])
        pose[:3, 3] *= 200
        values["frames"][11]["transform_matrix"] = pose.tolist()

    scene = load_scene(write_scene(tmp_path / "b", 30, alpha=False, change=far))
    assert scene.spaces == plain.spaces
    stray = [note for note in scene.notes if "far from the middle" in note]
    assert len(stray) == 1 and re.search(r"warning: 1 of 30 frames stand .*: images/0011\.png \(85. units\)", stray[0])
    assert len(scene.splits["train"]) == len(plain.splits["train"]), "it is said, not dropped"


def test_cameras_that_stand_in_two_groups_are_no_strays(tmp_path: Path) -> None:
    def far(values: dict[str, Any]) -> None:
        for frame in values["frames"][:6]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, 3] *= 40
            frame["transform_matrix"] = pose.tolist()

    scene = load_scene(write_scene(tmp_path, 30, alpha=False, change=far))
    assert scene.spaces.aabb_scale == 128
    assert not any("far from the middle" in note for note in scene.notes)


# --- downscaling, memory


def test_downscaled_cameras_see_the_same_rays(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, cx=5.0, k1=0.05)
    full, half = (load_scene(folder, ReadOptions(downscale=factor)).splits["train"] for factor in (1, 2))
    assert half.images[0].shape == (4, 6, 4)
    assert (half.cameras[0].width, half.cameras[0].height) == (6, 4)
    # the mean of the plane positions of 2x2 pixel centres is the centre of the small pixel
    _, rays = camera_rays(full.cameras[0], torch.float64)
    _, small = camera_rays(half.cameras[0], torch.float64)
    blocks = rays.reshape(4, 2, 6, 2, 3).mean(dim=(1, 3)).reshape(-1, 3)
    torch.testing.assert_close(blocks / blocks.norm(dim=1, keepdim=True), small, rtol=0, atol=5e-4)


def test_downscale_drops_what_is_left_over(tmp_path: Path) -> None:
    folder = write_scene(tmp_path)
    camera = load_scene(folder, ReadOptions(downscale=5)).splits["train"].cameras[0]
    assert (camera.width, camera.height) == (2, 1)
    assert (camera.fx, camera.cx, camera.cy) == (3, 1.2, 0.8), "divided by 5, not by 12/2 or 8/1"


def test_memory_that_suffices_is_enough_for_all_pixels_at_the_size_they_are_read(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "data")
    need = 9 * 4 * WIDTH * HEIGHT
    for options in (ReadOptions(max_image_memory=need), ReadOptions(max_image_memory=need // 4, downscale=2)):
        assert load_scene(folder, options).splits["train"].files is None
    said: list[str] = []
    options = ReadOptions(max_image_memory=need - 1, image_cache=tmp_path / "cache", say=said.append)
    assert load_scene(folder, options).splits["train"].files is not None
    assert "--downscale 2 (0.84 KiB) or --max-image-memory 1 does without them" in said[0]


def test_memory_counts_only_what_is_asked_for(tmp_path: Path) -> None:
    folder = write_scene(tmp_path)
    assert load_scene(folder, ReadOptions(max_image_memory=2 * 4 * WIDTH * HEIGHT, splits=("test",)))


def test_a_photo_that_takes_too_much_while_it_is_decoded(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, 2)
    assert load_scene(folder, ReadOptions(downscale=2, max_image_memory=4 * WIDTH * HEIGHT))
    with pytest.raises(
        DataError, match=r"frame 1 .*12x8 takes 0\.38 KiB while it is decoded, more than --max-image-mem"
    ):
        load_scene(folder, ReadOptions(downscale=2, max_image_memory=4 * WIDTH * HEIGHT - 1))


def test_sides_that_are_too_short_to_be_judged(tmp_path: Path) -> None:
    folder = write_scene(tmp_path)
    assert load_scene(folder, ReadOptions(least_side=8))
    with pytest.raises(DataError, match=r"frame 1 .*12x8 is too small: every side must have 9 pixels .*SSIM"):
        load_scene(folder, ReadOptions(least_side=9))
    with pytest.raises(DataError, match=r"6x4 after --downscale 2 is too small"):
        load_scene(folder, ReadOptions(least_side=5, downscale=2))


# --- finding files


def test_the_exact_name_wins_over_another_case(tmp_path: Path) -> None:
    for name in ("A.png", "a.png"):
        save(tmp_path / name, picture(0))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes A.png and a.png for one")
    folder = Folder(tmp_path)
    assert [path and path.name for path in map(folder.find, ("a.png", "A.png", "x/../a.png"))] == [
        "a.png",
        "A.png",
        None,
    ]


def test_a_data_file_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "snapshots/x")
    (tmp_path / "blobs").mkdir()
    (folder / "transforms.json").rename(tmp_path / "blobs/8f3a")
    (folder / "transforms.json").symlink_to("../../blobs/8f3a")
    for named in (folder, folder / "transforms.json"):
        scene = load_scene(named)
        assert scene.name == "x"
        assert len(scene.splits["train"]) == 7
    assert scene.path == (folder / "transforms.json").absolute()


def test_images_of_another_camera_are_not_taken(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for index, frame in enumerate(values["frames"]):
            frame["file_path"] = f"cam{index % 2}/{index // 2:04d}.png"

    folder = write_scene(tmp_path / "a", change=change)
    with pytest.raises(DataError, match=r"none of the 9 images exists; the first is .*/cam0/0000\.png"):
        load_scene(folder)
    (folder / "images").rename(folder / "cam1")
    for index in range(5):
        save(folder / f"images/{index:04d}.png", picture(index))
    scene = load_scene(folder)
    assert all(name.startswith("cam1/") for views in scene.splits.values() for name in views.names)
    assert any(note.startswith("warning: 5 of 9 frames have no image file") for note in scene.notes)


def test_a_guess_that_two_frames_share_is_none(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for frame, folder in zip(values["frames"], "aabbccddd", strict=True):
            frame["file_path"] = f"/somewhere/{folder}/images/{frame['file_path'][-8:]}"
        values["frames"][1]["file_path"] = "/elsewhere/images/0000.png"

    scene = load_scene(write_scene(tmp_path, change=change))
    assert any(note.startswith("warning: 2 of 9 frames have no image file") for note in scene.notes), scene.notes


def test_endings_are_tried_in_order(tmp_path: Path) -> None:
    folder_path = tmp_path / "train"
    folder_path.mkdir()
    for ending in (".webp", ".jpg", ".txt"):
        (folder_path / f"r_1{ending}").touch()
    (folder_path / "r_2").mkdir()
    (folder_path / "r_2.PNG").touch()
    (folder_path / "frame.001").touch()
    (folder_path / "frame.002.png").touch()
    folder = Folder(tmp_path)
    found = [folder.find_image(f"train/{name}")[0] for name in ("r_1", "r_2", "frame.001", "frame.002", "r_3")]
    assert [path and path.name for path in found] == [
        "r_1.jpg",
        "r_2.PNG",
        "frame.001",
        "frame.002.png",
        None,
    ]


def test_absolute_paths_and_parents(tmp_path: Path) -> None:
    for index, name in enumerate("ab"):
        save(tmp_path / f"pictures/{name}.png", picture(index))
    (tmp_path / "data").mkdir()
    folder = Folder(tmp_path / "data")
    assert folder.find_image((tmp_path / "pictures/a.png").as_posix()) == (tmp_path / "pictures/a.png", False)
    assert folder.find_image("../pictures/a")[0] == tmp_path / "pictures/a.png"
    scene = load_scene(
        write_json(
            tmp_path / "data/transforms.json",
            {
                **document(2),
                "frames": [
                    {"file_path": "../pictures/a.png", "transform_matrix": opengl_pose(0, 2)},
                    {"file_path": str(tmp_path / "pictures/b.png"), "transform_matrix": opengl_pose(1, 2)},
                ],
            },
        )
    )
    assert {*scene.splits["train"].names, *scene.splits["test"].names} == {
        "../pictures/a.png",
        "../pictures/b.png",
    }


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("./train/r_0", "train/r_0"),
        ("./..\\\\dir\\\\rgb/0.png", "../dir/rgb/0.png"),
        ("images//a b.c.png", "images/a b.c.png"),
        ("C:\\me\\a.png", "C:/me/a.png"),
    ],
)
def test_paths_are_normalised(stated: str, meant: str) -> None:
    assert normalized(stated) == meant


def test_comments_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": "//no /* comment */", // one\n "b": /* two\n lines */ 3}', encoding="utf-8")
    assert load_json(path) == {"a": "//no /* comment */", "b": 3}
    path.write_text('{"a": 1, // one\n "b": }')
    with pytest.raises(DataError, match="line 2 column 7"):
        load_json(path)


# --- containers and the table of readers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downscale": 0}, "downscale: expected a whole number >= 1, got 0"),
        ({"downscale": 1.5}, "downscale"),
        ({"max_image_memory": True}, "max_image_memory"),
        ({"aabb_scale": 3}, "aabb_scale: expected a power of two in 1..128, got 3"),
        ({"splits": ("train", "eval")}, "splits: expected some of train, val, test"),
        ({"splits": ()}, "splits"),
    ],
)
def test_options_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReadOptions(**fields)


def test_posed_images_are_checked() -> None:
    camera = Camera(look_at([0.0, -4.0, 0.0], [0.0, 0.0, 0.0]), 12, 8, 9.0, 9.0, 6.0, 4.0)
    assert len(PosedImages((camera,), (picture(0),), ("a",))) == 1
    with pytest.raises(ShapeError, match="1 cameras, 0 images, 1 names"):
        PosedImages((camera,), (), ("a",))
    with pytest.raises(ShapeError, match=r"a: expected uint8 \(8, 12, 4\), got uint8 \(12, 8, 4\)"):
        PosedImages((camera,), (picture(0, 8, 12),), ("a",))
    with pytest.raises(ShapeError, match="got float64"):
        PosedImages((camera,), (picture(0) / 255,), ("a",))


def test_another_reader_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cameras.xml").touch()
    scene = load_scene(write_scene(tmp_path / "x"))
    other = Reader(
        "Metashape",
        "cameras.xml",
        lambda path: (path / "cameras.xml").exists(),
        lambda path, options: scene,
    )
    monkeypatch.setattr("hashfield.data.dataset.READERS", [*READERS, other])
    assert load_scene(tmp_path) is scene
    with pytest.raises(DataError, match=r"cameras\.npz \(NeuS\); cameras\.xml \(Metashape\)"):
        (tmp_path / "empty").mkdir()
        load_scene(tmp_path / "empty")


def test_relative_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "cat")
    monkeypatch.chdir(tmp_path / "cat")
    assert load_scene(Path(".")).name == "cat"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_scene(Path("~/cat")).path == (tmp_path / "cat").resolve()


# --- real data


def test_fox(shared_data: Path) -> None:
    scene = load_scene(shared_data / "fox", ReadOptions(downscale=8))
    assert (scene.form, scene.has_alpha) == ("instant-ngp", False)
    assert scene.spaces == Spaces(aabb_scale=4)
    assert len(scene.splits["train"]) == 43
    photos = sorted(path.name for path in (shared_data / "fox/images").iterdir())
    assert scene.splits["test"].names == tuple(f"images/{name}" for name in photos[::8])
    assert any(note.startswith("warning: 17 of 67 frames have no image file") for note in scene.notes)
    camera = scene.splits["test"].cameras[0]
    assert (camera.width, camera.height, camera.lens) == (135, 240, "opencv")
    assert (camera.fx, camera.fy) == (1375.52 / 8, 1374.49 / 8)


def test_lego(shared_data: Path) -> None:
    scene = load_scene(shared_data / "lego")
    assert (scene.form, scene.has_alpha) == ("NeRF-synthetic", True)
    assert scene.spaces == Spaces()
    assert {split: len(views) for split, views in scene.splits.items()} == {"train": 100, "test": 25}
    assert scene.splits["test"].names[:3] == ("test/r_0.webp", "test/r_8.webp", "test/r_16.webp")
    assert scene.splits["train"].cameras[0].fx == pytest.approx(1111.1110, abs=1e-3)
    assert not any(note.startswith("warning") for note in scene.notes)
    assert np.array_equal(scene.splits["test"].images[1], decode_rgba(shared_data / "lego/test/r_8.webp"))


def test_poses_with_opencv_axes_can_be_named(tmp_path: Path) -> None:
    def flip(top: dict[str, Any]) -> None:
        for frame in top["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, 1:3] *= -1
            frame["transform_matrix"] = pose.tolist()

    usual = load_scene(write_scene(tmp_path / "opengl", aabb_scale=16))
    other = load_scene(write_scene(tmp_path / "opencv", change=flip, aabb_scale=16), ReadOptions(camera_axes="opencv"))
    assert usual.camera_axes == "opengl" and other.camera_axes == "opencv"
    for one, two in zip(usual.splits["train"].cameras, other.splits["train"].cameras, strict=True):
        assert torch.allclose(one.camera_to_world, two.camera_to_world)
    assert not any("camera axes" in note for note in other.notes)
    with pytest.raises(ConfigError, match="camera_axes"):
        ReadOptions(camera_axes="blender")  # type: ignore[arg-type]
