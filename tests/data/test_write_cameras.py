"""Cameras that are written as transforms.json and as COLMAP models, and what the readers make of them again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.data import load_scene
from hashfield.data.write_cameras import common_folder, write_colmap, write_transforms
from hashfield.errors import ConfigError
from hashfield.geometry.cameras import Camera, flip_opengl, panorama
from hashfield.geometry.spaces import Spaces
from tests.data.small_scenes import HEIGHT, WIDTH, opengl_pose, picture, save

N = 4
NAMES = [f"images/{index} photo.png" for index in range(N)]
LENSES = [
    ("pinhole", ()),
    ("opencv", (0.1, -0.02, 0, 0, 0.003, -0.004)),
    ("opencv", (0.1, -0.02, 0.01, 0, 0.003, -0.004)),
    ("fisheye", (0.01, 0.02, -0.003, 0.004, 0, 0)),
    ("equirectangular", ()),
]


def cameras(lens: str, distortion: tuple[float, ...], *, alike: bool = True) -> list[Camera]:
    found = []
    for index in range(N):
        pose = flip_opengl(torch.tensor(opengl_pose(index, N), dtype=torch.float64)[:3])
        if lens == "equirectangular":
            found.append(panorama(pose, WIDTH, HEIGHT))
            continue
        focal = 15.1 + (0 if alike else index)
        found.append(Camera(pose, WIDTH, HEIGHT, focal, focal + 0.3, 6.2, 3.9, lens, distortion))  # type: ignore[arg-type]
    return found


def photos(folder: Path) -> None:
    for index, name in enumerate(NAMES):
        save(folder / name, picture(index, alpha=False), "RGB")


def read_back(path: Path) -> tuple[dict[str, Camera], Spaces]:
    scene = load_scene(path)
    warnings = [note for note in scene.notes if note.startswith("warning")]
    assert all("stretched" in note for note in warnings), scene.notes  # a panorama of 12 x 8 pixels
    found = {}
    for views in scene.splits.values():
        found.update(zip(views.names, views.cameras, strict=True))
    return found, scene.spaces


def assert_same(found: dict[str, Camera], wanted: list[Camera]) -> None:
    assert sorted(found) == sorted(NAMES)
    for name, camera in zip(NAMES, wanted, strict=True):
        other = found[name]
        torch.testing.assert_close(other.camera_to_world, camera.camera_to_world, rtol=0, atol=1e-12)
        assert (other.lens, other.width, other.height) == (camera.lens, camera.width, camera.height)
        optics = [(c.fx, c.fy, c.cx, c.cy, *c.distortion) for c in (other, camera)]
        np.testing.assert_allclose(optics[0], optics[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(("lens", "distortion"), LENSES)
def test_every_lens_is_read_back(tmp_path: Path, lens: str, distortion: tuple[float, ...], alike: bool) -> None:
    wanted = cameras(lens, distortion, alike=alike)
    for form in ("json", "bin", "txt"):
        folder = tmp_path / form
        photos(folder)
        if form == "json":
            write_transforms(folder / "transforms.json", wanted, NAMES)
        else:
            inside = [name.removeprefix("images/") for name in NAMES]
            write_colmap(folder / "sparse/0", wanted, inside, text=form == "txt")
        assert_same(read_back(folder)[0], wanted)


def test_cameras_of_several_lenses_in_one_file(tmp_path: Path) -> None:
    wanted = [cameras(*LENSES[index])[index] for index in range(N)]
    photos(tmp_path)
    write_transforms(tmp_path / "transforms.json", wanted, NAMES)
    assert_same(read_back(tmp_path)[0], wanted)


def test_a_lens_model_that_all_share_stands_at_the_top(tmp_path: Path) -> None:
    extra = [{"sharpness": float(index)} for index in range(N)]
    write_transforms(tmp_path / "transforms.json", cameras(*LENSES[3], alike=False), NAMES, frame_extra=extra)
    written = json.loads((tmp_path / "transforms.json").read_text())
    assert written["camera_model"] == "OPENCV_FISHEYE" and "fl_x" not in written
    assert [frame["sharpness"] for frame in written["frames"]] == [0.0, 1.0, 2.0, 3.0]
    assert all("fl_x" in frame and "camera_model" not in frame for frame in written["frames"])


def test_box_splits_and_masks_are_read_back(tmp_path: Path) -> None:
    photos(tmp_path)
    mask = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    mask[2:4, 3:6, :3] = 0
    save(tmp_path / "masks/1.png", mask, "RGB")
    spaces = Spaces(0.4321, (0.1, 0.2, 0.3), 4)
    write_transforms(
        tmp_path / "transforms.json", cameras(*LENSES[0]), NAMES, spaces=spaces,
        splits={"train": NAMES[1:], "test": NAMES[:1]}, masks={NAMES[1]: "masks/1.png"}, extra={"made_by": "a test"},
    )  # fmt: skip
    scene = load_scene(tmp_path)
    assert scene.spaces == spaces
    assert (scene.splits["train"].names, scene.splits["test"].names) == (tuple(NAMES[1:]), tuple(NAMES[:1]))
    assert scene.splits["train"].masks is not None
    assert [int((~kept).sum()) for kept in scene.splits["train"].masks] == [6, 0, 0]


@pytest.mark.parametrize("text", [False, True])
def test_points_tell_the_box(tmp_path: Path, text: bool) -> None:
    photos(tmp_path)
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    inside = [name.removeprefix("images/") for name in NAMES]
    write_colmap(tmp_path / "sparse/0", cameras(*LENSES[0]), inside, points=points, text=text)
    assert any("50 points" in note for note in load_scene(tmp_path).notes)


def test_pycolmap_reads_the_model(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="the extra photos is not installed")
    wanted = cameras(*LENSES[1], alike=False)
    points = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    names = [name.replace(" ", "_") for name in NAMES]  # of a text file it takes a name's first word only
    for text in (False, True):
        folder = tmp_path / str(text)
        write_colmap(folder, wanted, names, points=points, text=text)
        model = pycolmap.Reconstruction(str(folder))
        found = {image.name: image for image in model.images.values()}
        assert sorted(found) == sorted(names) and len(model.cameras) == N and len(model.points3D) == 5
        for name, camera in zip(names, wanted, strict=True):
            image = found[name]
            np.testing.assert_allclose(image.projection_center(), camera.position.numpy(), atol=1e-12)
            lens = model.cameras[image.camera_id]
            k1, k2, _, _, p1, p2 = camera.distortion
            assert lens.model_name == "OPENCV"
            np.testing.assert_allclose(lens.params, [camera.fx, camera.fy, 6.2, 3.9, k1, k2, p1, p2])


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    some = cameras(*LENSES[0])
    for names, reason in ((NAMES[:-1], "names of photos"), ([*NAMES[:-1], NAMES[0]], "the same photo")):
        with pytest.raises(ConfigError, match=reason):
            write_transforms(tmp_path / "transforms.json", some, names)
    with pytest.raises(ConfigError, match="no cameras"):
        write_colmap(tmp_path, [], [])
    with pytest.raises(ConfigError, match="leads out"):
        write_colmap(tmp_path, some[:1], ["../a.png"])
    with pytest.raises(ConfigError, match="k4"):
        write_colmap(tmp_path, cameras("opencv", (0.1, 0, 0, 0.1, 0, 0)), NAMES)
    write_colmap(tmp_path, some, NAMES)
    with pytest.raises(ConfigError, match=r"as \.bin already"):
        write_colmap(tmp_path, some, NAMES, text=True)


def test_common_folder() -> None:
    assert common_folder(["images/a.png", "images/b/c.png"]) == "images"
    assert common_folder(["a.png", "images/c.png"]) == ""
