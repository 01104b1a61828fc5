"""What is read of a picture's file: its header, and its numbers in strips or tiles, by Pillow, ffmpeg or tifffile.

`hashfield.data.pictures` chooses the reader and keeps what it gives.
"""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from hashfield.errors import DataError

STRIP_BYTES: Final = 16 << 20
"""About as much is copied at a time."""

PROFILE_TOLERANCE: Final = 3
"""A colour profile is sRGB where no colour differs from sRGB's by more than this of 255: its makers round."""

FLOATS: Final = ("float16", "float32")


@dataclass(frozen=True)
class PictureHeader:
    """What a file says about its picture before it is decoded."""

    width: int
    height: int
    n_channels: int
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    dtype: str
    """Type of the stored numbers: uint8, uint16, float16 or float32. Floats are linear light, integers sRGB."""
    form: str
    """In words: "JPEG", "TIFF, tiles of 256x256"."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    orientation: int = 1
    """EXIF's number for how the stored rows and columns lie, 1 to 8; 1 is upright, from 5 on the sides are swapped."""

    def upright(self) -> "PictureHeader":
        """The header of the picture as it is meant to be seen."""
        width, height = (self.width, self.height) if self.orientation < 5 else (self.height, self.width)
        return replace(self, width=width, height=height, orientation=1)

    @property
    def n_bytes(self) -> int:
        """Bytes that all numbers of the picture take as stored."""
        return self.width * self.height * self.n_channels * np.dtype(self.dtype).itemsize


Block = tuple[int, int, np.ndarray]
"""(x, y, numbers [h, w, channels]) of a part of the picture."""


@dataclass(frozen=True)
class PictureReader:
    """One way to read pictures. Appended to `PICTURE_READERS`, tried in order."""

    name: str
    matches: Callable[[Path, bytes], bool]
    """Whether this one reads a file, by its path and first bytes."""
    header: Callable[[Path], PictureHeader]
    """Reads what a file says of its picture, as it is stored."""
    blocks: Callable[[Path, PictureHeader], Iterator[Block]]
    """All parts of the picture as it is stored, in any order."""


class UnsupportedPictureError(Exception):
    """A picture that opens but has no meaning here; the text says why."""


@contextmanager
def no_bomb_limit() -> Iterator[None]:
    """Without Pillow's own limit: ours is --max-pixels, checked before anything is decoded."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# --- which way is up, and whose colours ------------------------------------------------------------------------

_ORIENTATION_TAG: Final = 0x0112
_PROFILE_TAG: Final = 34675

# An upright picture [h, w, c] as a view that is indexed like the stored one.
AS_STORED: Final[dict[int, Callable[[np.ndarray], np.ndarray]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


def _orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened file; 1 where it has none, or one that does not exist."""
    found = 1
    with suppress(Exception):  # a broken EXIF block is no reason not to read the picture
        # Not PNG's own method, which decodes the whole picture in search of one.
        found = int(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))
    return found if found in AS_STORED else 1


def _orientation_notes(path: Path, orientation: int) -> list[str]:
    return [] if orientation == 1 else [f"{path.name}: turned upright, as its EXIF orientation ({orientation}) says"]


def _profile_notes(path: Path, profile: bytes | None) -> list[str]:
    """A warning where numbers do not mean what they will be taken for."""
    foreign = _foreign_profile(profile) if profile else None
    if foreign is None:
        return []
    return [f"warning: {path.name}: its colour profile ({foreign}) is not sRGB; its numbers are taken as sRGB"]


