"""Data sets with something wrong or odd about them, and what the user is told.

Shared by the test that expects the messages and by benchmarks/messages.py, which prints them.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from hashfield.data import ReadOptions
from hashfield.export.images import ExrWriter
from tests.data.small_scenes import (
    HEIGHT,
    WIDTH,
    Change,
    document,
    picture,
    save,
    write_json,
    write_scene,
    write_synthetic,
)


@dataclass(frozen=True)
class Case:
    """One data set."""

    name: str
    situation: str
    """For the reader of the table."""
    build: Callable[[Path], Path]
    """Makes it in an empty folder; returns what the user would name."""
    expected: str
    """Regular expression that the message holds."""
    outcome: Literal["error", "note", "silent"] = "error"
    """Whether it is refused, read with that line among the notes, or read without a word about it."""
    options: ReadOptions = field(default_factory=ReadOptions)


def scene(change: Change | None = None, **options: Any) -> Callable[[Path], Path]:
    """A small scene with its JSON changed."""
    return lambda folder: write_scene(folder, change=change, **options)


def top(**fields: Any) -> Callable[[Path], Path]:
    """A small scene with more fields at the top level; None removes one."""

    def change(values: dict[str, Any]) -> None:
        values.update(fields)
        for name, value in fields.items():
            if value is None:
                del values[name]

    return scene(change)


def frame(index: int = 3, **fields: Any) -> Callable[[Path], Path]:
    """A small scene with more fields in one frame; None removes one."""

    def change(values: dict[str, Any]) -> None:
        values["frames"][index].update(fields)
        for name, value in fields.items():
            if value is None:
                del values["frames"][index][name]

    return scene(change)


def pose(edit: Callable[[np.ndarray], Any], index: int | None = 3) -> Callable[[Path], Path]:
    """A small scene with the 4x4 matrix of one frame, or of all, replaced by what `edit` makes of it."""

    def change(values: dict[str, Any]) -> None:
        for number, entry in enumerate(values["frames"]):
            if index is None or number == index:
                made = edit(np.array(entry["transform_matrix"]))
                entry["transform_matrix"] = made.tolist() if isinstance(made, np.ndarray) else made

    return scene(change)


def image(write: Callable[[Path], None], index: int = 3) -> Callable[[Path], Path]:
    """A small scene with one image file replaced."""

    def build(folder: Path) -> Path:
        path = write_scene(folder) / f"images/{index:04d}.png"
        path.unlink()
        write(path)
        return folder

    return build


def content(text: str, name: str = "transforms.json") -> Callable[[Path], Path]:
    """A folder with a data file of this text."""

    def build(folder: Path) -> Path:
        write_json(folder / name, text)
        return folder

    return build


def columns(*numbers: int, factor: float = -1.0) -> Callable[[np.ndarray], np.ndarray]:
    """An edit of a pose that multiplies columns."""

    def edit(matrix: np.ndarray) -> np.ndarray:
        matrix[:3, list(numbers)] *= factor
        return matrix

    return edit


def entry(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """An edit of a pose that sets one number."""

    def edit(matrix: np.ndarray) -> np.ndarray:
        matrix[row, column] = value
        return matrix

    return edit


def shear(matrix: np.ndarray) -> np.ndarray:
    matrix[:3, 0] += 0.3 * matrix[:3, 1]
    return matrix


def truncate(path: Path, share: float = 0.5) -> None:
    """Cuts the end of a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def truncated(ending: str, **options: Any) -> Callable[[Path], Path]:
    """A small scene whose fourth image, of this format and with busy content, lacks its second half."""

    def build(folder: Path) -> Path:
        name = f"images/0003{ending}"
        write_scene(folder, change=lambda values: values["frames"][3].update(file_path=name))
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT * 8, WIDTH * 8, 3), np.uint8)
        save(folder / name, np.dstack([noise, np.full(noise.shape[:2], 255, np.uint8)]), "RGB", **options)
        truncate(folder / name)
        return folder

    return build


def without(*names: str) -> Callable[[Path], Path]:
    """A small scene that lacks files."""

    def build(folder: Path) -> Path:
        write_scene(folder)
        for name in names:
            (folder / name).unlink()
        return folder

    return build


def masked(write: Callable[[Path], None], *, everywhere: bool = False, **fields: Any) -> Callable[[Path], Path]:
    """A small scene with a mask in m.png, and these fields in one frame or at the top level."""

    def build(folder: Path) -> Path:
        (top if everywhere else frame)(**fields)(folder)
        write(folder / "m.png")
        return folder

    return build


def beside(name: str) -> Callable[[Path], Path]:
    """A small scene with one more file in its images folder."""

    def build(folder: Path) -> Path:
        (write_scene(folder) / "images" / name).write_bytes(b"")
        return folder

    return build


def lists(**splits: list[str]) -> Callable[[Path], Path]:
    """A small scene with {split}_filenames."""
    return top(**{f"{split}_filenames": names for split, names in splits.items()})


def names(*numbers: int) -> list[str]:
    return [f"images/{number:04d}.png" for number in numbers]


