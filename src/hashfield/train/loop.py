"""The one training loop: steps, clock, progress, autosave, signals. It knows the Task protocol and nothing else."""

import json
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from hashfield.aside import remove_left_behind, write_aside
from hashfield.errors import CheckpointError, ConfigError
from hashfield.log import logger
from hashfield.steps.protocol import StepResult
from hashfield.steps.ranks import Ranks, Turns, current
from hashfield.train.checkpoint import load_checkpoint, save_checkpoint
from hashfield.train.run_folder import RunFolder
from hashfield.train.task import Task

StoppedBy = Literal["done", "interrupted", "non_finite"]
_Loaded = tuple[dict[str, Tensor], dict[str, Any]]

SAME_STEPS: Final = 500
"""Steps after which several ranks verify that they hold the same numbers."""

METRICS: Final = (
    "step", "elapsed_s", "loss", "psnr", "rays_per_s", "samples_per_s", "n_rays", "n_samples",
)  # fmt: skip
"""The figures of a line of metrics.jsonl; null stands for NaN, which JSON does not have."""


BetweenSteps = Callable[[], Literal["go", "wait", "save"]]
"""What is called after every step: "go" on with the next one; "wait": call it again, unless the run is interrupted;
"save" a checkpoint, then call it again."""


@dataclass(frozen=True)
class TrainOptions:
    """How long to train. Exactly one of the three lengths is given; schedules are fractions of it."""

    n_steps: int | None = None
    """Steps of the whole run."""
    max_seconds: float | None = None
    """Seconds of training of the whole run: all that happens after the images are decoded, without evaluation,
    saving and first-use compilation. The clock then enters the schedule, so runs are not repeatable bit for bit."""
    max_samples: int | None = None
    """Points that the networks are trained on; the run ends with the step that reaches it."""
    autosave_seconds: float = 60.0
    """Time between checkpoints."""
    stop_after: int | None = None
    """Stop as if interrupted once this many steps are done; for tests of resuming."""

    def __post_init__(self) -> None:
        if sum(length is not None for length in (self.n_steps, self.max_seconds, self.max_samples)) != 1:
            raise ConfigError("expected exactly one of --n-steps, --max-seconds and --max-samples")
        if not self.autosave_seconds >= 0:
            raise ConfigError(f"autosave_seconds: expected at least 0, got {self.autosave_seconds}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples: expected at least 1, got {self.max_samples}")
        if self.n_steps is not None and self.n_steps < 1:
            raise ConfigError(f"n_steps: expected at least 1, got {self.n_steps}")
        if self.max_seconds is not None and not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise ConfigError(f"max_seconds: expected a positive number, got {self.max_seconds}")


@dataclass(frozen=True)
class Progress:
    """How far a run is, and how it goes."""

    phase: Literal["compiling", "training", "saving"]
    """"saving": a checkpoint has just been written; loss, PSNR and rates are not known then."""
    step: int
    n_steps: int | None
    elapsed_s: float
    """Seconds of training so far."""
    fraction: float
    """Part of the planned run that is done, 0 to 1."""
    loss: float
    """Mean loss since the report before."""
    psnr: float
    """PSNR of the training batches since the report before, in dB; NaN where the task has none."""
    rays_per_s: float
    samples_per_s: float
    seconds_left: float | None
    """Seconds of training that are left, if this is known."""


@dataclass
class TrainResult:
    """How a run ended."""

    step: int
    train_seconds: float
    compile_seconds: float
    stopped_by: StoppedBy
    n_rays: int
    n_samples: int
    history: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    cpu_seconds: float = 0.0
    """Processor time of this process in the steps it took itself, all threads."""


