"""Pictures for people: PNG files, depth, normals and errors as colours, comparison sheets.

Arrays in, arrays out; the only file access is in `write_png` and in the writers that take a picture strip by strip.
"""

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from hashfield.aside import aside_of
from hashfield.errors import DataError, ShapeError

Color = tuple[float, float, float]

WHITE: Final[Color] = (1.0, 1.0, 1.0)
BLACK: Final[Color] = (0.0, 0.0, 0.0)

# Far to near; lightness rises steadily, so that the map also reads in grey.
_DEPTH_COLORS: Final = np.array(
    [
        [0.05, 0.06, 0.20],
        [0.16, 0.13, 0.43],
        [0.32, 0.18, 0.56],
        [0.51, 0.22, 0.58],
        [0.70, 0.29, 0.53],
        [0.86, 0.39, 0.44],
        [0.95, 0.55, 0.35],
        [0.98, 0.74, 0.35],
        [0.98, 0.93, 0.60],
    ],
    np.float32,
)

_MARGIN: Final = 8  # pixels around and between the pictures of a sheet
_CAPTION: Final = 24  # height of a caption's line, pixels


def to_uint8(color: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in [0, 1] as bytes, rounded; outside values are clipped and not-a-numbers become 0."""
    clipped = np.clip(np.nan_to_num(np.asarray(color, np.float32), nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    return (clipped * 255.0 + 0.5).astype(np.uint8)


def over(image: UInt8[np.ndarray, "h w 4"], background: Color) -> Float[np.ndarray, "h w 3"]:
    """A straight-alpha picture before one colour, in [0, 1], blended in the picture's own encoding (sRGB).

    Args:
        image: RGBA; colours under alpha 0 do not matter.
        background: red, green, blue in [0, 1].
    """
    values = image.astype(np.float32) * np.float32(1.0 / 255.0)
    alpha = values[..., 3:]
    return values[..., :3] * alpha + np.asarray(background, np.float32) * (1.0 - alpha)


def straight_alpha(color: Float[np.ndarray, "h w 3"], opacity: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA with straight alpha, as PNG wants it, from a render without background (premultiplied colour)."""
    alpha = np.clip(opacity, 0.0, 1.0)[..., None]
    return to_uint8(np.concatenate([color / np.maximum(alpha, 1e-4) * (alpha > 1e-4), alpha], axis=-1))


def depth_range(
    depths: Sequence[Float[np.ndarray, "..."]], opacities: Sequence[Float[np.ndarray, "..."] | None]
) -> tuple[float, float]:
    """Nearest and farthest depth that matter in a set of pictures: 1st and 99th percentile of solid pixels.

    Args:
        depths: world units, at least one picture.
        opacities: for each picture, or None; pixels below one half do not count.

    Returns:
        near < far; (0, 1) where nothing is solid.
    """
    solid = [d[_solid(d, o)] for d, o in zip(depths, opacities, strict=True)]
    values = np.concatenate([part.reshape(-1) for part in solid]) if solid else np.zeros(0)
    if values.size == 0:
        return 0.0, 1.0
    near, far = (float(v) for v in np.percentile(values, [1.0, 99.0]))
    return near, far if far > near else near + max(abs(near), 1.0) * 1e-3


def colorize_depth(
    depth: Float[np.ndarray, "h w"],
    opacity: Float[np.ndarray, "h w"] | None = None,
    *,
    near: float | None = None,
    far: float | None = None,
    empty: Color = WHITE,
) -> UInt8[np.ndarray, "h w 3"]:
    """Depth as colour: near is light yellow, far dark blue.

    Args:
        depth: any unit; infinite and 0 count as nothing where no opacity is given.
        opacity: fades to `empty` where the picture is not solid.
        near: depth of the lightest colour; default by `depth_range`.
        far: depth of the darkest colour; default by `depth_range`.
        empty: colour of nothing.
    """
    depth = np.asarray(depth, np.float32)
    low, high = depth_range([depth], [opacity])
    low, high = low if near is None else near, high if far is None else far
    nearness = np.clip(1.0 - (np.nan_to_num(depth) - low) / max(high - low, 1e-12), 0.0, 1.0)
    place = nearness * (len(_DEPTH_COLORS) - 1)
    index = np.minimum(place.astype(np.int32), len(_DEPTH_COLORS) - 2)
    share = (place - index)[..., None]
    color = _DEPTH_COLORS[index] * (1.0 - share) + _DEPTH_COLORS[index + 1] * share
    return to_uint8(_fade(color, _share(depth, opacity), empty))


def colorize_normals(
    normals: Float[np.ndarray, "h w 3"],
    opacity: Float[np.ndarray, "h w"] | None = None,
    *,
    empty: Color = WHITE,
) -> UInt8[np.ndarray, "h w 3"]:
    """Unit normals as colour: (x, y, z) from [-1, 1] to red, green and blue.

    Args:
        normals: world axes; zero vectors count as nothing where no opacity is given.
        opacity: fades to `empty` where the picture is not solid.
        empty: colour of nothing.
    """
    normals = np.nan_to_num(np.asarray(normals, np.float32))
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = normals / np.maximum(length, 1e-8)
    share = (length[..., 0] > 1e-8).astype(np.float32) if opacity is None else opacity
    return to_uint8(_fade(unit * 0.5 + 0.5, share, empty))


def colorize_opacity(opacity: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Opacity as grey, 1 is white."""
    return to_uint8(np.repeat(np.asarray(opacity, np.float32)[..., None], 3, axis=-1))


def error_picture(
    prediction: Float[np.ndarray, "h w 3"], target: Float[np.ndarray, "h w 3"], gain: float = 5.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Absolute difference per channel, times `gain`, on black.

    Args:
        prediction: Picture of the model; clipped to 0..1.
        target: The true one; clipped likewise.
        gain: Factor that makes small differences visible.
    """
    return to_uint8(np.abs(np.clip(prediction, 0.0, 1.0) - np.clip(target, 0.0, 1.0)) * gain)


def comparison_sheet(
    rows: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "h w c"]]]], *, max_width: int | None = None
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Pictures side by side, each below its caption, one row under the other on white.

    Args:
        rows: (caption, picture of 1, 3 or 4 channels); sizes may differ. Alpha is shown on white.
        max_width: the sheet is scaled down to this many pixels where it would be wider.

    Raises:
        ShapeError: nothing to show, or a picture is not uint8 with 1, 3 or 4 channels.
    """
    if not rows or not all(rows):
        raise ShapeError("comparison_sheet: expected at least one picture in every row")
    heights = [max(picture.shape[0] for _, picture in row) for row in rows]
    widths = [sum(picture.shape[1] + _MARGIN for _, picture in row) + _MARGIN for row in rows]
    sheet = Image.new("RGB", (max(widths), sum(h + _CAPTION + _MARGIN for h in heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for caption, picture in row:
            sheet.paste(Image.fromarray(_rgb(picture)), (left, top + _CAPTION))
            draw.text(
                (left, top + 2),
                _fitted(caption, picture.shape[1]),
                fill=(40, 40, 40),
                font=_font(_CAPTION - 10),
            )
            left += picture.shape[1] + _MARGIN
        top += height + _CAPTION + _MARGIN
    if max_width is not None and sheet.width > max_width:
        size = (max_width, max(1, round(sheet.height * max_width / sheet.width)))
        sheet = sheet.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(sheet)


def shrunk(image: UInt8[np.ndarray, "h w c"], max_side: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The picture scaled so that no side is longer than `max_side`; smaller ones are returned as they are."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def write_png(path: Path, image: UInt8[np.ndarray, "h w c"]) -> Path:
    """Write a PNG file and return its path; it is written aside and renamed, so that nobody reads half of it.

    Args:
        path: its folder is made where missing; an old file is replaced.
        image: 1, 3 or 4 channels; alpha is straight.

    Raises:
        ShapeError: not uint8 with 1, 3 or 4 channels.
        DataError: the file cannot be written.
    """
    picture = Image.fromarray(_checked(image))
    aside = aside_of(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(aside, format="PNG", compress_level=4)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise DataError(f"{path}: cannot write the picture: {error.strerror or error}") from error
    return path


def read_png(path: Path) -> UInt8[np.ndarray, "..."]:
    """The pixels of a PNG file that `write_png` wrote: [h, w] or [h, w, channels].

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read again: {error}") from error


