"""Reader of transforms.json in the forms of instant-ngp, NeRF-synthetic and nerfstudio.

One reading serves all three; where they disagree:

* focal lengths per axis: x_fov (degrees) over fl_x (pixels) over camera_angle_x (radians); a single axis
  serves both; a frame that states any replaces both of the top level's;
* pixel quantities refer to the stated w and h, and are rescaled to the image file's real size;
* a frame's lens replaces the top level's if any of its coefficients is not 0; k3 and k4 are the r^6 and r^8
  terms, or the fisheye's; p1 and p2 mean nothing to a fisheye;
* scale, offset and aabb_scale are instant-ngp's, with its defaults 0.33 and 0.5, in all forms;
* frames are in natural order of file_path (img2 before img10).

Source: instant-ngp nerf_loader.cu, nerfstudio's data parsers, bmild/nerf load_blender.py.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from hashfield.data.dataset import GIB, PosedImages, Reader, ReadOptions, Scene
from hashfield.data.files import Folder, natural_key, normalized
from hashfield.data.images import ImageHeader, decode_all, read_header
from hashfield.data.json_fields import Fields, kind, load_json, one_line
from hashfield.data.posed_frames import IGNORED, Frame, Tally, camera_of, read_frames, refuse_companions
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.paths import focus_point
from hashfield.geometry.spaces import (
    DEFAULT_OFFSET,
    DEFAULT_SCALE,
    Spaces,
    check_rays_meet_box,
    choose_aabb_scale,
    is_aabb_scale,
    share_of_rays_meeting_box,
)

HOLD_OUT_EVERY: Final = 8
"""Without splits in the data, views whose index is a multiple of this are held out."""

_SPLITS: Final = ("train", "val", "test")
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
    files = _split_files(path)
    if files:
        data_file, form, rule = files["train"], "NeRF-synthetic", "by file"
        folder = Folder(data_file.parent)
        # val is needed where it is asked for or stands in for test
        wanted = [split for split in files if split != "val" or "val" in options.splits or "test" not in files]
        tops = {split: _load(files[split]) for split in wanted}
        top = tops["train"]
        stated = {split: read_frames(tops[split], folder) for split in wanted}
        listed = [frame for split in wanted for frame in stated[split]]
        notes: list[str] = []
    else:
        data_file = path if path.is_file() else path / "transforms.json"
        folder = Folder(data_file.parent)
        top = _load(data_file)
        form = "nerfstudio" if top.has(*_NERFSTUDIO_FIELDS) else "instant-ngp"
        rule = "by the file's own lists"
        listed = read_frames(top, folder)
        stated, notes = _split_by_lists(top, listed)
    notes += _missing_notes(listed, data_file)
    frames, split_notes = _complete_splits(stated, rule, data_file)
    asked = {split: frames[split] for split in _SPLITS if split in options.splits and split in frames}
    if not asked:
        raise DataError(f"{data_file}: this data set has no {' or '.join(options.splits)} views")
    return _assemble(_Source(path, data_file, form, top, folder), asked, options, [*split_notes, *notes])


def _split_files(path: Path) -> dict[str, Path]:
    """The files of a NeRF-synthetic folder by split, whether the folder or one of them was named; else
    none."""
    if not path.is_dir() and not _SPLIT_FILE.fullmatch(path.name):
        return {}
    folder = path if path.is_dir() else path.parent
    files = {split: folder / f"transforms_{split}.json" for split in _SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    return files if "train" in files else {}


def _load(path: Path) -> Fields:
    """The top level of a data file, with at least one frame."""
    top = load_json(path)
    if not isinstance(top, dict):
        raise DataError(f"{path}: expected an object with 'frames', got {kind(top)}")
    if "frames" not in top or top.get("format") == "hashfield_camera_path":
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


def _missing_notes(frames: list[Frame], data_file: Path) -> list[str]:
    missing = [frame.file_path for frame in frames if frame.image is None]
    elsewhere = [frame.file_path for frame in frames if frame.is_elsewhere]
    if len(missing) == len(frames):
        first = posixpath.join(data_file.parent.as_posix(), missing[0])
        raise DataError(one_line(f"{data_file}: none of the {len(frames)} images exists; the first is {first}"))
    notes = []
    if missing:
        notes.append(
            f"warning: {len(missing)} of {len(frames)} frames have no image file and are skipped: {_some(missing)}"
        )
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} of {len(frames)} images are not where file_path says but in images/: {_some(elsewhere)}"
        )
    return notes


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return one_line(shown if len(names) <= most else f"{shown} and {len(names) - most} more")


# --- splits


def _split_by_lists(top: Fields, frames: list[Frame]) -> tuple[dict[str, list[Frame]], list[str]]:
    """Frames by the file's own lists of names, and notes; all of them are training views where it has
    none."""
    listed: dict[str, set[str]] = {}
    for split in _SPLITS:
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
        return {"train": frames}, []
    splits = {split: [frame for frame in frames if frame.file_path in names] for split, names in listed.items()}
    rest = [frame for frame in frames if not any(frame.file_path in names for names in listed.values())]
    if "train" not in splits:
        splits["train"] = rest
    elif len(splits) == 1:
        splits["test"] = rest
    elif rest:
        return splits, [f"{len(rest)} frames are in none of the file's lists and left out"]
    return splits, []


def _complete_splits(
    stated: Mapping[str, list[Frame]], rule: str, data_file: Path
) -> tuple[dict[str, list[Frame]], list[str]]:
    """Views with an image: a train and a test set that share none, val where there is one; and notes.

    Without test views, those of val are taken; without these, every 8th training view is held out.
    """
    views = {split: _usable(frames) for split, frames in stated.items()}
    train, val, test = (views.get(split, []) for split in _SPLITS)
    notes = []
    if test:
        notes.append(f"splits: {rule}")
    elif val:
        test = val
        notes.append(f"splits: {rule}; there are no test views, those of val are taken")
    else:
        if stated.get("test") or stated.get("val"):
            notes.append("warning: none of the test images exists, so some training views are held out")
        if len(train) < 2:
            raise DataError(
                f"{data_file}: {len(train)} usable view, but at least two are needed: one is held out for testing"
            )
        test = train[::HOLD_OUT_EVERY]
        notes.append(
            f"splits: every {HOLD_OUT_EVERY}th view in natural order is held out for testing, {len(test)} of "
            f"{len(train)}"
        )
        train = [frame for index, frame in enumerate(train) if index % HOLD_OUT_EVERY]
    held_out = {frame.path for frame in test}
    kept = [frame for frame in train if frame.path not in held_out]
    both = [frame.file_path for frame in train if frame.path in held_out]
    if both:
        notes.append(f"warning: listed for training and for testing, used for testing only: {_some(both)}")
    if not kept:
        raise DataError(f"{data_file}: no view is left for training")
    return {"train": kept, "test": test, **({"val": val} if val else {})}, notes


def _usable(frames: Iterable[Frame]) -> list[Frame]:
    """Frames that have an image, each image once; one image with two poses is an error."""
    first: dict[Path, Frame] = {}
    for frame in frames:
        if frame.image is None:
            continue
        earlier = first.setdefault(frame.image, frame)
        name = "transform_matrix"
        if earlier.fields.values.get(name) != frame.fields.values.get(name):
            other = earlier.fields.place.rsplit(": ", 1)[-1]
            raise frame.fields.fail("file_path", f"the same image as {other} with another pose")
    return list(first.values())


# --- spaces


class _Stated(NamedTuple):
    """What the file says about its spaces, and where each value comes from."""

    scale: float
    offset: tuple[float, float, float]
    aabb_scale: int | None
    origin: dict[str, str]


def _stated_spaces(top: Fields) -> _Stated:
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
    return _Stated(scale, offset, None if aabb_scale is None else int(aabb_scale), origin)


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


# --- putting it together


class _Source(NamedTuple):
    path: Path
    data_file: Path
    form: str
    top: Fields
    folder: Folder


def _assemble(source: _Source, splits: Mapping[str, list[Frame]], options: ReadOptions, notes: list[str]) -> Scene:
    """The scene: headers, memory check, cameras; then pixels, box and notes."""
    # val may serve as test: each view is read once
    frames = list({frame: None for chosen in splits.values() for frame in chosen})
    place = {frame: index for index, frame in enumerate(frames)}
    tally = Tally()
    headers = []
    for frame in frames:
        refuse_companions(frame, source.folder)
        try:
            headers.append(read_header(frame.path))
        except DataError as error:
            raise frame.fields.fail("file_path", str(error)) from error
        reduction = headers[-1].reduction
        if reduction:
            tally.reduced.setdefault(reduction, []).append(frame)
    _check_memory(source.data_file, headers, options)
    cameras = [camera_of(frame, header, options, tally) for frame, header in zip(frames, headers, strict=True)]
    stated = _stated_spaces(source.top)
    try:
        Spaces(stated.scale, stated.offset)
    except ConfigError as error:
        raise DataError(f"{source.top.place}: {error}") from error
    images = decode_all(
        [frame.path for frame in frames],
        options.downscale,
        explain=lambda index, error: frames[index].fields.fail("file_path", str(error)),
    )
    has_alpha = any(bool((image[..., 3] < 255).any()) for image in images)
    spaces, origin = _choose_spaces(stated, options, has_alpha, cameras)
    if "train" in splits:
        check_rays_meet_box(cameras, spaces, str(source.data_file))

    def posed(chosen: list[Frame]) -> PosedImages:
        indices = [place[frame] for frame in chosen]
        return PosedImages(
            tuple(cameras[index] for index in indices),
            tuple(images[index] for index in indices),
            tuple(_name(frame, source.data_file.parent) for frame in chosen),
        )

    counts = " and ".join(f"{len(chosen)} {split}" for split, chosen in splits.items())
    return Scene(
        name=_scene_name(source.path),
        path=source.path,
        form=source.form,
        spaces=spaces,
        has_alpha=has_alpha,
        camera_axes=options.camera_axes,
        splits={split: posed(chosen) for split, chosen in splits.items()},
        notes=(
            f"{source.form} form: {counts} views, {_describe(cameras, has_alpha, options)}",
            *notes,
            *_tally_notes(tally, frames, source.top),
            *([] if has_alpha else _brightness_notes(images)),
            *_space_notes(spaces, origin, cameras, options),
        ),
    )


def _choose_spaces(
    stated: _Stated, options: ReadOptions, has_alpha: bool, cameras: list[Camera]
) -> tuple[Spaces, dict[str, str]]:
    aabb_scale, why = stated.aabb_scale, stated.origin["aabb_scale"]
    if options.aabb_scale is not None:
        aabb_scale, why = options.aabb_scale, "--aabb-scale"
    elif aabb_scale is None and has_alpha:
        aabb_scale, why = 1, "images have alpha"
    elif aabb_scale is None:
        aabb_scale = choose_aabb_scale(cameras, Spaces(stated.scale, stated.offset))
        why = "from the cameras, as images have no alpha"
    return Spaces(stated.scale, stated.offset, aabb_scale), {**stated.origin, "aabb_scale": why}


def _name(frame: Frame, folder: Path) -> str:
    """The image's path relative to the data file, with its ending."""
    return Path(os.path.relpath(frame.path, folder)).as_posix()


