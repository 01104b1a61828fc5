"""A matrix of settings trained one after another on one input, in files that survive a stop.

A process runs one cell at a time: side by side they would spoil each other's timing. Several ranks take the next cell
each, so that their times say something where each has a machine of its own. Every cell has a folder of its own; what a
stopped sweep has finished is kept, and the cell it was in goes on from its checkpoint.
"""

import csv
import datetime
import io
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hashfield._version import __version__
from hashfield.aside import write_aside
from hashfield.errors import CheckpointError, ConfigError
from hashfield.ops.backend import kernel_path
from hashfield.steps.ranks import current, working_alone
from hashfield.train.loop import Progress, TrainOptions, TrainResult, read_metrics, train
from hashfield.train.run_folder import CHECKPOINT_NAME, RunFolder
from hashfield.train.task import Task

Row = dict[str, Any]

PLAN_NAME = "plan.json"
"""File in a cell's folder with its settings and length."""


@dataclass(frozen=True)
class Cell:
    """One setting of a sweep."""

    name: str
    """Name of the cell and of its folder; unique."""
    settings: Mapping[str, Any]
    """What distinguishes it, as columns of the table: JSON values."""
    make: Callable[[], Task]
    """A fresh task with these settings."""
    evaluate: Callable[[Any], Mapping[str, float]]
    """Figures of the trained task, such as psnr; not part of the training time."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    rows: list[Row]
    """One for each finished cell, in the order of the cells: settings, budget, figures, time, machine, commit."""
    histories: dict[str, list[Row]]
    """The training loop's reports of each finished cell."""
    is_complete: bool
    """False where it was interrupted."""


