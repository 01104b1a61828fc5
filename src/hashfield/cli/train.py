"""`hashfield train KIND PATH`: the driver of every kind's training. What is particular to a kind is in its own file."""

import dataclasses
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from hashfield._version import __version__
from hashfield.aside import write_aside
from hashfield.cli.progress import ProgressView
from hashfield.cli.shared import (
    DeviceName,
    kind_from_name,
    memory_advice,
    parse,
    run_command,
    say,
    set_up,
    uses_gpu,
    value_of,
)
from hashfield.errors import ConfigError
from hashfield.steps.ranks import Ranks, Wire, current, working_alone
from hashfield.tasks import KINDS
from hashfield.train.checkpoint import config_from_dict, config_to_dict, read_metadata
from hashfield.train.loop import BetweenSteps, Progress, TrainOptions, TrainResult, planned_length, train
from hashfield.train.run_folder import CHECKPOINT_NAME, RunFolder
from hashfield.train.sweep import is_cell
from hashfield.train.task import Task

if TYPE_CHECKING:
    from hashfield.cli.view import WatchedTraining

DEFAULT_SECONDS = 60.0


@dataclass(frozen=True)
class TrainCommand:
    """What can be said of any kind of training; the kinds add `config` and more."""

    path: Annotated[Path, tyro.conf.Positional]
    """What to train on."""
    out: Path | None = None
    """Run folder; default: runs/<name of the data>-<n>."""
    overwrite: bool = False
    """Allow --out to hold a run already; it is replaced."""
    resume: bool = False
    """Go on with the run in --out from its checkpoint, with the length it was planned for."""
    n_steps: int | None = None
    """Length of the run in steps. The same seed then gives the same bits on CPUs, and nearly the same on GPUs."""
    max_seconds: float | None = None
    """Length of the run in seconds of training; the clock enters the schedule. Default: 60."""
    seed: int = 0
    """Seed of every random choice."""
    device: DeviceName = "auto"
    """Where to train; auto takes a supported GPU if there is one, else the CPU."""
    threads: int | None = None
    """Threads of the kernels; default: as many as torch takes."""
    max_gpu_memory: float | None = None
    """GiB of GPU memory that the run may take; default: all there is."""
    wire: Wire = "bfloat16"
    """Type in which ranks send each other the gradients of a grid's sparse levels; one process sends none."""
    autosave_seconds: float = 60.0
    """Time between checkpoints."""
    view: bool = False
    """Serve a page on which the model is seen while it learns (extra: hashfield[view])."""
    view_host: str = "127.0.0.1"
    """Address that the page listens on. Any other than this machine's own lets others see it and press its buttons."""
    view_port: int = 8080
    """Port of the page, or the next free one."""
    tensorboard: bool = False
    """Also write the figures for TensorBoard (extra: hashfield[tensorboard])."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    if arguments and arguments[0] in ("-h", "--help"):
        say("usage: hashfield train KIND PATH [options]; hashfield train KIND --help lists the options")
        for kind in KINDS:
            say(f"  {kind.name:8s}{kind.learns}")
        return 0
    kind, rest = kind_from_name("train", arguments)
    return run_command(kind, "train", rest)


@dataclass(frozen=True)
class Plan:
    """What a training command is about to do, whatever it trains."""

    config: Any
    """The task's configuration: as given, or a resumed run's own."""
    length: TrainOptions
    """How long to train: as given now, as planned by the resumed run, or the default."""
    resumed: RunFolder | None
    """The run to go on with."""
    metadata: dict[str, Any]
    """Metadata of the resumed run's checkpoint; empty for a new run."""


@dataclass(frozen=True)
class Training:
    """A task that is ready to be trained, and where."""

    task: Task
    run: RunFolder
    about: str = ""
    """What else the user is told of it before it starts."""


@dataclass(frozen=True)
class TrainKind:
    """What a kind of task tells the driver of `train` (and, in part, that of `demo`)."""

    name: str
    """Name of the kind on the command line."""
    command: type[Any]
    """The options: a `TrainCommand` with `config`."""
    presets: Mapping[str, Any]
    """Configurations by name."""
    suits: Callable[[float | None, int | None, bool], str]
    """(seconds, steps, is on a GPU) -> name of the preset where none is given."""
    prepare: Callable[[Any, Plan, torch.device, Callable[[str], RunFolder]], AbstractContextManager[Training]]
    """(options, plan, device, run folder for data of this name) -> the training, for as long as it is open. Reads the
    data, and refuses what can be refused before that."""
    finish: Callable[..., dict[str, Any]]
    """(task, run, result, by_clock=...) -> figures; report and pictures lie in the run folder afterwards."""
    resumed: Callable[[RunFolder, dict[str, Any]], dict[str, Any]]
    """(run, its metadata) -> the options that a resumed run takes from its checkpoint."""
    smaller: str
    """What to make smaller where memory runs out."""
    render_options: str = ""
    """What a first `hashfield render RUN` is given."""
    same_data: Callable[[Any], str] = lambda options: ""
    """Options -> what reads the same data again, for the command that is shown to go on with a run."""
    on_progress: Callable[[Any, RunFolder], Callable[[Progress], None]] | None = None
    """(task, run) -> what else sees the progress."""
    reference: Callable[[Any], Any] | None = None
    """Task -> what it learns from, to compare with in the viewer."""
    finish_options: Callable[[Any], dict[str, Any]] = lambda options: {}
    """Options -> what `finish` is told of them."""

    def __call__(self, arguments: list[str]) -> int:
        """`train KIND` with its arguments: the exit code."""
        return train_kind(self, arguments)


