"""Progress of training, and of whatever else takes long: a live line on a terminal, a plain line every few seconds
elsewhere."""

import math
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.live import Live
from rich.text import Text

from hashfield.cli.shared import console, is_terminal, say
from hashfield.train.loop import Progress

PLAIN_LINE_SECONDS = 5.0
SILENT_SECONDS = 2.0
"""What takes no longer than this says nothing."""

_Item = TypeVar("_Item")


class Countdown:
    """Shows how much of something is done and how long the rest will take, if it takes more than a moment: a live line
    on a terminal, a plain line every few seconds elsewhere. Use as a context manager."""

    def __init__(self, total: int, doing: str) -> None:
        """Args:
        total: How much there is to do.
        doing: What is counted: "frames".
        """
        self.total, self.doing = total, doing
        self.begun = time.perf_counter()
        self.next_line = self.begun + SILENT_SECONDS
        self.live = Live(Text(""), console=console, refresh_per_second=4, transient=True) if is_terminal() else None

    def __enter__(self) -> "Countdown":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, done: int) -> None:
        """Say so, if it is time to."""
        now = time.perf_counter()
        if not 0 < done < self.total or now < self.next_line:
            return
        left = (now - self.begun) / done * (self.total - done)
        line = f"{done} of {self.total} {self.doing}, {duration(left)} left"
        if self.live:
            self.live.start()
            self.live.update(Text(line))
        else:
            self.next_line = now + PLAIN_LINE_SECONDS
            say(line)


def counted(items: Iterable[_Item], total: int, doing: str) -> Iterator[_Item]:
    """The items, with a `Countdown`.

    Args:
        items: What is done one after another.
        total: How many there are.
        doing: What is counted: "frames".
    """
    with Countdown(total, doing) as countdown:
        for done, item in enumerate(items, start=1):
            yield item
            countdown.show(done)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42), duration(200), duration(7500)
    ('42 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def progress_line(progress: Progress) -> str:
    """Step, loss, the batch's PSNR where the task has one, rays/s and samples/s (or points/s where they are the same)
    and time left, in one line."""
    if progress.phase == "compiling":
        return "preparing the kernels (the first start compiles them, which takes about a minute) ..."
    steps = f"{progress.step}" + (f"/{progress.n_steps}" if progress.n_steps else "")
    psnr = "" if math.isnan(progress.psnr) else f"  batch {progress.psnr:.2f} dB"
    left = "" if progress.seconds_left is None else f"  {duration(progress.seconds_left)} left"
    rate = f"{progress.rays_per_s / 1e3:.0f}k rays/s  {progress.samples_per_s / 1e6:.2f}M samples/s"
    if progress.rays_per_s == progress.samples_per_s:
        rate = f"{progress.samples_per_s / 1e6:.2f}M points/s"
    return f"{100 * progress.fraction:3.0f} %  step {steps}  loss {progress.loss:.5f}{psnr}  {rate}{left}"


class ProgressView:
    """Shows `Progress` as it comes; use as a context manager and pass `show` to the training loop."""

    def __init__(self, resume_command: str | None = None) -> None:
        """Args: resume_command: goes on with the run should it end early; named at the first autosave."""
        self.resume_command = resume_command
        self.live = Live(Text(""), console=console, refresh_per_second=4, transient=True) if is_terminal() else None
        self.next_line = 0.0
        self.phase = ""

    def __enter__(self) -> "ProgressView":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        """Take one report."""
        if progress.phase == "saving":
            how = f"; should the run end early, go on with: {self.resume_command}" if self.resume_command else ""
            self.resume_command = None  # once is enough
            say(f"saved at step {progress.step}{how}")
            return
        if self.live:
            line = progress_line(progress)
            if len(line) >= console.width:
                line = line.replace("  loss", "\nloss")  # else the edge would cut the time left, which stands last
            self.live.update(Text(line))
            return
        now = time.perf_counter()
        if now >= self.next_line or progress.phase != self.phase or progress.fraction >= 1.0:
            self.next_line, self.phase = now + PLAIN_LINE_SECONDS, progress.phase
            say(progress_line(progress))
