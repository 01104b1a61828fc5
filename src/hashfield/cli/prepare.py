"""`hashfield prepare PHOTOS|VIDEO`: cameras and a training box for photos that have none."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Annotated

import tyro
from rich.live import Live
from rich.text import Text

from hashfield.cli.findings import say_findings
from hashfield.cli.progress import PLAIN_LINE_SECONDS
from hashfield.cli.shared import console, is_terminal, parse, say
from hashfield.data import ReadOptions, load_scene
from hashfield.data.doctor import examine
from hashfield.data.photo_checks import READ_SIDE
from hashfield.data.prepare import EXHAUSTIVE, Matching, Prepared, PrepareOptions, default_out, has_poses, prepare
from hashfield.errors import ConfigError


@dataclass(frozen=True)
class Prepare:
    """Find the cameras of photos, or of a video's frames, and write a data set that `hashfield train nerf` reads.

    What was done is kept: the same command goes on where it was stopped. Needs pip install 'hashfield[photos]'."""

    path: Annotated[Path, tyro.conf.Positional]
    """Folder of photos, or a video."""
    out: Path | None = None
    """Folder of the data set; default: <PATH>-prepared, beside the photos."""
    matching: Matching = "auto"
    """Which photos are compared: sequential (each with the next ones, as of a video), exhaustive (all with all), or
    auto: all with all up to 80 photos; of more, the next ones and those that look alike."""
    frames: int | None = None
    """How many frames of a video are taken; default: by its motion, 60 to 150."""
    longest_side: int = 1000
    """Features are found on copies of this size, in pixels."""
    features: int = 4096
    """Features that are found in a photo, at most."""
    threads: int | None = None
    """Threads; default: one for each CPU."""
    seed: int = 0
    """Seed of every random choice."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    options = parse(Prepare, arguments, "prepare")
    if has_poses(options.path) and options.out is None:
        say(f"warning: {options.path} has camera poses already: hashfield train nerf {quote(str(options.path))}")
    prepared = prepare_here(
        options.path,
        options.out,
        PrepareOptions(
            options.matching, options.longest_side, options.features, options.frames, n_threads(options.threads),
            options.seed,
        ),
    )  # fmt: skip
    scene = load_scene(prepared.path, ReadOptions(longest_side=READ_SIDE, splits=("train", "test")))
    for note in scene.notes:
        if note.startswith(("spaces:", "box:", "warning:")):
            say(note)
    say_findings(examine(scene).findings)
    say(f"train on it: hashfield train nerf {quote(str(prepared.path))}")
    say(f"look at it:  hashfield inspect {quote(str(prepared.path))}")
    return 0


def n_threads(threads: int | None) -> int:
    """Threads for the stages: as many as were asked for, or one for each CPU that this process may use.

    Raises:
        ConfigError: not a positive number.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads: expected at least 1, got {threads}")
    if threads is not None:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_here(source: Path, out: Path | None, options: PrepareOptions) -> Prepared:
    """Prepare photos with progress on the console, and say what came out.

    Args:
        source: Folder of photos, or a video.
        out: Folder of the data set; None: the default one.
        options: How cameras are found.

    Raises:
        DataError: there is too little to go by.
    """
    out = default_out(source) if out is None else out
    began = time.perf_counter()
    with StageView() as view:
        prepared = prepare(source, out, options, view.show)
    for note in prepared.notes:
        say(note)
    for lost in prepared.lost:
        say(f"warning: {lost.name} has no place: {lost.reason}")
    how = "was prepared before" if prepared.was_there else f"prepared in {time.perf_counter() - began:.0f} s"
    say(f"{how}: {prepared.path} ({prepared.n_placed} of {prepared.n_photos} photos)")
    return prepared


# seconds that the stages take for each photo or pair on two cores, relative to each other
_COST = {"small copies": 0.04, "features": 0.12, "matching": 0.011, "cameras": 0.14}


class StageView:
    """Shows stages as they go on, with the time left: a live line on a terminal, else a plain one every few seconds."""

    def __init__(self) -> None:
        self.live = Live(Text(""), console=console, refresh_per_second=4, transient=True) if is_terminal() else None
        self.stage, self.since, self.next_line = "", 0.0, 0.0
        self.n_photos = 0
        self.speed = 1.0
        """How many times longer stages take than foreseen."""

    def __enter__(self) -> "StageView":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def line(self, stage: str, done: int, total: int, elapsed: float) -> str:
        """The stage and the time left, in one line.

        Args:
            stage: In words.
            done: Photos or pairs that are done.
            total: All of them.
            elapsed: Seconds since the stage began.
        """
        text = f"{stage}: {done} of {total}"
        if not 0 < done <= total or (done == total and stage not in _COST):
            return text
        left = elapsed / done * (total - done)
        if stage in _COST:
            self.n_photos = total if stage != "matching" else self.n_photos
            self.speed = max(0.1, elapsed / (_COST[stage] * done))
            following = list(_COST)[list(_COST).index(stage) + 1 :]
            left += self.speed * sum(_COST[name] * self._foreseen(name) for name in following)
        return f"{text}, about {left:.0f} s left"

    def _foreseen(self, stage: str) -> int:
        """About how many photos or pairs a stage will have to do."""
        n = self.n_photos
        if stage != "matching":
            return n
        return n * (n - 1) // 2 if n <= EXHAUSTIVE else 30 * n

    def show(self, stage: str, done: int, total: int) -> None:
        """Take one report.

        Args:
            stage: In words.
            done: Photos or pairs that are done.
            total: All of them.
        """
        now = time.perf_counter()
        if stage != self.stage:
            self.stage, self.since, self.next_line = stage, now, now + 1.0
            if self.live:
                self.live.update(Text(self.line(stage, done, total, 0.0)))
            return
        line = self.line(stage, done, total, now - self.since)
        if self.live:
            self.live.update(Text(line))
        elif now >= self.next_line or done == total:
            self.next_line = now + PLAIN_LINE_SECONDS
            say(line)
