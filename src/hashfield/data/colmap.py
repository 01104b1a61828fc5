"""Reader of COLMAP models: cameras, images and points3D as .bin or .txt, with a folder of photos.

Poses are world-to-camera with OpenCV camera axes; pixel quantities refer to the size that the camera states and are
rescaled to the photo's. Files of rigs and frames (COLMAP 3.12 and later) repeat what images states and are not read.
Views are in plain string order of their names, by which LLFF and mip-NeRF 360 hold out every eighth.

Source: COLMAP, src/colmap/sensor/models.h and src/colmap/scene/reconstruction_io.cc; written from the description of
the format.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from hashfield.data.assemble import assemble, some
from hashfield.data.colmap_lenses import FittedLens, nearest_lens
from hashfield.data.dataset import Reader, ReadOptions, Scene
from hashfield.data.files import MaskFolder, PhotoFolder, escapes, is_photo_folder, normalized, photo_folders
from hashfield.data.images import ImageHeader
from hashfield.data.json_fields import one_line
from hashfield.data.stated import LARGEST, StatedMask, StatedScene, StatedSpaces, StatedView, Tally, check_size
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera, Lens, panorama

# --- lens models


class _Model(NamedTuple):
    """One of COLMAP's camera models."""

    name: str
    parameters: str
    """Their names in order."""
    lens: Lens | None
    """Ours that is exactly the same; None where there is none, and `colmap_lenses` finds the nearest one."""


_MODELS: Final[dict[int, _Model]] = {
    0: _Model("SIMPLE_PINHOLE", "f cx cy", "pinhole"),
    1: _Model("PINHOLE", "fx fy cx cy", "pinhole"),
    2: _Model("SIMPLE_RADIAL", "f cx cy k1", "opencv"),
    3: _Model("RADIAL", "f cx cy k1 k2", "opencv"),
    4: _Model("OPENCV", "fx fy cx cy k1 k2 p1 p2", "opencv"),
    5: _Model("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4", "fisheye"),
    6: _Model("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 d4 d5 d6", "opencv"),
    7: _Model("FOV", "fx fy cx cy omega", None),
    8: _Model("SIMPLE_RADIAL_FISHEYE", "f cx cy k1", "fisheye"),
    9: _Model("RADIAL_FISHEYE", "f cx cy k1 k2", "fisheye"),
    10: _Model("THIN_PRISM_FISHEYE", "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", None),
    11: _Model("RAD_TAN_THIN_PRISM_FISHEYE", "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3", None),
    12: _Model("SIMPLE_DIVISION", "f cx cy k", None),
    13: _Model("DIVISION", "fx fy cx cy k", None),
    14: _Model("SIMPLE_FISHEYE", "f cx cy", "fisheye"),
    15: _Model("FISHEYE", "fx fy cx cy", "fisheye"),
    16: _Model("EUCM", "fx fy cx cy alpha beta", None),
    17: _Model("EQUIRECTANGULAR", "w h", "equirectangular"),
}
"""COLMAP's camera models by their number. FULL_OPENCV is ours where its denominator d4, d5, d6 is 0."""


@dataclass(frozen=True)
class _Lens:
    """One camera of the model."""

    place: str
    model: _Model
    width: int
    height: int
    parameters: dict[str, float]

    def camera(self, pose: Float64[torch.Tensor, "3 4"], header: ImageHeader) -> Camera:
        """The camera at this pose for a photo of this size."""
        if self.model.lens == "equirectangular":
            return panorama(pose, header.width, header.height)
        ours = self.ours
        if not ours.is_near(self.width, self.height):
            by = f" by up to {ours.error:.2g} pixels" if ours.error < np.inf else ""
            raise DataError(
                f"{self.place}: 'model': {self.model.name} with these parameters differs{by} from every lens that is "
                "supported: undistort the photos with `colmap image_undistorter`"
            )
        x, y = header.width / self.width, header.height / self.height
        return Camera(
            pose,
            header.width,
            header.height,
            fx=ours.fx * x,
            fy=ours.fy * y,
            cx=ours.cx * x,
            cy=ours.cy * y,
            lens=ours.lens,
            distortion=ours.distortion,
        )

    @cached_property
    def ours(self) -> FittedLens:
        """The lens of ours that is the same, or else the one that comes nearest; a panorama has none."""
        values, lens = self.parameters, self.model.lens
        if lens is None or any(values.get(name) for name in ("d4", "d5", "d6")):
            return nearest_lens(self.model.name, values, self.width, self.height)
        fx, fy = (values.get(axis, values.get("f", 0.0)) for axis in ("fx", "fy"))
        names = () if lens == "pinhole" else ("k1", "k2", "k3", "k4", "p1", "p2")
        distortion = tuple(values.get(name, 0.0) for name in names)
        return FittedLens(lens, fx, fy, values["cx"], values["cy"], distortion, 0.0)


