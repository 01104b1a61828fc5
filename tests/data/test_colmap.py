"""What the reader makes of COLMAP models: cameras, photos, models, the box."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashfield.data import ReadOptions, load_scene
from hashfield.errors import DataError, HashfieldError
from hashfield.geometry.cameras import Camera, camera_table, flip_opengl, project
from tests.data.colmap_files import (
    llff_rows,
    ring,
    write_binary,
    write_capture,
    write_llff,
    write_photos,
    write_text,
)
from tests.data.small_scenes import FOCAL, HEIGHT, WIDTH, opengl_pose, picture, save, write_scene


@pytest.mark.parametrize("text", [False, True])
def test_poses_photos_and_splits(tmp_path: Path, text: bool) -> None:
    scene = load_scene(write_capture(tmp_path / "cat", text=text))
    assert (scene.name, scene.form, scene.has_alpha) == ("cat", "COLMAP", False)
    assert scene.splits["test"].names == ("images/0000.png", "images/0008.png")
    assert scene.splits["train"].names == tuple(f"images/{index:04d}.png" for index in range(1, 8))
    assert np.array_equal(scene.splits["train"].images[2], picture(3, alpha=False))
    camera = scene.splits["train"].cameras[2]
    expected = flip_opengl(torch.tensor(opengl_pose(3, 9), dtype=torch.float64)[:3])
    torch.testing.assert_close(camera.camera_to_world, expected, rtol=0, atol=1e-12)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2)
    assert not any(note.startswith("warning") for note in scene.notes), scene.notes


@pytest.mark.parametrize(
    ("model", "parameters", "lens", "distortion"),
    [
        ("SIMPLE_PINHOLE", [15, 6, 4], "pinhole", ()),
        ("PINHOLE", [15, 15, 6, 4], "pinhole", ()),
        ("SIMPLE_RADIAL", [15, 6, 4, 0.1], "opencv", (0.1, 0, 0, 0, 0, 0)),
        ("RADIAL", [15, 6, 4, 0.1, 0.2], "opencv", (0.1, 0.2, 0, 0, 0, 0)),
        ("OPENCV", [15, 15, 6, 4, 0.1, 0.2, 0.01, 0.02], "opencv", (0.1, 0.2, 0, 0, 0.01, 0.02)),
        ("OPENCV_FISHEYE", [15, 15, 6, 4, 0.1, 0.2, 0.3, 0.4], "fisheye", (0.1, 0.2, 0.3, 0.4, 0, 0)),
        ("FULL_OPENCV", [15, 15, 6, 4, 0.1, 0.2, 0.01, 0.02, 0.3, 0, 0, 0], "opencv", (0.1, 0.2, 0.3, 0, 0.01, 0.02)),
        ("SIMPLE_RADIAL_FISHEYE", [15, 6, 4, 0.1], "fisheye", (0.1, 0, 0, 0, 0, 0)),
        ("RADIAL_FISHEYE", [15, 6, 4, 0.1, 0.2], "fisheye", (0.1, 0.2, 0, 0, 0, 0)),
        ("SIMPLE_FISHEYE", [15, 6, 4], "fisheye", (0,) * 6),
        ("FISHEYE", [15, 15, 6, 4], "fisheye", (0,) * 6),
    ],
)
def test_lenses(tmp_path: Path, model: str, parameters: list[float], lens: str, distortion: tuple[float, ...]) -> None:
    for text in (False, True):
        scene = load_scene(write_capture(tmp_path / str(text), ring(3, model, parameters), text=text))
        camera = scene.splits["train"].cameras[0]
        assert (camera.lens, camera.distortion) == (lens, distortion)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (15, 15, 6, 4)


def test_each_photo_has_its_own_camera(tmp_path: Path) -> None:
    model = ring(3)
    model.cameras = [(index, "SIMPLE_PINHOLE", WIDTH, HEIGHT, [10.0 + index, 6.0, 4.0]) for index in (5, 3, 4)]
    model.images = [(index, pose, 3 + index % 3, name) for index, (_, pose, _, name) in enumerate(model.images)]
    scene = load_scene(write_capture(tmp_path, model))
    assert [camera.fx for camera in scene.splits["train"].cameras] == [14, 15]
    assert scene.splits["test"].cameras[0].fx == 13


def test_rigs_and_frames_of_newer_versions_are_no_hindrance(tmp_path: Path) -> None:
    write_capture(tmp_path)
    for name in ("rigs.bin", "frames.bin"):
        (tmp_path / "sparse/0" / name).write_bytes(b"anything")
    assert load_scene(tmp_path).form == "COLMAP"


def test_binary_files_win_over_text(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_text(tmp_path / "sparse/0", ring(3))
    assert len(load_scene(tmp_path).splits["train"]) == 7


def test_the_largest_model_is_read(tmp_path: Path) -> None:
    write_capture(tmp_path, ring(9))
    write_binary(tmp_path / "sparse/1", ring(9))
    write_binary(tmp_path / "sparse/0", ring(3))
    scene = load_scene(tmp_path)
    assert len(scene.splits["train"]) == 7
    assert "2 COLMAP models, by photos: sparse/0 (3), sparse/1 (9); sparse/1 is read" in scene.notes
    assert len(load_scene(tmp_path / "sparse/0").splits["train"]) == 2, "the model that is named"


@pytest.mark.parametrize("place", ["", "sparse", "sparse/0", "colmap/sparse/0"])
def test_places_of_the_model(tmp_path: Path, place: str) -> None:
    write_binary(tmp_path / place, ring())
    write_photos(tmp_path / "images", ring())
    for named in (tmp_path, tmp_path / place, tmp_path / place / "cameras.bin"):
        scene = load_scene(named)
        assert (scene.name, scene.form) == (tmp_path.name, "COLMAP")
        assert scene.splits["test"].names[0] == "images/0000.png"


def test_photos_beside_the_model(tmp_path: Path) -> None:
    write_binary(tmp_path / "colmap/sparse/0", ring(3, name="a\\{}.png"))
    write_photos(tmp_path / "colmap/images", ring(3, name="a/{}.png"))
    assert load_scene(tmp_path).splits["test"].names == ("colmap/images/a/0.png",)


def test_transforms_json_wins(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_scene(tmp_path)
    assert load_scene(tmp_path).form == "instant-ngp"


# --- photos


def test_a_smaller_folder_serves_where_the_photos_are_missing(tmp_path: Path) -> None:
    model = ring(3, "OPENCV", [15, 16, 5, 3, 0.1, 0, 0, 0])
    write_binary(tmp_path / "sparse/0", model)
    write_photos(tmp_path / "images_2", model, WIDTH // 2, HEIGHT // 2)
    scene = load_scene(tmp_path)
    camera = scene.splits["train"].cameras[0]
    assert (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy) == (6, 4, 7.5, 8, 2.5, 1.5)
    assert camera.distortion[0] == 0.1
    assert "photos: images_2" in scene.notes
    assert any("12x8 stated, 6x4 found" in note for note in scene.notes)


def test_the_folder_with_most_photos_is_taken_and_can_be_named(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_photos(tmp_path / "images_2", ring(), WIDTH // 2, HEIGHT // 2)
    assert load_scene(tmp_path).splits["train"].cameras[0].width == WIDTH, "the larger photos of equally many"
    assert load_scene(tmp_path / "images_2").splits["train"].cameras[0].width == WIDTH // 2
    (tmp_path / "images/0003.png").unlink()
    assert load_scene(tmp_path).splits["train"].cameras[0].width == WIDTH // 2
    (tmp_path / "images_2/0003.png").unlink()
    scene = load_scene(tmp_path)
    assert len(scene.splits["train"]) == 7
    assert "warning: 1 of 9 photos have no image file and are skipped: 0003.png" in scene.notes


def test_photos_of_another_format_and_case(tmp_path: Path) -> None:
    model = ring(3, name="IMG {}.JPG")
    write_binary(tmp_path / "sparse/0", model)
    for index in range(3):
        save(tmp_path / f"images_4/img {index}.png", picture(index, 3, 2, alpha=False), "RGB")
    assert load_scene(tmp_path).splits["test"].names == ("images_4/img 0.png",)


def test_photos_with_other_names_are_taken_in_order(tmp_path: Path) -> None:
    write_binary(tmp_path / "sparse/0", ring(3, name="IMG_40{}.JPG"))
    write_photos(tmp_path / "images_8", ring(3, name="image{:03d}.png"))
    scene = load_scene(tmp_path)
    assert scene.splits["train"].names == ("images_8/image001.png", "images_8/image002.png")
    assert any(note.startswith("warning: the photos in images_8 have other names") for note in scene.notes)


def test_photos_without_a_pose_are_named(tmp_path: Path) -> None:
    write_capture(tmp_path)
    for name in ("0009.png", "deep/0010.jpg", ".hidden.png", "notes.txt"):
        save(tmp_path / "images" / name, picture(0), "RGB") if name[-1] == "g" else (
            tmp_path / "images" / name
        ).write_text("x")
    expected = "2 of 11 photos in images have no pose in the COLMAP model and are left out: 0009.png, deep/0010.jpg"
    assert f"warning: {expected}" in load_scene(tmp_path).notes


def test_names_with_folders_and_spaces(tmp_path: Path) -> None:
    for text in (False, True):
        scene = load_scene(write_capture(tmp_path / str(text), ring(3, name="cam 0/räk {}.png"), text=text))
        assert scene.splits["test"].names == ("images/cam 0/räk 0.png",)


# --- the box


def test_the_box_follows_the_points_and_not_their_strays(tmp_path: Path) -> None:
    model = ring(20)
    model.points = np.random.default_rng(0).uniform(-12, 12, (1000, 3))
    plain = load_scene(write_capture(tmp_path / "a", model))
    half = plain.spaces.distance_scene_to_world(0.5 * plain.spaces.aabb_scale)
    assert half == pytest.approx(1.1 * 12, rel=0.03), "a tenth farther than the points"
    torch.testing.assert_close(plain.spaces.box_center_world, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    distance = 4.272 * plain.spaces.scale
    assert 1.32 / 2**0.51 < distance < 1.32 * 2**0.51, "cameras stand where presets expect them"
    model.points[:10] = 1e6
    strays = load_scene(write_capture(tmp_path / "b", model))
    assert strays.spaces.aabb_scale == plain.spaces.aabb_scale
    assert strays.spaces.scale == pytest.approx(plain.spaces.scale, rel=0.02)
    assert any("holds 98 % of 1000 points of points3D.bin" in note for note in strays.notes)


def test_the_box_reaches_beyond_the_cameras_unless_alpha_cuts_the_object_out(tmp_path: Path) -> None:
    model = ring(20)
    scene = load_scene(write_capture(tmp_path, model))
    assert scene.spaces.distance_scene_to_world(0.5 * scene.spaces.aabb_scale) == pytest.approx(8, rel=0.01)
    assert any("twice as far as the cameras; 200 points of points3D.bin reach less far" in note for note in scene.notes)
    for index in range(20):
        save(tmp_path / f"images/{index:04d}.png", picture(index))
    scene = load_scene(tmp_path)
    assert scene.has_alpha
    assert scene.spaces.distance_scene_to_world(0.5 * scene.spaces.aabb_scale) == pytest.approx(1.1, rel=0.02)


def test_views_outwards_have_their_box_around_the_cameras(tmp_path: Path) -> None:
    model = ring(20)
    half_turn = np.diag([-1.0, 1.0, -1.0])
    for index, (number, pose, camera, name) in enumerate(model.images):
        w, x, y, z = pose[:4]
        # turned by 180 degrees about the camera's down axis: the quaternion (0, 0, 1, 0) from the left
        turned = [-y, z, w, -x]
        model.images[index] = (number, [*turned, *(half_turn @ pose[4:]).tolist()], camera, name)
    model.points = np.random.default_rng(0).uniform([-30, -30, -25], [30, 30, 35], (1000, 3))
    scene = load_scene(write_capture(tmp_path, model))
    assert any("middle of the cameras, as they look outwards" in note for note in scene.notes), scene.notes
    assert scene.spaces.box_center_world[2] == pytest.approx(1.5, abs=0.1)
    assert scene.spaces.distance_scene_to_world(0.5 * scene.spaces.aabb_scale) == pytest.approx(1.1 * 33.5, rel=0.04)
    assert not any("--camera-axes" in note for note in scene.notes)


def test_without_points_the_box_comes_from_the_cameras(tmp_path: Path) -> None:
    model = ring(20)
    model.points = np.empty((0, 3))
    empty = load_scene(write_capture(tmp_path, model))
    (tmp_path / "sparse/0/points3D.bin").unlink()
    absent = load_scene(tmp_path)
    assert empty.spaces == absent.spaces
    assert empty.spaces.aabb_scale == 8
    assert any("aabb_scale 8 (from the cameras, which look inwards)" in note for note in empty.notes)
    assert load_scene(tmp_path, ReadOptions(aabb_scale=2)).spaces.aabb_scale == 2


# --- what is wrong

Damage = Callable[[Path], object]


def cut(name: str, end: int) -> Damage:
    """An edit that cuts bytes off the end of a file."""
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:end])


def patch(name: str, offset: int, form: str, *values: float) -> Damage:
    """An edit that overwrites values of a binary file."""

    def edit(model: Path) -> None:
        data = bytearray((model / name).read_bytes())
        struct.pack_into("<" + form, data, offset, *values)
        (model / name).write_bytes(data)

    return edit


def lines(name: str, old: str, new: str) -> Damage:
    """An edit that replaces a part of a text file."""

    def edit(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new, 1))

    return edit


BINARY_DAMAGE: dict[str, tuple[Damage, str]] = {
    "cameras_empty": (cut("cameras.bin", 0), r"cameras\.bin: 'number of cameras': the file ends here"),
    "cameras_cut": (cut("cameras.bin", -8), r"cameras\.bin: camera 7: 'params': the file ends here, it is cut off"),
    "cameras_count": (
        patch("cameras.bin", 0, "Q", 10**15),
        r"cameras\.bin: 'number of cameras': 10+ stated, more than",
    ),
    "cameras_fewer": (
        patch("cameras.bin", 0, "Q", 0),
        r"cameras\.bin: 'number of cameras': 0 stated, but 56 bytes follow",
    ),
    "model": (patch("cameras.bin", 12, "i", 99), r"camera 7: 'model': there is no camera model 99"),
    "model_negative": (patch("cameras.bin", 12, "i", -1), r"camera 7: 'model': there is no camera model -1"),
    "size": (patch("cameras.bin", 16, "Q", 0), r"camera 7: 'width, height': expected whole numbers above 0, got 0x8"),
    "size_huge": (patch("cameras.bin", 16, "Q", 2**63), r"camera 7: 'width, height': expected whole numbers"),
    "params_nan": (patch("cameras.bin", 32, "d", float("nan")), r"camera 7: 'params': not finite \(nan\)"),
    "focal_0": (
        patch("cameras.bin", 32, "d", 0.0),
        r"images\.bin: image 99 \(0001\.png\): fx: expected a finite positive",
    ),
    "images_cut": (cut("images.bin", -100), r"images\.bin: image 92\b.*: '.*': the file ends here, it is cut off"),
    "images_in_points": (cut("images.bin", -1), r"images\.bin: image 92 \(0008\.png\): 'points2D': the file ends here"),
    "images_count": (
        patch("images.bin", 0, "Q", 8),
        r"images\.bin: 'number of images': 8 stated, but 129 bytes follow",
    ),
    "images_none": (
        lambda model: (model / "images.bin").write_bytes(bytes(8)),
        r"images\.bin: no photo has a pose: COLMAP found none",
    ),
    "points_of_image": (
        patch("images.bin", 81, "Q", 2**63),
        r"image 100 \(0000\.png\): 'points2D': the file ends here",
    ),
    "pose_nan": (patch("images.bin", 12, "d", float("nan")), r"image 100: 'qw qx qy qz tx ty tz': not finite \(nan\)"),
    "pose_zero": (
        patch("images.bin", 12 + 129, "4d", 0, 0, 0, 0),
        r"image 99 .*'qw qx qy qz': .* quaternion of length 0",
    ),
    "camera_id": (patch("images.bin", 68, "I", 8), r"image 100 \(0000\.png\): 'camera_id': 8 is not in cameras\.bin"),
    "name_bytes": (patch("images.bin", 72, "B", 255), r"images\.bin: image 100: 'name': not a text in UTF-8"),
    "name_up": (
        patch("images.bin", 72, "3B", *b"../"),
        r"\(\.\./0\.png\): 'name': expected the name of a photo in the folder",
    ),
    "name_root": (
        patch("images.bin", 72, "B", *b"/"),
        r"\(/000\.png\): 'name': expected the name of a photo in the folder",
    ),
    "name_drive": (patch("images.bin", 72, "2B", *b"C:"), r"\(C:00\.png\): 'name': expected the name of a photo"),
    "points_cut": (cut("points3D.bin", -5), r"points3D\.bin: point 200 of 200: 'track': the file ends here"),
    "points_nan": (patch("points3D.bin", 16, "d", float("inf")), r"points3D\.bin: point 1 of 200: 'xyz': not finite"),
    "points_count": (
        patch("points3D.bin", 0, "Q", 199),
        r"points3D\.bin: 'number of points': 199 stated, but 59 bytes",
    ),
}


@pytest.mark.parametrize("name", BINARY_DAMAGE)
def test_broken_binary_files(tmp_path: Path, name: str) -> None:
    damage, message = BINARY_DAMAGE[name]
    write_capture(tmp_path)
    damage(tmp_path / "sparse/0")
    expect_error(tmp_path, message)


def expect_error(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_scene(folder)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(folder)), "names the file"


def test_every_cut_of_the_binary_files_is_an_error(tmp_path: Path) -> None:
    write_capture(tmp_path, ring(2))
    for name in ("cameras.bin", "images.bin"):
        path = tmp_path / "sparse/0" / name
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=name.replace(".", r"\.")):
                load_scene(tmp_path)
        path.write_bytes(whole)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["cameras.bin", "images.bin", "points3D.bin", "cameras.txt", "images.txt", "points3D.txt"]),
    place=st.floats(0, 1, exclude_max=True),
    data=st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from([1e200, -1e290, 1e-300, 5e15]).map(lambda value: struct.pack("<d", value)),
    ),
    keep=st.sampled_from([1.0, 1.0, 0.5, 0.99]),
)
def test_any_damage_ends_in_one_line(any_capture: Path, name: str, place: float, data: bytes, keep: float) -> None:
    folder = any_capture / name[-3:]
    path = folder / "sparse/0" / name
    whole = path.read_bytes()
    start = int(place * len(whole))
    path.write_bytes((whole[:start] + data + whole[start + len(data) :])[: int(keep * len(whole))])
    try:
        scene = load_scene(folder)
    except HashfieldError as error:
        assert "\n" not in str(error) and str(error).startswith(str(folder))
    else:
        assert all("\n" not in note for note in scene.notes)
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def any_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two captures, bin with a binary model and txt with a text one."""
    folder = tmp_path_factory.mktemp("any")
    model = ring(4, "OPENCV", [15.0, 15.0, 6.0, 4.0, 0.1, 0.0, 0.0, 0.0])
    model.points = model.points[:5]
    write_capture(folder / "bin", model)
    write_capture(folder / "txt", model, text=True)
    return folder