class StripWriter(ABC):
    """A picture file that is given its rows strip by strip, so that it may be larger than memory.

    Use as a context manager and call `add`; the file appears under its name once it is whole.
    """

    def __init__(self, path: Path, width: int, height: int, n_channels: int) -> None:
        """Args:
        path: Its folder is made where missing; an old file is replaced.
        width: Pixels.
        height: Rows that will be added.
        n_channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        """
        self.path, self.width, self.height, self.n_channels = path, width, height, n_channels
        self.n_rows = 0
        self._aside = aside_of(path, "part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> "StripWriter":
        with self._as_data_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._aside, "wb")
            self._begin(self._file)
        return self

    def add(self, strip: np.ndarray) -> None:
        """Write the next rows.

        Args:
            strip: [rows, width, channels], of the type that the kind of file takes.

        Raises:
            ShapeError: it does not fit.
            DataError: the file cannot be written.
        """
        if strip.ndim != 3 or strip.shape[1:] != (self.width, self.n_channels):
            raise ShapeError(f"strip: expected [rows, {self.width}, {self.n_channels}], got {list(strip.shape)}")
        if self.n_rows + len(strip) > self.height:
            raise ShapeError(f"strip: {self.n_rows + len(strip)} rows are more than the picture's {self.height}")
        assert self._file is not None
        with self._as_data_error():
            self._write(self._file, strip)
        self.n_rows += len(strip)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                if self.n_rows != self.height:
                    raise ShapeError(f"{self.path}: expected {self.height} rows, got {self.n_rows}")
                with self._as_data_error():
                    self._end(self._file)
                    self._file.close()
                    self._aside.replace(self.path)
        finally:
            self._file.close()
            with suppress(OSError):
                self._aside.unlink(missing_ok=True)

    def _as_data_error(self) -> "_AsDataError":
        return _AsDataError(self.path)

    @abstractmethod
    def _begin(self, file: BinaryIO) -> None:
        """Write what comes before the pixels."""

    @abstractmethod
    def _write(self, file: BinaryIO, strip: np.ndarray) -> None:
        """Write a strip."""

    @abstractmethod
    def _end(self, file: BinaryIO) -> None:
        """Write what comes after the pixels."""