def _foreign_profile(profile: bytes) -> str | None:
    """The name of an ICC profile that is not sRGB, judged by what it does to colours; None for sRGB."""
    from PIL import ImageCms

    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        name = " ".join(ImageCms.getProfileDescription(opened).split()) or "without a name"
        mode = {b"GRAY": "L", b"RGB ": "RGB"}.get(profile[16:20])  # what its numbers are, by its header
        if mode is None:
            return name
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        values = steps[None] if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        transform = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        found = np.asarray(ImageCms.applyTransform(Image.fromarray(values), transform)).astype(int)
    except ImportError:  # a Pillow without LittleCMS; the name has to do
        return None if any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be")) else "not known here"
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "not readable"
    apart = np.abs(found - values.reshape(1, values.shape[1], -1))
    return name if int(apart.max()) > PROFILE_TOLERANCE else None


# --- Pillow: JPEG, WebP, most PNG, TIFF without tiles, and more ------------------------------------------------


_MODES: Final = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
_WIDE_GREY: Final = ("I;16", "I;16L", "I;16B", "I;16N")
_WIDTH_TAG: Final = 256
_HEIGHT_TAG: Final = 257
_SAMPLES_TAG: Final = 277
_EXTRA_TAG: Final = 338
_JPEG_END: Final = b"\xff\xd9"
_JPEG_SCAN: Final = b"\xff\xda"
_CONTINUATIONS: Final = ((0, 0, 0), (250, 170, 37), (250, 85, 101), (250, 3, 11))
"""(number of bytes, first, step): what a JPEG is continued with to see whether that changes anything."""


def _pillow_mode(image: Image.Image) -> str:
    """The mode to decode to."""
    if image.mode in (*_WIDE_GREY, "I", "F"):
        return image.mode
    if image.mode in ("P", "PA"):
        return "RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB"
    if image.mode in ("L", "RGB") and "transparency" in image.info:
        return "RGBA" if image.mode == "RGB" else "LA"
    return _MODES.get(image.mode, "RGB")


def _pillow_header(path: Path) -> PictureHeader:
    source, lacks_end = _pillow_source(path)
    with Image.open(source) as image:
        if isinstance(image, TiffImageFile):
            _check_n_samples(image.tag_v2.get(_SAMPLES_TAG, 1))
        mode = _pillow_mode(image)
        if mode == "I":
            raise UnsupportedPictureError("32-bit integers have no meaning as colours")
        dtype = "float32" if mode == "F" else "uint16" if mode in _WIDE_GREY else "uint8"
        notes = [f"warning: {path.name}: its end marker is missing; all pixels are there"] if lacks_end else []
        if isinstance(image, TiffImageFile):
            n_samples = image.tag_v2.get(_SAMPLES_TAG, 1)
            notes += _fourth_channel_notes(path, n_samples, image.tag_v2.get(_EXTRA_TAG), image.mode)
        if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and dtype == "uint8":
            hint = ": pip install 'hashfield[tiff]' keeps them" if image.format == "TIFF" else ""
            notes.append(f"warning: {path.name}: 16 bits a channel are reduced to 8{hint}")
        if image.mode not in (*_MODES, *_WIDE_GREY, "P", "PA", "F"):
            notes.append(f"{path.name}: {image.mode} converted to RGB without its colour profile")
        elif dtype != "float32":
            notes += _profile_notes(path, image.info.get("icc_profile"))
        orientation, (width, height) = _orientation_of(image), image.size
        notes += _orientation_notes(path, orientation)
        if isinstance(image, TiffImageFile):  # which Pillow turns itself: the size, too, but not in every version
            width, height = image.tag_v2[_WIDTH_TAG], image.tag_v2[_HEIGHT_TAG]
            width, height = (width, height) if orientation < 5 else (height, width)
            orientation = 1
        if getattr(image, "n_frames", 1) > 1:
            notes.append(f"{path.name}: holds {getattr(image, 'n_frames', 1)} pictures, the first is taken")
        n_channels = 1 if len(mode) == 1 or mode in _WIDE_GREY else len(mode)
        form = image.format or "picture"
        return PictureHeader(width, height, n_channels, dtype, form, tuple(notes), orientation)