def test_poses_beyond_all_proportion(tmp_path: Path) -> None:
    model = ring(3)
    _, pose, *_ = model.images[1]
    pose[4] = 1e200
    message = r"images\.bin: image 99: 'qw qx qy qz tx ty tz': out of all proportion \(1e\+200\)"
    expect_error(write_capture(tmp_path, model), message)


TEXT_DAMAGE: dict[str, tuple[Damage, str]] = {
    "camera_words": (lines("cameras.txt", "7 PINHOLE 12", "7"), r"cameras\.txt: line 3: .*'model'|expected camera_id"),
    "camera_model": (
        lines("cameras.txt", "PINHOLE", "HOLE"),
        r"cameras\.txt: line 3: 'model': there is no camera model HOLE",
    ),
    "camera_width": (
        lines("cameras.txt", "12 8", "12.5 8"),
        r"cameras\.txt: line 3: 'width': expected a number, got '12\.5'",
    ),
    "camera_params": (
        lines("cameras.txt", "15.0 15.0", "15.0"),
        r"line 3: 'params': PINHOLE has 4 \(fx fy cx cy\), got 3",
    ),
    "camera_nan": (lines("cameras.txt", "15.0", "nan"), r"cameras\.txt: line 3: 'params': not finite \(nan\)"),
    "camera_count": (lines("cameras.txt", "cameras: 1", "cameras: 2"), r"'Number of cameras': 2 stated, 1 found"),
    "image_words": (
        lines("images.txt", " 0000.png", ""),
        r"images\.txt: line 3: expected image_id, .*, name, got 9 words",
    ),
    "image_points": (
        lines("images.txt", "4.5 -1", "4.5"),
        r"images\.txt: line 3 \(0000\.png\): 'points2D': expected x, y",
    ),
    "image_camera": (
        lines("images.txt", " 7 0000.png", " 6 0000.png"),
        r"\(0000\.png\): 'camera_id': 6 is not in cameras\.txt",
    ),
    "image_count": (
        lines("images.txt", "images: 9", "images: 10"),
        r"'Number of images': 10 stated, 9 found: the file is cut",
    ),
    "image_twice": (
        lines("images.txt", "0001.png", "0000.png"),
        r"images\.txt: line .*'name': 0000\.png is there twice",
    ),
    "image_text": (lines("images.txt", "\n100 ", "\n100 x "), r"images\.txt: line 3: 'qw': expected a number, got 'x'"),
    "point": (lines("points3D.txt", "\n0 ", "\n0 x "), r"points3D\.txt: line 2: 'x': expected a number, got 'x'"),
    "point_words": (lines("points3D.txt", "\n1 ", "\n1\n1 "), r"points3D\.txt: line 3: expected point3D_id, x, y, z"),
    "point_count": (lines("points3D.txt", "points: 200", "points: 300"), r"'Number of points': 300 stated, 200 found"),
}