class _AsDataError:
    """Within the block an OSError becomes a DataError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise DataError(f"{self.path}: cannot write the picture: {error.strerror or error}") from error


class PngWriter(StripWriter):
    """PNG of 8 or 16 bits a channel, sRGB; strips are uint8 or uint16, alpha is straight.

    Source: the PNG specification; every row is stored as its difference to the row above (filter 2), which suits
    smooth pictures.
    """

    def __init__(self, path: Path, width: int, height: int, n_channels: int, bits: int = 8) -> None:
        """Args: as StripWriter; bits: 8 or 16."""
        super().__init__(path, width, height, n_channels)
        if bits not in (8, 16):
            raise ShapeError(f"bits: expected 8 or 16, got {bits}")
        self.bits = bits
        self._packer = zlib.compressobj(4)
        self._above = np.zeros(width * n_channels * bits // 8, np.uint8)

    def _begin(self, file: BinaryIO) -> None:
        color = {1: 0, 2: 4, 3: 2, 4: 6}[self.n_channels]
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(file, b"IHDR", struct.pack(">IIBBBBB", self.width, self.height, self.bits, color, 0, 0, 0))
        self._chunk(file, b"sRGB", b"\0")

    def _write(self, file: BinaryIO, strip: np.ndarray) -> None:
        rows = np.ascontiguousarray(strip.astype(np.dtype(f">u{self.bits // 8}")))
        raw = rows.view(np.uint8).reshape(len(strip), -1)
        filtered = np.full((len(raw), raw.shape[1] + 1), 2, np.uint8)
        filtered[:, 1:] = raw
        filtered[0, 1:] -= self._above
        filtered[1:, 1:] -= raw[:-1]
        self._above = raw[-1].copy()
        packed = self._packer.compress(filtered.tobytes())
        if packed:
            self._chunk(file, b"IDAT", packed)

    def _end(self, file: BinaryIO) -> None:
        self._chunk(file, b"IDAT", self._packer.flush())
        self._chunk(file, b"IEND", b"")

    @staticmethod
    def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


class ExrWriter(StripWriter):
    """OpenEXR of half floats, uncompressed scanlines; strips are floats of linear light, multiplied by alpha.

    Source: the OpenEXR file layout.
    """

    def _begin(self, file: BinaryIO) -> None:
        # Channels are stored in the order of their names.
        self._order = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 1, 0)}[self.n_channels]
        names = {1: "Y", 2: "AY", 3: "BGR", 4: "ABGR"}[self.n_channels]

        def attribute(name: str, kind: str, value: bytes) -> bytes:
            return f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value

        half = struct.pack("<iB3xii", 1, 0, 1, 1)
        window = struct.pack("<4i", 0, 0, self.width - 1, self.height - 1)
        header = (
            struct.pack("<ii", 20000630, 2)
            + attribute("channels", "chlist", b"".join(name.encode() + b"\0" + half for name in names) + b"\0")
            + attribute("compression", "compression", b"\0")
            + attribute("dataWindow", "box2i", window)
            + attribute("displayWindow", "box2i", window)
            + attribute("lineOrder", "lineOrder", b"\0")
            + attribute("pixelAspectRatio", "float", struct.pack("<f", 1.0))
            + attribute("screenWindowCenter", "v2f", struct.pack("<ff", 0.0, 0.0))
            + attribute("screenWindowWidth", "float", struct.pack("<f", 1.0))
            + b"\0"
        )
        line = 8 + 2 * self.width * self.n_channels
        first = len(header) + 8 * self.height
        file.write(header + (first + line * np.arange(self.height, dtype="<u8")).astype("<u8").tobytes())

    def _write(self, file: BinaryIO, strip: np.ndarray) -> None:
        values = np.clip(strip, -65504.0, 65504.0).astype("<f2")[:, :, list(self._order)].transpose(0, 2, 1)
        for k, row in enumerate(np.ascontiguousarray(values)):
            file.write(struct.pack("<ii", self.n_rows + k, row.nbytes) + row.tobytes())

    def _end(self, file: BinaryIO) -> None:
        """Write what follows the pixels: in this format, no bytes at all."""


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise ShapeError(f"picture: expected uint8 [height, width, 1, 3 or 4], got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)


def _rgb(image: np.ndarray) -> np.ndarray:
    image = _checked(image)
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=-1)
    return to_uint8(over(image, WHITE)) if image.shape[2] == 4 else image


def _solid(depth: np.ndarray, opacity: np.ndarray | None) -> Bool[np.ndarray, "..."]:
    return np.isfinite(depth) & (depth > 0.0 if opacity is None else opacity > 0.5)


def _share(depth: np.ndarray, opacity: np.ndarray | None) -> np.ndarray:
    return (_solid(depth, None)).astype(np.float32) if opacity is None else opacity


def _fade(color: np.ndarray, share: np.ndarray, empty: Color) -> np.ndarray:
    weight = np.clip(share, 0.0, 1.0)[..., None]
    return color * weight + np.asarray(empty, np.float32) * (1.0 - weight)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _fitted(caption: str, width: int) -> str:
    """The caption, cut where it is wider than its picture."""
    font = _font(_CAPTION - 10)
    while len(caption) > 1 and font.getlength(caption) > width:
        caption = caption[:-2].rstrip() + "…"
    return caption
