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

    Of several ranks (`hashfield.steps.ranks`) all run this side by side: the first one keeps the clock and writes the
    files, a signal to any of them ends the run for all, and figures are those of all.

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
    ranks = current()
    say = on_progress or (lambda progress: None)
    n_removed, n_bytes = remove_left_behind(run.path)
    if n_removed:
        logger.warning("%s: %d files (%.1f MB) that killed saves left are removed", run.path, n_removed, n_bytes / 1e6)
    say(Progress("compiling", 0, options.n_steps, 0.0, 0.0, math.nan, math.nan, 0.0, 0.0, None))
    before = time.perf_counter()
    with ranks.agreed():
        task.warm_up()
    compile_seconds = time.perf_counter() - before

    step, n_rays, n_samples, elapsed, cpu_seconds = 0, 0, 0, 0.0, 0.0
    history: list[dict[str, Any]] = []
    metrics = _Metrics(run.metrics_jsonl if ranks.is_first else None)
    if resume:
        tensors, metadata = _from_first(ranks, lambda: load_checkpoint(run.checkpoint))
        with ranks.agreed():
            loop = _loop_state(run, metadata, task.name)
            task.restore(tensors, metadata["state"])
        step, n_rays, n_samples, elapsed = loop["step"], loop["n_rays"], loop["n_samples"], loop["elapsed_s"]
        del tensors
        history = metrics.resumed_at(step)
    else:
        metrics.start()
        before = time.perf_counter()
        with ranks.agreed():
            task.begin()
        elapsed = time.perf_counter() - before

    def save() -> None:
        tensors, state = task.state()
        loop = {
            "step": step, "n_rays": n_rays, "n_samples": n_samples, "elapsed_s": elapsed,
            "n_steps": options.n_steps, "max_seconds": options.max_seconds,
        }  # fmt: skip
        figures = {"steps": step, "train_seconds": elapsed, "n_rays": n_rays, "n_samples": n_samples}
        metadata = {"task": task.name, **task.describe(), "figures": figures, "loop": loop, "state": state}
        save_checkpoint(run.checkpoint, tensors, metadata)

    def save_and_say() -> None:
        try:
            save()
            say(_saved(step, options, elapsed, fraction()))
        except CheckpointError as error:
            logger.warning("%s", error)

    def fraction() -> float:
        if options.n_steps is not None:
            return min(1.0, step / options.n_steps)
        if options.max_samples is not None:
            return min(1.0, n_samples / options.max_samples)
        return min(1.0, elapsed / (options.max_seconds or 1.0))

    def save_first() -> None:
        with ranks.agreed():
            if ranks.is_first:
                save()

    if not resume:
        save_first()  # so that there is a good one whatever happens
    turns, clock = Turns(ranks), elapsed
    stopped_by: StoppedBy = "done"
    window, next_report, next_save = _Window(), 0.0, time.perf_counter() + options.autosave_seconds
    with _Signals() as signals:
        while fraction() < 1.0:
            elapsed, wants_to_stop = turns(clock, signals.caught)
            if fraction() >= 1.0:  # by the clock that all ranks follow
                break
            if wants_to_stop or (options.stop_after is not None and step >= options.stop_after):
                stopped_by = "interrupted"
                break
            before, own = time.perf_counter(), time.process_time()
            result = task.step(step, fraction())
            now = time.perf_counter()
            clock += now - before
            elapsed = clock if ranks.n == 1 else elapsed
            cpu_seconds += time.process_time() - own
            if isinstance(result.loss, float) and not math.isfinite(result.loss):
                stopped_by = "non_finite"
                break
            step += 1
            n_rays, n_samples = _plus(n_rays, n_samples, window.add(result))
            if now >= next_report or now >= next_save or fraction() >= 1.0:
                n_rays, n_samples = _plus(n_rays, n_samples, window.read())
                if not math.isfinite(window.loss):
                    stopped_by = "non_finite"
                    break
            if now >= next_report or fraction() >= 1.0:
                next_report = now + 0.5
                progress = _progress(step, options, elapsed, fraction(), window, now)
                line = {
                    "step": step, "elapsed_s": round(elapsed, 3), "loss": progress.loss, "psnr": progress.psnr,
                    "rays_per_s": progress.rays_per_s, "samples_per_s": progress.samples_per_s,
                    "n_rays": n_rays, "n_samples": n_samples,
                }  # fmt: skip
                history.append(line)
                metrics.append(line)
                say(progress)
                window = _Window()
            if ranks.n > 1 and step % SAME_STEPS == 0:
                _make_same(ranks, task, step)
            if now >= next_save and ranks.is_first:
                save_and_say()
                next_save = time.perf_counter() + options.autosave_seconds
                window.started += time.perf_counter() - now
            if between_steps is not None and fraction() < 1.0:
                before = time.perf_counter()
                while not signals.caught and (asked := between_steps()) != "go":
                    if asked == "save":
                        n_rays, n_samples = _plus(n_rays, n_samples, window.read())
                        save_and_say()
                window.started += time.perf_counter() - before
        n_rays, n_samples = _plus(n_rays, n_samples, window.read())
        if not math.isfinite(window.loss):
            stopped_by = "non_finite"
        turns.end()
    if stopped_by != "non_finite":
        save_first()
    return TrainResult(step, elapsed, compile_seconds, stopped_by, n_rays, n_samples, history, cpu_seconds)


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


def _plus(n_rays: int, n_samples: int, more: tuple[int, int]) -> tuple[int, int]:
    return n_rays + more[0], n_samples + more[1]


def _saved(step: int, options: TrainOptions, elapsed: float, fraction: float) -> Progress:
    return Progress("saving", step, options.n_steps, elapsed, fraction, math.nan, math.nan, 0.0, 0.0, None)


def _progress(
    step: int, options: TrainOptions, elapsed: float, fraction: float, window: _Window, now: float
) -> Progress:
    seconds = max(now - window.started, 1e-9)
    error = window.error / window.steps
    return Progress(
        phase="training",
        step=step,
        n_steps=options.n_steps,
        elapsed_s=elapsed,
        fraction=fraction,
        loss=window.loss / window.steps,
        psnr=-10 * math.log10(error) if error > 0 else math.nan,
        rays_per_s=window.rays / seconds,
        samples_per_s=window.samples / seconds,
        seconds_left=elapsed * (1 - fraction) / fraction if fraction > 0 else None,
    )


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