@pytest.mark.parametrize("name", TEXT_DAMAGE)
def test_broken_text_files(tmp_path: Path, name: str) -> None:
    damage, message = TEXT_DAMAGE[name]
    write_capture(tmp_path, text=True)
    damage(tmp_path / "sparse/0")
    expect_error(tmp_path, message)


# parameters for a picture of 12 x 8 pixels, and where COLMAP 4.2 has the direction (0.3, -0.2, 1)
OTHER_LENSES = {
    "FOV": ([15, 15.3, 6.1, 3.9, 0.9], [10.748271, 0.739176]),
    "FULL_OPENCV": ([15, 15, 6, 4, 0.1, 0.2, 0.01, 0.02, 0.3, 0.1, 0.02, 0.01], [10.591338, 0.984608]),
    "THIN_PRISM_FISHEYE": (
        [15, 15, 6, 4, 0.02, -0.01, 0.0005, -0.0003, 0.002, 0.0003, 0.0002, -0.0003],
        [10.326911, 1.115632],
    ),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        [15, 15, 6, 4, 0.03, -0.02, 0.004, -0.001, 0.0002, 0, 0.0003, -0.0002, 0.0002, 1e-05, -0.0003, 2e-05],
        [10.335224, 1.109555],
    ),
    "SIMPLE_DIVISION": ([15, 6, 4, -0.12], [10.431908, 1.045394]),
    "DIVISION": ([15, 15.3, 6, 4, -0.2], [10.388715, 1.015674]),
    "EUCM": ([12, 12.2, 6, 4, 0.6, 1.1], [9.456662, 1.657151]),
}


