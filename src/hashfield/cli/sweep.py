"""`hashfield sweep KIND PATH`: the paper's comparisons of encodings, measured here; with what all kinds share."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from hashfield.cli.progress import ProgressView
from hashfield.cli.shared import kind_from_name, parse, run_command, say, set_up
from hashfield.data import ReadOptions, load_scene
from hashfield.data.dataset import PosedImages
from hashfield.data.meshes import read_mesh
from hashfield.data.pictures import read_picture
from hashfield.errors import ConfigError
from hashfield.export.plots import Series, plot_svg
from hashfield.nn.config import MLPConfig
from hashfield.tasks import KINDS, image_config, nerf_config, sdf_config
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.evaluate_surface import evaluate_distance
from hashfield.tasks.image import ImageTask
from hashfield.tasks.image_model import compare
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.sdf import SdfTask
from hashfield.tasks.studies import Setting, encodings_study, grid_study
from hashfield.train.checkpoint import write_aside
from hashfield.train.loop import TrainOptions
from hashfield.train.metrics import SSIM_WINDOW
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


@dataclass(frozen=True)
class SweepOptions:
    """Train a matrix of settings on one input; tables and plots of what came out."""

    path: Annotated[Path, tyro.conf.Positional]
    """What to train on, as for `hashfield train`."""
    study: Literal["encodings", "grid"] = "encodings"
    """What to compare: encodings is the six rows of the paper's figure 2, grid every F x L x T of the lists below."""
    out: Path | None = None
    """Folder of tables, plots and cells; default: sweeps/<kind>-<study>. A stopped sweep goes on there."""
    overwrite: bool = False
    """Begin anew where --out holds another sweep."""
    max_samples: int | None = None
    """Points that each cell is trained on, the budget that all share; default: 2^22 for photos, 2^24 for a picture,
    2^23 for a mesh."""
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
    batch: int | None = None
    """Points per step; default: 2^14 for photos, 2^16 for a picture, 2^15 for a mesh."""
    seed: int = 0
    """Seed of every random choice."""
    threads: int | None = None
    """Threads of the kernels; default: as many as torch takes."""


@dataclass(frozen=True)
class SweepNerf(SweepOptions):
    """Train a matrix of settings on photos with camera poses."""

    downscale: int = 1
    """Divide widths and heights of the photos by this whole number."""
    n_views: int = 5
    """Held-out views that are judged, evenly spread."""
    max_image_memory: float = 4.0
    """GiB that the decoded photos may take."""


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


PSNR = ("psnr", "PSNR of batches, dB")

# --- what every kind does ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What a kind of task tells the sweep."""

    kind: str
    """Name of the kind of task."""
    about: dict[str, Any]
    """What the figures depend on beside the settings: JSON values, stated in the table."""
    quality: tuple[str, str]
    """Key and heading of the figure that is compared; more is better."""
    columns: tuple[tuple[str, str], ...]
    """Key and heading of further figures."""
    is_the_papers: bool
    """Whether the paper's figure 2 is about this kind, so that its figures stand beside ours."""
    batches: tuple[str, str]
    """Key and heading of the training loop's figure that is drawn over time."""
    n_dims: int
    """Dimensions of a position: 2 or 3."""
    finest: int
    """Resolution of a hash grid's last level."""
    max_samples: int
    """Budget where none is given."""
    cell: Callable[[Setting], Cell]
    """The cell of a setting."""


