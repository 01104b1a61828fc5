"""Frames of a video that are worth being photos: sharp ones, one for each step of the camera."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from hashfield.errors import DataError

ENDINGS: Final = (
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".flv"),
)
"""Endings of files that are taken for videos."""

_SHARP_WIDTH: Final = 480  # sharpness is measured on frames of this width
_MOTION_WIDTH: Final = 80  # motion on frames of this one, where it is a fraction of a pixel from frame to frame
STEP: Final = 0.08
"""How far the picture moves between two chosen frames, in widths: nine tenths of each are then seen again."""
FEWEST: Final = 60
MOST: Final = 150
_LEAST_MOTION: Final = 0.6  # widths that the picture moves in all; less can hardly show depth
_CUT_OFF: Final = 0.97  # a file that holds a smaller share of its stated frames, or seconds, was cut off


class _Measured(NamedTuple):
    sharpness: float
    motion: float
    """How far the picture moved since the frame before, in widths."""


def is_video(path: Path) -> bool:
    """Whether a file is named like a video."""
    return path.suffix.lower() in ENDINGS


def extract_frames(
    video: Path, folder: Path, n_frames: int | None = None, report: Callable[[int, int], object] = lambda done, total: 0
) -> tuple[list[Path], list[str]]:
    """Write the chosen frames of a video as JPEG files, and return their paths and notes.

    The video is decoded twice: once to measure each frame, once to write the chosen ones. The path of the camera is cut
    into as many steps of equal motion as frames are wanted, and of each step the sharpest frame is taken.

    Args:
        video: Any file that FFmpeg reads.
        folder: Is there already; files are called frame_00123.jpg by their number in the video.
        n_frames: How many are wanted; None: by the motion, 60 to 150.
        report: Sees how many frames are decoded, of how many.

    Raises:
        DataError: not a video, cut off, or too short.
    """
    measured = _measured(video, report)
    if len(measured) < 3:
        raise DataError(f"{video}: has {len(measured)} frames: at least 3 are needed")
    motion = sum(m.motion for m in measured)
    wanted = n_frames or min(MOST, max(FEWEST, math.ceil(motion / STEP)))
    chosen = set(choose_frames(measured, wanted))
    paths = []
    for number, frame in enumerate(_frames(video)):
        if number in chosen:
            path = folder / f"frame_{number:05d}.jpg"
            Image.fromarray(_upright(frame, frame.to_ndarray(format="rgb24"))).save(path, quality=95, subsampling=0)
            paths.append(path)
        report(len(measured) + number + 1, 2 * len(measured))
    note = f"{len(paths)} of {len(measured)} frames of {video.name}: the picture moves by {motion:.1f} of its widths"
    if motion < _LEAST_MOTION:
        note = f"warning: {note}, hardly enough: the camera must walk around the subject, not only turn"
    return paths, [note]


def choose_frames(measured: list[Any], n_frames: int) -> list[int]:
    """Numbers of the sharpest frame of each of `n_frames` steps of equal motion; a step without a frame gives none.
    All frames where there are no more."""
    if n_frames >= len(measured):
        return list(range(len(measured)))
    reached = np.cumsum([m.motion for m in measured])
    total = float(reached[-1])
    if total <= 0:  # nothing moves: any frames
        step = np.arange(len(measured)) * n_frames // len(measured)
    else:
        step = np.minimum((reached / total * n_frames).astype(int), n_frames - 1)
    sharpness = np.array([m.sharpness for m in measured])
    chosen = []
    for k in range(n_frames):
        frames = np.flatnonzero(step == k)
        if len(frames):
            chosen.append(int(frames[np.argmax(sharpness[frames])]))
    return chosen


def _measured(video: Path, report: Callable[[int, int], object]) -> list[_Measured]:
    before: Float32[np.ndarray, "h w"] | None = None
    found: list[_Measured] = []
    with _opened(video) as (container, stream):
        stated, seconds, end = int(stream.frames or 0), _seconds(container, stream), 0.0
        for frame in _decoded(video, container, stream):
            grey = _grey(frame, _SHARP_WIDTH)
            small = _grey(frame, _MOTION_WIDTH)
            motion = 0.0 if before is None or before.shape != small.shape else _motion(before, small)
            found.append(_Measured(float(laplacian(grey).var()), motion))
            before = small
            end = frame.time if frame.time is not None else end
            report(len(found), 2 * max(stated, len(found)))
    if len(found) < _CUT_OFF * stated or (not stated and seconds and end + 1 < _CUT_OFF * seconds):
        told = f"{len(found)} of {stated} frames" if stated else f"{end:.1f} of {seconds:.1f} s"
        raise DataError(
            f"{video}: ends after {told}: the file was cut off; copy it again, or save what there is with "
            "`ffmpeg -i FILE -c copy NEW.mp4` and use that"
        )
    return found


def _motion(before: np.ndarray, now: np.ndarray) -> float:
    """By how much of its width a picture moved: change over slope, in the mean, for motions of a pixel or so."""
    slope = np.abs(np.gradient(before)).sum(axis=0)
    return float(np.abs(now - before).mean() / max(float(slope.mean()), 1.0) / now.shape[1])


def laplacian(grey: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h_2 w_2"]:
    """Difference of each inner pixel from its four neighbours, times four."""
    inner = grey[1:-1, 1:-1]
    return 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]


def _grey(frame: Any, width: int) -> Float32[np.ndarray, "h w"]:
    width = min(width, frame.width)
    height = max(4, round(frame.height * width / frame.width))
    return frame.reformat(width=width, height=height, format="gray").to_ndarray().astype(np.float32)


def _upright(frame: Any, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as players show it: phones store how it is to be turned, in degrees counterclockwise."""
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, quarters))


def _seconds(container: Any, stream: Any) -> float:
    if container.duration:
        return container.duration / 1e6
    return float(stream.duration * stream.time_base) if stream.duration else 0.0


@contextmanager
def _opened(video: Path) -> Iterator[tuple[Any, Any]]:
    import av

    try:
        container = av.open(str(video))
    except FileNotFoundError as error:
        raise DataError(f"{video}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{video}: not a video that can be read here, or cut off: {_told(error)}") from error
    try:
        if not container.streams.video:
            raise DataError(f"{video}: has no pictures, only sound or data")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream
    finally:
        container.close()


def _decoded(video: Path, container: Any, stream: Any) -> Iterator[Any]:
    number = 0
    try:
        for frame in container.decode(stream):
            yield frame
            number += 1
    except (OSError, ValueError) as error:  # FFmpeg's errors are of these two kinds
        raise DataError(
            f"{video}: frame {number} cannot be decoded ({_told(error)}): the file is damaged or cut off; copy it again"
        ) from error


def _frames(video: Path) -> Iterator[Any]:
    with _opened(video) as (container, stream):
        yield from _decoded(video, container, stream)


def _told(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
