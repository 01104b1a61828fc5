"""Keyframes of a camera path as someone puts them together, one after another."""

from pathlib import Path

from hashfield.errors import ConfigError
from hashfield.geometry.camera_path import MAX_FRAMES, write_keyframes
from hashfield.geometry.cameras import Camera
from hashfield.geometry.paths import interpolate_path
from hashfield.viewer.pictures import Eye


class PathEditor:
    """An ordered list of eyes with one of them chosen, and the path through them."""

    def __init__(self) -> None:
        self.eyes: list[Eye] = []
        self.chosen = -1
        """Index of the chosen keyframe; -1 while there is none."""
        self.seconds = 4.0
        self.fps = 24.0
        self.is_closed = False

    def add(self, eye: Eye) -> None:
        """A new keyframe behind the chosen one, which is then the chosen one."""
        self.chosen += 1
        self.eyes.insert(self.chosen, eye)

    def replace(self, eye: Eye) -> None:
        """The chosen keyframe becomes this."""
        if self.eyes:
            self.eyes[self.chosen] = eye

    def remove(self) -> None:
        """Take the chosen keyframe out."""
        if self.eyes:
            del self.eyes[self.chosen]
            self.chosen = min(self.chosen, len(self.eyes) - 1)

    def move(self, by: int) -> None:
        """Exchange the chosen keyframe with the one before (-1) or behind (1) it; it stays the chosen one."""
        other = self.chosen + by
        if self.eyes and 0 <= other < len(self.eyes):
            self.eyes[self.chosen], self.eyes[other] = self.eyes[other], self.eyes[self.chosen]
            self.chosen = other

    @property
    def n_frames(self) -> int:
        """Frames of the video."""
        return max(1, round(self.seconds * self.fps))

    def cameras(self, width: int, height: int, n_frames: int | None = None) -> tuple[Camera, ...]:
        """A camera for each frame.

        Args:
            width: Pixels of a frame in a row.
            height: Rows of a frame.
            n_frames: How many; None: as many as the video has.

        Raises:
            ConfigError: there is no keyframe, or there would be too many frames.
        """
        self._check()
        keyframes = [eye.camera(width, height) for eye in self.eyes]
        return interpolate_path(keyframes, n_frames or self.n_frames, closed=self.is_closed)

    def write(self, path: Path, width: int, height: int) -> None:
        """Write the keyframes as a camera-path file (docs/camera_path.md).

        Args:
            path: The file.
            width: Pixels of a frame in a row.
            height: Rows of a frame.

        Raises:
            ConfigError: there is no keyframe, or there would be too many frames.
        """
        self._check()
        keyframes = [eye.camera(width, height) for eye in self.eyes]
        write_keyframes(path, keyframes, seconds=self.seconds, fps=self.fps, closed=self.is_closed)

    def _check(self) -> None:
        if not self.eyes:
            raise ConfigError("the path has no keyframes yet")
        if self.n_frames > MAX_FRAMES:
            raise ConfigError(f"the path has {self.n_frames} frames, more than {MAX_FRAMES}")