def _scene_name(path: Path) -> str:
    if path.is_dir() or path.name == "transforms.json" or _SPLIT_FILE.fullmatch(path.name):
        return (path if path.is_dir() else path.parent).name or "scene"
    return path.stem


def _check_memory(data_file: Path, headers: list[ImageHeader], options: ReadOptions) -> None:
    """Raises before anything is decoded where the pixels would not fit the budget."""

    def size_bytes(factor: int) -> int:
        return sum(4 * (header.width // factor) * (header.height // factor) for header in headers)

    needed, budget = size_bytes(options.downscale), options.max_image_memory
    if needed <= budget:
        return
    factor, largest = options.downscale + 1, min(min(header.width, header.height) for header in headers)
    while factor < largest and size_bytes(factor) > budget:
        factor += 1
    advice = "raise --max-image-memory"
    if factor <= largest and size_bytes(factor) <= budget:
        advice = f"use --downscale {factor} ({_memory(size_bytes(factor))}) or {advice}"
    else:
        advice = f"--downscale cannot help, {advice}"
    now = f" at --downscale {options.downscale}" if options.downscale > 1 else ""
    raise DataError(
        f"{data_file}: {len(headers)} images take {_memory(needed)} as 8-bit RGBA{now}, more than "
        f"--max-image-memory ({_memory(budget)}): {advice}"
    )


def _memory(size_bytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (1024**2, "MiB")):
        if size_bytes >= unit / 10:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes / 1024:.2f} KiB"


# --- notes


def _describe(cameras: list[Camera], has_alpha: bool, options: ReadOptions) -> str:
    sizes = sorted({(camera.width, camera.height) for camera in cameras})
    first, last = ("x".join(map(str, size)) for size in (sizes[0], sizes[-1]))
    size = first if len(sizes) == 1 else f"{len(sizes)} sizes from {first} to {last}"
    shrunk = f" after --downscale {options.downscale}" if options.downscale > 1 else ""
    lenses = " and ".join(sorted({camera.lens for camera in cameras}))
    memory = _memory(sum(4 * camera.width * camera.height for camera in cameras))
    return f"{size}{shrunk}, {'with' if has_alpha else 'without'} alpha, lens {lenses}, {memory}"


def _tally_notes(tally: Tally, frames: list[Frame], top: Fields) -> list[str]:
    notes = []
    if tally.scaled:
        names = _some([frame.file_path for frame in tally.scaled], 3)
        notes.append(
            f"warning: a uniform scale was removed from the rotation of {len(tally.scaled)} of {len(frames)} "
            f"frames: {names}"
        )
    if tally.resized:
        frame, sizes = tally.resized[0]
        notes.append(
            f"intrinsics rescaled to the image's real size in {len(tally.resized)} of {len(frames)} frames "
            f"({frame.file_path}: {sizes})"
        )
    for reduction, reduced in tally.reduced.items():
        notes.append(f"{reduction} in {len(reduced)} of {len(frames)} images")
    if tally.r8:
        notes.append("k4 of a lens that is no fisheye is read as the r^8 term, as nerfstudio does")
    seen = [name for name in IGNORED if top.has(name) or any(frame.fields.has(name) for frame in frames)]
    if seen:
        notes.append(f"fields without effect here: {', '.join(seen)}")
    return [one_line(note) for note in notes]


_UNEVEN_BRIGHTNESS: Final = 2.0  # ratio of the 90 % to the 10 % image's mean; instant-ngp's fox has 1.3


def _brightness_notes(images: Sequence[np.ndarray]) -> list[str]:
    """A warning where photos differ so much in brightness that exposure must have changed between them."""
    # every 64th pixel or so tells a mean well enough
    step = [max(1, min(image.shape[:2]) // 100) for image in images]
    means = [float(image[::n, ::n, :3].mean()) for image, n in zip(images, step, strict=True)]
    dark, bright = np.quantile(means, (0.1, 0.9))
    if bright <= _UNEVEN_BRIGHTNESS * max(dark, 1.0):
        return []
    return [
        f"warning: brightness differs between images (means {dark:.0f} to {bright:.0f} of 255): varying "
        "exposure or white balance leaves haze and floating blobs"
    ]


def _space_notes(spaces: Spaces, origin: Mapping[str, str], cameras: list[Camera], options: ReadOptions) -> list[str]:
    offset = " ".join(f"{value:.6g}" for value in spaces.offset)
    position = torch.stack([camera.position for camera in cameras])
    distance = float((position - spaces.box_center_world).norm(dim=1).mean())
    half = spaces.distance_scene_to_world(0.5 * spaces.aabb_scale)
    share = share_of_rays_meeting_box(cameras, spaces)
    notes = [
        f"spaces: scale {spaces.scale:.6g} ({origin['scale']}), offset {offset} ({origin['offset']}), "
        f"aabb_scale {spaces.aabb_scale} ({origin['aabb_scale']})",
        f"box: half side {half:.3g} in the file's units; cameras {distance:.3g} from its centre on average; "
        f"{100 * share:.0f} % of view rays meet it",
    ]
    if share < 0.5:
        notes.append(
            f"warning: only {100 * share:.0f} % of view rays meet the training box; if the scene does not "
            "lie inside it, state scale and offset in the data file or use --aabb-scale"
        )
    to_focus = focus_point(cameras) - position
    forward = torch.stack([camera.forward for camera in cameras])
    # behind a camera counts only where it lies clearly along the axis
    is_behind = (to_focus * forward).sum(dim=1) < -0.5 * to_focus.norm(dim=1)
    away = float(is_behind.double().mean())
    if len(cameras) > 2 and away > 0.8:
        notes.append(
            f"warning: {100 * away:.0f} % of the cameras look away from the point their axes share; right "
            "for views outwards from one place, else the poses may have the other camera axes: --camera-axes "
            + ("opencv" if options.camera_axes == "opengl" else "opengl")
        )
    return notes


READER: Final = Reader(
    name="instant-ngp, NeRF-synthetic or nerfstudio",
    looks_for="transforms.json or transforms_train.json",
    matches=_matches,
    read=read,
)
