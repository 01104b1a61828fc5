"""What readers know of depth: depth maps that transforms.json names, and points of sparse models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hashfield.data import ReadOptions, load_scene
from hashfield.data.dataset import Scene
from hashfield.data.images import decode_depth
from hashfield.errors import DataError
from hashfield.geometry.cameras import camera_table, project, rays_from_pixels
from tests.data.colmap_files import ColmapModel, ring, write_photos
from tests.data.small_scenes import HEIGHT, WIDTH, write_scene

FILES = ReadOptions(depth=("files",))
POINTS = ReadOptions(depth=("points",))


def stepped() -> np.ndarray:
    """A depth map whose number tells column and row; one pixel is not known."""
    z = (4000 + 10 * np.arange(WIDTH) + 200 * np.arange(HEIGHT)[:, None]).astype(np.uint16)
    z[2, 3] = 0
    return z


def write_maps(folder: Path, z: np.ndarray, ending: str = "png", n: int = 9, **top: Any) -> Path:
    """A data set with this depth map for each of its photos."""

    def change(values: dict[str, Any]) -> None:
        for k, frame in enumerate(values["frames"]):
            frame["depth_file_path"] = f"depth/{k}.{ending}"

    write_scene(folder, n, alpha=False, change=change, **top)
    (folder / "depth").mkdir(exist_ok=True)
    for k in range(n):
        if ending == "npy":
            np.save(folder / f"depth/{k}.npy", z)
        elif ending == "exr":
            (folder / f"depth/{k}.exr").write_bytes(b"\x76\x2f\x31\x01")
        else:
            Image.fromarray(z).save(folder / f"depth/{k}.{ending}")
    return folder


def depth_notes(scene: Scene) -> list[str]:
    return [note for note in scene.notes if "depth" in note]


def test_depth_maps_are_read_where_asked_for(tmp_path: Path) -> None:
    folder = write_maps(tmp_path, stepped())
    scene = load_scene(folder, FILES)
    depths = scene.splits["train"].depths
    assert depths is not None and len(depths) == 7 and scene.splits["test"].depths is None
    for known in depths:
        assert known.z is not None and known.z.dtype == np.uint16
        assert np.array_equal(known.z, stepped()) and known.scale == 1e-3 and not len(known.pixels)
    assert scene.unit == "metres", "nerfstudio's millimetres"
    (note,) = depth_notes(scene)
    assert note.startswith("depth maps of 7 of 7 training photos: 99 % of their pixels are known, 4.")
    plain = load_scene(folder)
    assert plain.splits["train"].depths is None and plain.unit is None
    assert "fields without effect here: depth_file_path" in plain.notes


def test_stated_scale_and_floats(tmp_path: Path) -> None:
    scene = load_scene(write_maps(tmp_path / "a", stepped(), integer_depth_scale=2e-4), FILES)
    known = (scene.splits["train"].depths or ())[0]
    assert known.scale == 2e-4 and scene.unit is None
    scene = load_scene(write_maps(tmp_path / "b", stepped() / np.float32(1000), "npy"), FILES)
    known = (scene.splits["train"].depths or ())[0]
    assert known.z is not None and known.z.dtype == np.float32 and known.scale == 1.0 and known.z[2, 3] == 0
    scaled = load_scene(write_maps(tmp_path / "d", stepped(), applied_scale=0.5), FILES)
    assert (scaled.splits["train"].depths or ())[0].scale == 5e-4 and scaled.unit is None
    off = load_scene(write_maps(tmp_path / "c", stepped(), integer_depth_scale=-1), FILES)
    assert off.splits["train"].depths is None


def test_maps_of_other_sizes_keep_their_shape(tmp_path: Path) -> None:
    """A smaller map stays as it is; a larger one is brought to the photo's size by its middle pixels."""
    small = stepped()[::2, ::2]
    scene = load_scene(write_maps(tmp_path / "a", small), FILES)
    known = (scene.splits["train"].depths or ())[0]
    assert known.z is not None and np.array_equal(known.z, small)
    options = ReadOptions(depth=("files",), downscale=2)
    known = (load_scene(write_maps(tmp_path / "b", stepped()), options).splits["train"].depths or ())[0]
    assert known.z is not None and np.array_equal(known.z, stepped()[1::2, 1::2])


