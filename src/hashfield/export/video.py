"""Videos: mp4 files (H.264, yuv420p, readable everywhere) and numbered PNG frames."""

import os
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from hashfield.errors import ConfigError, DataError, ShapeError
from hashfield.export.images import write_png

QUALITY: Final = 18
"""Constant rate factor of x264: 18 is hard to tell from the original, larger is smaller and worse."""


def write_mp4(
    path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, fps: float = 30.0, quality: int = QUALITY
) -> int:
    """Number of frames written to an mp4 file.

    Frames are encoded as they come, none is kept. H.264 in yuv420p knows even sizes only: an odd width or
    height gets its last column or row doubled. The file is written aside, its frames counted, then renamed.

    Args:
        path: ends in .mp4; its folder is made where missing, an old file is replaced.
        frames: all of one size.
        fps: frames per second, > 0.
        quality: constant rate factor, 0 (lossless) to 51.

    Raises:
        ConfigError: the video package is missing, or an option is out of range.
        ShapeError: a frame is not uint8 RGB, or of another size than the first.
        DataError: no frames, or the file cannot be written.
    """
    if not (np.isfinite(fps) and 0.0 < fps <= 1000.0):
        raise ConfigError(f"fps: expected a number above 0 and at most 1000, got {fps}")
    if not 0 <= quality <= 51:
        raise ConfigError(f"quality: expected 0 to 51, got {quality}")
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"{path}: expected a name that ends in .mp4")
    av = _av()
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part.mp4")
    n_frames, shape = 0, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(
                "libx264",
                rate=Fraction(fps).limit_denominator(1001),
                options={"crf": str(quality), "preset": "medium"},
            )
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
                    raise ShapeError(f"{path}: frame {n_frames}: expected uint8 RGB, got {frame.dtype} {frame.shape}")
                if shape is None:
                    shape = frame.shape
                    stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
                if frame.shape != shape:
                    raise ShapeError(f"{path}: frame {n_frames}: expected {shape}, got {frame.shape}")
                even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
                n_frames += 1
            if n_frames == 0:
                raise DataError(f"{path}: no frames to write")
            container.mux(stream.encode(None))
        written = _count_frames(av, aside)
        if written != n_frames:
            raise DataError(f"{path}: {n_frames} frames were encoded but the file holds {written}")
        aside.replace(path)
    except (OSError, av.FFmpegError) as error:
        raise DataError(f"{path}: cannot write the video: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink()
    return n_frames


def write_frames(folder: Path, frames: Iterable[UInt8[np.ndarray, "h w c"]], *, stem: str = "frame") -> int:
    """Number of PNG files written: `folder`/`stem`_00000.png and on.

    Args:
        folder: made where missing; files of the same names are replaced.
        frames: 1, 3 or 4 channels; alpha is straight.
        stem: start of every name.

    Raises:
        DataError: no frames, or a file cannot be written.
    """
    n_frames = 0
    for frame in frames:
        write_png(folder / f"{stem}_{n_frames:05d}.png", frame)
        n_frames += 1
    if n_frames == 0:
        raise DataError(f"{folder}: no frames to write")
    return n_frames


def check_video() -> None:
    """Nothing where mp4 files can be written.

    Raises:
        ConfigError: the video package is missing; ask before hours of rendering, not after.
    """
    _av()


def _av() -> Any:
    # Imported when needed: it takes a tenth of a second, and only mp4 files want it.
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "mp4 files need the package av: install it with `pip install av`, or write PNG frames"
        ) from error
    return av


def _count_frames(av: Any, path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