class _Window:
    """Sums since the last report."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.loss = self.error = 0.0
        self.steps = self.rays = self.samples = 0
        self.waiting: list[Tensor] = []
        """Figures [4] of steps that have not been read from their device."""

    def add(self, result: StepResult) -> tuple[int, int]:
        """Count a step; its rays and samples, 0 while they are on a device."""
        self.steps += 1
        if isinstance(result.loss, Tensor):
            figures = (result.loss, result.squared_error, result.n_rays, result.n_samples)
            self.waiting.append(torch.stack([figure for figure in figures if isinstance(figure, Tensor)]))
            return 0, 0
        n_rays, n_samples = int(result.n_rays), int(result.n_samples)
        self._sum(float(result.loss), float(result.squared_error), n_rays, n_samples)
        return n_rays, n_samples

    def read(self) -> tuple[int, int]:
        """Wait for the steps that are on a device; their rays and samples."""
        if not self.waiting:
            return 0, 0
        loss, error, rays, samples = torch.stack(self.waiting).double().sum(0).tolist()
        self.waiting = []
        self._sum(loss, error, int(rays), int(samples))
        return int(rays), int(samples)

    def _sum(self, loss: float, error: float, rays: int, samples: int) -> None:
        self.loss += loss
        self.error += error
        self.rays += rays
        self.samples += samples


def train(
    task: Task,
    run: RunFolder,
    options: TrainOptions,
    on_progress: Callable[[Progress], None] | None = None,
    resume: bool = False,
    between_steps: BetweenSteps | None = None,
) -> TrainResult:
    """Run a task's training and return how it ended; checkpoint and metrics.jsonl then lie in the run folder.

    The first SIGINT or SIGTERM ends the run after the step at hand, with a checkpoint; a second one is not caught.

    Where several ranks work (`hashfield.steps.ranks`), all run this side by side: the first one keeps the clock and
    writes the files, a signal to any of them ends the run for all, and figures are those of all.

    Args:
        task: What to train.
        run: Where to write.
        options: How long.
        on_progress: Called about twice a second.
        resume: Go on from the run's checkpoint.
        between_steps: Uses the time after a step, such as a viewer; that does not count as training.

    Raises:
        CheckpointError: the checkpoint to resume from does not fit, or the last one cannot be written.
        RanksError: another rank failed or is gone.
    """
    _remove_left_behind(run)
    going = _Going(task, run, options, on_progress or (lambda progress: None))
    compile_seconds = going.warm_up()
    if resume:
        going.resume()
    else:
        going.begin()
    with _Signals() as signals:
        stopped_by = going.until_it_ends(signals, between_steps)
    if stopped_by != "non_finite":
        going.save_by_first()
    return TrainResult(
        going.step, going.elapsed, compile_seconds, stopped_by, going.n_rays, going.n_samples, going.history,
        going.cpu_seconds,
    )  # fmt: skip


def _remove_left_behind(run: RunFolder) -> None:
    n_removed, n_bytes = remove_left_behind(run.path)
    if n_removed:
        logger.warning("%s: %d files (%.1f MB) that killed saves left are removed", run.path, n_removed, n_bytes / 1e6)


class _Going:
    """A training on its way: how far it is, what has been reported of it, and when the next report and save are due."""

    def __init__(self, task: Task, run: RunFolder, options: TrainOptions, say: Callable[[Progress], None]) -> None:
        self.task, self.run, self.options, self.say = task, run, options, say
        self.ranks = current()
        self.metrics = _Metrics(run.metrics_jsonl if self.ranks.is_first else None)
        self.history: list[dict[str, Any]] = []
        self.step = self.n_rays = self.n_samples = 0
        self.elapsed = 0.0
        """Seconds of training, the same for all ranks: those of the first one's clock."""
        self.clock = 0.0
        """Seconds of training by this rank's own clock."""
        self.cpu_seconds = 0.0
        self.window = _Window()
        self.next_report = self.next_save = 0.0

    @property
    def fraction(self) -> float:
        """Part of the planned run that is done, 0 to 1."""
        if self.options.n_steps is not None:
            return min(1.0, self.step / self.options.n_steps)
        if self.options.max_samples is not None:
            return min(1.0, self.n_samples / self.options.max_samples)
        return min(1.0, self.elapsed / (self.options.max_seconds or 1.0))

    def warm_up(self) -> float:
        """Have the task compile its kernels; seconds that it took."""
        self.say(self._progress("compiling"))
        before = time.perf_counter()
        with self.ranks.agreed():
            self.task.warm_up()
        return time.perf_counter() - before

    def begin(self) -> None:
        """Start a fresh run, with a checkpoint, so that there is a good one whatever happens."""
        self.metrics.start()
        before = time.perf_counter()
        with self.ranks.agreed():
            self.task.begin()
        self.elapsed = self.clock = time.perf_counter() - before
        self.save_by_first()

    def resume(self) -> None:
        """Go on from the run's checkpoint."""
        tensors, metadata = _from_first(self.ranks, lambda: load_checkpoint(self.run.checkpoint))
        with self.ranks.agreed():
            loop = _loop_state(self.run, metadata, self.task.name)
            self.task.restore(tensors, metadata["state"])
        self.step, self.n_rays, self.n_samples = loop["step"], loop["n_rays"], loop["n_samples"]
        self.elapsed = self.clock = loop["elapsed_s"]
        self.history = self.metrics.resumed_at(self.step)

    def until_it_ends(self, signals: "_Signals", between_steps: BetweenSteps | None) -> StoppedBy:
        """Train to the planned end, or until something stops the run, and say what did.

        Args:
            signals: Whether the user wants it to stop.
            between_steps: See `train`.
        """
        self.window, self.next_save = _Window(), time.perf_counter() + self.options.autosave_seconds
        turns, stop_after = Turns(self.ranks), self.options.stop_after
        stopped_by: StoppedBy = "done"
        while self.fraction < 1.0:
            self.elapsed, wants_to_stop = turns(self.clock, signals.caught)
            if self.fraction >= 1.0:  # by the clock that all ranks follow
                break
            if wants_to_stop or (stop_after is not None and self.step >= stop_after):
                stopped_by = "interrupted"
                break
            if not self.take_step():
                stopped_by = "non_finite"
                break
            if between_steps is not None and self.fraction < 1.0:
                self.give_time(signals, between_steps)
        if not self.read_figures():
            stopped_by = "non_finite"
        turns.end()
        return stopped_by

    def take_step(self) -> bool:
        """Train once, report and save where that is due; whether the loss is finite, as far as that is known."""
        before, own = time.perf_counter(), time.process_time()
        result = self.task.step(self.step, self.fraction)
        now = time.perf_counter()
        self.clock += now - before
        if self.ranks.n == 1:
            self.elapsed = self.clock
        self.cpu_seconds += time.process_time() - own
        if isinstance(result.loss, float) and not math.isfinite(result.loss):
            return False
        self.step += 1
        self._count(self.window.add(result))
        is_due = now >= min(self.next_report, self.next_save) or self.fraction >= 1.0
        if is_due and not self.read_figures():
            return False
        if now >= self.next_report or self.fraction >= 1.0:
            self.report(now)
        if self.ranks.n > 1 and self.step % SAME_STEPS == 0:
            _make_same(self.ranks, self.task, self.step)
        if now >= self.next_save and self.ranks.is_first:
            self.save_and_say()
            self.next_save = time.perf_counter() + self.options.autosave_seconds
            self.window.started += time.perf_counter() - now
        return True

    def give_time(self, signals: "_Signals", between_steps: BetweenSteps) -> None:
        """Let someone else use the time after a step, which does not count as training.

        Args:
            signals: Whether the user wants the run to stop.
            between_steps: See `train`.
        """
        before = time.perf_counter()
        while not signals.caught and (asked := between_steps()) != "go":
            if asked == "save":
                self.read_figures()
                self.save_and_say()
        self.window.started += time.perf_counter() - before

    def read_figures(self) -> bool:
        """Wait for the steps that are on a device; whether the loss since the last report is finite."""
        self._count(self.window.read())
        return math.isfinite(self.window.loss)

    def report(self, now: float) -> None:
        """Say how it goes, write it down, and begin a new window.

        Args:
            now: When the last step ended.
        """
        self.next_report = now + 0.5
        progress = self._progress("training", now)
        line = {
            "step": self.step, "elapsed_s": round(self.elapsed, 3), "loss": progress.loss, "psnr": progress.psnr,
            "rays_per_s": progress.rays_per_s, "samples_per_s": progress.samples_per_s,
            "n_rays": self.n_rays, "n_samples": self.n_samples,
        }  # fmt: skip
        self.history.append(line)
        self.metrics.append(line)
        self.say(progress)
        self.window = _Window()

    def save(self) -> None:
        """Write a checkpoint."""
        tensors, state = self.task.state()
        loop = {
            "step": self.step, "n_rays": self.n_rays, "n_samples": self.n_samples, "elapsed_s": self.elapsed,
            "n_steps": self.options.n_steps, "max_seconds": self.options.max_seconds,
        }  # fmt: skip
        figures = {
            "steps": self.step, "train_seconds": self.elapsed, "n_rays": self.n_rays, "n_samples": self.n_samples,
        }  # fmt: skip
        metadata = {"task": self.task.name, **self.task.describe(), "figures": figures, "loop": loop, "state": state}
        save_checkpoint(self.run.checkpoint, tensors, metadata)

    def save_by_first(self) -> None:
        """Have the first rank write a checkpoint; what goes wrong ends all."""
        with self.ranks.agreed():
            if self.ranks.is_first:
                self.save()

    def save_and_say(self) -> None:
        """Write a checkpoint on the way; where that fails the run goes on."""
        try:
            self.save()
        except CheckpointError as error:
            logger.warning("%s", error)
        else:
            self.say(self._progress("saving"))

    def _count(self, more: tuple[int, int]) -> None:
        self.n_rays, self.n_samples = self.n_rays + more[0], self.n_samples + more[1]

    def _progress(self, phase: Literal["compiling", "training", "saving"], now: float = 0.0) -> Progress:
        """How far the run is; the figures of the window only while it trains."""
        window, is_known = self.window, phase == "training"
        error, seconds = window.error / max(window.steps, 1), max(now - window.started, 1e-9)
        return Progress(
            phase=phase, step=self.step, n_steps=self.options.n_steps, elapsed_s=self.elapsed, fraction=self.fraction,
            loss=window.loss / window.steps if is_known else math.nan,
            psnr=-10 * math.log10(error) if is_known and error > 0 else math.nan,
            rays_per_s=window.rays / seconds if is_known else 0.0,
            samples_per_s=window.samples / seconds if is_known else 0.0,
            seconds_left=self.elapsed * (1 - self.fraction) / self.fraction if is_known and self.fraction > 0 else None,
        )  # fmt: skip


