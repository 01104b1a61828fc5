"""What follows a training run of any kind: the table of its report, its curves, the page itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hashfield.cli.shared import place_of
from hashfield.export.report import write_report
from hashfield.train.loop import TrainResult
from hashfield.train.run_folder import RunFolder

Row = tuple[str, str]
"""Name and value, for people."""


@dataclass(frozen=True)
class Outcome:
    """What a kind of task tells of a finished run."""

    title: str
    """Heading of the page."""
    data: Sequence[Row]
    """What was learned from, and how: the first rows of the table."""
    figures: Sequence[Row]
    """How good it is: the last rows of the table."""
    headline: Sequence[Row]
    """The few figures that are shown large."""
    sheets: Sequence[tuple[str, np.ndarray]]
    """Captions and comparison pictures."""
    curves: Sequence[tuple[str, str]]
    """Heading, and key of the training loop's reports, of each curve over time."""
    trained: str
    """How much was trained on, in words: "1.0 M pixels"."""
    video: Path | None = None
    """A turntable."""


def write_outcome(
    run: RunFolder, result: TrainResult, outcome: Outcome, *, device: torch.device, seed: int, by_clock: bool
) -> None:
    """Write the report of a run.

    Args:
        run: Where the report lies afterwards.
        result: How training ended.
        outcome: What the kind tells.
        device: Where the run was trained.
        seed: Seed of the run's random choices.
        by_clock: Whether the schedule followed the clock.
    """
    rows = [
        *outcome.data,
        ("training", f"{result.train_seconds:.1f} s, {result.step} steps, {outcome.trained} on {place_of(device)}"),
        ("schedule", "follows the clock, so a second run differs a little" if by_clock else "follows the steps"),
        ("kernels compiled or loaded in", f"{result.compile_seconds:.1f} s"),
        ("ended", result.stopped_by),
        ("seed", str(seed)),
        *outcome.figures,
    ]
    headline = [*outcome.headline, ("training", f"{result.train_seconds:.0f} s")] if outcome.headline else []
    write_report(
        run.report, outcome.title, rows,
        curves={name: [(line["elapsed_s"], line[key]) for line in result.history] for name, key in outcome.curves},
        images=outcome.sheets, video=outcome.video, x_label="seconds of training", headline=headline,
    )  # fmt: skip
