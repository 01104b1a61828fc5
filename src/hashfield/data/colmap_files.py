"""The files of a COLMAP model: cameras, images and points3D as .bin or .txt.

Files of rigs and frames (COLMAP 3.12 and later) repeat what images state and are not read.

Source: COLMAP, src/colmap/scene/reconstruction_io.cc; written from the description of the format.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, UInt64

from hashfield.data.colmap_lenses import LENS_MODELS, LensModel, ModelLens
from hashfield.data.json_fields import one_line
from hashfield.data.stated import LARGEST
from hashfield.errors import DataError

_SIGHTING: Final = np.dtype([("xy", "<f8", 2), ("id", "<u8")])
_NOTHING_SEEN: Final = np.empty(0, _SIGHTING)
_NO_POINT: Final = 2**64 - 1


@dataclass(frozen=True)
class ModelImage:
    """One image of the model that has a pose."""

    place: str
    """Where the model states it, as the beginning of an error."""
    name: str
    camera_id: int
    camera_from_world: tuple[float, ...]
    """The pose from world to camera: quaternion qw qx qy qz, then translation tx ty tz."""
    pixels: Float64[np.ndarray, "n_seen 2"]
    """Where it shows points of the model, in pixels of its camera; empty unless asked for."""
    point_ids: UInt64[np.ndarray, " n_seen"]
    """Which points those are."""

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


class ModelPoints(NamedTuple):
    """Points of a model."""

    ids: UInt64[np.ndarray, " n_points"]
    """By which images name them."""
    positions: Float64[np.ndarray, "n_points 3"]
    """World."""


class ModelFiles(NamedTuple):
    """The files of one model."""

    folder: Path
    cameras: Path
    images: Path
    points: Path | None


def model_in(folder: Path) -> ModelFiles | None:
    """The model that lies in a folder, if any: binary files before text, as COLMAP itself prefers them."""
    cameras, images, points = (
        next((path for end in (".bin", ".txt") if (path := folder / f"{name}{end}").is_file()), None)
        for name in ("cameras", "images", "points3D")
    )
    return None if cameras is None or images is None else ModelFiles(folder, cameras, images, points)


def read_cameras(path: Path) -> dict[int, ModelLens]:
    """The lenses of a model's cameras, by the number that images name them with.

    Raises:
        DataError: one line that names file, record and field.
    """
    lenses: dict[int, ModelLens] = {}
    for camera_id, lens in (_binary_cameras if path.suffix == ".bin" else _text_cameras)(path):
        if lenses.setdefault(camera_id, lens) is not lens:
            raise DataError(f"{lens.place}: 'camera_id': {camera_id} is there twice")
    return lenses


def read_images(path: Path, with_sightings: bool = False) -> list[ModelImage]:
    """A model's images, in the order of the file.

    Args:
        path: images.bin or images.txt.
        with_sightings: Whether to read, too, which points each image shows.

    Raises:
        DataError: one line that names file, record and field.
    """
    return list((_binary_images if path.suffix == ".bin" else _text_images)(path, with_sightings))


def count_images(path: Path) -> int:
    """How many images a file of them has; of a binary file only the beginning is read."""
    if path.suffix == ".txt":
        return len(read_images(path))
    with path.open("rb") as file:
        return _Binary(path, file).count(73, "images")


def read_points(path: Path) -> ModelPoints:
    """A model's points.

    Raises:
        DataError: one line that names file, record and field.
    """
    return (_binary_points if path.suffix == ".bin" else _text_points)(path)


# --- binary


class _Binary:
    """A file read from front to back; what is missing or not finite becomes an error that names place and field."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size

    def take(self, form: str, place: str, name: str) -> tuple[float, ...]:
        """The next values of a struct format without its byte order."""
        values = struct.unpack("<" + form, self.raw(struct.calcsize("<" + form), place, name))
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

    def raw(self, length: int, place: str, name: str) -> bytes:
        """The next bytes as they are."""
        self._check_left(length, place, name)
        return self.file.read(length)

    def skip(self, length: int, place: str, name: str) -> None:
        """Go on behind so many bytes."""
        self._check_left(length, place, name)
        self.file.seek(length, 1)

    def _check_left(self, length: int, place: str, name: str) -> None:
        if length > self.size - self.file.tell():
            raise DataError(f"{place}: '{name}': the file ends here, it is cut off")

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