def train_kind(kind: TrainKind, arguments: list[str]) -> int:
    """`train KIND` with its arguments: the exit code."""
    on_gpu = value_of(arguments, "--device") in (None, "auto", "cuda") and uses_gpu()
    preset = preset_of(arguments, kind.presets, lambda seconds, steps: kind.suits(seconds, steps, on_gpu))
    defaults = kind.command(path=tyro.MISSING, config=preset)
    options = parse(kind.command, arguments, f"train {kind.name}", defaults)
    device = set_up(options.device, options.threads, options.max_gpu_memory)
    ranks = current()
    if ranks.n > 1 and device.type != "cpu":
        raise ConfigError("several ranks train on CPUs only so far: give --device cpu, or one process")
    ranks.wire = options.wire
    options = restarted(options)
    plan = shared_plan(ranks, lambda: make_plan(options, preset, value_of(arguments, "--preset")), preset)
    if plan.resumed is not None:
        options = replace(options, **kind.resumed(plan.resumed, plan.metadata))

    with memory_advice(kind.smaller), ExitStack() as stack:
        # Only the first of several ranks writes; what else needs a folder for a while gets one that goes away.
        aside = None if ranks.is_first else Path(stack.enter_context(TemporaryDirectory()))

        def folder(name: str) -> RunFolder:
            if aside is not None:
                return RunFolder(aside, aside / CHECKPOINT_NAME)
            return plan.resumed or new_run(options, name)

        with ranks.agreed():
            training = stack.enter_context(kind.prepare(options, plan, device, folder))
        task, run = training.task, training.run
        if ranks.n > 1:
            ranks.check_same("data set", task.fingerprint())
            about = f"{ranks.n} ranks of {torch.get_num_threads()} threads each"
            say(f"{about}: {', '.join(ranks.names)}" if ranks.n <= 8 else about)
        about = f"; {training.about}" if training.about else ""
        say(f"run folder: {run.path}; preset {plan.config.preset}{about}")
        with ranks.agreed():
            write_config(run, task, plan.length)
        # Quoted, so that a path with spaces can be copied too.
        same = f"{quote(str(options.path))} {kind.same_data(options)}".rstrip()
        resume = f"hashfield train {kind.name} {same} --out {quote(str(run.path))} --resume"
        on_progress = None
        if kind.on_progress is not None and ranks.is_first:
            on_progress = kind.on_progress(task, run)
        with watched(kind, options, task, run, device) as page:
            if page is not None:
                on_progress = both(page.report, on_progress)
            between = None if page is None else page.share.between_steps
            result = run_training(task, run, plan.length, plan.resumed is not None, resume, on_progress, between)
            if not ranks.is_first:
                return 0 if result.stopped_by == "done" else 130 if result.stopped_by == "interrupted" else 2
            if options.tensorboard:
                write_tensorboard(run, result)
            if result.stopped_by != "done":
                return ended_early(result, run, resume)
            if page is not None:
                page.after(run)
            by_clock = plan.length.max_seconds is not None
            with working_alone():  # the others are done
                kind.finish(task, run, result, by_clock=by_clock, **kind.finish_options(options))
            say(f"report: {run.report}")
            say(f"render it: hashfield render {quote(str(run.path))} {kind.render_options}".rstrip())
            if page is not None:
                page.wait()
    return 0