def run_sweep(
    cells: Sequence[Cell],
    folder: Path,
    options: TrainOptions,
    about: Mapping[str, Any],
    on_cell: Callable[[int, Cell, Row | None], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SweepResult:
    """Train every cell that is not finished yet. Where several ranks work, the first one gets the rows.

    Args:
        cells: In the order they run.
        folder: Where their folders lie; made if need be.
        options: Length of every cell.
        about: What else the figures depend on (input, seed); a folder begun with another is refused.
        on_cell: Called before each cell with None and after it with its row; finished ones come with their row at once.
        on_progress: As for `train`.

    Raises:
        ConfigError: two cells share a name, a loss is not finite, or a cell's folder was begun with other settings.
        CheckpointError: a checkpoint cannot be written or read.
    """
    if len({cell.name for cell in cells}) < len(cells):
        raise ConfigError("cells: expected names that differ")
    say = on_cell or (lambda number, cell, row: None)
    is_stopped = False

    def finish(number: int) -> tuple[Row | None, list[Row]]:
        """The row of a cell and the training loop's reports; no row where the sweep was stopped."""
        nonlocal is_stopped
        cell = cells[number]
        own = folder / cell.name
        plan = json.loads(json.dumps({"settings": dict(cell.settings), "options": vars(options), **about}))
        row = _finished(own, plan)
        if row is None and not is_stopped:
            say(number, cell, None)
            with working_alone():
                row = _run(cell, own, plan, options, on_progress)
            is_stopped = row is None
        return row, read_metrics(RunFolder(own, own / CHECKPOINT_NAME).metrics_jsonl)

    rows: list[Row] = []
    histories: dict[str, list[Row]] = {}
    dealt = current().deal(len(cells), finish, lambda found: json.dumps(found).encode(), json.loads)
    for number, (row, history) in enumerate(dealt):
        if row is None:
            return SweepResult(rows, histories, False)
        rows.append(row)
        histories[cells[number].name] = history
        say(number, cells[number], row)
    return SweepResult(rows, histories, not is_stopped)


def _finished(own: Path, plan: dict[str, Any]) -> Row | None:
    """The row of a finished cell; None where there is none. A folder begun with another plan is refused."""
    found = _read_json(own / PLAN_NAME)
    if found is None:
        return None
    if found != plan:
        keys = sorted(k for k in {*plan, *found} if plan.get(k) != found.get(k))
        raise ConfigError(f"{own}: was begun with another {', '.join(keys)}; choose another --out, or --overwrite")
    return _read_json(own / "row.json")


def _run(
    cell: Cell, own: Path, plan: dict[str, Any], options: TrainOptions, on_progress: Callable[[Progress], None] | None
) -> Row | None:
    run = RunFolder.create(own, cell.name, overwrite=True)
    _write_json(own / PLAN_NAME, plan)
    task = cell.make()
    resume = run.checkpoint.exists()
    try:
        result = train(task, run, options, on_progress, resume)
    except CheckpointError:
        if not resume:
            raise
        # A checkpoint of another version, or half a one: the cell begins anew.
        task = cell.make()
        result = train(task, run, options, on_progress, False)
    if result.stopped_by == "interrupted":
        return None
    if result.stopped_by == "non_finite":
        raise ConfigError(f"{cell.name}: the loss of step {result.step} is not a finite number")
    before = time.perf_counter()
    figures = {name: round(float(value), 5) for name, value in cell.evaluate(task).items()}
    row = {
        "cell": cell.name,
        **cell.settings,
        "samples": result.n_samples,
        "steps": result.step,
        **figures,
        "train_seconds": round(result.train_seconds, 2),
        "us_per_sample": round(result.train_seconds / max(result.n_samples, 1) * 1e6, 3),
        **({} if resume else _processor(result)),
        "evaluate_seconds": round(time.perf_counter() - before, 1),
        **machine(),
    }
    _write_json(own / "row.json", row)
    run.checkpoint.unlink(missing_ok=True)  # hundreds of megabytes that nobody needs again
    return row


def _processor(result: TrainResult) -> Row:
    """The processor's time in training, and its share of the threads' time: far below 1, others used the machine. Not
    known of a cell that was resumed."""
    share = result.cpu_seconds / max(result.train_seconds, 1e-9) / torch.get_num_threads()
    return {"cpu_seconds": round(result.cpu_seconds, 2), "cpu_share": round(share, 3)}


def discard(folder: Path) -> None:
    """Remove the cells of an earlier sweep in a folder, and nothing else."""
    for plan in folder.glob(f"*/{PLAN_NAME}"):
        shutil.rmtree(plan.parent)


def is_cell(folder: Path) -> bool:
    """Whether a folder is a cell of a sweep, which only the sweep can go on with."""
    return (folder / PLAN_NAME).is_file()


def machine() -> dict[str, str]:
    """What a figure was measured on and with: date, commit, CPU, threads, versions."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        field = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in lines if ":" in line)}
        name = f"{field['model name']} (family {field['cpu family']} model {field['model']})"
    except (OSError, KeyError):
        pass  # not Linux
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{name}, {torch.get_num_threads()} threads, {kernel_path()}",
        "torch": torch.__version__,
    }


def commit() -> str:
    """Short hash of the checkout this runs from, with + where its sources differ from it; else the version."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return found.stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return __version__
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"


# --- what comes out ------------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Numbers of the points (cost, quality) that no other beats: none is at once as cheap and as good, and better in
    one of them.

    >>> sorted(pareto_front([(1.0, 20.0), (2.0, 19.0), (3.0, 25.0)]))
    [0, 2]
    """
    return {
        k
        for k, (cost, quality) in enumerate(points)
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    }


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV, one column for each key of any row."""
    handle = io.StringIO()
    writer = csv.DictWriter(handle, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return handle.getvalue()


def markdown_table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> str:
    """The rows as a Markdown table.

    Args:
        rows: One line each; a missing value stays empty.
        columns: (key, heading).
    """
    lines = [[heading for _, heading in columns], ["---"] * len(columns)]
    lines += [[_cell_text(row.get(key, "")) for key, _ in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell_text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value).replace("|", "\\|")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
