"""What is drawn next, and how finely: one thread, or the time between training steps, shared by all who look.

Whoever looks is a `Watcher`. Its newest wish is all that is kept of what it asks; work is done in small units, so that
a newer wish never waits long: a quick picture while someone moves, as large as the time for it allows, then the whole
picture in strips of rows once they rest. Pictures for files and videos are jobs that advance strip by strip between.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import UInt8

from hashfield.errors import HashfieldError
from hashfield.log import logger
from hashfield.tasks.frames import HasFrames
from hashfield.viewer.pictures import Canvas, Reference, Wish, canvas_of, fitted

Job = Generator[None, None, None]
"""Work that is done in small units, one for each time it is resumed."""

PICTURES_PER_S: Final = 5.0
"""Pictures a second that whoever moves gets at least, as long as a picture of the least size takes no longer."""
TIME_FOR_QUICK: Final = 0.6
"""Share of a picture's time that a quick one is made to take: costs change as one moves."""
REST_SECONDS: Final = 0.15
"""Someone rests whose wish has not changed for so long."""
STRIP_SECONDS: Final = 0.06
"""Time of a unit of work, about: a newer wish waits so long at most."""
SHOW_SECONDS: Final = 0.4
"""Time between two views of a picture that is under way."""
COARSE_FIRST_SECONDS: Final = 1.5
"""A finished picture that takes longer than this is drawn at half its size before."""
LEAST_PIXELS: Final = 16 * 12
FIRST_PIXELS: Final = 96 * 72
"""Pixels of the first quick picture, before anything is known of its cost."""

SHARE_MOVING: Final = 0.33
"""Share of the time that is taken from training while someone moves."""
SHARE_STILL: Final = 0.12
"""Share of the time that is taken from training while someone looks and does not move."""
MOVED_SECONDS: Final = 1.0
"""Someone moves whose wish changed within this time."""


class Source(Protocol):
    """Where the model comes from."""

    @property
    def known(self) -> HasFrames | None:
        """A model for what does not change while it learns (cameras, outputs, box), for any thread; None while there is
        none."""
        ...

    def current(self) -> tuple[int, HasFrames | None]:
        """A number that changes with the model, and the model, or None while there is none. Asked for only where models
        may be used: in the thread that draws."""
        ...

    def check(self) -> str | None:
        """Called about once a second: looks for a newer model; what is to be said of it, if anything."""
        ...


class FixedSource:
    """A model that stays as it is."""

    def __init__(self, model: HasFrames) -> None:
        self.known: HasFrames | None = model

    def current(self) -> tuple[int, HasFrames | None]:
        """See `Source`."""
        return 0, self.known

    def check(self) -> str | None:
        """See `Source`."""
        return None


class Shown(NamedTuple):
    """What is said of a picture that is shown."""

    width: int
    height: int
    is_final: bool
    """Whether it is as good as it gets."""
    seconds: float
    """Time that it took to draw."""
    note: str
    """What the picture is compared with, or nothing."""


class Watcher:
    """Someone who looks."""

    def __init__(
        self, show: Callable[[UInt8[np.ndarray, "h w 3"], Shown], None], fail: Callable[[str], None] | None = None
    ) -> None:
        """Args:
        show: Takes a picture of the window's shape, and what is said of it. Called by the thread that draws.
        fail: Takes a line about why a picture could not be drawn.
        """
        self.show, self.fail = show, fail or (lambda text: None)
        self.wish: Wish | None = None
        self.asked = -np.inf
        """When the wish last changed."""
        self.is_waiting = False
        """Whether the newest wish has not been drawn at all."""
        self.served = -np.inf
        self.quick_pixels = float(FIRST_PIXELS)
        """Pixels that a quick picture may have."""
        self.cost = 1e-6
        """Seconds per pixel of the last picture."""
        self.canvas: Canvas | None = None
        self.picture: np.ndarray | None = None
        """What is shown now, before it is fitted into the window."""
        self.version = -1
        """Number of the model that is shown."""
        self.refining: Job | None = None
        self.is_finished = False
        self.failed_at = -1
        """Number of the model that could not be drawn."""

    def forget(self) -> None:
        """Let go of the pictures. The objects of a page that was closed refer to each other in circles and stay until
        Python looks for such circles, which it seldom does where there are as many objects as here; some megabytes of
        pictures need not wait for that."""
        self.wish = self.canvas = self.picture = self.refining = None
        self.is_waiting = False


