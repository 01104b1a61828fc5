"""`hashfield demo [KIND]`: something made by formula, trained, judged and shown, by one driver for all kinds."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hashfield.cli.shared import kind_from_name, memory_advice, parse, run_command, say, set_up
from hashfield.cli.train import TrainKind, run_training, write_config
from hashfield.errors import ConfigError
from hashfield.export.video import check_video
from hashfield.ops.machine import is_kernel_cache_warm
from hashfield.train.loop import TrainOptions, TrainResult
from hashfield.train.run_folder import RunFolder
from hashfield.train.task import Task


@dataclass(frozen=True)
class DemoCommand:
    """What can be said of any kind of demo; the kinds add more."""

    out: Path | None = None
    """Run folder; default: runs/demo-<kind>-<n>."""
    overwrite: bool = False
    """Allow --out to hold a run already."""
    seconds: float = 20.0
    """Seconds to train for."""
    seed: int = 0
    """Seed of what is made and of its training."""
    threads: int | None = None
    """Threads of the kernels; default: as many as torch takes."""


@dataclass(frozen=True)
class DemoKind:
    """What a kind of task tells the driver of `demo`."""

    train: TrainKind
    """The kind's training."""
    command: type[Any]
    """The options: a `DemoCommand`; with `n_frames` where a turntable is filmed, `device` where it may be chosen."""
    words: str
    """What the user typed after `hashfield`."""
    name: str
    """Names the default run folder."""
    sizes: tuple[int, int] | None
    """Least and largest --size; None where there is no such option."""
    make: Callable[[Any, torch.device, RunFolder], AbstractContextManager[tuple[Task, Callable[[TrainResult], Any]]]]
    """(options, device, run) -> the task of what was made, for as long as it is open, and what to do when it is
    trained: report and pictures lie in the run folder afterwards."""
    check: Callable[[], object] = lambda: None
    """Raises where something is missing that the demo needs, before anything is made."""

    def __call__(self, arguments: list[str]) -> int:
        """`demo KIND` with its arguments: the exit code."""
        return demo_kind(self, arguments)


def main(arguments: list[str]) -> int:
    """Run the verb: `demo`, or `demo KIND`."""
    kind, rest = kind_from_name("demo", arguments, optional=True)
    return run_command(kind, "demo", rest)


def demo_kind(kind: DemoKind, arguments: list[str]) -> int:
    """`demo KIND` with its arguments: the exit code."""
    options = parse(kind.command, arguments, kind.words)
    device = set_up(getattr(options, "device", "cpu"), options.threads)
    _check(options, kind)
    started = time.perf_counter()
    length = TrainOptions(max_seconds=options.seconds)
    run = RunFolder.create(options.out, kind.name, options.overwrite)
    with memory_advice(kind.train.smaller), kind.make(options, device, run) as (task, finish):
        if not is_kernel_cache_warm():
            say("first start: the kernels are compiled now, which takes about a minute and is kept for the next time")
        write_config(run, task, length)
        on_progress = None if kind.train.on_progress is None else kind.train.on_progress(task, run)
        result = run_training(task, run, length, on_progress=on_progress)
        if result.stopped_by != "done":
            say(f"ended early ({result.stopped_by}) after step {result.step}; {run.checkpoint} holds what there is")
            return 130 if result.stopped_by == "interrupted" else 2
        finish(result)
    say(f"checkpoint: {run.checkpoint}")
    say(f"report: {run.report} (open it in a browser)")
    say(f"all in {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads")
    return 0


def _check(options: Any, kind: DemoKind) -> None:
    """Refuse what is wrong before anything is made."""
    if kind.sizes is not None and not kind.sizes[0] <= options.size <= kind.sizes[1]:
        raise ConfigError(f"--size: expected {kind.sizes[0]} to {kind.sizes[1]}, got {options.size}")
    if options.seed < 0:
        raise ConfigError(f"--seed: expected a whole number >= 0, got {options.seed}")
    n_frames = getattr(options, "n_frames", 0)
    if not 0 <= n_frames <= 100_000:
        raise ConfigError(f"--n-frames: expected 0 to 100000, got {n_frames}")
    kind.check()
    if n_frames:
        check_video()  # now, not after the training
