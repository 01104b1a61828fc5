"""Decoded photos in files, as `hashfield.data.photo_cache` writes them: bytes row by row, RGB where a photo is opaque
(then its name ends in ".rgb"), else RGBA."""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8

OPAQUE: Final = ".rgb"
TRANSLUCENT: Final = ".rgba"


def bytes_per_pixel(file: Path) -> int:
    """3 or 4, by the file's name."""
    return 3 if file.suffix == OPAQUE else 4


def stored_rows(file: Path, width: int, top: int, n_rows: int) -> UInt8[np.ndarray, "n_rows width 4"]:
    """Some rows of a photo, RGBA.

    Args:
        file: The photo's file.
        width: Pixels of a row.
        top: The first row.
        n_rows: How many rows.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is shorter than that.
    """
    size = bytes_per_pixel(file)
    found = np.fromfile(file, np.uint8, size * width * n_rows, offset=size * width * top).reshape(n_rows, width, size)
    if size == 4:
        return found
    rows = np.empty((n_rows, width, 4), np.uint8)
    rows[..., :3] = found
    rows[..., 3] = 255
    return rows
