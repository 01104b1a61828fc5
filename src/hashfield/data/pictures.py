"""Single pictures in, whatever their size: stored numbers as they are, in memory or in a scratch file on disk.

A picture becomes one array [height, width, channels] of uint8, uint16, float16 or float32, filled strip by strip or
tile by tile. Above `IN_MEMORY` bytes that array is a memory-mapped scratch file, which is gone when the process is,
however it ends. What the numbers mean (`Picture.values`) is a table, so nothing is ever held as float as a whole.

Pictures come in upright: readers give strips and tiles as they are stored, and they are turned on their way into the
array, so that nothing is held twice.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from jaxtyping import Float32
from PIL import UnidentifiedImageError

from hashfield.data.picture_readers import (
    AS_STORED,
    FLOATS,
    PICTURE_READERS,
    STRIP_BYTES,
    PictureHeader,
    PictureReader,
    UnsupportedPictureError,
    no_bomb_limit,
)
from hashfield.data.raw_photos import raw_photo
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.srgb import srgb_from_linear

IN_MEMORY: Final = 128 << 20
"""Bytes up to which a picture is simply kept in memory."""
MAX_PIXELS: Final = 2**31
"""Default of the most pixels that are read."""


class Picture:
    """A decoded picture. Close it, or use it as a context manager: the scratch file then goes at once."""

    def __init__(self, path: Path, header: PictureHeader, pixels: np.ndarray, notes: tuple[str, ...] = ()) -> None:
        """Args:
        path: Path of the file, resolved.
        header: What it says, upright.
        pixels: [height, width, stored channels].
        notes: Lines for the user.
        """
        self.path, self.header, self.pixels, self.notes = path, header, pixels, notes
        self.name = path.stem
        self.n_channels = header.n_channels
        if header.n_channels in (2, 4) and _is_opaque(pixels):
            self.n_channels -= 1
            self.notes += ("alpha is 1 everywhere and is left out",)

    @property
    def width(self) -> int:
        """Pixels in a row of the upright picture."""
        return self.header.width

    @property
    def height(self) -> int:
        """Rows of the upright picture."""
        return self.header.height

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.n_channels in (2, 4)

    @property
    def is_hdr(self) -> bool:
        """Whether the file holds linear light, which may exceed 1."""
        return self.header.dtype in FLOATS

    def values(self) -> Float32[np.ndarray, "2 n_codes"]:
        """What the stored codes mean, for colours and for alpha: integers are sRGB in [0, 1], halves become sRGB by its
        curve, which goes on beyond 1. Empty for float32, which is stored as such values already."""
        kind = self.header.dtype
        if kind == "float32":
            return np.zeros((2, 0), np.float32)
        if kind == "float16":
            linear = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
            linear[~np.isfinite(linear)] = 0.0
            return np.stack([srgb_from_linear(linear), linear])
        top = np.iinfo(kind).max
        return np.repeat((np.arange(top + 1, dtype=np.float64) / top).astype(np.float32)[None], 2, axis=0)

    def region(self, x: int, y: int, width: int, height: int) -> Float32[np.ndarray, "h w c"]:
        """The values of a part, colours multiplied by alpha: what a model of the picture should answer there.

        Args:
            x: First column, in pixels from the left.
            y: First row, from the top.
            width: Columns.
            height: Rows.
        """
        stored = self.pixels[y : y + height, x : x + width, : self.n_channels]
        if self.header.dtype == "float32":
            found = stored.astype(np.float32)
        else:
            codes = stored.view(np.uint16) if stored.dtype == np.float16 else stored
            values = self.values()
            found = values[0][codes]
            if self.has_alpha:
                found[..., -1] = values[1][codes[..., -1]]
        if self.has_alpha and not self.is_hdr:
            found[..., :-1] *= found[..., -1:]
        return found

    def close(self) -> None:
        """Let the numbers go; a scratch file goes with them."""
        self.pixels = np.zeros((0, 0, 0), np.uint8)

    def __enter__(self) -> "Picture":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS, scratch: Path | None = None) -> Picture:
    """The picture in a file, decoded.

    8 and 16 bits stay as they are; palettes become RGB(A), CMYK and the like RGB. The EXIF orientation is applied, so
    that photos stand upright. Colour profiles are not: where a file has one that is not sRGB, a note warns that its
    numbers are taken as sRGB. Of several pictures in a file, the first is taken. Values that are not finite become 0.

    Args:
        path: PNG, JPEG, WebP, TIFF, EXR, HDR and what else Pillow reads.
        max_pixels: More are refused before anything is decoded.
        scratch: Folder for the scratch file of a large picture; the system's for temporary files if None.

    Raises:
        DataError: no such file, not a picture, broken, or of a kind without a meaning here; one line.
        ConfigError: more than `max_pixels`.
    """
    given = Path(path).expanduser()
    resolved = given.resolve()
    reader, stored = _opened(given, max_pixels)
    header = stored.upright()
    try:
        pixels = _storage(header, scratch)
    except (OSError, ValueError) as error:
        where = scratch or tempfile.gettempdir()
        raise DataError(f"{where}: no room for a scratch file of {header.n_bytes / 1e9:.1f} GB: {error}") from error
    target = AS_STORED[stored.orientation](pixels)
    lost, missing = 0, header.width * header.height
    with _as_data_error(given):
        for x, y, block in reader.blocks(resolved, stored):
            if pixels.dtype.kind == "f":
                bad = ~np.isfinite(block)
                lost += int(bad.sum())
                block = np.where(bad, block.dtype.type(0), block) if bad.any() else block
                if pixels.dtype == np.float32:
                    block = _encoded(block, header.n_channels)
            target[y : y + block.shape[0], x : x + block.shape[1]] = block
            missing -= block.shape[0] * block.shape[1]
        if missing > 0:
            raise UnsupportedPictureError(f"{missing} of its {header.width * header.height} pixels are missing")
    notes = header.notes
    if lost:
        notes += (f"warning: {given.name}: {lost} values are not finite and count as 0",)
    return Picture(resolved, header, pixels, notes)


def read_picture_header(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """What a file says about its picture, upright, without decoding it where the form allows.

    Raises:
        DataError: no such file, or not a picture.
        ConfigError: more than `max_pixels`.
    """
    return _opened(Path(path).expanduser(), max_pixels)[1].upright()


# --- opening ------------------------------------------------------------------------------------------------


def _opened(path: Path, max_pixels: int) -> tuple[PictureReader, PictureHeader]:
    if max_pixels < 1:
        raise ConfigError(f"max_pixels: expected at least 1, got {max_pixels}")
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a picture")
    try:
        with open(path, "rb") as handle:
            start = handle.read(64)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise DataError(f"{path}: is empty")
    kind = raw_photo(path)
    if kind is not None:
        raise DataError(f"{path}: {kind}")
    reader = next(reader for reader in PICTURE_READERS if reader.matches(path, start))
    with _as_data_error(path), no_bomb_limit():
        header = reader.header(path.resolve())
    if header.width * header.height > max_pixels:
        raise ConfigError(
            f"{path}: {header.width}x{header.height} are {header.width * header.height} pixels, more than "
            f"--max-pixels {max_pixels}"
        )
    return reader, header


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Whatever a decoder raises becomes one DataError."""
    try:
        yield
    except (MemoryError, DataError, ModuleNotFoundError):
        raise
    except UnsupportedPictureError as error:
        raise DataError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a picture that can be read here") from error
    except Exception as error:  # decoders of broken files raise nearly every type there is
        text = getattr(error, "strerror", None) or str(error)  # ffmpeg's numbers mean nothing to anybody
        raise DataError(f"{path}: the picture cannot be decoded: {' '.join(text.split())}") from error