def _pillow_blocks(path: Path, header: PictureHeader) -> Iterator[Block]:
    """Pillow decodes as a whole, in its own 1 to 4 bytes a pixel; only the copies are strips."""
    with no_bomb_limit(), Image.open(_pillow_source(path)[0]) as image:
        if sorted(image.size) != sorted((header.width, header.height)):
            raise UnsupportedPictureError("changed while it was read")
        mode = _pillow_mode(image)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        image.load()
        if image.size != (header.width, header.height):
            raise UnsupportedPictureError("changed while it was read")
        rows = max(1, STRIP_BYTES // max(1, header.n_bytes // header.height))
        for y in range(0, header.height, rows):
            strip = image.crop((0, y, header.width, min(y + rows, header.height)))
            if "transparency" in image.info:
                strip.info["transparency"] = image.info["transparency"]
            strip = strip if strip.mode == mode else strip.convert(mode)
            found = np.asarray(strip)
            if mode in _WIDE_GREY:
                found = found.astype(np.uint16)
            yield 0, y, found.reshape(found.shape[0], found.shape[1], -1)


def _pillow_source(path: Path) -> tuple[Path | io.BytesIO, bool]:
    """What Pillow is to open, and whether it is a JPEG that lacks its end marker and nothing else.

    libjpeg fills up whatever a file lacks, and Pillow refuses all that is cut short. Whether pixels are missing shows
    where the file is continued in two ways: a picture that is whole does not depend on what follows it.
    """
    with open(path, "rb") as handle:
        if handle.read(3) != b"\xff\xd8\xff":
            return path, False
        handle.seek(0)
        data = handle.read()
    if data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN) or not _has_all_scans(data):
        return path, False
    data = data[:-1] if data.endswith(b"\xff") else data  # half of the marker
    endings = [bytes((start + step * k) % 255 for k in range(n)) + _JPEG_END for n, start, step in _CONTINUATIONS]
    try:
        pictures = [np.asarray(Image.open(io.BytesIO(data + ending))) for ending in endings]
    except Exception:  # the caller meets the same error, and reports it
        return path, False
    is_whole = all(np.array_equal(pictures[0], other) for other in pictures[1:])
    return (io.BytesIO(data + _JPEG_END), True) if is_whole else (path, False)


def _has_all_scans(jpeg: bytes) -> bool:
    """Whether the scans that a JPEG begins hold all coefficients of all components, to the last bit.

    Source: ITU-T T.81, annex B: headers of frames and scans.
    """
    at, left = 2, {}
    while at + 4 <= len(jpeg):
        marker, length = jpeg[at : at + 2], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        body = jpeg[at + 4 : at + 2 + length]
        if marker[0] != 0xFF:
            return False
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC) and len(body) > 5:
            left = {component: set(range(64)) for component in body[6::3]}
        at += 2 + length
        if marker == _JPEG_SCAN and body:
            components = body[1 : 1 + 2 * body[0] : 2]
            first, last, bits = (*body[1 + 2 * body[0] :], 0, 0, 0)[:3]
            for component in components:
                if bits & 15 == 0:  # of a progressive picture, the last bit of these coefficients
                    left.get(component, set()).difference_update(range(first, last + 1))
            while at < len(jpeg) and (at := jpeg.find(b"\xff", at)) >= 0:  # past the compressed numbers
                if jpeg[at + 1 : at + 2] and jpeg[at + 1] != 0 and not 0xD0 <= jpeg[at + 1] <= 0xD7:
                    break
                at += 2
            if at < 0:
                break
    return bool(left) and not any(left.values())


# --- ffmpeg through PyAV: EXR, Radiance HDR, 16-bit colour PNG --------------------------------------------------