@pytest.mark.parametrize("model", OTHER_LENSES)
def test_other_lenses_become_the_nearest_one(tmp_path: Path, model: str) -> None:
    parameters, expected = OTHER_LENSES[model]
    scene = load_scene(write_capture(tmp_path, ring(3, model, parameters)))
    camera = scene.splits["train"].cameras[0]
    table, direction = camera_table([camera]), torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64)
    point = camera.position + direction @ camera.camera_to_world[:, :3].T
    found, _ = project(table, torch.zeros(1, dtype=torch.int64), point)
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.01)
    assert any(f"lenses of COLMAP's model {model} are read as " in note for note in scene.notes)


def test_a_lens_that_nothing_comes_near_is_refused_by_name(tmp_path: Path) -> None:
    skewed = [15, 15, 6, 4, 0, 0, 0.3, -0.3, 0, 0, 0.5, -0.4]
    write_capture(tmp_path, ring(3, "THIN_PRISM_FISHEYE", skewed))
    expect_error(tmp_path, "cameras.bin: camera 7: 'model': THIN_PRISM_FISHEYE with these parameters differs by up to ")


def test_photos_of_another_shape(tmp_path: Path) -> None:
    write_capture(tmp_path)
    save(tmp_path / "images/0003.png", picture(3, HEIGHT, WIDTH), "RGB")
    expect_error(
        tmp_path, r"image 97 \(0003\.png\): 'width, height': another shape than the image: 12x8 stated, 8x12 found"
    )