def swapped_sides(path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    save(path, picture(3, HEIGHT, WIDTH), exif=tag)


def upper_case(folder: Path) -> Path:
    write_scene(folder)
    (folder / "images").rename(folder / "Images")
    for path in (folder / "Images").iterdir():
        path.rename(path.with_suffix(".PNG"))
    return folder


def odd_names(folder: Path) -> Path:
    write_scene(folder, name="my images/v1.2 räksmörgås {}.png")
    return folder


def other_folder(folder: Path) -> Path:
    def change(values: dict[str, Any]) -> None:
        for item in values["frames"]:
            item["file_path"] = "../data/fox/" + item["file_path"]

    return write_scene(folder, change=change)


def windows_names(folder: Path) -> Path:
    def change(values: dict[str, Any]) -> None:
        for item in values["frames"]:
            item["file_path"] = ".\\\\" + item["file_path"].replace("/", "\\")

    return write_scene(folder, change=change)


def windows_drive(folder: Path) -> Path:
    def change(values: dict[str, Any]) -> None:
        for item in values["frames"]:
            item["file_path"] = "C:\\Users\\me\\fox\\" + item["file_path"].replace("/", "\\")

    return write_scene(folder, change=change)


def half_size(folder: Path) -> Path:
    write_scene(folder, alpha=False)
    for path in (folder / "images").iterdir():
        save(path, picture(0, WIDTH // 2, HEIGHT // 2, alpha=False), "RGB")
    return folder


def several_sizes(folder: Path) -> Path:
    def change(values: dict[str, Any]) -> None:
        values["frames"][3].update(w=20, h=10, fl_x=17.0, cx=9.0)

    write_scene(folder, change=change)
    save(folder / "images/0003.png", picture(3, 20, 10))
    return folder


def converted(mode: str, ending: str) -> Callable[[Path], Path]:
    """A small scene with its fourth image in another mode and format."""

    def build(folder: Path) -> Path:
        name = f"images/0003{ending}"
        write_scene(folder, change=lambda values: values["frames"][3].update(file_path=name))
        save(folder / name, picture(3), mode)
        return folder

    return build


def jpeg_without_end(folder: Path) -> Path:
    converted("RGB", ".jpg")(folder)
    path = folder / "images/0003.jpg"
    path.write_bytes(path.read_bytes().removesuffix(b"\xff\xd9"))
    return folder


def wide_grey(path: Path) -> None:
    values = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 600
    Image.fromarray(values).save(path)


def floating_point(folder: Path) -> Path:
    name = "images/0003.tiff"
    write_scene(folder, change=lambda values: values["frames"][3].update(file_path=name))
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(folder / name)
    return folder


def exr(folder: Path) -> Path:
    name = "images/0003.exr"
    write_scene(folder, change=lambda values: values["frames"][3].update(file_path=name))
    (folder / name).write_bytes(b"v/1\x01" + bytes(100))
    return folder


def heic(folder: Path) -> Path:
    name = "images/0003.heic"
    write_scene(folder, change=lambda values: values["frames"][3].update(file_path=name))
    (folder / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    return folder


def changing_light(folder: Path) -> Path:
    write_scene(folder, alpha=False)
    for index, path in enumerate(sorted((folder / "images").iterdir())):
        pixels = picture(index, alpha=False)
        pixels[..., :3] = pixels[..., :3] // 4 if index % 2 else pixels[..., :3]
        save(path, pixels, "RGB")
    return folder


def everything_twice(folder: Path) -> Path:
    """The same image under two frames with other poses."""

    def change(values: dict[str, Any]) -> None:
        values["frames"][4]["file_path"] = values["frames"][3]["file_path"]

    return write_scene(folder, change=change)


def synthetic_with_shared_view(folder: Path) -> Path:
    write_synthetic(folder, {"train": 5, "test": 2})
    values = json.loads((folder / "transforms_test.json").read_text())
    values["frames"][0]["file_path"] = "./train/r_2"
    write_json(folder / "transforms_test.json", values)
    return folder


def synthetic_without_test_images(folder: Path) -> Path:
    write_synthetic(folder, {"train": 9, "test": 2})
    shutil.rmtree(folder / "test")
    return folder


def synthetic_with_val_only(folder: Path) -> Path:
    return write_synthetic(folder, {"train": 5, "val": 2})


def opencv_poses(folder: Path) -> Path:
    """Poses with OpenCV axes, in a box so large that all rays meet it anyway."""

    def change(values: dict[str, Any]) -> None:
        for item in values["frames"]:
            matrix = columns(1, 2)(np.array(item["transform_matrix"]))
            item["transform_matrix"] = matrix.tolist()

    return write_scene(folder, change=change, aabb_scale=16)


def mostly_missing_the_box(folder: Path) -> Path:
    return write_scene(folder, scale=1.0)


def only_pictures(folder: Path) -> Path:
    save(folder / "images" / "a.jpg", picture(0), "RGB")
    return folder


def empty_file(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
        return folder

    return build


def deeper(folder: Path) -> Path:
    write_scene(folder / "fox")
    return folder


def json_file(values: Any) -> Callable[[Path], Path]:
    return lambda folder: write_json(folder / "file.json", values)


NULLABLE = (
    *("cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "camera_angle_x", "camera_angle_y", "x_fov", "distortion_params"),
    *("camera_model", "is_fisheye", "scale", "offset", "aabb", "aabb_scale", "n_frames", "train_filenames"),
    *("test_filenames", "mask_path", "rolling_shutter", "latlong", "ftheta_p0", "applied_transform", "depth_path"),
)
NULLABLE_IN_FRAME = (
    "w",
    "h",
    "fl_x",
    "fl_y",
    "cx",
    "k1",
    "camera_model",
    "is_fisheye",
    "mask_path",
    "time",
    "depth_path",
)

ROTATION = ", 'transform_matrix': the rotation is "
IN_FRAME = r"transforms\.json: frame 3 \(images/0003\.png\): "

CASES = (
    # --- the folder and the file
    Case("nothing", "no such folder", lambda folder: folder / "absent", "absent: no such file or folder"),
    Case(
        "empty_folder",
        "empty folder",
        lambda folder: folder,
        r"no data set that can be read here; looked for transforms\.json or transforms_train\.json",
    ),
    Case("pictures", "only pictures", only_pictures, r"it holds pictures \(1\) but no camera poses"),
    Case(
        "llff", "LLFF folder with an empty file", empty_file("poses_bounds.npy"), "npy: not a NumPy array that can be"
    ),
    Case(
        "colmap",
        "half a COLMAP model",
        empty_file("sparse/0/cameras.bin"),
        "a COLMAP model needs cameras and images, sparse/0 holds cameras only",
    ),
    Case("deeper", "the folder above", deeper, r"fox/transforms\.json lies one folder deeper"),
    Case("other_file", "not a JSON file", lambda folder: write_json(folder / "a.ply", ""), "no data set"),
    Case("empty_json", "empty file", content(""), r"transforms\.json: not valid JSON: line 1 column 1"),
    Case(
        "bad_json",
        "JSON cut off",
        content('{\n "frames": [\n'),
        r"transforms\.json: not valid JSON: line 3 column 1: Expecting value",
    ),
    Case("deep_json", "JSON nested too deep", content("[" * 100_000), "not valid JSON: nested too deep"),
    Case(
        "not_utf8",
        "not UTF-8",
        lambda folder: (folder / "transforms.json").write_bytes(b'{"\xff": 1}') and folder,
        "not a text file in UTF-8",
    ),
    Case("list", "a list (ns-export cameras)", content("[]"), "expected an object with 'frames', got a list"),
    Case("ngp_path", "a camera path", json_file({"path": []}), "looks like an instant-ngp camera path"),
    Case("ns_path", "a camera path", json_file({"camera_path": []}), "looks like a nerfstudio camera path"),
    Case(
        "our_path",
        "a camera path",
        json_file({"format": "hashfield_camera_path", "frames": []}),
        "not? .*it looks like a camera path",
    ),
    Case("network", "a network configuration", json_file({"encoding": {}}), "a network configuration"),
    Case("frames_type", "frames is no list", top(frames={}), "'frames': expected a list, got an object"),
    Case("no_frames", "empty set", top(frames=[]), "'frames': the list is empty"),
    Case("frame_type", "frame is no object", top(frames=[3]), "frame 0: expected an object, got the number 3"),
    Case(
        "one_view",
        "a single view",
        scene(n=1),
        "1 usable view, but at least two are needed: one is held out for testing",
    ),
    Case("hdf5", "old instant-ngp layout", top(camera=[]), "'camera': the old hdf5 layout"),
    Case(
        "comments",
        "comments in the JSON",
        lambda folder: (
            write_json(
                write_scene(folder) / "transforms.json",
                "// made by hand\n" + json.dumps(document(9)).replace('"w"', '/* // */ "w"'),
            ).parent
        ),
        "instant-ngp form",
        "silent",
    ),
    # --- files
    Case(
        "missing_files",
        "more frames than files",
        without(*names(1, 2, 5)),
        "warning: 3 of 9 frames have no image file and are skipped: images/0001.png, images/0002.png",
        "note",
    ),
    Case(
        "no_files",
        "no image exists",
        without(*names(*range(9))),
        r"transforms\.json: none of the 9 images exists; the first is .*/images/0000\.png",
    ),
    Case(
        "no_ending",
        "no ending in file_path",
        scene(name="images/{:04d}"),
        "instant-ngp form: 7 train",
        "silent",
    ),
    Case("dots", "dots, spaces, unicode in names", odd_names, "instant-ngp form: 7 train", "silent"),
    Case("upper_case", "other case on disk", upper_case, "instant-ngp form: 7 train", "silent"),
    Case("backslashes", "backslashes in file_path", windows_names, "instant-ngp form: 7 train", "silent"),
    Case(
        "drive",
        "Windows drive in file_path",
        windows_drive,
        "9 of 9 images are not where file_path says but in images/: C:/Users/me/fox/images/0000.png",
        "note",
    ),
    Case(
        "other_folder",
        "written from another folder",
        other_folder,
        "9 of 9 images are not where file_path says but in images/",
        "note",
    ),
    Case(
        "no_file_path",
        "file_path missing",
        frame(file_path=None),
        "frame 3: 'file_path': expected .* got nothing",
    ),
    Case("file_path_type", "file_path is a number", frame(file_path=7), "frame 3: 'file_path': .* the number 7"),
    Case("empty_path", "file_path is empty", frame(file_path=""), "frame 3: 'file_path': .* got the text ''"),
    Case(
        "twice",
        "one image, two poses",
        everything_twice,
        r"frame 4 \(images/0003\.png\): 'file_path': the same image as frame 3 .* with another pose",
    ),
    # --- images
    Case(
        "truncated_png",
        "truncated PNG",
        truncated(".png"),
        r"frame 3 .*0003\.png: the image cannot be decoded",
    ),
    Case("truncated_jpeg", "truncated JPEG", truncated(".jpg"), r"0003\.jpg: the image cannot be decoded"),
    Case("truncated_webp", "truncated WebP", truncated(".webp", lossless=True), r"frame 3 .*0003\.webp"),
    Case(
        "no_image",
        "text named .png",
        image(lambda path: path.write_text("hello") and None),
        IN_FRAME + r"'file_path': .*0003\.png: not an image that can be read here",
    ),
    Case(
        "empty_image",
        "image of 0 bytes",
        image(lambda path: path.touch()),
        "not an image that can be read here",
    ),
    Case("heic", "HEIC photo", heic, r"0003\.heic: not an image that can be read here"),
    Case("exr", "EXR image", exr, r"0003\.exr: HDR images \(\.exr\) are not supported yet"),
    Case("float", "floating-point TIFF", floating_point, "floating-point images are not supported yet"),
    Case(
        "grey16",
        "16-bit grey PNG",
        image(wide_grey),
        "16 bits a channel reduced to 8 in 1 of 9 images",
        "note",
    ),
    Case(
        "cmyk",
        "CMYK JPEG",
        converted("CMYK", ".jpg"),
        "CMYK converted to RGB without its colour profile in 1 of 9 images",
        "note",
    ),
    Case("palette", "palette PNG", converted("P", ".png"), "instant-ngp form: 7 train", "silent"),
    Case("grey", "grey JPEG", converted("L", ".jpg"), "instant-ngp form: 7 train", "silent"),
    Case(
        "aspect",
        "image of another shape",
        image(lambda path: save(path, picture(3, WIDTH, HEIGHT + 3))),
        IN_FRAME + "'w, h': another shape than the image: 12x8 stated, 12x11 found",
    ),
    Case(
        "exif",
        "sides swapped by EXIF",
        image(swapped_sides),
        "12x8 stated, 8x12 found; width and height are swapped, probably by a rotation that only the EXIF "
        r"tag asks for \(it is 6 here\)",
    ),
    Case(
        "half_size",
        "images at half the stated size",
        half_size,
        r"intrinsics rescaled to the image's real size in 9 of 9 frames "
        r"\(images/0001\.png: 12x8 stated, 6x4 found\)",
        "note",
    ),
    Case(
        "several_sizes",
        "images of several sizes",
        several_sizes,
        "7 train and 2 test views, 2 sizes from 12x8 to",
        "note",
    ),
    Case(
        "tiny_memory",
        "less memory than one photo takes",
        scene(),
        r"12x8 takes 0\.38 KiB while it is decoded, more than --max-image-memory \(0\.00 KiB\), which can be raised",
        options=ReadOptions(max_image_memory=5),
    ),
    Case(
        "downscale",
        "downscaled away",
        scene(),
        r"frame 1 .*12x8 is too small for --downscale 9",
        options=ReadOptions(downscale=9),
    ),
    Case("light", "exposure varies", changing_light, "warning: brightness differs between images", "note"),
    # --- poses
    Case("no_pose", "no matrix", frame(transform_matrix=None), IN_FRAME + "'transform_matrix': .* got nothing"),
    Case(
        "pose_text",
        "matrix is text",
        frame(transform_matrix="1 0 0"),
        "'transform_matrix': .* the text '1 0 0'",
    ),
    Case(
        "pose_rows",
        "2 rows",
        pose(lambda matrix: matrix[:2]),
        "expected 3 or 4 rows of 4 numbers, got 2 rows",
    ),
    Case("pose_columns", "3 columns", pose(lambda matrix: matrix[:, :3]), "4 numbers in row 0, got 3 entries"),
    Case(
        "pose_null",
        "null in it",
        pose(lambda m: [[None] * 4] * 4),
        "'transform_matrix': .* a number, got null",
    ),
    Case(
        "pose_nan",
        "NaN pose",
        pose(entry(1, 3, math.nan)),
        IN_FRAME + r"'transform_matrix': not finite \(nan\)",
    ),
    Case("pose_inf", "infinite pose", pose(entry(0, 0, -math.inf)), r"'transform_matrix': not finite \(-inf\)"),
    Case(
        "pose_far",
        "a pose beyond all proportion",
        pose(entry(1, 3, 1e200)),
        IN_FRAME.rstrip(": ") + r".*the camera's position \(.*1e\+200, .*\) is out of all proportion",
    ),
    Case("transposed", "transposed pose", pose(np.transpose), r"the last row must be 0 0 0 1, .* transposed\?"),
    Case(
        "mirrored",
        "left-handed pose",
        pose(columns(0)),
        IN_FRAME + r"'transform_matrix': the rotation is mirrored \(determinant < 0\): expected a right-handed",
    ),
    Case(
        "sheared",
        "sheared pose",
        pose(shear),
        "the rotation is sheared: its axes are 16.7 degrees off right angles",
    ),
    Case(
        "uneven",
        "uneven scale",
        pose(columns(1, factor=1.5)),
        "the rotation is scaled unevenly: its axes are 1 1.5 1 long",
    ),
    Case("singular", "singular pose", pose(columns(1, factor=0.0)), "the rotation is singular"),
    Case(
        "scaled",
        "uniform scale in the rotation",
        pose(columns(0, 1, 2, factor=2.0), None),
        "warning: a uniform scale was removed from the rotation of 9 of 9 frames",
        "note",
    ),
    Case("three_rows", "3x4 matrices", pose(lambda matrix: matrix[:3], None), "form: 7 train", "silent"),
    Case(
        "looks_away",
        "OpenCV poses, small box",
        pose(columns(1, 2), None),
        "no view ray meets the training box, .*; they look away from it, as OpenCV poses do",
    ),
    Case(
        "opencv",
        "OpenCV poses, large box",
        opencv_poses,
        "warning: 100 % of the cameras look away from the point their axes share; .* --camera-axes opencv",
        "note",
    ),
    Case(
        "far",
        "scene outside the box",
        top(offset=[30, 0.5, 0.5]),
        "no view ray meets the training box, a cube of half side 1.52 .* the cameras are .* from its centre; "
        "state scale and offset in the data file, or enlarge the box with --aabb-scale",
    ),
    Case(
        "few_rays",
        "most rays miss the box",
        mostly_missing_the_box,
        "warning: only .* % of view rays meet the training box",
        "note",
    ),
    # --- intrinsics
    Case(
        "no_focal",
        "no focal length",
        top(fl_x=None, fl_y=None),
        r"frame 1 .*: no focal length: expected one of 'fl_x', 'camera_angle_x', 'x_fov'",
    ),
    Case(
        "angle_only",
        "only camera_angle_x",
        top(fl_x=None, fl_y=None, camera_angle_x=0.7),
        "form: 7",
        "silent",
    ),
    Case("focal_text", "focal length is text", top(fl_x="15"), "'fl_x': expected a number, got the text '15'"),
    Case("focal_bool", "focal length is true", top(fl_x=True), "'fl_x': expected a number, got true or false"),
    Case("focal_0", "focal length 0", frame(fl_x=0), IN_FRAME + "'fl_x': expected a number above 0, got 0"),
    Case("focal_tiny", "focal length 1e-9", top(fl_x=1e-9), r"frame 1 .*: fx: 1e-09 is out of all proportion"),
    Case("focal_nan", "focal length NaN", top(fl_y=math.nan), r"json: 'fl_y': not finite \(nan\)"),
    Case(
        "angle",
        "angle in degrees",
        top(fl_x=None, camera_angle_x=40),
        "'camera_angle_x': .* below 3.14159, got 40",
    ),
    Case("width", "negative width", top(w=-3), "'w': expected a number above 0, got -3"),
    Case("center", "principal point is a list", top(cx=[6]), "'cx': expected a number, got a list"),
    Case("coefficient", "k1 is text", top(k1="none"), "'k1': expected a number, got the text 'none'"),
    Case(
        "coefficient_huge",
        "absurd k1",
        top(k1=1e9),
        r"'k1': expected a number above -1e\+06 and below 1e\+06",
    ),
    Case("params", "short distortion_params", top(distortion_params=[0.1]), "expected 6 numbers, got 1 entries"),
    Case(
        "params_12",
        "FISHEYE624 lens that nothing comes near",
        top(distortion_params=[0.1] * 6 + [0.3, -0.3] + [0.5, 0, -0.4, 0]),
        r"json: frame 1 .*'distortion_params': the lens FISHEYE624 with these coefficients differs",
    ),
    Case(
        "params_12_other",
        "FISHEYE624's numbers under another name",
        top(distortion_params=[0.1] * 12, camera_model="OPENCV"),
        "'distortion_params': 12 numbers are the lens FISHEYE624, but camera_model names another one",
    ),
    Case(
        "params_624",
        "FISHEYE624 without its numbers",
        top(camera_model="FISHEYE624", k1=0.1),
        "'distortion_params': the lens FISHEYE624 needs its 12 numbers here",
    ),
    Case(
        "crop_radius",
        "a crop that is not applied",
        top(fisheye_crop_radius=3.0),
        "fields without effect here: fisheye_crop_radius",
        "note",
    ),
    Case("fisheye_type", "is_fisheye is text", top(is_fisheye="yes"), "'is_fisheye': expected true or false"),
    Case(
        "k4",
        "k4 of a radial lens",
        top(k4=0.01),
        "k4 of a lens that is no fisheye is read as the r.8 term",
        "note",
    ),
    Case(
        "k4_full",
        "rational lens",
        top(k4=0.01, camera_model="FULL_OPENCV"),
        r"rational lenses \(k4, k5, k6 as a denominator\) are read as the nearest lens that is supported, which",
        "note",
    ),
    Case("k6", "rational lens", top(k6=0.01), "rational lenses .* are read as the nearest lens", "note"),
    Case(
        "k5_wild",
        "rational lens that nothing comes near",
        top(k1=20.0, k4=15.0, k5=30.0, fl_x=6, fl_y=6),
        r"json: frame 1 .*'k4, k5, k6': the rational lens with these coefficients differs",
    ),
    Case("k5_fisheye", "k5 of a fisheye", top(is_fisheye=True, k5=0.1), "'k5, k6': a fisheye lens has no such terms"),
    Case("k5_radial", "k5 of a lens without", top(camera_model="RADIAL", k5=0.1), "RADIAL has no k5, but k5 is 0.1"),
    Case(
        "model",
        "unknown lens",
        top(camera_model="OMNIDIRECTIONALSTEREO_L"),
        "'camera_model': OMNIDIRECTIONALSTEREO_L is not supp",
    ),
    Case(
        "model_type",
        "lens is a number",
        top(camera_model=3),
        "'camera_model': expected a name, got the number 3",
    ),
    Case(
        "pinhole_terms",
        "PINHOLE with distortion",
        top(camera_model="PINHOLE", k1=0.1),
        "json: 'camera_model': PINHOLE has no k1, but k1 is 0.1: leave out one of them",
    ),
    Case(
        "frame_pinhole_terms",
        "a frame's PINHOLE with distortion",
        frame(camera_model="PINHOLE", p2=0.1),
        IN_FRAME + "'camera_model': PINHOLE has no p2, but p2 is 0.1",
    ),
    Case("radial_terms", "SIMPLE_RADIAL with k2", top(camera_model="SIMPLE_RADIAL", k2=0.1), "SIMPLE_RADIAL has no k2"),
    Case(
        "center_zero",
        "principal point at 0",
        top(cx=0, cy=0),
        r"frame 1 .*'cx, cy': the principal point \(0, 0\) of 12x8 pixels is not inside the picture",
    ),
    Case(
        "center_outside",
        "principal point outside",
        top(cx=12.5),
        r"the principal point \(12\.5, 4\) of 12x8 pixels is not",
    ),
    Case(
        "center_fraction",
        "principal point as a fraction",
        top(cx=0.5, cy=0.5),
        r"warning: the principal point is far from the middle of the picture in 9 of 9 frames: images/0001\.png "
        r"\(0\.5, 0\.5\) of 12x8 pixels, images/0002\.png .* and 6 more",
        "note",
    ),
    Case("center_off", "principal point off the middle", top(cx=4.0), "form: 7 train", "silent"),
    Case(
        "focal_slip",
        "fl_y = fl_x * w / h",
        top(fl_y=22.5),
        "warning: the focal lengths along x and y mean pixels that are not square, by just the picture's width to "
        r"height, probably a mistake of the exporter, in 9 of 9 frames: images/0001\.png \(15 and 22\.5\)",
        "note",
    ),
    Case(
        "focal_odd",
        "fl_y far from fl_x",
        top(fl_y=18.0),
        "mean pixels that are not square in 9 of 9 frames",
        "note",
    ),
    Case("focal_near", "fl_y near fl_x", top(fl_y=15.5), "form: 7 train", "silent"),
    Case(
        "angle_contradicts",
        "camera_angle_x contradicts fl_x",
        top(camera_angle_x=1.0),
        r"warning: fl_x and camera_angle_x contradict each other and fl_x is taken in 9 of 9 frames: images/0001\.png "
        r"\(focal lengths of 15 and 10\.98 pixels\)",
        "note",
    ),
    Case(
        "angle_agrees",
        "camera_angle_x agrees with fl_x",
        top(camera_angle_x=2 * math.atan(6 / 15.0)),
        "form: 7 train",
        "silent",
    ),
    Case(
        "times",
        "a time in each frame",
        scene(lambda values: [entry.update(time=index / 8) for index, entry in enumerate(values["frames"])]),
        r"warning: frames have different times \('time' from 0 to 1\): what moves in between is blurred",
        "note",
    ),
    Case("one_time", "the same time in each frame", frame(time=0.0), "form: 7 train", "silent"),
    Case(
        "clock_times",
        "a text as time in each frame",
        scene(lambda values: [entry.update(time=f"12:0{index}") for index, entry in enumerate(values["frames"])]),
        "form: 7 train",
        "silent",
    ),
    Case("null_frames", "null as frames", content('{"frames": null}'), "no 'frames', so this is no data set"),
    Case(
        "nulls",
        "null in optional fields",
        lambda folder: write_scene(
            folder,
            change=lambda values: (
                values.update(dict.fromkeys(NULLABLE)),
                [entry.update(dict.fromkeys(NULLABLE_IN_FRAME)) for entry in values["frames"]],
            ),
        ),
        "form: 7 train",
        "silent",
    ),
    Case("null_pose", "null as a pose", scene(lambda v: v["frames"][3].update(transform_matrix=None)), "got nothing"),
    Case("null_path", "null as a name", scene(lambda v: v["frames"][3].update(file_path=None)), "got nothing"),
    Case(
        "end_marker",
        "a JPEG without its end marker",
        jpeg_without_end,
        r"warning: the end marker of a JPEG is missing in 1 of 9 images: images/0003\.jpg",
        "note",
    ),
    # --- refused by name
    Case("ftheta", "f-theta lens", top(ftheta_p0=0.0), "'ftheta_p0': f-theta lenses are not supported yet"),
    Case(
        "latlong",
        "panorama with a lens",
        frame(latlong=True, k1=0.1),
        IN_FRAME + "'camera_model': a panorama has no lens distortion",
    ),
    Case("latlong_cx", "panorama off the middle", top(latlong=True, cx=2.0), "'cx, cy': a panorama's middle is"),
    Case("equirect", "equal-area panorama", top(equirectangular=1), "'equirectangular': instant-ngp's equal-area"),
    Case("ortho", "orthographic", top(orthographic=True), "'orthographic': orthographic cameras"),
    Case("shutter", "rolling shutter", top(rolling_shutter=[0, 0.1, 0, 0]), "'rolling_shutter': moving cameras"),
    Case("shutter_0", "rolling shutter of 0", top(rolling_shutter=[0, 0, 0, 0]), "form: 7 train", "silent"),
    Case("moving", "start and end pose", frame(transform_matrix_start=[]), "'transform_matrix_start': moving"),
    Case("rays", "ray files", beside("rays_0003.dat"), "rays_0003.dat lies beside the image: ray files are not"),
    Case(
        "rays_off",
        "ray files switched off",
        lambda folder: top(enable_ray_loading=False)(beside("rays_0003.dat")(folder)),
        "form: 7 train",
        "silent",
    ),
    Case(
        "mask",
        "no such mask",
        frame(mask_path="masks/m.png"),
        IN_FRAME + r"'mask_path': .*masks/m\.png: no such file",
    ),
    Case(
        "mask_type",
        "mask_path is a number",
        frame(mask_path=3),
        IN_FRAME + "'mask_path': expected the name .* number 3",
    ),
    Case(
        "mask_size",
        "a mask of another size",
        masked(lambda path: save(path, picture(0, 6, 4)), mask_path="m.png"),
        IN_FRAME + r"'mask_path': .*m\.png: the mask is 6x4, the image 12x8",
    ),
    Case(
        "mask_broken",
        "a mask that is no picture",
        masked(lambda path: path.write_text("x") and None, mask_path="m.png"),
        IN_FRAME + r"'mask_path': .*m\.png: not an image that can be read here",
    ),
    Case(
        "mask_all",
        "masks that leave nothing",
        masked(lambda path: Image.new("L", (WIDTH, HEIGHT)).save(path), everywhere=True, mask_path="m.png"),
        "the masks leave no pixel to learn from .mask_path leaves out what is black",
    ),
    Case(
        "dynamic",
        "a broken dynamic mask",
        beside("dynamic_mask_0003.png"),
        IN_FRAME + r"'file_path': .*dynamic_mask_0003\.png: not an image that can be read here",
    ),
    Case(
        "alpha_file",
        "alpha files",
        beside("0003.png.alpha.png"),
        "separate alpha files are not supported yet",
    ),
    Case("mitsuba", "Mitsuba axes", top(from_mitsuba=True), "'from_mitsuba': Mitsuba's axis convention"),
    Case("mitsuba_args", "Mitsuba axes", top(normal_mts_args=[]), "'normal_mts_args': Mitsuba's axis"),
    Case("white", "white means empty", top(white_transparent=True), "'white_transparent': a colour that stands"),
    Case("black", "black means empty", top(black_transparent=True), "'black_transparent': a colour that"),
    # --- ignored
    Case(
        "depth",
        "depth images",
        frame(depth_path="d.png"),
        "fields without effect here: depth_path",
        "note",
    ),
    Case("unknown", "unknown fields", frame(colour="blue"), "form: 7 train", "silent"),
    # --- spaces
    Case(
        "aabb_scale",
        "aabb_scale 3",
        top(aabb_scale=3),
        "'aabb_scale': expected a power of two in 1..128, got 3",
    ),
    Case(
        "aabb_text",
        "aabb_scale is text",
        top(aabb_scale="4"),
        "'aabb_scale': expected a number, got the text '4'",
    ),
    Case("scale", "scale 0", top(scale=0), "'scale': expected a number above 0, got 0"),
    Case("scale_tiny", "scale 1e-20", top(scale=1e-20), r"transforms\.json: scale: expected a number from 1e-09"),
    Case("offset", "offset of 2 numbers", top(offset=[1, 2]), "'offset': expected 3 numbers, got 2 entries"),
    Case(
        "aabb",
        "aabb upside down",
        top(aabb=[[1, 1, 1], [0, 0, 0]]),
        "'aabb': expected the smaller corner first",
    ),
    Case("aabb_type", "aabb is a number", top(aabb=2), "'aabb': expected two corners of 3 numbers"),
    Case(
        "no_alpha",
        "no aabb_scale, no alpha",
        scene(alpha=False),
        r"aabb_scale 8 \(from the cameras, which look inwards, as images have no alpha\)",
        "note",
    ),
    Case("with_alpha", "no aabb_scale, alpha", scene(), r"aabb_scale 1 \(images have alpha\)", "note"),
    # --- splits
    Case("n_frames", "n_frames 0", top(n_frames=0), "'n_frames': expected at least 1, got 0"),
    Case("n_frames_part", "n_frames 2.5", top(n_frames=2.5), "'n_frames': expected a whole number, got 2.5"),
    Case(
        "list_type",
        "split list of numbers",
        top(train_filenames=[1]),
        "'train_filenames': expected a list of file",
    ),
    Case(
        "list_unknown",
        "split list names no frame",
        lists(test=["images/x.png"]),
        "'test_filenames': images/x.png is not the file_path of any frame",
    ),
    Case("list_all", "all views held out", lists(test=names(*range(9))), "no view is left for training"),
    Case(
        "list_overlap",
        "views in train and test lists",
        lists(train=names(1, 2, 3), test=names(3, 4)),
        "warning: listed for training and for testing, used for testing only: images/0003.png",
        "note",
    ),
    Case(
        "list_rest",
        "views in no list",
        lists(train=names(1, 2), test=names(3)),
        "6 frames are in none of the file's lists and left out",
        "note",
    ),
    Case(
        "shared_view",
        "a training image in transforms_test.json",
        synthetic_with_shared_view,
        "warning: listed for training and for testing, used for testing only: train/r_2",
        "note",
    ),
    Case(
        "no_test_images",
        "images of transforms_test.json missing",
        synthetic_without_test_images,
        "warning: none of the test images exists, so some training views are held out",
        "note",
    ),
    Case(
        "val_only",
        "transforms_val.json, no test file",
        synthetic_with_val_only,
        "splits: by file; there are no test views, those of val are taken",
        "note",
    ),
    Case(
        "all_splits",
        "train, val and test files",
        lambda folder: write_synthetic(folder, {"train": 5, "val": 2, "test": 3}),
        "NeRF-synthetic form: 5 train and 3 test views",
        "note",
    ),
    Case(
        "not_asked",
        "no validation views",
        scene(),
        "this data set has no val views",
        options=ReadOptions(splits=("val",)),
    ),
)


# --- single pictures, for `train image`


@dataclass(frozen=True)
class PictureCase:
    """One file that is named as a picture."""

    name: str
    situation: str
    """For the reader of the table."""
    build: Callable[[Path], Path]
    """Makes it in an empty folder; returns what the user would name."""
    expected: str
    """Regular expression that the message holds."""
    outcome: Literal["error", "note"] = "error"
    """Whether it is refused, or read with that line among the notes."""
    max_pixels: int = 2**31
    needs: str | None = None
    """A package without which the case cannot be made."""


def raw_picture(name: str, data: bytes) -> Callable[[Path], Path]:
    """A file of these bytes."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


def saved_picture(name: str, image: Callable[[], Image.Image], **options: Any) -> Callable[[Path], Path]:
    """A file that Pillow writes."""

    def build(folder: Path) -> Path:
        image().save(folder / name, **options)
        return folder / name

    return build


def damaged(build: Callable[[Path], Path], edit: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A file whose bytes were changed after it was written."""

    def built(folder: Path) -> Path:
        path = build(folder)
        path.write_bytes(edit(path.read_bytes()))
        return path

    return built


def noise(mode: str = "RGB") -> Image.Image:
    """A small picture that does not compress to nothing."""
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def half_float_exr(values: np.ndarray, name: str = "a.exr") -> Callable[[Path], Path]:
    """An EXR file."""

    def build(folder: Path) -> Path:
        with ExrWriter(folder / name, values.shape[1], values.shape[0], values.shape[2]) as writer:
            writer.add(values)
        return folder / name

    return build


def saved_tiff(name: str, values: np.ndarray, **options: Any) -> Callable[[Path], Path]:
    """A TIFF file that tifffile writes."""

    def build(folder: Path) -> Path:
        import tifffile

        tifffile.imwrite(folder / name, values, **options)
        return folder / name

    return build


def nothing_there(folder: Path) -> Path:
    """A name without a file."""
    return folder / "gone.png"


def rotated_exif() -> Image.Exif:
    """EXIF that says the camera was turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


JPEG, PNG = saved_picture("a.jpg", noise), saved_picture("a.png", noise)
SMALL_EXR = half_float_exr(np.full((9, 7, 3), 2.0, np.float32))

PICTURE_CASES = [
    PictureCase("missing", "there is no such file", nothing_there, r"gone\.png: no such file"),
    PictureCase("folder", "a folder is named", lambda folder: folder, r"is a folder, expected a picture"),
    PictureCase("empty", "the file is empty", raw_picture("a.png", b""), r"a\.png: is empty"),
    PictureCase("text", "a text file named .png", raw_picture("a.png", b"hello " * 50), r"not a picture that can be"),
    PictureCase(
        "cut_jpeg", "a JPEG cut off in the middle", damaged(JPEG, lambda data: data[: len(data) // 2]), r"truncated"
    ),
    PictureCase(
        "cut_png", "a PNG cut off in the middle", damaged(PNG, lambda data: data[: len(data) // 2]), r"truncated"
    ),
    PictureCase(
        "corrupt_png",
        "a PNG with damaged bytes",
        damaged(PNG, lambda data: data[:200] + bytes(64) + data[264:]),
        r"a\.png: the picture cannot be decoded",
    ),
    PictureCase(
        "too_many_pixels",
        "more pixels than --max-pixels",
        PNG,
        r"64x48 are 3072 pixels, more than --max-pixels 1000",
        max_pixels=1000,
    ),
    PictureCase(
        "exr_header_only",
        "an EXR of which only the magic number is left",
        raw_picture("a.exr", b"\x76\x2f\x31\x01\x02\0\0\0"),
        r"without a data window",
    ),
    PictureCase("exr_cut", "an EXR cut off in the header", damaged(SMALL_EXR, lambda data: data[:330]), r"a\.exr: "),
    PictureCase(
        "exr_not_finite",
        "an EXR with infinite values",
        damaged(SMALL_EXR, lambda data: data[:-4] + b"\x00\x7c\x00\x7c"),
        r"warning: a\.exr: 2 values are not finite and count as 0",
        "note",
    ),
    PictureCase(
        "integers", "a TIFF of 32-bit integers", saved_picture("a.tif", lambda: noise("I")), r"int32|32-bit integers"
    ),
    PictureCase(
        "five_channels",
        "a TIFF of five channels",
        saved_tiff("a.tif", np.zeros((9, 7, 5), np.uint8), photometric="rgb", extrasamples=["unspecified"] * 2),
        r"5 channels are not a picture's",
        needs="tifffile",
    ),
    PictureCase(
        "apart",
        "a TIFF whose channels are stored apart",
        saved_tiff("a.tif", np.zeros((3, 9, 7), np.uint8), photometric="rgb", planarconfig="separate"),
        r"stored apart",
        needs="tifffile",
    ),
    PictureCase(
        "animated",
        "a GIF of several pictures",
        saved_picture("a.gif", noise, save_all=True, append_images=[noise().rotate(90), noise().rotate(180)]),
        r"holds 3 pictures, the first is taken",
        "note",
    ),
    PictureCase(
        "cmyk", "a JPEG for printing", saved_picture("a.jpg", lambda: noise("CMYK")), r"CMYK converted to RGB", "note"
    ),
    PictureCase(
        "turned",
        "a photo with an EXIF orientation",
        saved_picture("a.jpg", noise, exif=rotated_exif()),
        r"turned upright, as its EXIF orientation \(6\) says",
        "note",
    ),
    PictureCase(
        "opaque",
        "a PNG whose alpha is 1 everywhere",
        saved_picture("a.png", lambda: noise("RGBA")),
        r"alpha is 1 everywhere and is left out",
        "note",
    ),
]
"""What `train image` says about each."""