def _binary_cameras(path: Path) -> Iterator[tuple[int, ModelLens]]:
    with path.open("rb") as file:
        reader = _Binary(path, file)
        number = reader.count(24, "cameras")
        for index in range(number):
            camera_id, model, width, height = map(
                int, reader.take("IiQQ", f"{path}: camera {index + 1} of {number}", "camera_id")
            )
            place = f"{path}: camera {camera_id}"
            if model not in LENS_MODELS:
                raise DataError(f"{place}: 'model': there is no camera model {model}")
            names = LENS_MODELS[model].parameters.split()
            yield (
                camera_id,
                _lens(place, LENS_MODELS[model], (width, height), reader.take(f"{len(names)}d", place, "params")),
            )
        reader.end(number, "cameras")


def _lens(place: str, model: LensModel, size: tuple[int, int], values: tuple[float, ...]) -> ModelLens:
    names = model.parameters.split()
    if len(values) != len(names):
        raise DataError(f"{place}: 'params': {model.name} has {len(names)} ({model.parameters}), got {len(values)}")
    if not all(1 <= side < 2**31 for side in size):
        raise DataError(f"{place}: 'width, height': expected whole numbers above 0, got {size[0]}x{size[1]}")
    return ModelLens(place, model, *size, dict(zip(names, values, strict=True)))


def _binary_images(path: Path, with_sightings: bool) -> Iterator[ModelImage]:
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
            seen = _NOTHING_SEEN
            if with_sightings:
                seen = np.frombuffer(reader.raw(24 * int(n_points), place, "points2D"), _SIGHTING)
                seen = seen[seen["id"] != _NO_POINT]
            else:
                reader.skip(24 * int(n_points), place, "points2D")
            yield ModelImage(place, name, int(camera_id), pose, seen["xy"].astype(np.float64), seen["id"])
        reader.end(number, "images")


def _binary_points(path: Path) -> ModelPoints:
    with path.open("rb") as file:
        number = _Binary(path, file).count(51, "points")
    # millions of records: one pass over the bytes, checked as a whole
    record, data, offset = struct.Struct("<Q3d3BdQ"), path.read_bytes(), 8
    ids, points = np.empty(number, np.uint64), np.empty((number, 3))
    for index in range(number):
        if offset + record.size > len(data):
            raise DataError(f"{path}: point {index + 1} of {number}: 'xyz': the file ends here, it is cut off")
        ids[index], x, y, z, _, _, _, _, n_views = record.unpack_from(data, offset)
        points[index] = x, y, z
        offset += record.size + 8 * n_views
        if offset > len(data):
            raise DataError(f"{path}: point {index + 1} of {number}: 'track': the file ends here, it is cut off")
    if offset < len(data):
        raise DataError(f"{path}: 'number of points': {number} stated, but {len(data) - offset} bytes follow the last")
    wrong = np.flatnonzero(~(np.abs(points) < LARGEST).all(axis=1))
    if len(wrong):
        _check_finite(tuple(points[wrong[0]].tolist()), f"{path}: point {wrong[0] + 1} of {number}", "xyz")
    return ModelPoints(ids, points)


# --- text


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


def _point_id(text: str, place: str) -> int:
    number = int(_number(text, int, place, "point3D_id"))
    if not -1 <= number < _NO_POINT:
        raise DataError(f"{place}: 'point3D_id': expected the number of a point, got {number}")
    return number


def _text_cameras(path: Path) -> Iterator[tuple[int, ModelLens]]:
    lines, stated = _lines(path)
    by_name = {model.name: model for model in LENS_MODELS.values()}
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


def _text_images(path: Path, with_sightings: bool) -> Iterator[ModelImage]:
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
        seen = _text_sightings(points.split(), place) if with_sightings else _NOTHING_SEEN
        yield ModelImage(place, name, camera_id, pose, seen["xy"].astype(np.float64), seen["id"])
    _check_count(path, found, stated, "images")


def _text_sightings(words: list[str], place: str) -> np.ndarray:
    """What a line of x, y and point3D_id says; -1 is no point."""
    seen = [
        ((_number(x, float, place, "x"), _number(y, float, place, "y")), _point_id(point, place))
        for x, y, point in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]
    return np.array([(xy, point) for xy, point in seen if point >= 0], _SIGHTING)


def _text_points(path: Path) -> ModelPoints:
    lines, stated = _lines(path)
    ids, points = [], []
    for number, line in lines:
        words = line.split(maxsplit=4)
        if not words:
            continue
        place = f"{path}: line {number}"
        if len(words) < 4:
            raise DataError(f"{place}: expected point3D_id, x, y, z and more, got {len(words)} words")
        ids.append(_point_id(words[0], place) % 2**64)
        points.append([_number(word, float, place, name) for word, name in zip(words[1:4], "xyz", strict=True)])
    _check_count(path, len(points), stated, "points")
    return ModelPoints(np.array(ids, np.uint64), np.array(points, np.float64).reshape(-1, 3))
