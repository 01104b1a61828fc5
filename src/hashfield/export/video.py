"""Videos: mp4 files (H.264, yuv420p, readable everywhere)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from hashfield.aside import aside_of
from hashfield.errors import ConfigError, DataError, ShapeError

QUALITY: Final = 18
"""Constant rate factor of x264: 18 is hard to tell from the original, larger is smaller and worse."""


class Mp4Writer:
    """An mp4 file that takes one frame after the other; several can be written side by side.

    A context manager: the file appears under its name when the block ends well, and not at all otherwise.
    Frames are encoded as they come, none is kept. H.264 in yuv420p knows even sizes only: an odd width or
    height gets its last column or row doubled. The file is written aside, its frames counted, then renamed.
    """

    def __init__(self, path: Path, *, fps: float = 30.0, quality: int = QUALITY) -> None:
        """Args:
        path: ends in .mp4; its folder is made where missing, an old file is replaced.
        fps: frames per second, > 0.
        quality: constant rate factor, 0 (lossless) to 51.

        Raises:
            ConfigError: the video package is missing, or an option is out of range.
        """
        if not (np.isfinite(fps) and 0.0 < fps <= 1000.0):
            raise ConfigError(f"fps: expected a number above 0 and at most 1000, got {fps}")
        if not 0 <= quality <= 51:
            raise ConfigError(f"quality: expected 0 to 51, got {quality}")
        if path.suffix.lower() != ".mp4":
            raise ConfigError(f"{path}: expected a name that ends in .mp4")
        self.path, self.fps, self.quality = path, fps, quality
        self.n_frames = 0
        self._av = _av()
        self._aside = aside_of(path, "part.mp4")
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] | None = None

    def __enter__(self) -> "Mp4Writer":
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            options = {"movflags": "+faststart"}
            self._container = self._av.open(str(self._aside), "w", format="mp4", options=options)
            self._stream = self._container.add_stream(
                "libx264",
                rate=Fraction(self.fps).limit_denominator(1001),
                options={"crf": str(self.quality), "preset": "medium"},
            )
            self._stream.pix_fmt = "yuv420p"
        return self

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Append a frame.

        Raises:
            ShapeError: it is not uint8 RGB, or of another size than the first.
            DataError: it cannot be written.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise ShapeError(f"{self.path}: frame {self.n_frames}: expected uint8 RGB, got {frame.dtype} {frame.shape}")
        if self._shape is None:
            self._shape = frame.shape
            self._stream.height, self._stream.width = (side + side % 2 for side in frame.shape[:2])
        if frame.shape != self._shape:
            raise ShapeError(f"{self.path}: frame {self.n_frames}: expected {self._shape}, got {frame.shape}")
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        with self._errors():
            self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(even, format="rgb24")))
        self.n_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                with suppress(Exception):
                    self._container.close()
                return
            with self._errors():
                try:
                    if self.n_frames:
                        self._container.mux(self._stream.encode(None))
                finally:
                    self._container.close()
                if self.n_frames == 0:
                    raise DataError(f"{self.path}: no frames to write")
                written = _count_frames(self._av, self._aside)
                if written != self.n_frames:
                    raise DataError(f"{self.path}: {self.n_frames} frames were encoded but the file holds {written}")
                self._aside.replace(self.path)
        finally:
            with suppress(OSError):
                self._aside.unlink()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, self._av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{self.path}: cannot write the video: {reason}") from error


def write_mp4(
    path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, fps: float = 30.0, quality: int = QUALITY
) -> int:
    """Write frames to an mp4 file and return how many there were; see `Mp4Writer`.

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
    with Mp4Writer(path, fps=fps, quality=quality) as video:
        for frame in frames:
            video.add(frame)
    return video.n_frames


def check_video() -> None:
    """Check that mp4 files can be written, so that a missing package is told before hours of rendering, not after.

    Raises:
        ConfigError: the video package is missing.
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