class RenderLoop:
    """Draws for all watchers, one small unit of work after another. `ask`, `add`, `remove`, `start` and `cancel` may be
    called by any thread; `work` and `run` by one."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.perf_counter) -> None:
        """Args:
        source: Gives the model.
        clock: Seconds.
        """
        self.source, self.clock = source, clock
        self.reference: Reference | None = None
        """What the model was learned from, once it is read."""
        self.has_resting_limit = False
        """While training, a picture is outdated before it is finished: then finer ones take no more than a second of
        drawing."""
        self.say: Callable[[str], None] = lambda text: None
        """Tells everyone."""
        self._watchers: list[Watcher] = []
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._is_stopped = False
        self._turn = 0
        self._next_check = -np.inf

    # --- from any thread

    def add(self, watcher: Watcher) -> None:
        """Draw for one more."""
        with self._lock:
            self._watchers.append(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Draw for this one no more."""
        with self._lock, suppress(ValueError):
            self._watchers.remove(watcher)
            watcher.forget()

    @property
    def n_watchers(self) -> int:
        """How many look."""
        return len(self._watchers)

    @property
    def is_needed(self) -> bool:
        """Whether anyone looks, or waits for a file."""
        return bool(self._watchers or self._jobs)

    def ask(self, watcher: Watcher, wish: Wish) -> None:
        """Note what someone wants to see now; what they wanted before is forgotten. Takes no time."""
        with self._lock:
            watcher.wish, watcher.asked, watcher.is_waiting = wish, self.clock(), True
            watcher.failed_at = -1
        self._event.set()

    def ask_again(self) -> None:
        """Draw everything once more: something other than a wish has changed."""
        with self._lock:
            for watcher in self._watchers:
                watcher.is_waiting, watcher.failed_at = watcher.wish is not None, -1
        self._event.set()

    def start(self, job: Job) -> None:
        """Do some work by and by."""
        with self._lock:
            self._jobs.append(job)
        self._event.set()

    def cancel(self, job: Job) -> None:
        """Leave off some work; what it holds is closed by the thread that draws."""
        with self._lock:
            if job in self._jobs:
                self._jobs[self._jobs.index(job)] = _closing(job)
        self._event.set()

    def stop(self) -> None:
        """Let `run` end."""
        self._is_stopped = True
        self._event.set()

    def moves(self) -> bool:
        """Whether anyone has asked for something new within the last second."""
        since = self.clock() - MOVED_SECONDS
        return any(watcher.asked >= since for watcher in list(self._watchers))

    # --- in the thread that draws

    def run(self) -> None:
        """Work until `stop`."""
        while not self._is_stopped:
            if not self.work():
                self.wait(0.05 if self._watchers else 0.5)

    def wait(self, seconds: float) -> None:
        """Sleep until there may be something to do."""
        self._event.wait(seconds)
        self._event.clear()

    def work(self) -> bool:
        """Do one unit of work, a twentieth of a second or so; False where there is nothing to do now. Whatever goes
        wrong is logged: a training must not end because of who looks at it."""
        try:
            return self._work()
        except Exception:
            logger.exception("the viewer failed")
            return False

    def _work(self) -> bool:
        now = self.clock()
        if now >= self._next_check:
            self._next_check = now + 1.0
            note = self.source.check()
            if note is not None:
                self.say(note)
        with self._lock:
            watchers, jobs = list(self._watchers), list(self._jobs)
        if not watchers and not jobs:
            return False
        version, model = self.source.current()
        if model is None:
            return False
        waiting = [w for w in watchers if w.is_waiting]
        if waiting:
            self._quick(min(waiting, key=lambda w: w.served), model, version, watchers)
            return True
        resting = [w for w in watchers if self._can_refine(w, now, version)]
        self._turn += 1
        if jobs and (not resting or self._turn % 2):
            self._advance(jobs[self._turn // 2 % len(jobs)])
            return True
        if resting:
            self._refine(min(resting, key=lambda w: w.served), version)
            return True
        return False

    def _can_refine(self, watcher: Watcher, now: float, version: int) -> bool:
        if watcher.wish is None or watcher.failed_at == version or now < watcher.asked + REST_SECONDS:
            return False
        return not watcher.is_finished or watcher.version != version

    def _quick(self, watcher: Watcher, model: HasFrames, version: int, watchers: list[Watcher]) -> None:
        with self._lock:
            wish, watcher.is_waiting = watcher.wish, False
        if wish is None:  # who has left meanwhile
            return
        now = self.clock()
        n_moving = max(1, sum(w.asked >= now - 2 * REST_SECONDS for w in watchers))
        time_for_it = TIME_FOR_QUICK / PICTURES_PER_S / n_moving * (SHARE_MOVING if self.has_resting_limit else 1.0)
        rows = min(wish.rows, max(2, round((max(watcher.quick_pixels, LEAST_PIXELS) / wish.aspect) ** 0.5)))
        watcher.refining, watcher.is_finished, watcher.version = None, False, version
        with self._guarded(watcher, version):
            canvas = canvas_of(model, wish, rows, reference=self.reference, is_draft=True)
            picture = canvas.rows(0, canvas.height)
            drawn = self.clock() - now
            self._show(watcher, wish, canvas, picture, False, drawn)
            seconds = max(self.clock() - now, 1e-6)  # with what it took to hand it over
            pixels = canvas.width * canvas.height
            watcher.cost = drawn / pixels
            watcher.quick_pixels = pixels * min(max(time_for_it / seconds, 0.05), 2.0)
        watcher.served = self.clock()

    def _refine(self, watcher: Watcher, version: int) -> None:
        with self._lock:
            wish, refining = watcher.wish, watcher.refining
            if wish is None or watcher not in self._watchers:  # who has left meanwhile
                return
            if refining is None:
                watcher.version, watcher.is_finished = version, False
                refining = watcher.refining = self._refinement(watcher, wish)
        with self._guarded(watcher, version):
            if next(refining, "ended") == "ended":
                watcher.refining, watcher.is_finished = None, True
        watcher.served = self.clock()

    def _refinement(self, watcher: Watcher, wish: Wish) -> Job:
        """The finished picture, drawn over the quick one."""
        heights = [wish.rows]
        full_seconds = watcher.cost * wish.rows**2 * wish.aspect
        if full_seconds > COARSE_FIRST_SECONDS:
            if self.has_resting_limit:
                heights = [max(2, round(wish.rows * (1.0 / full_seconds) ** 0.5))]
            elif watcher.picture is None or watcher.picture.shape[0] < 0.4 * wish.rows:
                heights.insert(0, wish.rows // 2)
        for height in heights:
            _, model = self.source.current()
            if model is None:
                return
            canvas = canvas_of(model, wish, height, reference=self.reference, like=watcher.canvas)
            picture = _stretched(watcher.picture, canvas.width, canvas.height)
            spent, last_shown = 0.0, self.clock()
            for top, part, seconds in self._strips(wish, canvas, watcher.cost):
                picture[top : top + len(part)] = part
                spent += seconds
                watcher.cost = 0.5 * (watcher.cost + seconds / part[..., 0].size)
                if top + len(part) < canvas.height:
                    if self.clock() - last_shown > SHOW_SECONDS:
                        self._show(watcher, wish, canvas, picture, False, spent)
                        last_shown = self.clock()
                    yield
            self._show(watcher, wish, canvas, picture, height == heights[-1], spent)
            if height != heights[-1]:
                yield

    def _strips(self, wish: Wish, canvas: Canvas, cost: float) -> Iterator[tuple[int, np.ndarray, float]]:
        """(first row, rows, seconds) of a picture from top to bottom, each drawn by the model as it is then.

        Args:
            wish: What is shown.
            canvas: Its picture.
            cost: Seconds per pixel that are expected.
        """
        top, version = 0, self.source.current()[0]
        while top < canvas.height:
            before = self.clock()
            newer, model = self.source.current()
            if newer != version and model is not None:
                canvas = canvas_of(model, wish, canvas.height, reference=self.reference, like=canvas)
                version = newer
            n_rows = min(max(1, round(STRIP_SECONDS / max(cost, 1e-9) / canvas.width)), canvas.height - top)
            part = canvas.rows(top, n_rows)
            seconds = self.clock() - before
            cost = seconds / part[..., 0].size
            yield top, part, seconds
            top += n_rows

    def painted(
        self, wish: Wish, width: int, height: int, take: Callable[[UInt8[np.ndarray, "h w 3"]], None],
        like: Canvas | None = None,
    ) -> Generator[None, None, Canvas]:  # fmt: skip
        """A whole picture of its own, for a job: yields between strips, and gives the canvas when it is done.

        Args:
            wish: What is shown.
            width: Pixels in a row.
            height: Rows.
            take: Gets the picture.
            like: A picture whose scale of colours is kept.
        """
        _, model = self.source.current()
        assert model is not None
        wish = Wish(wish.view, wish.look, width / height, height)
        if like is None and wish.look.output == "depth":
            # The scale of colours is that of the whole picture, which a strip does not know.
            like = canvas_of(model, wish, max(2, min(height, 96)), reference=self.reference, is_draft=True)
            like.rows(0, like.height)
        canvas = canvas_of(model, wish, height, reference=self.reference, like=like)
        picture = np.zeros((canvas.height, canvas.width, 3), np.uint8)
        for top, part, _ in self._strips(wish, canvas, 1e-6):
            picture[top : top + len(part)] = part
            yield
        take(_stretched(fitted(picture, width / height), width, height))
        return canvas

    def _advance(self, job: Job) -> None:
        try:
            next(job)
        except StopIteration:
            pass
        except Exception:  # whatever it is, the others are still drawn for
            logger.exception("a job of the viewer failed")
        else:
            return
        with self._lock, suppress(ValueError):
            self._jobs.remove(job)

    def _show(
        self, watcher: Watcher, wish: Wish, canvas: Canvas, picture: np.ndarray, is_final: bool, seconds: float
    ) -> None:
        with self._lock:
            if watcher not in self._watchers:
                return
            watcher.canvas, watcher.picture = canvas, picture
        note = Shown(canvas.width, canvas.height, is_final, seconds, canvas.note)
        watcher.show(fitted(picture, wish.aspect), note)

    @contextmanager
    def _guarded(self, watcher: Watcher, version: int) -> Iterator[None]:
        """Within the block an error becomes a line for whoever it concerns, who gets nothing until they ask for
        something else or the model changes: one who cannot be drawn for must not keep the others waiting."""
        try:
            yield
        except Exception as error:  # whatever it is
            watcher.failed_at, watcher.refining = version, None
            text = str(error)
            if not isinstance(error, HashfieldError):
                logger.error("a picture of the viewer failed", exc_info=error)
                text = f"this could not be drawn: {type(error).__name__}: {error}"
            watcher.fail(text)


def _closing(job: Job) -> Job:
    job.close()
    return
    yield


def _stretched(picture: np.ndarray | None, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture at another size, quickly; grey where there is none. Always memory of its own."""
    if picture is None:
        return np.full((height, width, 3), 128, np.uint8)
    if picture.shape[:2] == (height, width):
        return picture.copy()
    values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(values, (height, width), mode="bilinear")
    return scaled[0].permute(1, 2, 0).round().byte().contiguous().numpy()


# --- between training steps


class TimeShare:
    """Draws between training steps, for at most a stated share of the time while someone looks, and not at all while
    nobody does. It is called after every step by the thread that trains, so a model is never read while it changes."""

    def __init__(self, loop: RenderLoop, synchronize: Callable[[], None] | None = None) -> None:
        """Args:
        loop: What draws.
        synchronize: Waits for steps that a device has not finished, so that their time is not taken for drawing.
        """
        self.loop, self.synchronize = loop, synchronize or (lambda: None)
        self.is_paused = False
        self.wants_save = False
        self.on_step: Callable[[], None] = lambda: None
        self.credit = 0.0
        """Seconds that may be drawn; below 0 after a unit of work that took longer."""
        self.drawn = 0.0
        """Seconds drawn in all."""
        self._since: float | None = None

    def between_steps(self) -> Literal["go", "wait", "save"]:
        """Draw what is due, and say how to go on: "go": with the next step; "wait": call again at once; "save": write a
        checkpoint, then call again."""
        loop = self.loop
        if self.wants_save:
            self.wants_save = False
            return "save"
        if self.is_paused:
            self._since = None
            if not loop.work():
                loop.wait(0.05)
            return "wait"
        self.on_step()
        if not loop.is_needed:
            self._since, self.credit = None, 0.0
            return "go"
        now = loop.clock()
        if self._since is not None:
            share = SHARE_MOVING if loop.moves() else SHARE_STILL
            # Seconds per second of training; saved up for a picture's time at most.
            self.credit = min(self.credit + (now - self._since) * share / (1 - share), 0.1)
        if self.credit > 0:
            self.synchronize()
            begun = loop.clock()
            while self.credit > 0:
                before = loop.clock()
                if not loop.work():
                    break
                self.credit -= loop.clock() - before
            self.drawn += loop.clock() - begun
        self._since = loop.clock()
        return "go"
