"""`hashfield sweep KIND PATH`: the paper's comparisons of encodings, measured here; the driver of every kind's sweep.

What is particular to a kind is in its own file.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hashfield.aside import write_aside
from hashfield.cli.progress import ProgressView
from hashfield.cli.shared import kind_from_name, parse, run_command, say, set_up
from hashfield.errors import ConfigError
from hashfield.export.plots import Series, plot_svg
from hashfield.steps.ranks import current
from hashfield.tasks import KINDS
from hashfield.tasks.studies import Setting, encodings_study, grid_study
from hashfield.train.loop import TrainOptions
from hashfield.train.sweep import (
    Cell,
    Row,
    SweepResult,
    csv_text,
    discard,
    machine,
    markdown_table,
    pareto_front,
    run_sweep,
)
from hashfield.train.task import Task


@dataclass(frozen=True)
class SweepOptions:
    """What can be said of a sweep of any kind; the kinds set `max_samples` and `batch`, and add more."""

    path: Annotated[Path, tyro.conf.Positional]
    """What to train on, as for `hashfield train`."""
    study: Literal["encodings", "grid"] = "encodings"
    """What to compare: encodings is the six rows of the paper's figure 2, grid every F x L x T of the lists below."""
    out: Path | None = None
    """Folder of tables, plots and cells; default: sweeps/<kind>-<study>. A stopped sweep goes on there."""
    overwrite: bool = False
    """Begin anew where --out holds another sweep."""
    max_samples: int | None = None
    """Points that each cell is trained on, the budget that all share; default: the kind's own."""
    max_seconds: float | None = None
    """Seconds of training of each cell, instead of a number of points."""
    cells: tuple[str, ...] = ()
    """Run these cells only, by name."""
    features: tuple[int, ...] = (2, 4)
    """Values of F in the study grid."""
    levels: tuple[int, ...] = (8, 16)
    """Values of L in the study grid."""
    log2_hashmap_sizes: tuple[int, ...] = (14, 17, 19)
    """Values of log2 T in the study grid."""
    batch: int = 2**16
    """Points per step."""
    seed: int = 0
    """Seed of every random choice."""
    threads: int | None = None
    """Threads of the kernels; default: as many as torch takes."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    if arguments and arguments[0] in ("-h", "--help"):
        say("usage: hashfield sweep KIND PATH [options]; hashfield sweep KIND --help lists the options")
        for kind in KINDS:
            if "sweep" in kind.commands:
                say(f"  {kind.name:8s}{kind.learns}")
        return 0
    kind, rest = kind_from_name("sweep", arguments)
    return run_command(kind, "sweep", rest)


@dataclass(frozen=True)
class Subject:
    """An input that is ready to be trained on, cell by cell."""

    about: Mapping[str, Any]
    """What the figures depend on beside the settings: JSON values, stated in the table."""
    finest: int
    """Resolution of a hash grid's last level."""
    config_of: Callable[[Setting, Mapping[str, float]], Any]
    """(setting, learning rates where they are not the task's own) -> the task's configuration."""
    n_parameters: Callable[[Any], tuple[int, int]]
    """Configuration -> numbers that the encoding learns, and the networks."""
    make: Callable[[Any], Task]
    """Configuration -> a fresh task."""
    judge: Callable[[Any], Mapping[str, float]]
    """Trained task -> figures."""


@dataclass(frozen=True)
class SweepKind:
    """What a kind of task tells the driver of `sweep`."""

    name: str
    """As the command line has it."""
    command: type[Any]
    """The options: a `SweepOptions`."""
    prepare: Callable[[Any], AbstractContextManager[Subject]]
    """Options -> the input, for as long as it is open."""
    max_samples: int
    """Budget of a cell where none is given."""
    n_dims: int
    """Components of a position."""
    quality: tuple[str, str]
    """Key and heading of the figure that is compared; more is better."""
    columns: tuple[tuple[str, str], ...] = ()
    """Key and heading of further figures."""
    batches: tuple[str, str] = ("psnr", "PSNR of batches, dB")
    """Key and heading of the training loop's figure that is drawn over time."""
    is_the_papers: bool = False
    """Whether the paper's figure 2 is about this kind, so that its figures stand beside ours."""

    def __call__(self, arguments: list[str]) -> int:
        """`sweep KIND` with its arguments: the exit code."""
        return sweep_kind(self, arguments)


