"""Photos in: headers, decoding to uint8 RGBA, downscaling. The only reader of image files in the package."""

import functools
import io
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from hashfield.data.raw_photos import raw_photo
from hashfield.errors import ConfigError, DataError

EXTENSIONS: Final = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tga", ".pic", ".pnm", ".psd", ".exr"),
    *(".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".hdr"),
)
"""Endings tried where a file is named without one, in this order: instant-ngp's, then more that Pillow
reads."""

_Result = TypeVar("_Result")

_HDR: Final = (".exr", ".hdr")
_WIDE_GREY: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_EXIF_ORIENTATION: Final = 0x0112
_DECODERS: Final = 8  # more threads only wait for memory


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its picture without decoding it."""

    width: int
    height: int
    reduction: str | None
    """What is lost or converted on the way to 8-bit RGB, in words; None for ordinary pictures."""
    is_jpeg: bool = False
    may_have_alpha: bool = False
    """Whether the file's kind of picture has transparency; its pixels may be opaque all the same."""


def read_header(path: Path) -> ImageHeader:
    """Size and kind of an image file; pixels are not decoded.

    Raises:
        DataError: not an image, or not readable.
    """
    return _with_image(path, _header)


def decode_rgba(
    path: Path, downscale: int = 1, warn: Callable[[str], object] = lambda text: None, matte: Path | None = None
) -> UInt8[np.ndarray, "height width 4"]:
    """Pixels as uint8 RGBA with straight alpha, 255 where the file has none.

    Grey is repeated, palettes and transparent colours are looked up, 16-bit values are divided by 257 and
    rounded (colour PNGs with 16 bits keep their high byte, as Pillow reads them), CMYK and YCbCr become RGB
    without colour profiles. The stored pixels are taken as they are: the EXIF orientation is never applied,
    because poses and intrinsics refer to stored pixels.

    Args:
        path: any file that Pillow reads; of several pictures in it, the first.
        downscale: see `downscale_rgba`. Of a JPEG with more pixels than `_LARGE`, a half, quarter or eighth is decoded
            where that divides it.
        warn: called with what is wrong with a file that could be decoded all the same.
        matte: a grey picture of the same size that is multiplied into alpha.

    Raises:
        DataError: not an image, truncated, or of a kind without an 8-bit meaning (floating point).
    """
    if matte is not None:
        return downscale_rgba(_with_matte(decode_rgba(path, 1, warn), path, matte), downscale)
    pixels, reduced = _with_image(path, lambda image: _pixels_of_file(path, image, downscale, warn))
    if downscale == reduced:
        return pixels
    if min(pixels.shape[:2]) < downscale // reduced:
        raise DataError(f"{path}: {pixels.shape[1]}x{pixels.shape[0]} is too small for --downscale {downscale}")
    return downscale_rgba(pixels, downscale // reduced)


def decode_rgb(path: Path, warn: Callable[[str], object] = lambda text: None) -> UInt8[np.ndarray, "height width 3"]:
    """Pixels of a file that has no alpha, see `ImageHeader.may_have_alpha`: what `decode_rgba` has of colours, in less
    than half its time. They may be read only.

    Raises:
        DataError: as `decode_rgba`.
    """
    return _with_image(path, lambda image: _pixels_of_file(path, image, 1, warn, 3))[0]


def _with_matte(pixels: UInt8[np.ndarray, "height width 4"], path: Path, matte: Path) -> np.ndarray:
    """The pixels with their alpha multiplied by the grey of another picture."""
    other = decode_rgba(matte)
    if other.shape != pixels.shape:
        sizes = [f"{found.shape[1]}x{found.shape[0]}" for found in (other, pixels)]
        raise DataError(f"{matte}: the mask is {sizes[0]}, the image {path.name} {sizes[1]}")
    grey = other[..., :3].max(axis=-1).astype(np.uint16)
    pixels[..., 3] = (pixels[..., 3] * grey + 127) // 255
    return pixels


_LARGE: Final = 100_000_000


def _jpeg_fraction(width: int, height: int, downscale: int) -> int:
    """By what a large JPEG's sides are divided while it is decoded, as a part of the downscaling."""
    if width * height <= _LARGE:
        return 1
    return next((part for part in (8, 4, 2) if downscale % part == 0), 1)


def decoding_bytes(header: ImageHeader, downscale: int) -> int:
    """Memory that the picture takes while it is decoded, 4 bytes a pixel."""
    part = _jpeg_fraction(header.width, header.height, downscale) if header.is_jpeg else 1
    return 4 * (header.width // part) * (header.height // part)


def _pixels_of_file(
    path: Path, image: Image.Image, downscale: int, warn: Callable[[str], object], n_channels: Literal[3, 4] = 4
) -> tuple[np.ndarray, int]:
    """The pixels, and by what their sides were divided already.

    Args:
        path: The file.
        image: That file, opened.
        downscale: See `decode_rgba`.
        warn: Likewise.
        n_channels: 3 to leave out alpha.
    """
    if image.format != "JPEG":
        return _pixels(image, n_channels), 1
    width, height = image.size
    part = _jpeg_fraction(width, height, downscale)
    if part > 1:
        image.draft(None, (width // part, height // part))
    try:
        pixels = _pixels(image, n_channels)
    except OSError:
        pixels = _without_end_marker(path, part)
        if pixels is None:
            raise
        pixels = pixels[..., :n_channels]
        warn("the end marker of a JPEG is missing")
    # the decoder rounds up what downscaling drops
    return (pixels if part == 1 else np.ascontiguousarray(pixels[: height // part, : width // part])), part


# 255 begins a marker; bits that are all 1 or all 0, or few random ones, could by chance mean the pixels that are there
_FILLERS: Final = (
    b"\xfe" * 999,
    *(np.random.default_rng(seed).integers(0, 255, 999, np.uint8).tobytes() for seed in (1, 2)),
)


def _without_end_marker(path: Path, part: int) -> np.ndarray | None:
    """The pixels of a JPEG that lacks only its end marker; None where picture data are missing too.

    With a marker added, the decoder fills whatever is missing without a word. So it is asked several times, with
    different bytes before the marker: they change the pixels only if the picture's own data ended too early.
    """
    data = path.read_bytes().removesuffix(b"\xff")

    def decoded(filler: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data + filler + b"\xff\xd9")) as image:
            if part > 1:
                image.draft(None, (image.width // part, image.height // part))
            return _pixels(image)

    pixels = decoded(b"")
    return pixels if all(np.array_equal(pixels, decoded(filler)) for filler in _FILLERS) else None


def decode_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Which pixels of a picture are not black, whatever its transparency; in a JPEG, which never is quite black, those
    of at least half the range.

    Raises:
        DataError: not an image, or truncated.
    """

    def is_set(image: Image.Image) -> np.ndarray:
        if image.mode in ("P", "PA", "CMYK", "YCbCr", "HSV", "LAB"):
            image = image.convert("RGB")
        values = np.asarray(image) >= 128 if image.format == "JPEG" else np.asarray(image) != 0
        if values.ndim == 3:
            values = values[..., :1] if image.mode in ("LA", "La") else values[..., :3]
            values = values.any(axis=-1)
        return np.array(values)

    return _with_image(path, is_set)


def decode_depth(path: Path) -> Shaped[np.ndarray, "height width"]:
    """The numbers of a depth map as a grey picture or a .npy array stores them: whole numbers as uint16 where they fit,
    else as int32, floats as float32.

    Raises:
        DataError: not a picture or array of one number a pixel, or not readable.
    """
    if path.suffix.lower() == ".npy":
        return _depth_of_array(path)
    _refuse_hdr_depth(path)

    def numbers(image: Image.Image) -> np.ndarray:
        if image.mode not in (*_WIDE_GREY, "L", "F"):
            raise _UnsupportedError(f"a depth map has one number for each pixel, this picture is {image.mode}")
        return _depth_numbers(np.asarray(image))

    return _with_image(path, numbers)


def depth_shape(path: Path) -> tuple[int, int]:
    """Height and width of a depth map; its numbers are not read.

    Raises:
        DataError: not a picture or array of one number a pixel, or not readable.
    """
    if path.suffix.lower() == ".npy":
        height, width = _array_of_depth(path, "r").shape
        return height, width
    _refuse_hdr_depth(path)
    header = read_header(path)
    return header.height, header.width


def _refuse_hdr_depth(path: Path) -> None:
    if path.suffix.lower() in _HDR:
        raise DataError(f"{path}: depth is read from grey pictures (PNG, TIFF) and .npy arrays, not from {path.suffix}")


def _depth_of_array(path: Path) -> np.ndarray:
    return _depth_numbers(_array_of_depth(path))


def _array_of_depth(path: Path, mmap_mode: Literal["r"] | None = None) -> Shaped[np.ndarray, "height width"]:
    try:
        values = np.load(path, mmap_mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array that can be read here: {' '.join(str(error).split())}") from error
    values = values[..., 0] if isinstance(values, np.ndarray) and values.ndim == 3 and values.shape[2] == 1 else values
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "uif" or not values.size:
        shape = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "several arrays"
        raise DataError(f"{path}: expected one number for each pixel, got {shape}")
    return values


def _depth_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    is_short = values.min() >= 0 and values.max() < 2**16
    return values.astype(np.uint16) if is_short else np.clip(values, -1, 2**31 - 1).astype(np.int32)


def downscale_mask(mask: Bool[np.ndarray, "height width"], factor: int) -> Bool[np.ndarray, "small_height small_width"]:
    """Blocks of factor x factor pixels that are set as a whole, in the arrangement of `downscale_rgba`: the mean of a
    block is not wanted if a part of it is not."""
    height, width = mask.shape[0] // factor, mask.shape[1] // factor
    blocks = mask[: height * factor, : width * factor].reshape(height, factor, width, factor)
    return np.asarray(blocks.all(axis=(1, 3)))


def decode_all(
    paths: Sequence[Path],
    downscale: int = 1,
    explain: Callable[[int, DataError], DataError] | None = None,
    warn: Callable[[int, str], object] = lambda index, text: None,
    n_threads: int | None = None,
    mattes: Sequence[Path | None] | None = None,
) -> list[np.ndarray]:
    """`decode_rgba` of many files by a small pool of threads (Pillow's decoders run outside Python's lock).

    Args:
        paths: image files.
        downscale: see `downscale_rgba`.
        explain: turns the error of the file with this index into the one to raise.
        warn: called with the index of a file and what is wrong with it although it could be decoded.
        n_threads: at most so many at once, since each holds a whole picture; default 8.
        mattes: a picture for each file that is its alpha, see `decode_rgba`.

    Raises:
        DataError: that of the first file in order that cannot be decoded; the rest is then given up.
    """
    n_workers = max(1, min(_DECODERS if n_threads is None else n_threads, _n_cpus(), len(paths)))
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")
    try:
        pending = [
            pool.submit(decode_rgba, path, downscale, functools.partial(warn, index), matte)
            for index, (path, matte) in enumerate(zip(paths, mattes or [None] * len(paths), strict=True))
        ]
        images = []
        for index, future in enumerate(pending):
            try:
                images.append(future.result())
            except DataError as error:
                if explain is None:
                    raise
                raise explain(index, error) from error
        return images
    finally:
        pool.shutdown(cancel_futures=True)


def downscale_rgba(
    image: UInt8[np.ndarray, "height width 4"], factor: int
) -> UInt8[np.ndarray, "small_height small_width 4"]:
    """Mean over blocks of factor x factor pixels, colours weighted by alpha so that the colour of transparent
    pixels does not bleed into their neighbours; a wholly transparent block is (0, 0, 0, 0).

    Rows and columns left over at the bottom and right are dropped, so the result's pixels cover exactly
    factor x factor stored ones and intrinsics are divided by exactly `factor`. Values are averaged as stored
    (sRGB).

    Raises:
        ConfigError: `factor` is below 1 or larger than the image.
    """
    height, width = (
        image.shape[0] // factor if factor >= 1 else 0,
        image.shape[1] // factor if factor >= 1 else 0,
    )
    if height < 1 or width < 1:
        raise ConfigError(f"downscale: {factor} does not fit an image of {image.shape[1]}x{image.shape[0]}")
    if factor == 1:
        return image
    blocks = image[: height * factor, : width * factor]
    count = factor * factor
    # 255 * 255 * count must fit
    wide = np.uint32 if factor <= 256 else np.uint64
    is_opaque = bool((blocks[..., 3] == 255).all())
    # rows first, which are contiguous; columns then over a factor-th of the data
    rows = np.zeros((height, width * factor, 4), wide)
    for row in range(factor):
        part = blocks[row::factor]
        if is_opaque:
            rows += part
        else:
            weight = part[..., 3:].astype(wide)
            rows[..., :3] += part[..., :3] * weight
            rows[..., 3:] += weight
    total = rows.reshape(height, width, factor, 4).sum(axis=2, dtype=wide)
    color, alpha = total[..., :3], total[..., 3:]
    small = np.empty((height, width, 4), np.uint8)
    if is_opaque:
        small[..., :3] = (color + count // 2) // count
        small[..., 3] = 255
    else:
        small[..., :3] = (color + alpha // 2) // np.maximum(alpha, 1)
        small[..., 3:] = (alpha + count // 2) // count
        small[small[..., 3] == 0] = 0
    return small


def exif_orientation(path: Path) -> int:
    """The file's EXIF orientation, 1 (as stored) to 8; 1 where it has none or is unreadable."""
    try:
        return int(_with_image(path, lambda image: image.getexif().get(_EXIF_ORIENTATION, 1)))
    except (DataError, TypeError, ValueError):
        return 1


class _NoBombLimit:
    """Switches Pillow's limit of pixels off while it is entered, by however many threads: the guard here is the memory
    that a data set may take, which is checked before anything is decoded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_users = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_users == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._n_users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_users -= 1
            if self._n_users == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


_no_bomb_limit: Final = _NoBombLimit()


class _UnsupportedError(Exception):
    """A picture that opens but has no 8-bit meaning; the text says why."""


def _with_image(path: Path, action: Callable[[Image.Image], _Result]) -> _Result:
    """The action's result on the opened image; whatever Pillow raises becomes one DataError."""
    kind = raw_photo(path)
    if kind is not None:
        raise DataError(f"{path}: {kind}")
    try:
        with _no_bomb_limit, Image.open(path) as image:
            return action(image)
    except MemoryError:
        raise
    except _UnsupportedError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        if path.suffix.lower() in _HDR:
            raise DataError(f"{path}: HDR images ({path.suffix}) are not supported yet") from error
        raise DataError(f"{path}: not an image that can be read here") from error
    except Exception as error:  # decoders of broken files raise nearly every type there is
        raise DataError(f"{path}: the image cannot be decoded: {' '.join(str(error).split())}") from error


def _header(image: Image.Image) -> ImageHeader:
    return ImageHeader(
        *image.size,
        reduction=_reduction(image),
        is_jpeg=image.format == "JPEG",
        may_have_alpha=image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
    )


def _reduction(image: Image.Image) -> str | None:
    if image.mode in _WIDE_GREY or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return "16 bits a channel reduced to 8"
    if image.mode == "CMYK":
        return "CMYK converted to RGB without its colour profile"
    return None


def _pixels(image: Image.Image, n_channels: Literal[3, 4] = 4) -> np.ndarray:
    if image.mode == "F":
        raise _UnsupportedError("floating-point images are not supported yet")
    if image.mode in _WIDE_GREY:
        return _from_wide_grey(image)[..., :n_channels]
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La"):
        image = image.convert("RGB")  # CMYK, YCbCr, HSV, RGBX: no direct way to RGBA
    if n_channels == 3:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    # copied: an array over Pillow's bytes is read-only, which torch warns about
    return np.array(image if image.mode == "RGBA" else image.convert("RGBA"))


def _from_wide_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _UnsupportedError("grey values beyond 16 bits have no 8-bit meaning")
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = ((values + 128) // 257)[..., None]
    pixels[..., 3] = 255
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent, 3] = 0
    return pixels


def _n_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