# Pixel format -> (dtype, planes or interleaved channel order).
_PLANAR: Final = {
    "gbrpf16le": ("float16", (2, 0, 1)), "gbrapf16le": ("float16", (2, 0, 1, 3)), "grayf16le": ("float16", (0,)),
    "gbrpf32le": ("float32", (2, 0, 1)), "gbrapf32le": ("float32", (2, 0, 1, 3)), "grayf32le": ("float32", (0,)),
}  # fmt: skip
_PACKED: Final = {
    "rgb48be": (">u2", 3), "rgba64be": (">u2", 4), "rgb48le": ("<u2", 3), "rgba64le": ("<u2", 4),
    "ya16be": (">u2", 2), "ya16le": ("<u2", 2), "yaf16le": ("<f2", 2), "yaf32le": ("<f4", 2),
    "rgbf32le": ("<f4", 3), "rgbaf32le": ("<f4", 4),
}  # fmt: skip


def _is_for_ffmpeg(path: Path, start: bytes) -> bool:
    if start.startswith((b"\x76\x2f\x31\x01", b"#?RADIANCE", b"#?RGBE")):
        return True
    # PNG of 16 bits with colour or alpha: Pillow would keep the high bytes only.
    return start.startswith(b"\x89PNG\r\n\x1a\n") and len(start) >= 26 and start[24] == 16 and start[25] in (2, 4, 6)


def _frame(path: Path) -> Any:
    """The first picture, decoded."""
    import av
    import av.logging

    av.logging.set_level(av.logging.PANIC)  # its own lines go to stderr, ours carries the error
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            return frame
    raise UnsupportedPictureError("holds no picture")


def _ffmpeg_size(path: Path) -> tuple[int, int]:
    """Width and height as the file's first bytes say: nothing is decoded before they are judged."""
    with open(path, "rb") as handle:
        start = handle.read(1 << 16)
    if start.startswith(b"\x89PNG"):
        return struct.unpack(">II", start[16:24])
    if start.startswith(b"\x76\x2f\x31\x01"):
        at = start.find(b"dataWindow\0box2i\0")
        if at < 0 or at + 37 > len(start):
            raise UnsupportedPictureError("an EXR file without a data window")
        left, top, right, bottom = struct.unpack("<4i", start[at + 21 : at + 37])
        return right - left + 1, bottom - top + 1
    for line in start.split(b"\n", 40)[:40]:
        words = line.split()
        if len(words) == 4 and words[0] in (b"-Y", b"+Y") and words[2] in (b"+X", b"-X"):
            return int(words[3]), int(words[1])
    raise UnsupportedPictureError("a Radiance file without a size")


def _ffmpeg_header(path: Path) -> PictureHeader:
    width, height = _ffmpeg_size(path)
    if width < 1 or height < 1:
        raise UnsupportedPictureError(f"says it is {width}x{height} pixels")
    with open(path, "rb") as handle:
        start = handle.read(26)
    if start.startswith(b"\x89PNG"):
        with Image.open(path) as image:
            orientation = _orientation_of(image)
            notes = (*_profile_notes(path, image.info.get("icc_profile")), *_orientation_notes(path, orientation))
        return PictureHeader(width, height, {2: 3, 4: 2, 6: 4}[start[25]], "uint16", "PNG", notes, orientation)
    form = "EXR" if start.startswith(b"\x76\x2f\x31\x01") else "Radiance HDR"
    if width * height > 2**28:  # which its channels and type would have to be decoded for
        raise UnsupportedPictureError(f"{form} of {width}x{height} pixels is too large for this reader")
    frame = _frame(path)
    dtype, n_channels = _kind_of(frame)
    return PictureHeader(width, height, n_channels, dtype, form)


def _kind_of(frame: Any) -> tuple[str, int]:
    name = frame.format.name
    if name in _PLANAR:
        return _PLANAR[name][0], len(_PLANAR[name][1])
    if name in _PACKED:
        code, n_channels = _PACKED[name]
        return str(np.dtype(code).newbyteorder("=")), n_channels
    raise UnsupportedPictureError(f"pixels of the kind {name} are not read here")