@dataclass(frozen=True)
class _Image:
    """One image of the model that has a pose."""

    place: str
    name: str
    camera_id: int
    camera_from_world: tuple[float, ...]
    """The pose from world to camera: quaternion qw qx qy qz, then translation tx ty tz."""

    def pose(self) -> Float64[torch.Tensor, "3 4"]:
        """Camera-to-world with OpenCV axes."""
        quaternion = np.array(self.camera_from_world[:4])
        translation = np.array(self.camera_from_world[4:])
        length = float(np.linalg.norm(quaternion))
        if not length > 1e-9:
            raise DataError(f"{self.place}: 'qw qx qy qz': the rotation is a quaternion of length 0")
        w, x, y, z = quaternion / length
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        return torch.from_numpy(np.column_stack([rotation.T, -rotation.T @ translation]))


# --- the files of a model, binary


class _Binary:
    """A file read from front to back; what is missing or not finite becomes an error that names place and field."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size

    def take(self, form: str, place: str, name: str) -> tuple[float, ...]:
        """The next values of a struct format without its byte order."""
        length = struct.calcsize("<" + form)
        data = self.file.read(length)
        if len(data) < length:
            raise DataError(f"{place}: '{name}': the file ends here, it is cut off")
        values = struct.unpack("<" + form, data)
        _check_finite(values, place, name)
        return values

    def count(self, least: int, what: str) -> int:
        """The number of records, each of at least so many bytes."""
        (number,) = self.take("Q", str(self.path), f"number of {what}")
        if number * least > self.size - self.file.tell():
            raise DataError(
                f"{self.path}: 'number of {what}': {number} stated, more than {self.size} bytes can hold: the file is "
                "cut off or no COLMAP model"
            )
        return int(number)

    def text(self, place: str, name: str) -> str:
        """The bytes up to the next zero byte, as text."""
        start, found = self.file.tell(), b""
        while b"\0" not in found:
            chunk = self.file.read(256)
            if not chunk:
                raise DataError(f"{place}: '{name}': the file ends here, it is cut off")
            found += chunk
        found = found[: found.index(b"\0")]
        self.file.seek(start + len(found) + 1)
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: '{name}': not a text in UTF-8") from error

    def skip(self, length: int, place: str, name: str) -> None:
        """Go on behind so many bytes."""
        if length > self.size - self.file.tell():
            raise DataError(f"{place}: '{name}': the file ends here, it is cut off")
        self.file.seek(length, 1)

    def end(self, n_records: int, what: str) -> None:
        """Raise where something follows the last record."""
        left = self.size - self.file.tell()
        if left:
            raise DataError(f"{self.path}: 'number of {what}': {n_records} stated, but {left} bytes follow the last")


def _check_finite(values: tuple[float, ...], place: str, name: str) -> None:
    for value in values:
        if isinstance(value, float) and not abs(value) < LARGEST:
            fault = "out of all proportion" if abs(value) < float("inf") else "not finite"
            raise DataError(f"{place}: '{name}': {fault} ({value:g})")


def _binary_cameras(path: Path) -> Iterator[tuple[int, _Lens]]:
    with path.open("rb") as file:
        reader = _Binary(path, file)
        number = reader.count(24, "cameras")
        for index in range(number):
            camera_id, model, width, height = map(
                int, reader.take("IiQQ", f"{path}: camera {index + 1} of {number}", "camera_id")
            )
            place = f"{path}: camera {camera_id}"
            if model not in _MODELS:
                raise DataError(f"{place}: 'model': there is no camera model {model}")
            names = _MODELS[model].parameters.split()
            yield (
                camera_id,
                _lens(place, _MODELS[model], (width, height), reader.take(f"{len(names)}d", place, "params")),
            )
        reader.end(number, "cameras")


def _lens(place: str, model: _Model, size: tuple[int, int], values: tuple[float, ...]) -> _Lens:
    names = model.parameters.split()
    if len(values) != len(names):
        raise DataError(f"{place}: 'params': {model.name} has {len(names)} ({model.parameters}), got {len(values)}")
    if not all(1 <= side < 2**31 for side in size):
        raise DataError(f"{place}: 'width, height': expected whole numbers above 0, got {size[0]}x{size[1]}")
    return _Lens(place, model, *size, dict(zip(names, values, strict=True)))


def _binary_images(path: Path) -> Iterator[_Image]:
    with path.open("rb") as file:
        reader = _Binary(path, file)
        number = reader.count(73, "images")
        for index in range(number):
            place = f"{path}: image {index + 1} of {number}"
            (image_id,) = reader.take("I", place, "image_id")
            place = f"{path}: image {image_id}"
            pose = reader.take("7d", place, "qw qx qy qz tx ty tz")
            (camera_id,) = reader.take("I", place, "camera_id")
            name = reader.text(place, "name")
            place = one_line(f"{place} ({name})")
            (n_points,) = reader.take("Q", place, "number of points")
            reader.skip(24 * int(n_points), place, "points2D")
            yield _Image(place, name, int(camera_id), pose)
        reader.end(number, "images")


def _binary_points(path: Path) -> Float64[np.ndarray, "n_points 3"]:
    with path.open("rb") as file:
        number = _Binary(path, file).count(51, "points")
    # millions of records: one pass over the bytes, checked as a whole
    record, data, offset = struct.Struct("<Q3d3BdQ"), path.read_bytes(), 8
    points = np.empty((number, 3))
    for index in range(number):
        if offset + record.size > len(data):
            raise DataError(f"{path}: point {index + 1} of {number}: 'xyz': the file ends here, it is cut off")
        _, x, y, z, _, _, _, _, n_views = record.unpack_from(data, offset)
        points[index] = x, y, z
        offset += record.size + 8 * n_views
        if offset > len(data):
            raise DataError(f"{path}: point {index + 1} of {number}: 'track': the file ends here, it is cut off")
    if offset < len(data):
        raise DataError(f"{path}: 'number of points': {number} stated, but {len(data) - offset} bytes follow the last")
    wrong = np.flatnonzero(~(np.abs(points) < LARGEST).all(axis=1))
    if len(wrong):
        _check_finite(tuple(points[wrong[0]].tolist()), f"{path}: point {wrong[0] + 1} of {number}", "xyz")
    return points


# --- the files of a model, text


def _lines(path: Path) -> tuple[list[tuple[int, str]], int | None]:
    """Lines that are no comments with their numbers, and how many records the file's own comment states."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8") from error
    stated = re.search(r"^#\s*Number of \w+:\s*([0-9]+)", text, re.MULTILINE)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if not line.startswith("#")]
    return lines, None if stated is None else int(stated.group(1))


