"""Progress of training: a live line on a terminal, a plain line every few seconds elsewhere."""

import math
import time
from types import TracebackType

from rich.live import Live
from rich.text import Text

from hashfield.cli.shared import console, is_terminal, say
from hashfield.train.loop import Progress

PLAIN_LINE_SECONDS = 5.0


def progress_line(progress: Progress) -> str:
    """Step, loss, the batch's PSNR where the task has one, rays/s and samples/s (or points/s where they are the same)
    and time left, in one line."""
    if progress.phase == "compiling":
        return "preparing the kernels (the first start compiles them, which takes about a minute) ..."
    steps = f"{progress.step}" + (f"/{progress.n_steps}" if progress.n_steps else "")
    psnr = "" if math.isnan(progress.psnr) else f"  batch {progress.psnr:.2f} dB"
    left = "" if progress.seconds_left is None else f"  {progress.seconds_left:.0f} s left"
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