def sweep(options: SweepOptions, subject: Subject) -> int:
    """Run the study on a subject; its tables and plots lie in the folder afterwards."""
    if options.study == "encodings":
        settings = encodings_study(subject.n_dims, subject.finest)
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
        length = TrainOptions(max_samples=subject.max_samples if given is None else given)
    folder = options.out or Path("sweeps") / f"{subject.kind}-{options.study}"
    if options.overwrite and folder.is_dir():
        discard(folder)
    say(f"{len(settings)} cells, each of {budget(length)}; folder {folder}")

    def on_cell(number: int, cell: Cell, row: Row | None) -> None:
        if row is None:
            say(f"cell {number + 1} of {len(settings)}: {cell.name}")
        else:
            key, heading = subject.quality
            say(f"  {cell.name}: {heading} {row[key]:.4g}, {row['train_seconds']:.1f} s of training")

    with ProgressView(None) as view:
        result = run_sweep([subject.cell(s) for s in settings], folder, length, subject.about, on_cell, view.show)
    if result.rows:
        write_results(folder, options, subject, settings, length, result)
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
    subject: Subject,
    settings: Sequence[Setting],
    length: TrainOptions,
    result: SweepResult,
) -> None:
    """Write cells.csv, table.md and the plots into the sweep's folder.

    Args:
        folder: The sweep's folder.
        options: What the user asked for.
        subject: What is trained on.
        settings: All settings of the study, with the paper's figures for some.
        length: How long each cell trains.
        result: Figures of the cells that are done.
    """
    study, (quality, heading) = options.study, subject.quality
    paper = {s.name: s.paper for s in settings}
    rows = [{**row, **(paper[row["cell"]] if subject.is_the_papers else {})} for row in result.rows]
    _write(folder / "cells.csv", csv_text(rows))
    by_size = [(row["encoding_parameters"] + row["network_parameters"], row[quality]) for row in rows]
    by_time = [(row["train_seconds"], row[quality]) for row in rows]
    fronts = [pareto_front(by_size), pareto_front(by_time)]
    marked = [
        {
            **row,
            "front": ", ".join(name for name, front in zip(("size", "time"), fronts, strict=True) if k in front),
        }
        for k, row in enumerate(rows)
    ]
    names = [row["cell"] for row in rows]
    _write(
        folder / "quality_over_parameters.svg",
        _front_plot("Quality over size", by_size, names, fronts[0], "numbers learnt", heading),
    )
    _write(
        folder / "quality_over_training_time.svg",
        _front_plot("Quality over training time", by_time, names, fronts[1], "seconds of training", heading),
    )
    curves = [
        Series(name, [(line["elapsed_s"], line[subject.batches[0]]) for line in lines if line["elapsed_s"] > 0])
        for name, lines in result.histories.items()
    ]
    _write(
        folder / "batches_over_time.svg",
        plot_svg("Training batches", curves, "seconds of training", subject.batches[1], log_x=True),
    )
    here = machine()
    seen = {row["machine"] for row in rows}, {row["commit"] for row in rows}
    columns = [("cell", "cell"), *((key, key) for key in settings[0].columns)]
    columns += [
        ("encoding_parameters", "numbers of the encoding"),
        ("network_parameters", "of the networks"),
        (quality, heading),
        *subject.columns,
        ("train_seconds", "training, s"),
        ("cpu_seconds", "processor, s"),
        ("us_per_sample", "us a point"),
        ("cpu_share", "share of the cores"),
        ("samples", "points"),
        ("front", "front"),
    ]
    if any("paper_psnr" in row for row in rows):
        columns += [
            ("paper_parameters", "paper: networks + encoding"), ("paper_psnr", "paper: PSNR"),
            ("paper_seconds", "paper: s on a GPU"),
        ]  # fmt: skip
    text = [
        f"# {subject.kind}: {'encodings' if study == 'encodings' else 'F x L x T'}",
        "",
        f"    {command_of(options, subject.kind)}",
        "",
        f"Each cell: {budget(length)}. " + "; ".join(f"{name} {value}" for name, value in subject.about.items()) + ".",
        f"Machine: {'; '.join(sorted(seen[0]))}. Commit {', '.join(sorted(seen[1]))}, torch {here['torch']}, "
        f"{here['date']}. One cell after another; kernels compiled before; evaluation is not part of the time.",
        "",
        markdown_table(marked, columns),
        "`front`: no other cell is at once as small (size) or as quick (time) and as good.",
        "`share of the cores`: what this process got of the threads' time in training; far below 1, others used the",
        "machine and the seconds of training are too many; `processor` is the time of all threads that it took.",
        "",
        *(f"![{name}]({name}.svg)" for name in
          ("quality_over_parameters", "quality_over_training_time", "batches_over_time")),
        "",
    ]  # fmt: skip
    _write(folder / "table.md", "\n".join(text))


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