def _storage(header: PictureHeader, scratch: Path | None) -> np.ndarray:
    """Room for a picture's numbers: memory, or a file that has no name any more (where the system allows that)."""
    shape = (header.height, header.width, header.n_channels)
    if header.n_bytes <= IN_MEMORY:
        return np.zeros(shape, header.dtype)
    handle, name = tempfile.mkstemp(prefix=".pixels-", suffix=".tmp", dir=scratch)
    try:
        if os.name == "posix":
            os.unlink(name)  # so that it goes with the process, however that ends
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, header.n_bytes)  # a full disk is named now, not by a signal in the middle
        else:
            os.truncate(handle, header.n_bytes)
        mapped = mmap.mmap(handle, header.n_bytes)
    finally:
        os.close(handle)
        if os.name != "posix":
            _remove_at_exit(Path(name))
    return np.frombuffer(mapped, header.dtype).reshape(shape)


def _remove_at_exit(path: Path) -> None:
    import atexit

    def remove() -> None:
        with suppress(OSError):
            path.unlink()

    atexit.register(remove)


def _encoded(block: np.ndarray, n_channels: int) -> np.ndarray:
    """Linear float32 numbers as the values that are learned: colours by the sRGB curve, alpha as it is."""
    found = srgb_from_linear(block.astype(np.float32))
    if n_channels in (2, 4):
        found[..., -1] = block[..., -1]
    return found


def _is_opaque(pixels: np.ndarray) -> bool:
    full = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    rows = max(1, STRIP_BYTES // max(1, pixels[0].nbytes))
    return all(bool((pixels[y : y + rows, :, -1] == full).all()) for y in range(0, pixels.shape[0], rows))