def _check_count(path: Path, found: int, stated: int | None, what: str) -> None:
    if stated is not None and found != stated:
        raise DataError(
            f"{path}: 'Number of {what}': {stated} stated, {found} found: the file is cut off or was changed"
        )


def _number(text: str, kind: Callable[[str], float], place: str, name: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise DataError(one_line(f"{place}: '{name}': expected a number, got {text[:40]!r}")) from None
    _check_finite((value,), place, name)
    return value


def _text_cameras(path: Path) -> Iterator[tuple[int, _Lens]]:
    lines, stated = _lines(path)
    by_name = {model.name: model for model in _MODELS.values()}
    records = [(number, line.split()) for number, line in lines if line.strip()]
    for number, words in records:
        place = f"{path}: line {number}"
        if len(words) < 4:
            raise DataError(f"{place}: expected camera_id, model, width, height, params, got {len(words)} words")
        if words[1] not in by_name:
            raise DataError(one_line(f"{place}: 'model': there is no camera model {words[1][:40]}"))
        camera_id, width, height = (
            int(_number(word, int, place, name))
            for word, name in zip((words[0], *words[2:4]), ("camera_id", "width", "height"), strict=True)
        )
        values = tuple(_number(word, float, place, "params") for word in words[4:])
        yield camera_id, _lens(place, by_name[words[1]], (width, height), values)
    _check_count(path, len(records), stated, "cameras")


def _text_images(path: Path) -> Iterator[_Image]:
    lines, stated = _lines(path)
    rest = iter(lines)
    found = 0
    for number, line in rest:
        # the name is the rest of the line and may hold spaces
        words = line.split(maxsplit=9)
        if not words:
            continue
        place = f"{path}: line {number}"
        if len(words) < 10:
            raise DataError(
                f"{place}: expected image_id, qw, qx, qy, qz, tx, ty, tz, camera_id, name, got {len(words)} words"
            )
        fields = ("qw", "qx", "qy", "qz", "tx", "ty", "tz")
        pose = tuple(_number(word, float, place, name) for word, name in zip(words[1:8], fields, strict=True))
        camera_id = int(_number(words[8], int, place, "camera_id"))
        name = words[9].strip()
        place = one_line(f"{place} ({name})")
        _, points = next(rest, (0, ""))  # may be empty, and then missing at the end of the file
        if len(points.split()) % 3:
            raise DataError(f"{place}: 'points2D': expected x, y and point3D_id for each point in the line below")
        found += 1
        yield _Image(place, name, camera_id, pose)
    _check_count(path, found, stated, "images")


def _text_points(path: Path) -> Float64[np.ndarray, "n_points 3"]:
    lines, stated = _lines(path)
    points = []
    for number, line in lines:
        words = line.split(maxsplit=4)
        if not words:
            continue
        place = f"{path}: line {number}"
        if len(words) < 4:
            raise DataError(f"{place}: expected point3D_id, x, y, z and more, got {len(words)} words")
        points.append([_number(word, float, place, name) for word, name in zip(words[1:4], "xyz", strict=True)])
    _check_count(path, len(points), stated, "points")
    return np.array(points, np.float64).reshape(-1, 3)


# --- where model and photos lie

_PLACES: Final = ("sparse", "colmap/sparse", ".", "colmap")


class _Capture(NamedTuple):
    root: Path
    models: list[Path]
    """Folders with a model each."""
    photos: Path | None
    """The folder of photos that the user named, None where that is left open."""


def _file(model: Path, name: str) -> Path | None:
    """The binary file of this name, else the text file, as COLMAP itself prefers them."""
    return next((path for end in (".bin", ".txt") if (path := model / f"{name}{end}").is_file()), None)


def _is_model(folder: Path) -> bool:
    return _file(folder, "cameras") is not None and _file(folder, "images") is not None


def _locate(path: Path) -> _Capture | None:
    if path.is_file():
        is_part = path.stem in ("cameras", "images", "points3D") and path.suffix in (".bin", ".txt")
        return _locate(path.parent) if is_part and _is_model(path.parent) else None
    if _is_model(path):
        # a model's own folder: its photos lie beside it or above it
        above = [path, *path.parents][:4]
        root = next(
            (
                folder
                for folder in above
                if any((folder / name).is_dir() for name in ("images", "images_2", "images_4", "images_8"))
            ),
            path,
        )
        return _Capture(root, [path], None)
    for root in (path, path.parent) if is_photo_folder(path) else (path,):
        for place in _PLACES:
            below = sorted(entry for entry in (root / place).glob("*") if entry.is_dir()) if place != "." else []
            models = [folder for folder in (root / place, *below) if _is_model(folder)]
            if models:
                return _Capture(root, models, None if root == path else path)
    return None


def _n_images(model: Path) -> int:
    path = _file(model, "images")
    assert path is not None
    if path.suffix == ".txt":
        return sum(1 for _ in _text_images(path))
    with path.open("rb") as file:
        return _Binary(path, file).count(73, "images")


def _largest(capture: _Capture) -> tuple[Path, list[str]]:
    """The model with the most photos, and a note where there are several: COLMAP's first one may be a fragment."""
    sizes = {model: _n_images(model) for model in capture.models} if len(capture.models) > 1 else {}
    model = max(capture.models, key=lambda folder: sizes.get(folder, 0))
    if not sizes:
        return model, []
    listed = ", ".join(f"{folder.relative_to(capture.root).as_posix()} ({size})" for folder, size in sizes.items())
    return model, [
        f"{len(sizes)} COLMAP models, by photos: {listed}; {model.relative_to(capture.root).as_posix()} is read"
    ]


# --- photos


def _photos(capture: _Capture, images: list[_Image], images_file: Path) -> tuple[list[Path | None], list[str]]:
    """The file of each image, and notes: from the folder that has the most of them, the largest photos first."""
    folders = [PhotoFolder(capture.photos)] if capture.photos else photo_folders(capture.root)
    if capture.photos is None and (capture.root / "colmap").is_dir():
        folders += photo_folders(capture.root / "colmap")
    found = {folder: [folder.find(normalized(image.name)) for image in images] for folder in folders}
    best = max(folders, key=lambda folder: sum(path is not None for path in found[folder]))
    files, notes = found[best], []
    if not any(files):
        files, best, notes = _by_order(folders, capture, images)
    if not any(files):
        places = [folder.root.relative_to(capture.root).as_posix() for folder in folders]
        where = " or ".join(place for place in places if place.rsplit("/", 1)[-1].startswith("images")) or "images"
        name = images[0].name
        raise DataError(
            one_line(
                f"{images_file}: none of the {len(images)} photos exists in {where} of {capture.root}; the first is "
                f"{name}"
            )
        )
    used = {path for path in files if path is not None}
    lost = [name for name in best.names if best.root / name not in used]
    if best.root != capture.root and lost:
        notes.append(
            f"warning: {len(lost)} of {len(best.names)} photos in {best.root.name} have no pose in the COLMAP model "
            f"and are left out: {some(lost)}"
        )
    return files, [f"photos: {best.root.relative_to(capture.root).as_posix()}", *notes]


def _by_order(
    folders: list[PhotoFolder], capture: _Capture, images: list[_Image]
) -> tuple[list[Path | None], PhotoFolder, list[str]]:
    """Photos with other names than the model's, as in LLFF's folders, where as many lie there as the model has."""
    for folder in folders:
        if len(folder.names) == len(images):
            note = f"warning: the photos in {folder.root.name} have other names than in the COLMAP model and are taken "
            return [folder.root / name for name in folder.names], folder, [f"{note}in string order"]
    return [None] * len(images), folders[0], []


# --- the reader


def mask_folders(photos: list[Path | None]) -> list[str]:
    """Names of folders of masks for these photos, the likeliest first: of images_4, masks_4 and masks."""
    used = {part for photo in photos if photo is not None for part in photo.parts if part.startswith("images_")}
    return [*(f"masks_{name.partition('_')[2]}" for name in sorted(used)), "masks"]


def _views(
    images: list[_Image], files: list[Path | None], lenses: dict[int, _Lens], cameras_file: Path, root: Path
) -> list[StatedView]:
    # COLMAP's own convention, and nerfstudio's: masks of images_4 in masks_4, black is left out
    places = [base / name for name in mask_folders(files) for base in (root, root / "colmap")]
    folder = next((MaskFolder(place) for place in places if place.is_dir()), None)

    def view_of(image: _Image, file: Path | None) -> StatedView:
        if image.camera_id not in lenses:
            raise DataError(f"{image.place}: 'camera_id': {image.camera_id} is not in {cameras_file.name}")
        lens = lenses[image.camera_id]

        def make_camera(header: ImageHeader, tally: Tally) -> Camera:
            check_size(view, (lens.width, lens.height), header, tally, "width, height")
            return lens.camera(image.pose(), header)

        mask = None if folder is None else folder.find([normalized(image.name)])
        masks = () if mask is None else (StatedMask(mask, "mask of name", keeps_black=False),)
        view = StatedView(image.name, image.place, file, make_camera, masks=masks, image_field="name")
        return view

    return [view_of(image, file) for image, file in zip(images, files, strict=True)]


def state(path: Path, options: ReadOptions) -> StatedScene:
    """What a COLMAP model and its folder say; pixels are not read.

    Raises:
        DataError: one line that names file, record and field.
    """
    capture = _locate(path)
    assert capture is not None
    try:
        return _state(path, capture, options)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


def _state(path: Path, capture: _Capture, options: ReadOptions) -> StatedScene:
    model, notes = _largest(capture)
    cameras_file, images_file, points_file = (_file(model, name) for name in ("cameras", "images", "points3D"))
    assert cameras_file is not None and images_file is not None
    lenses: dict[int, _Lens] = {}
    for camera_id, lens in (_binary_cameras if cameras_file.suffix == ".bin" else _text_cameras)(cameras_file):
        if lenses.setdefault(camera_id, lens) is not lens:
            raise DataError(f"{lens.place}: 'camera_id': {camera_id} is there twice")
    images = sorted(
        (_binary_images if images_file.suffix == ".bin" else _text_images)(images_file), key=lambda image: image.name
    )
    if not images:
        raise DataError(f"{images_file}: no photo has a pose: COLMAP found none")
    for image, following in zip(images, [*images[1:], None], strict=True):
        if not image.name or escapes(image.name):
            raise DataError(f"{image.place}: 'name': expected the name of a photo in the folder of photos")
        if following is not None and following.name == image.name:
            raise DataError(f"{following.place}: 'name': {one_line(image.name)} is there twice")
    points = None
    if points_file is not None:
        points = (_binary_points if points_file.suffix == ".bin" else _text_points)(points_file)
    files, photo_notes = _photos(capture, images, images_file)
    views = _views(images, files, lenses, cameras_file, capture.root)
    masked = [view for view in views if view.masks]
    if masked:
        folder = masked[0].masks[0].path.relative_to(capture.root).parts[0]
        notes.append(f"masks of {len(masked)} of {len(views)} photos from {folder}: what is black is left out")
    used = [lens for number, lens in lenses.items() if any(image.camera_id == number for image in images)]
    return StatedScene(
        name=capture.root.name or "scene",
        path=path,
        data_file=images_file,
        folder=capture.root,
        form="COLMAP",
        views=tuple(views),
        spaces=StatedSpaces(None, None, None, {}),
        order="string order",
        view_noun="photos",
        points=points if points is not None and len(points) else None,
        points_origin=f"{len(points)} points of {points_file.name}" if points is not None and points_file else "",
        has_surface_points=True,
        sparse_model=model,
        has_fixed_axes=True,
        notes=(*photo_notes, *notes, *_lens_notes(used)),
    )


def _lens_notes(lenses: list[_Lens]) -> list[str]:
    """Lenses that are read as others, and how well these fit."""
    fitted: dict[tuple[str, str], float] = {}
    for lens in lenses:
        if lens.model.lens != "equirectangular" and lens.ours.error > 0:
            key = lens.model.name, lens.ours.lens
            fitted[key] = max(fitted.get(key, 0.0), lens.ours.error)
    return [
        f"lenses of COLMAP's model {name} are read as {lens} with other parameters, which differ by at most "
        f"{error:.2g} pixels"
        for (name, lens), error in fitted.items()
    ]


def read(path: Path, options: ReadOptions) -> Scene:
    """The scene of a COLMAP model: a folder that holds one and its photos, the model's own folder, one of its files, or
    the folder of photos that is to be taken, e.g. images_4.

    Raises:
        DataError: one line that names file, record and field.
    """
    return assemble(state(path, options), options)


READER: Final = Reader(
    name="COLMAP",
    looks_for="cameras.bin or cameras.txt in sparse/0",
    matches=lambda path: _locate(path) is not None,
    read=read,
    state=state,
)