def test_broken_and_missing_photos(tmp_path: Path) -> None:
    write_capture(tmp_path)
    (tmp_path / "images/0003.png").write_text("broken")
    expect_error(tmp_path, r"images\.bin: image 97 \(0003\.png\): 'name': .*0003\.png: not an image that can be read")
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    expect_error(tmp_path, r"images\.bin: none of the 9 photos exists in images of .*; the first is 0000\.png")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_capture(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    expect_error(tmp_path, r"points3D\.bin: cannot be read: Permission denied")


def test_half_a_model(tmp_path: Path) -> None:
    write_capture(tmp_path)
    (tmp_path / "sparse/0/images.bin").unlink()
    with pytest.raises(DataError, match="a COLMAP model needs cameras and images, sparse/0 holds cameras only"):
        load_scene(tmp_path)


# --- LLFF


def test_llff(tmp_path: Path) -> None:
    scene = load_scene(write_llff(tmp_path / "fern"))
    assert (scene.name, scene.form) == ("fern", "LLFF")
    assert scene.splits["test"].names == ("images/0000.png", "images/0008.png")
    camera = scene.splits["train"].cameras[2]
    expected = flip_opengl(torch.tensor(opengl_pose(3, 9), dtype=torch.float64)[:3])
    torch.testing.assert_close(camera.camera_to_world, expected, rtol=0, atol=1e-12)
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.lens) == (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, "pinhole")
    for named in (tmp_path / "fern/poses_bounds.npy", tmp_path / "fern/images"):
        assert load_scene(named).splits["test"].names == scene.splits["test"].names