def _from_first(ranks: Ranks, load: Callable[[], _Loaded]) -> _Loaded:
    """Tensors and JSON values that the first rank loads, on every rank."""
    if ranks.n == 1:
        return load()
    tensors: dict[str, Tensor] = {}

    def values() -> dict[str, Any]:
        nonlocal tensors
        tensors, found = load()
        return found

    found = ranks.from_first(values)
    return ranks.tensors_from_first(tensors), found


def _make_same(ranks: Ranks, task: Task, step: int) -> None:
    """Verify that all ranks hold the same numbers; where they do not, all go on with the first one's."""
    tensors, values = task.state()
    sums = [zlib.crc32(_bytes_of(x)) for name, x in sorted(tensors.items()) if not name.startswith("optimizer.")]
    random = zlib.crc32(json.dumps([values.get("random"), values.get("n_rays")]).encode())
    found = ranks.gather([*sums, random])
    differ = [k for k in range(ranks.n) if bool((found[k] != found[0]).any())]
    if differ:
        if ranks.is_first:
            logger.warning(
                "after step %d %s no longer hold the numbers of %s (other processors may round otherwise); all go on "
                "with those", step, ", ".join(ranks.names[k] for k in differ), ranks.names[0],
            )  # fmt: skip
        task.restore(*_from_first(ranks, lambda: (tensors, values)))


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def planned_length(run: RunFolder, metadata: dict[str, Any]) -> tuple[int | None, float | None]:
    """(n_steps, max_seconds) that a run was planned with.

    Raises:
        CheckpointError: its metadata say no such thing; the text names the run's checkpoint.
    """
    loop = _loop_state(run, metadata, metadata.get("task", ""))
    return loop["n_steps"], loop["max_seconds"]