def sweep_kind(kind: SweepKind, arguments: list[str]) -> int:
    """`sweep KIND` with its arguments: the exit code."""
    options = parse(kind.command, arguments, f"sweep {kind.name}")
    set_up(threads=options.threads)
    with ExitStack() as stack:
        with current().agreed():
            subject = stack.enter_context(kind.prepare(options))
        return sweep(options, kind, subject)


def cell_of(setting: Setting, subject: Subject) -> Cell:
    """The cell of a setting."""
    rates = {}
    if setting.learning_rate is not None:
        rates = {"learning_rate": setting.learning_rate, "final_learning_rate": setting.learning_rate / 20}
    config = subject.config_of(setting, rates)
    encoding, networks = subject.n_parameters(config)
    settings = {**setting.columns, "encoding_parameters": encoding, "network_parameters": networks}
    return Cell(setting.name, settings, lambda: subject.make(config), subject.judge)


def sweep(options: SweepOptions, kind: SweepKind, subject: Subject) -> int:
    """Run the study on a subject; its tables and plots lie in the folder afterwards.

    Args:
        options: What the user asked for.
        kind: What kind of task it is.
        subject: What is trained on.
    """
    if options.study == "encodings":
        settings = encodings_study(kind.n_dims, subject.finest)
    else:
        settings = grid_study(options.features, options.levels, options.log2_hashmap_sizes, subject.finest)
    unknown = sorted(set(options.cells) - {s.name for s in settings})
    if unknown:
        raise ConfigError(f"--cells: no cell {unknown[0]!r}; there are {', '.join(s.name for s in settings)}")
    settings = [s for s in settings if not options.cells or s.name in options.cells]
    if not settings:
        raise ConfigError("nothing to do: --features, --levels and --log2-hashmap-sizes name no cell")
    if options.max_samples is not None and options.max_seconds is not None:
        raise ConfigError("--max-samples and --max-seconds: give only one of them")
    if options.max_seconds is not None:
        length = TrainOptions(max_seconds=options.max_seconds)
    else:
        given = options.max_samples
        length = TrainOptions(max_samples=kind.max_samples if given is None else given)
    folder = options.out or Path("sweeps") / f"{kind.name}-{options.study}"
    ranks = current()
    with ranks.agreed():
        if options.overwrite and folder.is_dir() and ranks.is_first:
            discard(folder)
    say(f"{len(settings)} cells, each of {budget(length)}; folder {folder}")

    def on_cell(number: int, cell: Cell, row: Row | None) -> None:
        if row is None:
            say(f"cell {number + 1} of {len(settings)}: {cell.name}")
        else:
            key, heading = kind.quality
            say(f"  {cell.name}: {heading} {row[key]:.4g}, {row['train_seconds']:.1f} s of training")

    with ProgressView(None) as view:
        result = run_sweep([cell_of(s, subject) for s in settings], folder, length, subject.about, on_cell, view.show)
    if result.rows and ranks.is_first:
        write_results(folder, options, kind, subject, settings, length, result)
        say(f"tables and plots: {folder}")
    if not result.is_complete:
        say("interrupted; the same command goes on")
        return 130
    return 0


def budget(length: TrainOptions) -> str:
    """The length of a cell in words."""
    if length.max_seconds is not None:
        return f"{length.max_seconds:g} s of training"
    return f"{length.max_samples:,} trained points"