def restarted(options: Any) -> Any:
    """The options of a run that torchrun has started again after a rank was lost: it goes on from its checkpoint, where
    there is one.

    Raises:
        ConfigError: no --out says where that would be.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return options
    if options.out is None:
        raise ConfigError("torchrun has started the run again after a rank was lost: give --out, so that it can go on")
    if current().from_first(lambda: RunFolder(options.out, options.out / CHECKPOINT_NAME).checkpoint.is_file()):
        return replace(options, resume=True, n_steps=None, max_seconds=None)
    return replace(options, overwrite=True)


def shared_plan(ranks: Ranks, make: Callable[[], Plan], like: Any) -> Plan:
    """The first rank's plan on every rank; the files that it is made from need to lie there only.

    Args:
        ranks: Those that train together.
        make: Makes the plan.
        like: A configuration of the kind that the plan has.
    """
    if ranks.n == 1:
        return make()
    plan: Plan | None = None

    def values() -> dict[str, Any]:
        nonlocal plan
        plan = make()
        length = dataclasses.asdict(plan.length)
        resumed = None if plan.resumed is None else [str(plan.resumed.path), str(plan.resumed.checkpoint)]
        return {"config": config_to_dict(plan.config), "length": length, "resumed": resumed, "metadata": plan.metadata}

    found = ranks.from_first(values)
    if plan is not None:
        return plan
    resumed = None if found["resumed"] is None else RunFolder(*map(Path, found["resumed"]))
    config = config_from_dict(type(like), found["config"], "the first rank's configuration")
    return Plan(config, TrainOptions(**found["length"]), resumed, found["metadata"])


@contextmanager
def watched(
    kind: TrainKind, options: Any, task: Task, run: RunFolder, device: torch.device
) -> Iterator["WatchedTraining | None"]:
    """The page of a training, if one is asked for.

    Args:
        kind: What is trained.
        options: With view, view_host and view_port.
        task: The task.
        run: Folder of the run.
        device: Where the task trains.
    """
    if not options.view or not current().is_first:
        yield None
        return
    from hashfield.cli.view import WatchedTraining, about_share, page_of

    reference = kind.reference
    read = None if reference is None else lambda: reference(task)
    page = WatchedTraining(task, run, str(options.path), device, read)
    with page_of(page.session, options.view_host, options.view_port):
        say(about_share())
        yield page


def both(first: Callable[[Progress], None], second: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """What hands a report to one after the other."""

    def report(progress: Progress) -> None:
        first(progress)
        if second is not None:
            second(progress)

    return report


def preset_of(
    arguments: list[str], presets: Mapping[str, Any], suits: Callable[[float | None, int | None], str]
) -> Any:
    """The configuration of the preset that a training command's arguments name.

    Args:
        arguments: Arguments of the command.
        presets: By name.
        suits: The name where none is given, from (seconds, steps) of the run.

    Raises:
        ConfigError: there is no such preset.
    """
    name = value_of(arguments, "--preset")
    if name is None:
        seconds, steps = value_of(arguments, "--max-seconds"), value_of(arguments, "--n-steps")
        try:
            name = suits(
                float(seconds) if seconds else None if steps else DEFAULT_SECONDS, int(steps) if steps else None
            )
        except ValueError:
            name = suits(DEFAULT_SECONDS, None)  # tyro will name the wrong number
    if name not in presets:
        raise ConfigError(f"--preset: expected one of {', '.join(presets)}, got {name!r}")
    return presets[name]


def make_plan(options: Any, defaults: Any, preset: str | None, default_seconds: float = DEFAULT_SECONDS) -> Plan:
    """The plan that a training command's options amount to; what can be refused before any data is read is.

    Args:
        options: With out, overwrite, resume, n_steps, max_seconds, tensorboard and config.
        defaults: The configuration where no option changes it.
        preset: The one that was named, if any.
        default_seconds: Length where none is given.

    Raises:
        ConfigError: options contradict each other, or the folder is taken.
        CheckpointError: the run to go on with cannot be read.
    """
    n_steps, max_seconds, config = options.n_steps, options.max_seconds, options.config
    resumed: RunFolder | None = None
    metadata: dict[str, Any] = {}
    if n_steps is not None and max_seconds is not None:
        raise ConfigError("--n-steps and --max-seconds: give only one of them")
    if options.out is not None and is_cell(options.out):
        raise ConfigError(
            f"{options.out}: is a cell of a sweep, which goes on with it when its hashfield sweep is run again; a run "
            "of its own needs another --out"
        )
    if options.resume:
        if options.out is None:
            raise ConfigError("--resume: name the run to go on with by --out")
        resumed = RunFolder.open(options.out)
        metadata = read_metadata(resumed.checkpoint)
        planned = planned_length(resumed, metadata)
        if n_steps is None and max_seconds is None:
            n_steps, max_seconds = planned
        elif (n_steps, max_seconds) != planned:
            say("warning: the run was planned for another length; its schedules now follow the new one")
        stored = config_from_dict(type(config), metadata.get("config"), f"{resumed.checkpoint}: config")
        if (preset or stored.preset) != stored.preset or config not in (stored, defaults):
            say("warning: a resumed run keeps the model and recipe of its checkpoint; those given here are ignored")
        config = stored
    elif n_steps is None and max_seconds is None:
        max_seconds = default_seconds
    length = TrainOptions(n_steps=n_steps, max_seconds=max_seconds, autosave_seconds=options.autosave_seconds)
    if options.out is not None and not options.resume:
        RunFolder(options.out, options.out / CHECKPOINT_NAME).check_free(options.overwrite)
    if getattr(options, "view", False):
        importlib.import_module("viser")
    if options.tensorboard:
        importlib.import_module("tensorboard")  # a missing extra is named now, not after the training
    return Plan(config, length, resumed, metadata)


def new_run(options: Any, name: str) -> RunFolder:
    """The folder for a new run of these options; `name` is the data's."""
    run = RunFolder.create(options.out, name, options.overwrite)
    if options.overwrite:
        run.checkpoint.unlink(missing_ok=True)
        run.report.unlink(missing_ok=True)  # it would tell of the run before
    return run