def _loop_state(run: RunFolder, metadata: dict[str, Any], task_name: str) -> dict[str, Any]:
    if "state" not in metadata or not isinstance(metadata.get("loop"), dict):
        raise CheckpointError(f"{run.checkpoint}: an exported checkpoint holds no training state to resume from")
    if metadata.get("task") != task_name:
        raise CheckpointError(
            f"{run.checkpoint}: task: expected {task_name!r}, the file holds {metadata.get('task')!r}"
        )
    loop = metadata["loop"]
    for name in ("step", "n_rays", "n_samples"):
        if not isinstance(loop.get(name), int) or loop[name] < 0:
            raise CheckpointError(f"{run.checkpoint}: loop.{name}: expected a count, got {loop.get(name)!r}")
    if {"n_steps", "max_seconds"} - set(loop) or not isinstance(loop["n_steps"], int | None):
        raise CheckpointError(f"{run.checkpoint}: loop: the planned length is missing or wrong")
    if not isinstance(loop["max_seconds"], float | int | None):
        raise CheckpointError(f"{run.checkpoint}: loop.max_seconds: expected seconds, got {loop['max_seconds']!r}")
    if not isinstance(loop.get("elapsed_s"), float | int):
        raise CheckpointError(f"{run.checkpoint}: loop.elapsed_s: expected seconds, got {loop.get('elapsed_s')!r}")
    return loop


