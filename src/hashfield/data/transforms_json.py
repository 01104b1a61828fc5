"""Reader of transforms.json in the forms of instant-ngp, NeRF-synthetic and nerfstudio.

One reading serves all three; where they disagree:

* focal lengths per axis: x_fov (degrees) over fl_x (pixels) over camera_angle_x (radians); a single axis
  serves both; a frame that states any replaces both of the top level's;
* pixel quantities refer to the stated w and h, and are rescaled to the image file's real size;
* a frame's lens replaces the top level's if any of its coefficients is not 0, or if the frame names another
  camera_model; k3 and k4 are the r^6 and r^8 terms, or the fisheye's; p1 and p2 mean nothing to a fisheye; with k5 or
  k6, or in the model FULL_OPENCV, k4, k5 and k6 are a denominator, and the nearest lens without one is taken;
* null counts as absent;
* scale, offset and aabb_scale are instant-ngp's, with its defaults 0.33 and 0.5; in nerfstudio's form, whose worlds
  have any size and place, the box is chosen where the file states nothing of it, from the points of ply_file_path and
  the cameras;
* frames are in natural order of file_path (img2 before img10).

Source: instant-ngp nerf_loader.cu, nerfstudio's data parsers, bmild/nerf load_blender.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from hashfield.data.assemble import assemble
from hashfield.data.dataset import Reader, ReadOptions, Scene
from hashfield.data.files import Folder, natural_key, normalized
from hashfield.data.json_fields import Fields, kind, load_json, some
from hashfield.data.mesh_files import FormatError, read_ply
from hashfield.data.posed_frames import DEPTH_FIELDS, IGNORED, Frame, read_frames, view_of
from hashfield.data.sparse_tracks import sparse_model_of
from hashfield.data.stated import LARGEST, SPLITS, StatedScene, StatedSpaces, StatedView, Tally
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.spaces import DEFAULT_OFFSET, DEFAULT_SCALE, Spaces, is_aabb_scale

_SPLIT_FILE: Final = re.compile(r"transforms_(train|val|test)\.json")
_NERFSTUDIO_FIELDS: Final = (
    *("camera_model", "applied_transform", "applied_scale", "orientation_override", "ply_file_path"),
    *("distortion_params", "train_filenames", "val_filenames", "test_filenames"),
)


def _matches(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in ("transforms_train.json", "transforms.json"))
    return path.suffix.lower() == ".json"


def read(path: Path, options: ReadOptions) -> Scene:
    """The scene in a folder with transforms_train.json or transforms.json, or in a data file named itself.

    Raises:
        DataError: one line that names file, frame and field.
    """
    return assemble(state(path, options), options)


def state(path: Path, options: ReadOptions) -> StatedScene:
    """What the files say; pixels are not read.

    Raises:
        DataError: one line that names file, frame and field.
    """
    files = _split_files(path)
    notes: list[str] = []
    splits_of: dict[Frame, frozenset[str]]
    if files:
        data_file, form, rule = files["train"], "NeRF-synthetic", "by file"
        folder = Folder(data_file.parent)
        # val is needed where it is asked for or stands in for test
        wanted = [split for split in files if split != "val" or "val" in options.splits or "test" not in files]
        tops = {split: _load(files[split]) for split in wanted}
        top = tops["train"]
        listed = {split: read_frames(tops[split], folder) for split in wanted}
        splits_of = {frame: frozenset({split}) for split in wanted for frame in _once(listed[split])}
    else:
        data_file = path if path.is_file() else path / "transforms.json"
        folder = Folder(data_file.parent)
        top = _load(data_file)
        form = "nerfstudio" if top.has(*_NERFSTUDIO_FIELDS) else "instant-ngp"
        rule = "by the file's own lists"
        splits_of, notes = _split_by_lists(top, _once(read_frames(top, folder)))
    elsewhere = [frame.file_path for frame in splits_of if frame.is_elsewhere]
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} of {len(splits_of)} images are not where file_path says but in images/: "
            f"{some(elsewhere)}"
        )
    spaces, points = _stated_spaces(top), None
    if form == "nerfstudio" and not top.has("scale", "offset", "aabb", "aabb_scale"):
        spaces = StatedSpaces(None, None, None, {})
        points, point_notes = _sparse_points(top, folder)
        notes += point_notes
    frame_of = {view_of(frame, folder, options.camera_axes, splits): frame for frame, splits in splits_of.items()}

    def final_notes(views: list[StatedView], tally: Tally) -> list[str]:
        lines = _time_notes([frame_of[view].fields for view in views])
        lines += ["k4 of a lens that is no fisheye is read as the r^8 term, as nerfstudio does"] * bool(tally.r8)
        lines += [
            f"{told} are read as the nearest lens that is supported, which differs by at most {error:.2g} pixels"
            for told, error in tally.fitted.items()
        ]
        scopes = [top, *(frame_of[view].fields for view in views)]
        idle = IGNORED if "files" in options.depth else (*DEPTH_FIELDS, *IGNORED)
        seen = [name for name in idle if any(scope.has(name) for scope in scopes)]
        return lines + [f"fields without effect here: {', '.join(seen)}"] * bool(seen)

    return StatedScene(
        name=_scene_name(path),
        path=path,
        data_file=data_file,
        folder=data_file.parent,
        form=form,
        views=tuple(frame_of),
        spaces=spaces,
        points=points,
        points_origin="" if points is None else f"{len(points)} points of {top.values['ply_file_path']}",
        has_surface_points=points is not None,
        split_rule=rule,
        sparse_model=sparse_model_of(data_file.parent),
        notes=tuple(notes),
        final_notes=final_notes,
    )


def _time_notes(frames: list[Fields]) -> list[str]:
    """A warning where frames show different times: the scene then moves, as in D-NeRF's data."""
    # a text is a clock's, which says nothing about the scene
    stated = [frame.values.get("time") for frame in frames]
    numbers = [time for time in stated if isinstance(time, int | float) and not isinstance(time, bool)]
    times = sorted({float(time) for time in numbers if abs(time) < 1e300})  # not NaN, nor what no float can hold
    if len(times) < 2:
        return []
    return [
        f"warning: frames have different times ('time' from {times[0]:g} to {times[-1]:g}): what moves in between is "
        "blurred, since a scene at rest is learned"
    ]