def ended_early(result: TrainResult, run: RunFolder, resume_command: str) -> int:
    """The exit code of a run that did not come to its end, after a line about it.

    Args:
        result: How the training went.
        run: Folder of the run.
        resume_command: The command that goes on with it, as the user may copy it.

    Raises:
        ConfigError: the loss was not finite.
    """
    if result.stopped_by == "interrupted":
        say(f"interrupted after step {result.step}, saved; go on with: {resume_command}")
        return 130
    raise ConfigError(
        f"the loss of step {result.step} is not a finite number; the last good checkpoint is {run.checkpoint} "
        "(a lower --train.learning-rate may help)"
    )


def memory_for_run(device: torch.device, budget: float | None) -> tuple[float, str]:
    """GiB of GPU memory that a run may take, and what sets that."""
    free = torch.cuda.mem_get_info(device)[0] / 2**30
    if budget is not None and budget < free:
        return budget, f"--max-gpu-memory allows {budget:g}"
    return free, "there is less"


def say_memory(n_bytes: int, device: torch.device, budget: float | None, smaller: str) -> None:
    """Say what the run takes of the GPU's memory, and refuse what cannot fit.

    Args:
        n_bytes: Bytes that the run takes, about.
        device: A GPU.
        budget: GiB that the run may take; None: what is free.
        smaller: Options that help where this is too much.
    """
    needed, free = n_bytes / 2**30, torch.cuda.mem_get_info(device)[0] / 2**30
    say(f"on {torch.cuda.get_device_name(device)}: about {needed:.1f} GiB of GPU memory, {free:.1f} GiB are free")
    room, limit = memory_for_run(device, budget)
    if needed > room:
        raise ConfigError(
            f"the run needs about {needed:.1f} GiB of GPU memory and {limit}: raise --max-gpu-memory, or try a smaller "
            f"{smaller}"
        )


def write_config(run: RunFolder, task: Task, length: TrainOptions) -> None:
    """Write config.json, which holds everything needed to repeat the run.

    Args:
        run: Folder of the run.
        task: What is trained.
        length: How long.
    """
    described = task.describe()
    values = {
        "hashfield": __version__, "task": task.name, "data": described.get("scene", {}).get("path"),
        "n_steps": length.n_steps, "max_seconds": length.max_seconds,
        **{name: described[name] for name in ("seed", "spaces", "config") if name in described},
    }  # fmt: skip
    text = json.dumps(values, indent=1) + "\n"
    write_aside(run.config_json, lambda aside: aside.write_text(text, encoding="utf-8"))


def run_training(
    task: Task,
    run: RunFolder,
    length: TrainOptions,
    resume: bool = False,
    resume_command: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    between_steps: BetweenSteps | None = None,
) -> TrainResult:
    """Train with progress on the console.

    Args:
        task: What is trained.
        run: Folder of the run.
        length: How long.
        resume: Whether to go on from the run's checkpoint.
        resume_command: The command that would resume the run, shown to the user.
        on_progress: Sees every report too; its time does not count as training.
        between_steps: Called after every step; its time does not count as training either.
    """
    with ProgressView(resume_command) as view:

        def show(progress: Progress) -> None:
            view.show(progress)
            if on_progress is not None:
                on_progress(progress)

        result = train(task, run, length, show, resume, between_steps)
    rays = "" if result.n_rays == result.n_samples else f"{result.n_rays / 1e6:.1f} M rays, "
    say(
        f"trained {result.step} steps in {result.train_seconds:.1f} s ({rays}{result.n_samples / 1e6:.1f} M samples; "
        f"kernels ready in {result.compile_seconds:.1f} s)"
    )
    return result


def write_tensorboard(run: RunFolder, result: TrainResult) -> None:
    """The metrics as TensorBoard events in the run folder."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path / "tensorboard")) as writer:
        for line in result.history:
            for name in ("loss", "psnr", "rays_per_s", "samples_per_s"):
                if not math.isnan(line[name]):
                    writer.add_scalar(name, line[name], line["step"])