@pytest.mark.parametrize("ending", ["png", "npy"])
def test_maps_take_what_the_photos_leave_of_the_memory(tmp_path: Path, ending: str) -> None:
    folder = write_maps(tmp_path, stepped(), ending)
    photos, maps = 9 * 4 * WIDTH * HEIGHT, 7 * 6 * WIDTH * HEIGHT  # 7 are trained on

    def read(memory: int) -> Scene:
        scene = load_scene(folder, ReadOptions(depth=("files",), max_image_memory=memory))
        assert scene.splits["train"].files is None
        return scene

    whole = (read(photos + maps).splits["train"].depths or ())[0]
    assert whole.z is not None and whole.z.shape == (HEIGHT, WIDTH)
    scene = read(photos + maps - 1)
    known = (scene.splits["train"].depths or ())[0]
    assert known.z is not None and np.array_equal(known.z, stepped()[1::2, 1::2])
    assert any("more than the photos leave" in note and "one of 2 rows and columns" in note for note in scene.notes)
    scene = read(photos)
    assert scene.splits["train"].depths is None
    assert any(note.startswith("warning: depth maps take 0 MiB") and "not read" in note for note in scene.notes)


def test_instant_ngps_field_needs_a_scale(tmp_path: Path) -> None:
    folder = write_maps(tmp_path, stepped(), integer_depth_scale=1e-3)
    text = (folder / "transforms.json").read_text()
    (folder / "transforms.json").write_text(text.replace("depth_file_path", "depth_path"))
    assert load_scene(folder, FILES).splits["train"].depths is not None
    text = text.replace("depth_file_path", "depth_path").replace("integer_depth_scale", "x")
    (folder / "transforms.json").write_text(text)
    assert load_scene(folder, FILES).splits["train"].depths is None


def test_missing_files_are_counted(tmp_path: Path) -> None:
    folder = write_maps(tmp_path, stepped())
    (folder / "depth/3.png").unlink()
    scene = load_scene(folder, FILES)
    depths = scene.splits["train"].depths
    assert depths is not None and [known.z is None for known in depths].count(True) == 1
    assert "warning: 1 of 7 depth files do not exist: depth/3.png" in scene.notes
    for path in (folder / "depth").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"frame 1 .*'depth_file_path': depth/1.png: none of the 7 depth files exists"):
        load_scene(folder, FILES)
    assert load_scene(folder).splits["train"].depths is None, "who does not ask is not told"


@pytest.mark.parametrize(
    ("z", "ending", "top", "text"),
    [
        (stepped()[:, :5], "png", {}, r"'depth_file_path': .*1.png: the depth map is 5x8, of another shape .* 12x8"),
        (
            np.zeros((8, 12, 3), np.uint8),
            "png",
            {},
            r"'depth_file_path': .*one number for each pixel, this picture is RGB",
        ),
        (np.zeros((8, 12, 3), np.float32), "npy", {}, r"'depth_file_path': .*one number for each pixel, got float32"),
        (stepped(), "exr", {}, "depth is read from grey pictures .PNG, TIFF. and .npy arrays, not from .exr"),
        (stepped(), "png", {"integer_depth_scale": "a"}, "'integer_depth_scale': expected a number, got the text 'a'"),
        (stepped(), "png", {"integer_depth_scale": -5}, "'integer_depth_scale': expected units above 0, or -1"),
    ],
)
def test_wrong_maps_end_in_one_line(tmp_path: Path, z: np.ndarray, ending: str, top: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as error:
        load_scene(write_maps(tmp_path, z, ending, **top), FILES)
    assert "\n" not in str(error.value) and "transforms.json" in str(error.value)


def test_unreadable_maps_end_in_one_line(tmp_path: Path) -> None:
    for ending in ("png", "npy"):
        folder = write_maps(tmp_path / ending, stepped(), ending)
        (folder / f"depth/2.{ending}").write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"frame 2 .*'depth_file_path': .*read here"):
            load_scene(folder, FILES)


def test_a_wrong_unit_is_doubted(tmp_path: Path) -> None:
    (note,) = depth_notes(load_scene(write_maps(tmp_path, stepped(), integer_depth_scale=1.0), FILES))
    assert note.startswith("warning: depth maps of 7 of 7") and "only 0 % of that lies in the training box" in note
    (note,) = depth_notes(load_scene(write_maps(tmp_path / "none", 0 * stepped()), FILES))
    assert note == "warning: depth maps were read, but they hold no number above 0: nothing is known of depth"