def _split_files(path: Path) -> dict[str, Path]:
    """The files of a NeRF-synthetic folder by split, whether the folder or one of them was named; else
    none."""
    if not path.is_dir() and not _SPLIT_FILE.fullmatch(path.name):
        return {}
    folder = path if path.is_dir() else path.parent
    files = {split: folder / f"transforms_{split}.json" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    return files if "train" in files else {}


def _load(path: Path) -> Fields:
    """The top level of a data file, with at least one frame."""
    top = load_json(path)
    if not isinstance(top, dict):
        raise DataError(f"{path}: expected an object with 'frames', got {kind(top)}")
    if top.get("frames") is None or top.get("format") == "hashfield_camera_path":
        signs = (
            ("format", "a camera path (for `hashfield render --views`)"),
            ("path", "an instant-ngp camera path"),
            ("camera_path", "a nerfstudio camera path"),
            ("snapshot", "an instant-ngp snapshot"),
            ("encoding", "a network configuration"),
            ("network", "a network configuration"),
        )
        hint = next((f"; it looks like {what}" for name, what in signs if name in top), "")
        raise DataError(f"{path}: no 'frames', so this is no data set{hint}")
    fields = Fields(top, str(path))
    if not isinstance(top["frames"], list):
        raise fields.fail("frames", f"expected a list, got {kind(top['frames'])}")
    if not top["frames"]:
        raise fields.fail("frames", "the list is empty")
    return fields


def _once(frames: Sequence[Frame]) -> list[Frame]:
    """The frames with each image once; one image with two poses is an error."""
    first: dict[Path, Frame] = {}
    kept = []
    for frame in frames:
        earlier = frame if frame.image is None else first.setdefault(frame.image, frame)
        name = "transform_matrix"
        if earlier.fields.values.get(name) != frame.fields.values.get(name):
            other = earlier.fields.place.rsplit(": ", 1)[-1]
            raise frame.fields.fail("file_path", f"the same image as {other} with another pose")
        if earlier is frame:
            kept.append(frame)
    return kept


def _split_by_lists(top: Fields, frames: list[Frame]) -> tuple[dict[Frame, frozenset[str]], list[str]]:
    """Frames with the splits that the file's own lists of names give them, and notes; with no split where it
    has no lists."""
    listed: dict[str, set[str]] = {}
    for split in SPLITS:
        name = f"{split}_filenames"
        value = top.values.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise top.fail(name, "expected a list of file names")
        listed[split] = {normalized(item) for item in value}
        unknown = sorted(listed[split] - {frame.file_path for frame in frames}, key=natural_key)
        if unknown:
            raise top.fail(name, f"{unknown[0]} is not the file_path of any frame")
    if not listed:
        return dict.fromkeys(frames, frozenset()), []
    splits_of = {
        frame: frozenset(split for split, names in listed.items() if frame.file_path in names) for frame in frames
    }
    rest = [frame for frame, splits in splits_of.items() if not splits]
    # the frames of no list are what the file leaves out: the training views, or the held-out ones
    fill = "train" if "train" not in listed else "test" if len(listed) == 1 else None
    if fill is not None:
        splits_of.update(dict.fromkeys(rest, frozenset({fill})))
    elif rest:
        kept = {frame: splits for frame, splits in splits_of.items() if splits}
        return kept, [f"{len(rest)} frames are in none of the file's lists and left out"]
    return splits_of, []


# --- spaces


def _stated_spaces(top: Fields) -> StatedSpaces:
    name = Path(top.place).name
    scale, offset = DEFAULT_SCALE, DEFAULT_OFFSET
    origin = {"scale": "default", "offset": "default", "aabb_scale": name}
    stated_scale = top.number("scale", above=0)
    if stated_scale is not None:
        scale, origin["scale"] = stated_scale, name
    if top.has("offset"):
        value = top.values["offset"]
        x, y, z = top.row("offset", value if isinstance(value, list) else [value] * 3, 3)
        offset, origin["offset"] = (x, y, z), name
    if top.has("aabb"):
        scale, offset = _spaces_of_box(top)
        origin["scale"] = origin["offset"] = f"aabb in {name}"
    aabb_scale = top.number("aabb_scale")
    if aabb_scale is not None and not (aabb_scale == int(aabb_scale) and is_aabb_scale(int(aabb_scale))):
        raise top.fail("aabb_scale", f"expected a power of two in 1..128, got {aabb_scale:g}")
    try:
        Spaces(scale, offset)
    except ConfigError as error:
        raise DataError(f"{top.place}: {error}") from error
    return StatedSpaces(scale, offset, None if aabb_scale is None else int(aabb_scale), origin)


def _sparse_points(top: Fields, folder: Folder) -> tuple[np.ndarray | None, list[str]]:
    """The points of structure from motion that the file names, if there are any, and notes."""
    stated = top.values.get("ply_file_path")
    if stated is None:
        return None, []
    if not isinstance(stated, str) or not stated.strip() or "\0" in stated:
        raise top.fail("ply_file_path", f"expected the name of a file, got {kind(stated)}")
    path = folder.find(normalized(stated))
    if path is None:
        return None, [f"warning: {stated} (ply_file_path) does not exist: the training box comes from the cameras"]
    try:
        points = read_ply(path).vertices
    except (OSError, FormatError) as error:
        told = f"{stated} (ply_file_path) cannot be read: {error}"
        return None, [f"warning: {told}: the training box comes from the cameras"]
    points = points[(np.abs(points) < LARGEST).all(axis=1)]  # not NaN either
    return (points, []) if len(points) else (None, [])


def _spaces_of_box(top: Fields) -> tuple[float, tuple[float, float, float]]:
    """Scale and offset that map the longest side of the file's `aabb` to 1 and its centre to 0.5."""
    value = top.values["aabb"]
    if not isinstance(value, list) or len(value) != 2:
        raise top.fail("aabb", f"expected two corners of 3 numbers, got {kind(value)}")
    low, high = (top.row("aabb", corner, 3, " in each corner") for corner in value)
    sides = [upper - lower for lower, upper in zip(low, high, strict=True)]
    if min(sides) < 0 or max(sides) < 1e-9:
        raise top.fail("aabb", "expected the smaller corner first and a size above 0")
    scale = 1 / max(sides)
    x, y, z = (0.5 - 0.5 * (lower + upper) * scale for lower, upper in zip(low, high, strict=True))
    return scale, (x, y, z)


def _scene_name(path: Path) -> str:
    if path.is_dir() or path.name == "transforms.json" or _SPLIT_FILE.fullmatch(path.name):
        return (path if path.is_dir() else path.parent).name or "scene"
    return path.stem


READER: Final = Reader(
    name="instant-ngp, NeRF-synthetic or nerfstudio",
    looks_for="transforms.json or transforms_train.json",
    matches=_matches,
    read=read,
    state=state,
)
