"""What all open browsers share: the model's source, the photos, files that buttons write, a training's figures."""

import math
import re
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from hashfield.errors import DataError, HashfieldError
from hashfield.export.images import write_png
from hashfield.export.video import Mp4Writer
from hashfield.tasks.frames import HasFrames
from hashfield.train.loop import Progress
from hashfield.train.task import Task
from hashfield.viewer.loop import Job, RenderLoop, Source, TimeShare
from hashfield.viewer.path_editor import PathEditor
from hashfield.viewer.pictures import (
    Canvas,
    Look,
    Photos,
    PictureStage,
    Reference,
    Stage,
    Wish,
    eye_of,
    is_picture,
    stage_of,
)

CURVE_POINTS: Final = 500
"""Points of a curve, at most: then every other one is dropped."""


class FileSource:
    """The model in a checkpoint file, read again when the file is another one."""

    def __init__(self, path: Path, load: Callable[[Path], HasFrames]) -> None:
        """Args:
        path: The checkpoint.
        load: Reads it.

        Raises:
            CheckpointError: it cannot be read.
        """
        self.path, self.load = path, load
        self._stamp = self._stamp_now()
        self.known: HasFrames | None = load(path)
        self.version = 0

    def current(self) -> tuple[int, HasFrames | None]:
        """See `hashfield.viewer.loop.Source`."""
        return self.version, self.known

    def check(self) -> str | None:
        """See `hashfield.viewer.loop.Source`."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        if stamp is None:
            return f"{self.path.name} is gone; what is shown is what it held"
        try:
            model = self.load(self.path)
        except HashfieldError as error:
            return f"{error}; what is shown is what the file held before"
        if type(model) is not type(self.known):
            return f"{self.path.name} now holds another kind of model: start hashfield view again to see it"
        self.known, self.version = model, self.version + 1
        steps = getattr(model, "info", {}).get("figures", {}).get("steps")
        return f"{self.path.name} was replaced and read again" + (f": step {steps}" if steps is not None else "")

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class TaskSource:
    """The model of a task that is being trained, as it is between two steps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.version = -1
        self.known: HasFrames | None = None
        self._model: tuple[int, HasFrames] | None = None

    def stepped(self) -> None:
        """The task has changed."""
        self.version += 1

    def current(self) -> tuple[int, HasFrames | None]:
        """See `hashfield.viewer.loop.Source`."""
        if self.version < 0:
            return -1, None
        if self._model is None or self._model[0] != self.version:
            self._model = self.version, self.task.model()
            self.known = self.known or self._model[1]
        return self._model

    def check(self) -> str | None:
        """See `hashfield.viewer.loop.Source`."""
        return None


class Curves:
    """Loss and PSNR over the time of a training."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque()
        self.loss: deque[float] = deque()
        self.psnr: deque[float] = deque()
        self.last: Progress | None = None

    def add(self, progress: Progress) -> None:
        """Note a report of the training loop."""
        self.last = progress
        if progress.phase != "training" or not math.isfinite(progress.loss):
            return
        for curve, value in (
            (self.seconds, progress.elapsed_s),
            (self.loss, progress.loss),
            (self.psnr, progress.psnr),
        ):
            curve.append(value)
        if len(self.seconds) > CURVE_POINTS:
            self.seconds, self.loss, self.psnr = (deque(list(c)[::2]) for c in (self.seconds, self.loss, self.psnr))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds of training, logarithm to base 10 of the loss, PSNR in dB."""
        loss = np.log10(np.maximum(np.array(self.loss, np.float64), 1e-12))
        return np.array(self.seconds, np.float64), loss, np.array(self.psnr, np.float64)


class Training:
    """A training that is watched: its controls and figures."""

    def __init__(self, share: TimeShare, loop: RenderLoop) -> None:
        self.share, self.loop, self.curves = share, loop, Curves()
        self.is_over = False
        self.steps_per_s = math.nan
        self._last: tuple[int, float] | None = None

    def report(self, progress: Progress) -> None:
        """Note a report of the training loop."""
        self.curves.add(progress)
        if progress.phase == "training":
            now = self.loop.clock()
            if self._last is not None and now > self._last[1]:
                self.steps_per_s = (progress.step - self._last[0]) / (now - self._last[1])
            self._last = progress.step, now

    def pause(self, is_paused: bool) -> None:
        """Stop after the step at hand, or go on. While nothing changes, pictures are drawn as finely as can be."""
        self.share.is_paused = is_paused
        self.loop.has_resting_limit = not is_paused and not self.is_over
        self._last, self.steps_per_s = None, math.nan
        self.loop.ask_again()

    def save(self) -> None:
        """Write a checkpoint after the step at hand."""
        self.share.wants_save = True

    def status(self) -> str:
        """How it goes, in a line."""
        progress = self.curves.last
        if progress is None or progress.phase == "compiling":
            return "making kernels ready"
        state = "trained" if self.is_over else "paused" if self.share.is_paused else "training"
        left = "" if progress.seconds_left is None or self.is_over else f", {progress.seconds_left:.0f} s left"
        speed = f", {self.steps_per_s:.1f} steps/s" if math.isfinite(self.steps_per_s) and not self.is_over else ""
        return f"{state}: step {progress.step}, {progress.elapsed_s:.0f} s of training{left}{speed}"


