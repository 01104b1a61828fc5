"""What the pixels of photos tell about their quality: sharpness, exposure, copies."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from hashfield.data.video_frames import laplacian

SIDE: Final = 800
"""Photos are measured at about so many pixels along their longer side."""
READ_SIDE: Final = 3 * SIDE // 2
"""No side of a measured photo is longer. Photos are reduced by whole numbers: with a stricter limit, one of 806 pixels
would be halved."""
_TINY: Final = 48
_LEAST_CONTRAST: Final = 4.0  # standard deviation of grey levels below which copies cannot be told from plain walls


@dataclass(frozen=True)
class Pixels:
    """What is kept of one photo for all checks."""

    small: UInt8[np.ndarray, "h w 3"]
    """The photo reduced by a whole number, over white."""
    factor: int
    """That number."""
    sharpness: float
    """Fine structure over coarse structure; depends little on what is shown, and not on brightness."""
    brightness: float
    """Logarithm (base 2) of the mean linear luminance of what is opaque."""
    balance: tuple[float, float]
    """Logarithms (base 2) of the means of red and blue over that of green."""
    tiny: Float32[np.ndarray, " n"]
    """The whole photo as a few numbers, to find copies."""


def measure(images: Sequence[UInt8[np.ndarray, "h w 4"]]) -> list[Pixels]:
    """Reduce and measure photos, a few at a time."""
    with ThreadPoolExecutor(4, thread_name_prefix="measure") as pool:
        return list(pool.map(lambda k: _measured(images[k]), range(len(images))))


def _measured(image: UInt8[np.ndarray, "h w 4"]) -> Pixels:
    factor = max(1, round(max(image.shape[:2]) / SIDE))
    picture = Image.fromarray(np.ascontiguousarray(image))
    if factor > 1:
        picture = picture.reduce(factor)
    rgba = np.asarray(picture, np.float32)
    alpha = rgba[..., 3:] / 255
    rgb = rgba[..., :3] * alpha + 255 * (1 - alpha)
    grey = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    counted = alpha[..., 0] > 0.5
    if not counted.any():
        counted[...] = True
    linear = (np.clip(rgb[counted], 0, 255) / 255) ** 2.2
    red, green, blue = np.maximum(linear.mean(axis=0), 1e-5)
    small = Image.fromarray(rgb.round().astype(np.uint8))
    tiny = np.asarray(small.resize((_TINY, _TINY), Image.Resampling.BOX), np.float32).ravel()
    return Pixels(
        np.asarray(small),
        factor,
        sharpness(grey),
        float(np.log2(0.2126 * red + 0.7152 * green + 0.0722 * blue)),
        (float(np.log2(red / green)), float(np.log2(blue / green))),
        tiny,
    )


def sharpness(grey: Float32[np.ndarray, "h w"]) -> float:
    """Mean strength of structure of one pixel over that of structure of four; 0 for a plain picture."""
    height, width = (n // 4 * 4 for n in grey.shape)
    if min(height, width) < 16:
        return 1.0
    coarse = grey[:height, :width].reshape(height // 4, 4, width // 4, 4).mean(axis=(1, 3))
    fine = float(np.sqrt((laplacian(grey) ** 2).mean()))
    rough = float(np.sqrt((laplacian(coarse) ** 2).mean()))
    return fine / rough if rough > 0.5 else 0.0


def copies(pixels: Sequence[Pixels]) -> list[tuple[int, int, float]]:
    """Pairs of photos that are one picture, and by how many grey levels they differ in the mean."""
    tiny = np.stack([p.tiny for p in pixels])
    structured = tiny.std(axis=1) > _LEAST_CONTRAST
    found = []
    for a in range(len(tiny) - 1):
        off = np.abs(tiny[a + 1 :] - tiny[a]).mean(axis=1)
        for b in (np.flatnonzero(off < 1.0) + a + 1).tolist():
            if structured[a] and structured[b] and pixels[a].small.shape == pixels[b].small.shape:
                whole = np.abs(pixels[a].small.astype(np.int16) - pixels[b].small).mean()
                if whole < _SAME:
                    found.append((a, b, float(whole)))
    return found


_SAME: Final = 2.0  # grey levels that a JPEG written once more differs by, at most


def relative(values: Float64[np.ndarray, " n"], neighbours: Sequence[np.ndarray]) -> Float64[np.ndarray, " n"]:
    """Each value less the median of its neighbours'; 0 where there are none."""
    return np.array(
        [v - float(np.median(values[near])) if len(near) else 0.0 for v, near in zip(values, neighbours, strict=True)]
    )


def gains(n: int, pairs: Sequence[tuple[int, int, float]]) -> Float64[np.ndarray, " n"] | None:
    """Values whose differences fit those of pairs (first, second, second less first), whatever a few of them say; None
    where there are hardly any pairs.

    Args:
        n: How many values.
        pairs: Differences.
    """
    if len(pairs) < n:
        return None
    first, second = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
    wanted = np.array([pair[2] for pair in pairs])
    weight = np.ones(len(pairs))
    found = np.zeros(n)
    for _ in range(12):  # least absolute deviations by weighted least squares
        normal, right = 1e-6 * np.eye(n), np.zeros(n)
        np.add.at(normal, (first, first), weight)
        np.add.at(normal, (second, second), weight)
        np.add.at(normal, (first, second), -weight)
        np.add.at(normal, (second, first), -weight)
        np.add.at(right, second, weight * wanted)
        np.add.at(right, first, -weight * wanted)
        found = np.linalg.solve(normal, right)
        weight = 1 / np.maximum(np.abs(found[second] - found[first] - wanted), 0.02)
    return found
