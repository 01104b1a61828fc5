"""Frames of a rendering that are kept as they come, so that a rendering which was interrupted goes on.

Beside the pictures lies a hidden folder with a file that says what is being rendered. The same rendering, asked for
again, finds its frames; another one starts anew. The folder goes when the rendering is done.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from hashfield.aside import remove_left_behind, write_aside
from hashfield.errors import DataError
from hashfield.export.images import read_png, write_png
from hashfield.geometry.cameras import Camera
from hashfield.train.run_folder import RunFolder

FOLDER: Final = ".unfinished"
_PLAN: Final = "plan.json"
_SCALE: Final = "depth.json"


def plan_of(
    run: RunFolder,
    cameras: Sequence[Camera],
    outputs: Sequence[str],
    background: tuple[float, float, float],
    transparent: bool,
) -> dict[str, Any]:
    """What tells one rendering from another, as JSON values.

    Args:
        run: Whose checkpoint is shown, as it is now.
        cameras: One for each frame.
        outputs: What each frame shows.
        background: Colour behind the scene.
        transparent: Whether there is alpha instead.
    """
    state = run.checkpoint.stat()
    frames = json.dumps([camera.to_dict() for camera in cameras]).encode()
    return {
        "checkpoint": [str(run.checkpoint.resolve()), state.st_size, state.st_mtime_ns],
        "cameras": hashlib.sha256(frames).hexdigest(), "outputs": list(outputs), "background": list(background),
        "transparent": transparent,
    }  # fmt: skip


class DepthScale:
    """The range of depths that colours stand for, the same in all frames: that of the first."""

    def __init__(self, file: Path | None = None) -> None:
        """Args:
        file: Where it is kept; None: nowhere.
        """
        self._file = file
        self.range: tuple[float, float] | None = None
        """Nearest and farthest; None until it is set."""
        if file is not None:
            with suppress(OSError, ValueError, TypeError):
                near, far = json.loads(file.read_text(encoding="utf-8"))
                self.range = (float(near), float(far))

    def set(self, near: float, far: float) -> tuple[float, float]:
        """Fix the range and return it."""
        self.range = (float(near), float(far))
        if self._file is not None:
            text = json.dumps(self.range)
            write_aside(self._file, lambda aside: aside.write_text(text, encoding="utf-8"))
        return self.range


class KeptFrames:
    """The frames of one rendering, as PNG files; a context manager around the rendering."""

    def __init__(
        self, folder: Path, outputs: Sequence[str], n_frames: int, plan: Mapping[str, Any], *, of_video: bool
    ) -> None:
        """Args:
        folder: Where pictures or video shall lie.
        outputs: What each frame shows, one file for each.
        n_frames: How many frames there are.
        plan: See `plan_of`.
        of_video: Whether the frames are only there to make a video, or are what was asked for.
        """
        self.outputs, self.n_frames = tuple(outputs), n_frames
        self._folder, self._hidden = folder, folder / FOLDER
        self._place = self._hidden if of_video else folder
        self._plan = {**plan, "video": of_video}
        self.are_ours = self._stored() == self._plan
        """Whether what is there is the beginning of this very rendering."""
        self.scale = DepthScale()

    def _stored(self) -> Any:
        try:
            return json.loads((self._hidden / _PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def __enter__(self) -> "KeptFrames":
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self.are_ours:
                shutil.rmtree(self._hidden, ignore_errors=True)
                for path in () if self._place == self._hidden else self.paths():
                    path.unlink(missing_ok=True)  # of another rendering: they would be taken for this one's
                text = json.dumps(self._plan)
                write_aside(self._hidden / _PLAN, lambda aside: aside.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{self._folder}: cannot be written: {error.strerror or error}") from error
        remove_left_behind(self._folder)
        remove_left_behind(self._hidden)
        self.scale = DepthScale(self._hidden / _SCALE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            shutil.rmtree(self._hidden, ignore_errors=True)

    def path(self, output: str, frame: int) -> Path:
        """The file of a frame."""
        return self._place / f"{output}_{frame:04d}.png"

    def paths(self) -> list[Path]:
        """All files that there will be."""
        return [self.path(output, frame) for output in self.outputs for frame in range(self.n_frames)]

    def missing(self) -> list[int]:
        """Frames of which a file is not there yet."""
        return [frame for frame in range(self.n_frames) if not all(self.path(o, frame).exists() for o in self.outputs)]

    def keep(self, frame: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write a frame; each file appears under its name once it is whole."""
        for output, picture in pictures.items():
            write_png(self.path(output, frame), picture)

    def read(self, output: str) -> Iterator[np.ndarray]:
        """The frames of an output in order, uint8 [h, w, 3]."""
        for frame in range(self.n_frames):
            picture = read_png(self.path(output, frame))
            yield picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)