SWEEP_STEP = 4.0
"""Length of the march's steps: a deep network that has learnt little is a fog, and would be rendered for minutes."""

# --- radiance fields -----------------------------------------------------------------------------------------


def sweep_nerf(arguments: list[str]) -> int:
    """`sweep nerf` with its arguments."""
    options = parse(SweepNerf, arguments, "sweep nerf")
    set_up(threads=options.threads)
    if options.n_views < 1:
        raise ConfigError(f"--n-views: expected at least 1, got {options.n_views}")
    read = ReadOptions(
        downscale=options.downscale, max_image_memory=int(options.max_image_memory * 2**30), least_side=SSIM_WINDOW
    )
    scene = load_scene(options.path, read)
    if "test" not in scene.splits or not len(scene.splits["test"]):
        raise ConfigError(f"{options.path}: no held-out views to judge by")
    test = scene.splits["test"]
    chosen = np.unique(np.linspace(0, len(test) - 1, options.n_views).round().astype(int)).tolist()
    views = PosedImages(
        cameras=tuple(test.cameras[k] for k in chosen), images=tuple(test.images[k] for k in chosen),
        names=tuple(test.names[k] for k in chosen),
    )  # fmt: skip
    box = scene.spaces.aabb_scale
    batch = options.batch or 2**14

    def config_of(setting: Setting) -> nerf_config.NerfConfig:
        base = nerf_config.PRESETS["fast"]
        rates: dict[str, Any] = {}
        if setting.learning_rate is not None:
            rates = {"learning_rate": setting.learning_rate, "final_learning_rate": setting.learning_rate / 20}
        return replace(
            base, preset="sweep", encoding=setting.encoding, finest_resolution=max(1, setting.finest // box),
            n_neurons=setting.n_neurons, density_layers=7 if setting.is_deep else 1,
            color_layers=1 if setting.is_deep else 2,
            train=replace(
                base.train, batch=batch, step_scales=(SWEEP_STEP,), step_until=(1.0,), **rates
            ),
            # A deep network is too slow to be asked for more cells than points it is trained on, and cells that wait
            # their turn must not be forgotten meanwhile.
            occupancy=replace(base.occupancy, decay=0.95, max_cells=batch, full_sweeps=1),
        )  # fmt: skip

    def judge(task: NerfTask) -> dict[str, float]:
        found = evaluate_views(task.model(), views)
        return {k: found[k] for k in ("psnr", "ssim")}

    def cell(setting: Setting) -> Cell:
        config = config_of(setting)
        sizes = config.field_config(box, 0.0)
        networks = sum(a * b for shapes in sizes.network_shapes() for a, b in shapes)
        return Cell(
            setting.name,
            {**setting.columns, "encoding_parameters": sizes.n_grid_parameters, "network_parameters": networks},
            lambda: NerfTask(config, scene, seed=options.seed),
            judge,
        )

    about = {
        "input": scene.name, "photos": f"{len(scene.splits['train'])} of {views.cameras[0].width} pixels a row",
        "held-out views": len(views), "points a step": batch, "N_max": 4096, "seed": options.seed,
        "directions": "spherical harmonics of degree 4 in every row", "march": f"steps of {SWEEP_STEP:g} sqrt(3)/1024",
    }  # fmt: skip
    quality, others = ("psnr", "held-out PSNR, dB"), (("ssim", "SSIM"),)
    return sweep(options, Subject("nerf", about, quality, others, True, PSNR, 3, 4096, 2**22, cell))


# --- images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepImage(SweepOptions):
    """Train a matrix of settings on a picture."""


def sweep_image(arguments: list[str]) -> int:
    """`sweep image` with its arguments."""
    options = parse(SweepImage, arguments, "sweep image")
    set_up(threads=options.threads)
    batch = options.batch or 2**16
    with read_picture(options.path) as picture:
        finest = max(16, -(-max(picture.width, picture.height) // 2))

        def config_of(setting: Setting) -> image_config.ImageConfig:
            rates: dict[str, Any] = {}
            if setting.learning_rate is not None:
                rates = {"learning_rate": setting.learning_rate, "final_learning_rate": setting.learning_rate / 20}
            return image_config.ImageConfig(
                preset="sweep", encoding=setting.encoding, finest_resolution=setting.finest, numbers_per_pixel=1e6,
                max_numbers=2**32, n_neurons=setting.n_neurons, n_hidden_layers=7 if setting.is_deep else 2,
                train=image_config.ImageTrainConfig(batch=batch, touches_per_update=0.0, **rates),
            )  # fmt: skip

        def cell(setting: Setting) -> Cell:
            config = config_of(setting)
            grid, layers = config.grid(), config.n_hidden_layers
            sizes = MLPConfig(config.n_neurons, layers).shapes(grid.n_output(2), picture.n_channels)
            return Cell(
                setting.name,
                {
                    **setting.columns, "encoding_parameters": grid.n_parameters(2),
                    "network_parameters": sum(a * b for a, b in sizes),
                },
                lambda: ImageTask(config, picture, seed=options.seed),
                lambda task: {"psnr": compare(task.model(), picture)["psnr"]},
            )  # fmt: skip

        about = {
            "input": picture.name, "pixels": f"{picture.width}x{picture.height}", "points a step": batch,
            "N_max": finest, "seed": options.seed,
        }  # fmt: skip
        quality = ("psnr", "PSNR of every pixel, dB")
        return sweep(options, Subject("image", about, quality, (), False, PSNR, 2, finest, 2**24, cell))


# --- signed distances ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepSdf(SweepOptions):
    """Train a matrix of settings on a mesh."""

    n_points: int = 2**20
    """Uniform points for the IoU."""


def sweep_sdf(arguments: list[str]) -> int:
    """`sweep sdf` with its arguments."""
    options = parse(SweepSdf, arguments, "sweep sdf")
    set_up(threads=options.threads)
    batch, finest = options.batch or 2**15, 2048
    mesh = read_mesh(options.path)

    def config_of(setting: Setting) -> sdf_config.SdfConfig:
        base = sdf_config.PRESETS["fast"]
        rates: dict[str, Any] = {}
        if setting.learning_rate is not None:
            rates = {"learning_rate": setting.learning_rate, "final_learning_rate": setting.learning_rate / 20}
        return replace(
            base, preset="sweep", encoding=setting.encoding, finest_resolution=setting.finest,
            n_neurons=setting.n_neurons, n_hidden_layers=7 if setting.is_deep else 2,
            train=replace(base.train, batch=batch, **rates),
        )  # fmt: skip

    def judge(task: SdfTask) -> dict[str, float]:
        found = evaluate_distance(task.model(), task.truth, n_points=options.n_points)
        return {k: found[k] for k in ("iou", "mean_distance_of_diagonal") if found[k] is not None}

    def cell(setting: Setting) -> Cell:
        config = config_of(setting)
        grid = config.encoding.reaching(config.finest_resolution)
        sizes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(grid.n_output(3), 1)
        return Cell(
            setting.name,
            {
                **setting.columns, "encoding_parameters": grid.n_parameters(3),
                "network_parameters": sum(a * b for a, b in sizes),
            },
            lambda: SdfTask(config, mesh, seed=options.seed),
            judge,
        )  # fmt: skip

    about = {
        "input": mesh.name, "triangles": len(mesh.faces), "points a step": batch, "N_max": finest,
        "seed": options.seed, "points of the IoU": options.n_points,
    }  # fmt: skip
    quality, batches = ("iou", "IoU"), ("loss", "MAPE of batches")
    others = (("mean_distance_of_diagonal", "mean error, of the diagonal"),)
    return sweep(options, Subject("sdf", about, quality, others, False, batches, 3, finest, 2**23, cell))