class Session:
    """One run of the viewer."""

    def __init__(
        self,
        source: Source,
        renders: Path,
        *,
        title: str,
        read_reference: Callable[[], Reference] | None = None,
    ) -> None:
        """Args:
        source: Gives the model.
        renders: Folder that pictures, paths and videos are written to.
        title: What is shown, for people.
        read_reference: Reads what the model was learned from; called once, when it is first asked for.
        """
        self.source, self.renders, self.title = source, renders, title
        self.loop = RenderLoop(source)
        self.training: Training | None = None
        self.say: Callable[[str], None] = lambda text: None
        """Tells everyone."""
        self.loop.say = lambda text: self.say(text)
        self._read, self._is_reading = read_reference, False
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._stage: Stage | PictureStage | None = None

    @property
    def model(self) -> HasFrames | None:
        """The model, for what does not change while it learns: cameras, outputs, box. None before the first step."""
        return self.source.known

    @property
    def stage(self) -> Stage | PictureStage | None:
        """How the page's space lies to the model's."""
        model = self.model
        if self._stage is None and model is not None:
            if is_picture(model):
                whole = next(iter(model.views["whole"]))
                self._stage = PictureStage(whole.crop[2], whole.crop[3])
            else:
                self._stage = stage_of(model)
        return self._stage

    def watch_training(self, training: Training) -> None:
        """Show how a training goes."""
        self.training = training
        self.loop.has_resting_limit = True

    @property
    def has_reference(self) -> bool:
        """Whether what the model was learned from may be had."""
        return self._read is not None

    def want_reference(self) -> None:
        """Read what the model was learned from, unless that is done or under way; pictures are drawn again then."""
        with self._lock:
            if self._read is None or self._is_reading or self.loop.reference is not None:
                return
            self._is_reading = True
        self.say("reading what the model was learned from ...")
        threading.Thread(target=self._read_reference, daemon=True, name="hashfield-photos").start()

    def _read_reference(self) -> None:
        assert self._read is not None
        try:
            self.loop.reference = self._read()
        except HashfieldError as error:
            self.say(str(error))
            self._read = None
        finally:
            self._is_reading = False
        self.loop.ask_again()

    def photos(self) -> Photos | None:
        """The photos, if they are read."""
        return self.loop.reference if isinstance(self.loop.reference, Photos) else None

    # --- files

    def new_file(self, stem: str, suffix: str) -> Path:
        """A path in the folder of renders that nothing lies at: its name is made here, never by a browser.

        Args:
            stem: How the name begins.
            suffix: How it ends: ".png".
        """
        assert re.fullmatch(r"[a-z]+", stem) and re.fullmatch(r"\.[a-z0-9]+", suffix)
        with self._lock:
            try:
                self.renders.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"{self.renders}: cannot be made: {error.strerror}") from error
            n = 1
            while (name := f"{stem}_{n:03d}{suffix}") in self._names or (self.renders / name).exists():
                n += 1
            self._names.add(name)
        return self.renders / name

    def still(
        self, wish: Wish, width: int, height: int, done: Callable[[Path], None], fail: Callable[[str], None]
    ) -> Job:
        """A job that draws one picture and writes it.

        Args:
            wish: What is shown.
            width: Pixels in a row.
            height: Rows.
            done: Gets the file.
            fail: Gets a line about what went wrong.
        """

        def work() -> Job:
            found: list[np.ndarray] = []
            yield from self.loop.painted(wish, width, height, found.append)
            done(write_png(self.new_file("view", ".png"), found[0]))

        return _failing(work(), fail)

    def video(
        self, path: PathEditor, look: Look, width: int, height: int, progress: Callable[[float], None],
        done: Callable[[Path], None], fail: Callable[[str], None],
    ) -> Job:  # fmt: skip
        """A job that draws the frames of a path and writes them as a video.

        Args:
            path: The keyframes, as they are now.
            look: How the frames look.
            width: Pixels of a frame in a row.
            height: Rows of a frame.
            progress: Gets the share that is done, 0 to 1, after every frame.
            done: Gets the file.
            fail: Gets a line about what went wrong.

        Raises:
            ConfigError: the path cannot be filmed.
        """
        cameras, fps = path.cameras(width, height), path.fps

        def work() -> Job:
            scale: Canvas | None = None
            target = self.new_file("video", ".mp4")
            with Mp4Writer(target, fps=fps) as video:
                for k, camera in enumerate(cameras):
                    wish = Wish(eye_of(camera), look, width / height, height)
                    scale = yield from self.loop.painted(wish, width, height, video.add, scale)
                    progress((k + 1) / len(cameras))
            done(target)

        return _failing(work(), fail)


def _failing(job: Job, fail: Callable[[str], None]) -> Job:
    """A job whose errors end in a line for whoever started it."""
    try:
        yield from job
    except HashfieldError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")


def figures_of(model: Any) -> str:
    """What a model tells of its run, in a line; nothing where it tells nothing."""
    figures = getattr(model, "info", {}).get("figures") or {}
    steps, seconds = figures.get("steps"), figures.get("train_seconds")
    known = [f"{steps} steps" if steps is not None else "", f"{seconds:.0f} s of training" if seconds else ""]
    return ", ".join(text for text in known if text)