def command_of(options: SweepOptions, kind: str) -> str:
    """The command that repeats a sweep, on a file of the same name."""
    words = ["hashfield sweep", kind, options.path.name]
    for entry in fields(options):
        value = getattr(options, entry.name)
        if entry.name in ("path", "out", "overwrite", "cells", "threads") or value in (entry.default, MISSING):
            continue
        words.append(f"--{entry.name.replace('_', '-')}")
        words.append(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return " ".join(words)


def write_results(
    folder: Path,
    options: SweepOptions,
    kind: SweepKind,
    subject: Subject,
    settings: Sequence[Setting],
    length: TrainOptions,
    result: SweepResult,
) -> None:
    """Write cells.csv, table.md and the plots into the sweep's folder.

    Args:
        folder: The sweep's folder.
        options: What the user asked for.
        kind: What kind of task it is.
        subject: What was trained on.
        settings: All settings of the study, with the paper's figures for some.
        length: How long each cell trains.
        result: Figures of the cells that are done.
    """
    quality, heading = kind.quality
    paper = {s.name: s.paper for s in settings}
    rows = [{**row, **(paper[row["cell"]] if kind.is_the_papers else {})} for row in result.rows]
    _write(folder / "cells.csv", csv_text(rows))
    by_size = [(row["encoding_parameters"] + row["network_parameters"], row[quality]) for row in rows]
    by_time = [(row["train_seconds"], row[quality]) for row in rows]
    fronts = {"size": pareto_front(by_size), "time": pareto_front(by_time)}
    names = [row["cell"] for row in rows]
    curves = [
        Series(name, [(line["elapsed_s"], line[kind.batches[0]]) for line in lines if line["elapsed_s"] > 0])
        for name, lines in result.histories.items()
    ]
    size, seconds = "numbers learnt", "seconds of training"
    plots = {
        "quality_over_parameters": _front_plot("Quality over size", by_size, names, fronts["size"], size, heading),
        "quality_over_training_time": _front_plot(
            "Quality over training time", by_time, names, fronts["time"], seconds, heading
        ),
        "batches_over_time": plot_svg("Training batches", curves, seconds, kind.batches[1], log_x=True),
    }
    for name, plot in plots.items():
        _write(folder / f"{name}.svg", plot)
    here, seen = machine(), [sorted({row[name] for row in rows}) for name in ("machine", "commit")]
    marked = [{**row, "front": ", ".join(f for f, front in fronts.items() if k in front)} for k, row in enumerate(rows)]
    text = [
        f"# {kind.name}: {'encodings' if options.study == 'encodings' else 'F x L x T'}",
        "",
        f"    {command_of(options, kind.name)}",
        "",
        f"Each cell: {budget(length)}. " + "; ".join(f"{name} {value}" for name, value in subject.about.items()) + ".",
        f"Machine: {'; '.join(seen[0])}. Commit {', '.join(seen[1])}, torch {here['torch']}, "
        f"{here['date']}. One cell after another; kernels compiled before; evaluation is not part of the time.",
        "",
        markdown_table(marked, _columns(kind, settings, any("paper_psnr" in row for row in rows))),
        "`front`: no other cell is at once as small (size) or as quick (time) and as good.",
        "`share of the cores`: what this process got of the threads' time in training; far below 1, others used the",
        "machine and the seconds of training are too many; `processor` is the time of all threads that it took.",
        "",
        *(f"![{name}]({name}.svg)" for name in plots),
        "",
    ]  # fmt: skip
    _write(folder / "table.md", "\n".join(text))


def _columns(kind: SweepKind, settings: Sequence[Setting], has_paper: bool) -> list[tuple[str, str]]:
    """Key and heading of each column of a study's table."""
    columns = [("cell", "cell"), *((key, key) for key in settings[0].columns)]
    columns += [
        ("encoding_parameters", "numbers of the encoding"),
        ("network_parameters", "of the networks"),
        kind.quality,
        *kind.columns,
        ("train_seconds", "training, s"),
        ("cpu_seconds", "processor, s"),
        ("us_per_sample", "us a point"),
        ("cpu_share", "share of the cores"),
        ("samples", "points"),
        ("front", "front"),
    ]
    if has_paper:
        columns += [
            ("paper_parameters", "paper: networks + encoding"),
            ("paper_psnr", "paper: PSNR"),
            ("paper_seconds", "paper: s on a GPU"),
        ]
    return columns


def _front_plot(
    title: str, points: list[tuple[float, float]], names: list[str], front: set[int], x_label: str, y_label: str
) -> str:
    def part(name: str, which: list[int], is_marked: bool) -> Series:
        return Series(name, [points[k] for k in which], [names[k] for k in which], is_marked)

    others = [k for k in range(len(points)) if k not in front]
    series = [part("Pareto front", sorted(front), True), part("others", others, False)]
    return plot_svg(title, series, x_label, y_label, log_x=True)


def _write(path: Path, text: str) -> None:
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
