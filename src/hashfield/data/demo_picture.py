"""A picture made by formula, with smooth areas and detail down to the pixel: a Julia set."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hashfield.errors import ConfigError


def make_demo_picture(seed: int = 0, width: int = 1024, height: int = 768) -> UInt8[np.ndarray, "height width 3"]:
    """A Julia set in smooth colours.

    Args:
        seed: Chooses the set and its colours.
        width: Pixels in a row.
        height: Rows.

    Raises:
        ConfigError: a side is not in 16 to 8192.
    """
    if not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise ConfigError(f"size: expected 16 to 8192 pixels a side, got {width}x{height}")
    random = np.random.default_rng(seed)
    angle = random.uniform(0.0, 2 * np.pi)
    # Just outside the main cardioid of the Mandelbrot set, where Julia sets are intricate.
    c = 1.02 * (0.5 * np.exp(1j * angle) - 0.25 * np.exp(2j * angle))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    z = ((x - width / 2) + 1j * (y - height / 2)) * (3.0 / max(width, height))
    count = np.zeros(z.shape)
    living = np.arange(z.size)
    flat, out = z.reshape(-1).copy(), count.reshape(-1)
    for k in range(160):
        moved = flat[living] ** 2 + c
        flat[living] = moved
        size = np.abs(moved)
        gone = size > 50.0
        out[living[gone]] = k + 1 - np.log2(np.log(size[gone]))  # smooth across the steps
        living = living[~gone]
        if not len(living):
            break
    out[living] = 160.0
    phase = random.uniform(0.0, 1.0, 3)
    level = np.log1p(count)[..., None]
    color = 0.5 - 0.5 * np.cos(2 * np.pi * (0.45 * level * np.array([1.0, 1.1, 1.25]) + phase))
    color *= np.where(count[..., None] >= 160.0, 0.15, 1.0)
    return (np.clip(color, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def save_demo_picture(path: Path, seed: int = 0, width: int = 1024, height: int = 768) -> Path:
    """Write the picture as PNG and return its path.

    Args:
        path: File to write; missing folders are made.
        seed: Chooses the picture.
        width: Pixels in a row.
        height: Rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_demo_picture(seed, width, height)).save(path)
    return path
