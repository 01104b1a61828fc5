"""What structure from motion saw: which points of a COLMAP model each photo shows, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from hashfield.data.colmap_files import model_in, read_cameras, read_images, read_points
from hashfield.errors import DataError


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
    files = model_in(model)
    if files is None or files.points is None:
        return None
    try:
        lenses, points = read_cameras(files.cameras), read_points(files.points)
        images = read_images(files.images, with_sightings=True)
    except (OSError, DataError):
        return None
    if any(image.camera_id not in lenses for image in images):
        return None
    order = np.argsort(points.ids)
    sorted_ids = points.ids[order]
    sightings = {}
    for image in images:
        row = np.minimum(np.searchsorted(sorted_ids, image.point_ids), max(0, len(order) - 1))
        is_known = sorted_ids[row] == image.point_ids if len(order) else np.zeros(len(image.point_ids), bool)
        lens = lenses[image.camera_id]
        sightings[image.name] = Sighting(
            image.pixels[is_known], order[row[is_known]].astype(np.int64), (lens.width, lens.height)
        )
    return Tracks(points.positions, sightings)


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
