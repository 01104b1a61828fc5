"""What structure from motion saw: which points of a COLMAP model each photo shows, and where."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

_NONE: Final = 2**64 - 1
_POINT: Final = np.dtype([("xy", "<f8", 2), ("id", "<u8")])


@dataclass(frozen=True)
class Sighting:
    """What one photo shows."""

    pixels: Float64[np.ndarray, "n_seen 2"]
    """Where it shows them, in pixels of the model's camera."""
    points: Int64[np.ndarray, " n_seen"]
    """Rows of `Tracks.points`."""
    size: tuple[int, int]
    """Width and height of the model's camera."""


@dataclass(frozen=True)
class Tracks:
    """Points, and the photos that show them."""

    points: Float64[np.ndarray, "n_points 3"]
    sightings: dict[str, Sighting]
    """By the names that the model gives its photos."""


def read_tracks(model: Path) -> Tracks | None:
    """The tracks of a COLMAP model, binary or text; None where there is none that can be read.

    Args:
        model: Folder with cameras, images and points3D. Errors in it are `hashfield.data.colmap`'s to tell.
    """
    try:
        if (model / "images.bin").is_file() and (model / "points3D.bin").is_file():
            sizes, images = _binary_sizes(model / "cameras.bin"), _binary_images(model / "images.bin")
            ids, points = _binary_points(model / "points3D.bin")
        elif (model / "images.txt").is_file() and (model / "points3D.txt").is_file():
            sizes, images = _text_sizes(model / "cameras.txt"), _text_images(model / "images.txt")
            ids, points = _text_points(model / "points3D.txt")
        else:
            return None
        order = np.argsort(ids)
        sightings = {}
        for name, camera_id, xy, seen in images:
            row = np.minimum(np.searchsorted(ids[order], seen), max(0, len(ids) - 1))
            is_known = ids[order][row] == seen if len(ids) else np.zeros(len(seen), bool)
            sightings[name] = Sighting(xy[is_known], order[row[is_known]].astype(np.int64), sizes[camera_id])
    except (OSError, ValueError, KeyError, IndexError, struct.error):
        return None
    return Tracks(points, sightings)


def sparse_model_of(root: Path) -> Path | None:
    """The folder of the sparse model that lies in a data set's folder, where data sets have it; None without one."""
    places = (root / "sparse" / "0", root / "sparse", root / "colmap" / "sparse" / "0")
    return next(
        (place for place in places if (place / "images.bin").is_file() or (place / "images.txt").is_file()), None
    )


def names_in_model(names: Sequence[str], stated: Sequence[str]) -> dict[int, str]:
    """Which photo of a model each photo of a scene is, by as much of the path as both have.

    Args:
        names: Photos of the scene.
        stated: Photos of the model.

    Returns:
        Number of the photo in the scene -> its name in the model, for those that are there.
    """
    exact = {name: name for name in stated}
    stems: dict[str, list[str]] = {}
    for name in stated:
        stems.setdefault(Path(name).stem.casefold(), []).append(name)
    found = {}
    for k, name in enumerate(names):
        same = exact.get(name) or exact.get(name.split("/", 1)[-1])
        alike = stems.get(Path(name).stem.casefold(), [])
        same = same or (alike[0] if len(alike) == 1 else None)
        if same is not None:
            found[k] = same
    return found


_N_PARAMETERS: Final = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)


def _binary_sizes(path: Path) -> dict[int, tuple[int, int]]:
    data, place, sizes = path.read_bytes(), 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        camera_id, model, width, height = struct.unpack_from("<IiQQ", data, place)
        sizes[camera_id] = (width, height)
        place += 24 + 8 * _N_PARAMETERS[model]
    return sizes


def _binary_images(path: Path) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    data, place, images = path.read_bytes(), 8, []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        camera_id = struct.unpack_from("<I", data, place + 60)[0]
        end = data.index(b"\0", place + 64)
        name = data[place + 64 : end].decode("utf-8", errors="replace")
        (n_points,) = struct.unpack_from("<Q", data, end + 1)
        found = np.frombuffer(data, _POINT, n_points, end + 9)
        found = found[found["id"] != _NONE]
        images.append((name, camera_id, found["xy"].astype(np.float64), found["id"]))
        place = end + 9 + _POINT.itemsize * n_points
    return images


def _binary_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data, place = path.read_bytes(), 8
    (n_points,) = struct.unpack_from("<Q", data)
    ids, points = np.empty(n_points, np.uint64), np.empty((n_points, 3))
    for row in range(n_points):
        ids[row], *points[row] = struct.unpack_from("<Qddd", data, place)
        (length,) = struct.unpack_from("<Q", data, place + 43)
        place += 51 + 8 * length
    return ids, points


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8", errors="replace").splitlines() if not line.startswith("#")]


def _text_sizes(path: Path) -> dict[int, tuple[int, int]]:
    words = [line.split() for line in _lines(path) if line.strip()]
    return {int(w[0]): (int(w[2]), int(w[3])) for w in words}


def _text_images(path: Path) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    images, lines = [], iter(_lines(path))
    for line in lines:
        words = line.split(maxsplit=9)
        if len(words) < 10:
            continue
        values = np.array(next(lines, "").split()).reshape(-1, 3)
        ids = np.array([int(v) for v in values[:, 2]], np.int64)
        xy = values[:, :2].astype(np.float64)
        images.append((words[9].strip(), int(words[8]), xy[ids >= 0], ids[ids >= 0].astype(np.uint64)))
    return images


def _text_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    words = [line.split(maxsplit=4) for line in _lines(path) if line.strip()]
    ids = np.array([int(w[0]) for w in words], np.uint64)
    return ids, np.array([[float(x) for x in w[1:4]] for w in words], np.float64).reshape(-1, 3)