def test_stored_numbers(tmp_path: Path) -> None:
    kinds = {np.uint8: np.uint16, np.uint16: np.uint16, np.int32: np.int32, np.float32: np.float32}
    for dtype, kind in kinds.items():
        z = ((stepped() % 251).astype(np.float64) + (70000 if dtype == np.int32 else 0)).astype(dtype)
        Image.fromarray(z).save(tmp_path / "z.tiff")
        np.save(tmp_path / "z.npy", z[..., None])
        for name in ("z.tiff", "z.npy"):
            found = decode_depth(tmp_path / name)
            assert np.array_equal(found, z) and found.dtype == kind


# --- points


def write_sparse(folder: Path, model: ColmapModel, shift: float = 0.0) -> None:
    """A text model each of whose photos shows all points, at the places where its camera shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    cameras = [" ".join(map(str, (7, "PINHOLE", WIDTH, HEIGHT, *model.cameras[0][4])))]
    write_photos(folder.parent.parent / "images", model)
    (folder / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (folder / "points3D.txt").write_text("".join(
        f"{k + 1} {x!r} {y!r} {z!r} 1 2 3 0.1 1 0\n" for k, (x, y, z) in enumerate(model.points.tolist())
    ))  # fmt: skip
    images = [line for number, pose, camera, name in model.images
              for line in (" ".join(map(str, (number, *map(repr, pose), camera, name))), "1.5 2.5 -1")]  # fmt: skip
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    scene = load_scene(folder.parent.parent)  # cameras as the reader makes them, to project with
    placed = {Path(name).name: camera for views in scene.splits.values()
              for name, camera in zip(views.names, views.cameras, strict=True)}  # fmt: skip
    points, lines = torch.from_numpy(model.points), []
    for number, pose, camera, name in model.images:
        pixel, _ = project(camera_table([placed[name]]), torch.zeros(len(points), dtype=torch.int64), points)
        lines.append(" ".join(map(str, (number, *map(repr, pose), camera, name))))
        seen = [f"{x + shift!r} {y!r} {k + 1}" for k, (x, y) in enumerate(pixel.tolist())]
        seen[0] = f"{pixel[0, 0].item() + 5!r} {pixel[0, 1].item()!r} 1"  # a wrong match
        lines.append(" ".join(seen))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")


def test_points_are_where_the_rays_meet_them(tmp_path: Path) -> None:
    model = ring()
    model.points = 0.3 * model.points[:20]
    write_sparse(tmp_path / "sparse/0", model)
    scene = load_scene(tmp_path, POINTS)
    views = scene.splits["train"]
    assert views.depths is not None
    n = 0
    for camera, known in zip(views.cameras, views.depths, strict=True):
        assert known.z is None and len(known.pixels) == len(known.distance) <= 19
        place = torch.from_numpy(known.pixels) + 0.5
        origin, direction = rays_from_pixels(camera_table([camera]), torch.zeros(len(place), dtype=torch.int64), place)
        point = (origin + torch.from_numpy(known.distance).double()[:, None] * direction).numpy()
        off = np.linalg.norm(point[:, None] - model.points, axis=2).min(1)
        assert off.max() < 0.3, "half a pixel's diagonal at 4 units is 0.2"
        n += len(known.distance)
    assert 100 < n <= 7 * 19
    (note,) = (note for note in scene.notes if note.startswith("points of sparse/0"))
    assert note.startswith(f"points of sparse/0 in 7 of 7 training photos: {n} sightings, {7 * 20 - n} left out")
    assert load_scene(tmp_path).splits["train"].depths is None


def test_points_of_another_world_teach_nothing(tmp_path: Path) -> None:
    model = ring()
    model.points = 0.3 * model.points[:20]
    write_sparse(tmp_path / "sparse/0", model, shift=3.0)
    scene = load_scene(tmp_path, POINTS)
    assert scene.splits["train"].depths is None
    assert "the points of sparse/0 teach no depth: photos show them elsewhere than the cameras do" in scene.notes


def test_points_beside_a_transforms_json_count_and_masks_hide_them(tmp_path: Path) -> None:
    """As `hashfield prepare` leaves them: the same world in both files."""
    model = ring()
    model.points = 0.3 * model.points[:20]
    write_scene(tmp_path, alpha=False)
    write_sparse(tmp_path / "sparse/0", model)
    n = [sum(len(known.distance) for known in load_scene(tmp_path, POINTS).splits["train"].depths or ())]
    write_scene(tmp_path, alpha=False, mask_path="left.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    depths = load_scene(tmp_path, POINTS).splits["train"].depths
    assert depths is not None and all((known.pixels[:, 0] < WIDTH // 2).all() for known in depths)
    n.append(sum(len(known.distance) for known in depths))
    assert n[0] > n[1] > 20