def test_llff_rows_follow_the_string_order_of_names(tmp_path: Path) -> None:
    scene = load_scene(write_llff(tmp_path, llff_rows(12), name="{}.png"))
    order = ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert scene.splits["test"].names == ("images/0.png", "images/6.png")
    assert scene.splits["train"].names[1] == f"images/{order[2]}.png"
    expected = torch.tensor(opengl_pose(2, 12), dtype=torch.float64)[:3, 3]
    torch.testing.assert_close(scene.splits["train"].cameras[1].position, expected, rtol=0, atol=1e-12)


def test_llff_takes_the_folder_with_as_many_photos(tmp_path: Path) -> None:
    write_llff(tmp_path, images="images_4")
    write_photos(tmp_path / "images", ring(3))
    assert load_scene(tmp_path).splits["test"].names[0] == "images_4/0000.png"
    (tmp_path / "images_4/0003.png").unlink()
    expect_error(
        tmp_path, r"poses_bounds\.npy: 9 rows, but .* \(3 in images, 8 in images_4\); rows belong to the photos"
    )


def broken_rows(edit: Callable[[np.ndarray], object]) -> np.ndarray:
    rows = llff_rows()
    edit(rows)
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (llff_rows()[:, :16], r"poses_bounds\.npy: expected 17 numbers for each photo, got float64 \(9, 16\)"),
        (llff_rows().ravel(), r"expected 17 numbers for each photo, got float64 \(153,\)"),
        (llff_rows().astype(str), r"expected 17 numbers for each photo, got <U"),
        (llff_rows()[:0], r"no rows, so no photo has a pose"),
        (broken_rows(lambda r: r.__setitem__((3, 7), np.nan)), r"row 3 \(0003\.png\): 'pose': not finite"),
        (
            broken_rows(lambda r: r.__setitem__((3, 14), np.inf)),
            r"row 3 \(0003\.png\): 'height, width, focal': not finite",
        ),
        (
            broken_rows(lambda r: r.__setitem__((3, 14), 0)),
            r"row 3 .*: 'height, width, focal': expected numbers above 0",
        ),
        (
            broken_rows(lambda r: r.__setitem__((3, 15), 9)),
            r"row 3 .*: 'near, far': expected 0 < near <= far, got 9 and 6",
        ),
        (broken_rows(lambda r: r.__setitem__((3, slice(0, 15, 5)), 0)), r"row 3 .*: 'pose': the rotation is singular"),
        (broken_rows(lambda r: r.__setitem__((3, slice(0, 15, 5)), -r[3, 0:15:5])), r"row 3 .*: 'pose': .* mirrored"),
        (broken_rows(lambda r: r.__setitem__((3, 4), 12)), r"row 3 .*: 'height, width': another shape than the image"),
    ],
)
def test_broken_llff(tmp_path: Path, rows: np.ndarray, message: str) -> None:
    write_llff(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", rows)
    expect_error(tmp_path, message)


def test_llff_files_that_are_no_arrays(tmp_path: Path) -> None:
    write_llff(tmp_path)
    path = tmp_path / "poses_bounds.npy"
    whole = path.read_bytes()
    for data in (b"", b"hello", whole[:9], whole[:70], whole[:-1], whole.replace(b"(9, 17)", b"(9**9, 7)")):
        path.write_bytes(data)
        expect_error(tmp_path, r"poses_bounds\.npy: not a NumPy array that can be read")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    expect_error(tmp_path, r"poses_bounds\.npy: not a NumPy array that can be read")


# --- real data


def test_cup_is_the_same_by_either_reader(shared_data: Path) -> None:
    colmap, llff = load_scene(shared_data / "cup"), load_scene(shared_data / "cup/poses_bounds.npy")
    assert (colmap.form, llff.form) == ("COLMAP", "LLFF")
    for split in ("train", "test"):
        assert colmap.splits[split].names == llff.splits[split].names
        for one, two in zip(colmap.splits[split].cameras, llff.splits[split].cameras, strict=True):
            torch.testing.assert_close(one.camera_to_world, two.camera_to_world, rtol=0, atol=1e-12)
            assert two.fx == pytest.approx(589.027 / 4, abs=1e-3), "LLFF has one focal length for all"
    assert [colmap.splits["train"].names[index] for index in (0, 6, 7)] == [
        f"images_4/{name}.jpg" for name in (10, 16, 19)
    ]
    focal = {round(camera.fx * 4, 3) for camera in colmap.splits["train"].cameras}
    assert len(focal) > 60 and min(focal) > 525 and max(focal) < 635


def test_cup_sees_its_points_where_colmap_found_them(shared_data: Path) -> None:
    model = shared_data / "cup/sparse/0"
    data, offset = (model / "points3D.bin").read_bytes(), 8
    points = {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, *point, _, _, _, _, n_views = struct.unpack_from("<Q3d3BdQ", data, offset)
        points[number] = point
        offset += 51 + 8 * n_views
    seen: dict[str, np.ndarray] = {}
    data, offset = (model / "images.bin").read_bytes(), 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        end = data.index(b"\0", offset + 64)
        (count,) = struct.unpack_from("<Q", data, end + 1)
        found = np.frombuffer(data, "<f8, <f8, <u8", count, end + 9)
        name = data[offset + 64 : end].decode()
        seen[name] = np.array([[x, y, *points[number]] for x, y, number in found.tolist() if number in points])
        offset = end + 9 + 24 * count
    scene = load_scene(shared_data / "cup")
    residuals = []
    for views in scene.splits.values():
        for name, camera in zip(views.names, views.cameras, strict=True):
            observed = torch.from_numpy(seen[Path(name).name])
            none = torch.zeros(len(observed), dtype=torch.int64)
            pixel, _ = project(camera_table([camera]), none, observed[:, 2:])
            residuals.append((4 * pixel - observed[:, :2]).norm(dim=1))
    residual = torch.cat(residuals)
    assert len(residual) == 8243
    assert float(residual.mean()) == pytest.approx(0.77, abs=0.01), "pixels of 800x600, as COLMAP itself finds"


def test_mouse(shared_data: Path) -> None:
    scene = load_scene(shared_data / "mouse", ReadOptions(downscale=16))
    assert sum(map(len, scene.splits.values())) == 56
    assert any(note.startswith("warning: 3 of 59 photos in images have no pose") for note in scene.notes)
    assert {(camera.width, camera.height) for camera in scene.splits["train"].cameras} == {(90, 120), (120, 90)}


def test_fern(shared_data: Path) -> None:
    scene = load_scene(shared_data / "fern")
    assert scene.splits["test"].names == tuple(f"images_8/image{index:03d}.png" for index in (0, 8, 16))
    camera: Camera = scene.splits["train"].cameras[0]
    assert camera.fx == pytest.approx(3260.526 / 8, abs=1e-3)


def test_a_broken_header_of_poses_bounds_is_one_line(tmp_path: Path) -> None:
    folder = write_llff(tmp_path)
    whole = (folder / "poses_bounds.npy").read_bytes()
    for begin, end in ((11, 40), (30, 60), (6, 8), (0, 4)):
        (folder / "poses_bounds.npy").write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
        with pytest.raises(DataError, match="not a NumPy array that can be read") as caught:
            load_scene(folder)
        assert "\n" not in str(caught.value)