class _Metrics:
    """Writer of metrics.jsonl. The file is a by-product: where it cannot be written the run says so once and goes
    on. Without a path, nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._is_broken = False

    def start(self) -> None:
        """Begin an empty file."""
        self._guarded(lambda path: path.unlink(missing_ok=True))

    def resumed_at(self, step: int) -> list[dict[str, Any]]:
        """The lines up to a step; what an interrupted run wrote after its last checkpoint is dropped."""
        try:
            text = "" if self.path is None else self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return []  # moved or lost: the run does not need it
        kept = [line for line in _metrics_of(text) if line["step"] <= step]
        written = "".join(_metrics_line(line) for line in kept)
        if written != text:
            self._guarded(lambda path: write_aside(path, lambda aside: aside.write_text(written, encoding="utf-8")))
        return kept

    def append(self, line: dict[str, Any]) -> None:
        """Write one more line."""

        def write(path: Path) -> None:
            with open(path, "a", encoding="utf-8") as handle:
                handle.write(_metrics_line(line))

        self._guarded(write)

    def _guarded(self, write: Callable[[Path], object]) -> None:
        if self.path is None:
            return
        try:
            write(self.path)
        except OSError as error:
            if not self._is_broken:
                logger.warning("%s: cannot be written: %s; the run goes on", self.path, error.strerror or error)
            self._is_broken = True


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that can be read."""
    try:
        return _metrics_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []


def _metrics_of(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in text.splitlines():
        try:
            line = json.loads(row)
            values = {name: line[name] for name in METRICS}
            found.append({name: math.nan if value is None else value + 0 for name, value in values.items()})
        except (ValueError, TypeError, KeyError):
            continue  # half a line, of a full disk
    return found


def _metrics_line(line: dict[str, Any]) -> str:
    return json.dumps({name: None if math.isnan(value) else value for name, value in line.items()}) + "\n"


class _Signals:
    """Within the block the first SIGINT or SIGTERM only sets `caught`; the second acts as usual."""

    def __init__(self) -> None:
        self.caught = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number: int, frame: object) -> None:
        self.caught = True
        self.__exit__()

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