def _ffmpeg_blocks(path: Path, header: PictureHeader) -> Iterator[Block]:
    frame = _frame(path)
    if (frame.width, frame.height) != (header.width, header.height):
        raise UnsupportedPictureError(
            f"its display window ({frame.width}x{frame.height}) differs from its data window "
            f"({header.width}x{header.height}), which is not read"
        )
    name = frame.format.name
    rows = max(1, STRIP_BYTES // max(1, header.n_bytes // header.height))

    def plane(k: int, code: str) -> np.ndarray:
        raw = frame.planes[k]
        return np.frombuffer(raw, code).reshape(header.height, raw.line_size // np.dtype(code).itemsize)

    if name in _PLANAR:
        dtype, order = _PLANAR[name]
        planes = [plane(k, np.dtype(dtype).newbyteorder("<").str) for k in order]
        for y in range(0, header.height, rows):
            yield 0, y, np.stack([p[y : y + rows, : header.width] for p in planes], axis=-1)
        return
    code, n_channels = _PACKED[name]
    whole = plane(0, code)
    for y in range(0, header.height, rows):
        strip = whole[y : y + rows, : header.width * n_channels]
        yield 0, y, strip.reshape(strip.shape[0], header.width, n_channels).astype(header.dtype)


# --- tifffile, an extra: tiles, BigTIFF, 16 bits and floats ------------------------------------------------------

_PREMULTIPLIED: Final = 1  # values of the tag ExtraSamples
_STRAIGHT: Final = 2


def _check_n_samples(n_samples: int) -> None:
    if not 1 <= n_samples <= 4:
        raise UnsupportedPictureError(f"{n_samples} channels are not a picture's, expected 1 to 4")


def _n_read(n_samples: int, extra: tuple[int, ...] | None) -> int:
    """How many channels of a TIFF are colours or alpha; `extra` is the tag that says what those beyond colours are."""
    if extra and extra[-1] not in (_PREMULTIPLIED, _STRAIGHT) and n_samples in (2, 4):
        return n_samples - 1  # near infrared, a mask, a depth: whatever it is, it is not alpha
    if extra and extra[-1] in (_PREMULTIPLIED, _STRAIGHT) and n_samples not in (2, 4):
        raise UnsupportedPictureError(f"{n_samples} channels of which the last is alpha are not read here")
    return n_samples


def _fourth_channel_notes(path: Path, n_samples: int, extra: tuple[int, ...] | None, mode: str = "") -> list[str]:
    """A line about a channel beyond colours that is no alpha, or that nothing is said of."""
    if n_samples not in (2, 4) or mode in ("CMYK", "LAB"):
        return []
    which = {2: "second", 4: "fourth"}[n_samples]
    if not extra:
        return [f"{path.name}: its {which} channel is taken as alpha; the file does not say what it is"]
    if _n_read(n_samples, extra) < n_samples:
        return [f"{path.name}: its {which} channel is not alpha, as the file says, and is left out"]
    return []


def _straight(block: np.ndarray) -> np.ndarray:
    """Integers whose colours are multiplied by alpha, with colours that are not; (0, 0, 0, 0) where alpha is 0."""
    top, alpha = np.iinfo(block.dtype).max, block[..., -1:].astype(np.int64)
    colors = (block[..., :-1].astype(np.int64) * top + alpha // 2) // np.maximum(alpha, 1)
    colors[np.broadcast_to(alpha == 0, colors.shape)] = 0
    return np.concatenate([np.minimum(colors, top).astype(block.dtype), block[..., -1:]], axis=-1)


_JPEG_COMPRESSIONS: Final = (6, 7, 34892, 33007)
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _is_for_tifffile(path: Path, start: bytes) -> bool:
    if not start.startswith(_TIFF):
        return False
    try:
        import tifffile  # noqa: F401
    except ModuleNotFoundError:
        if start.startswith(_TIFF[2:]):  # BigTIFF, which Pillow reads in part only
            raise DataError(f"{path}: BigTIFF needs tifffile: pip install 'hashfield[tiff]'") from None
        return False
    return True


def _tiff_page(path: Path) -> Any:
    import logging

    import tifffile

    # If a file is broken, the library says so on stderr, in words for programmers; the error that follows says enough.
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return tifffile.TiffFile(path)


def _tifffile_header(path: Path) -> PictureHeader:
    with _tiff_page(path) as file:
        page: Any = file.pages[0]
        height, width, n_channels = page.imagelength, page.imagewidth, page.samplesperpixel
        dtype = "?" if page.dtype is None else page.dtype.name
        photometric = getattr(page.photometric, "name", str(page.photometric))
        if width * height == 0:
            raise UnsupportedPictureError(f"says it is {width}x{height} pixels")
        if dtype == "bool" or photometric in ("PALETTE", "SEPARATED", "CIELAB", "MINISWHITE"):
            return _pillow_header(path)
        if photometric == "YCBCR" and page.compression not in _JPEG_COMPRESSIONS:
            return _pillow_header(path)  # which makes RGB of it; JPEG's decoder does so itself
        if dtype not in ("uint8", "uint16", *FLOATS):
            raise UnsupportedPictureError(
                f"pixels of type {dtype} are not read here, only uint8, uint16, float16 and float32"
            )
        _check_n_samples(n_channels)
        if n_channels > 1 and page.planarconfig != 1:
            raise UnsupportedPictureError("channels stored apart (planar configuration 2) are not read here")
        tiles = f", tiles of {page.tilewidth}x{page.tilelength}" if page.is_tiled else ", strips"
        notes = [f"{path.name}: holds {len(file.pages)} pictures, the first is taken"] if len(file.pages) > 1 else []
        profile, tag = (page.tags.get(number) for number in (_PROFILE_TAG, _ORIENTATION_TAG))
        if profile is not None and dtype not in FLOATS:
            notes += _profile_notes(path, profile.value)
        orientation = int(tag.value) if tag is not None and tag.value in AS_STORED else 1
        notes += _orientation_notes(path, orientation)
        extra = tuple(int(x) for x in page.extrasamples)
        notes += _fourth_channel_notes(path, n_channels, extra)
        n_channels = _n_read(n_channels, extra)
        return PictureHeader(width, height, n_channels, dtype, "TIFF" + tiles, tuple(notes), orientation)


def _tifffile_blocks(path: Path, header: PictureHeader) -> Iterator[Block]:
    if not header.form.startswith("TIFF,"):
        yield from _pillow_blocks(path, header)
        return
    with _tiff_page(path) as file:
        page: Any = file.pages[0]
        extra, is_float = tuple(int(x) for x in page.extrasamples), header.dtype in FLOATS
        # Integers are kept straight and floats multiplied by alpha, as PNG and EXR have them.
        must_divide = extra[-1:] == (_PREMULTIPLIED,) and not is_float
        must_multiply = extra[-1:] == (_STRAIGHT,) and is_float
        # One thread: each holds a decoded tile, and decoding is not what takes long.
        for data, index, shape in page.segments(maxworkers=1):
            y, x = index[-3], index[-2]
            h, w = min(shape[-3], header.height - y), min(shape[-2], header.width - x)
            if data is None:  # a tile that was never written
                yield x, y, np.zeros((h, w, header.n_channels), header.dtype)
            else:
                block = data.reshape(data.shape[-3:])[:h, :w, : header.n_channels]
                if must_multiply:
                    block = np.concatenate([block[..., :-1] * block[..., -1:], block[..., -1:]], axis=-1)
                yield x, y, _straight(block) if must_divide else block


PICTURE_READERS: list[PictureReader] = [
    PictureReader("ffmpeg", _is_for_ffmpeg, _ffmpeg_header, _ffmpeg_blocks),
    PictureReader("tifffile", _is_for_tifffile, _tifffile_header, _tifffile_blocks),
    PictureReader("Pillow", lambda path, start: True, _pillow_header, _pillow_blocks),
]
"""Tried in order; the last takes whatever the others leave."""
