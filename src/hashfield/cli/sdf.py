"""The commands of signed distances: `train sdf`, `demo sdf`, `sweep sdf`, and `render` and `evaluate` of such runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from hashfield.api import load
from hashfield.cli.demo import DemoCommand, DemoKind
from hashfield.cli.evaluate import write_figures
from hashfield.cli.outcome import Outcome, write_outcome
from hashfield.cli.render import Render, render
from hashfield.cli.shared import DeviceName, parse, say, set_up
from hashfield.cli.sweep import Subject, SweepKind, SweepOptions
from hashfield.cli.train import Plan, TrainCommand, Training, TrainKind, say_memory
from hashfield.data.demo_mesh import DEMO as DEMO_PATH
from hashfield.data.demo_mesh import demo_mesh
from hashfield.data.meshes import SourceMesh, check_mesh_packages, read_mesh
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import colorize_normals, comparison_sheet, to_uint8, write_png
from hashfield.export.meshes import extract_mesh
from hashfield.export.video import write_mp4
from hashfield.geometry.paths import orbit_path
from hashfield.nn.config import MLPConfig
from hashfield.nn.encodings import table_of
from hashfield.tasks.evaluate_surface import evaluate_distance
from hashfield.tasks.sdf import MeshInUnitSpace, SdfTask, gpu_memory
from hashfield.tasks.sdf_config import PRESETS, SdfConfig, preset_for
from hashfield.tasks.sdf_model import SdfModel
from hashfield.tasks.shared import background_text, parse_background, stored, stored_background
from hashfield.tasks.studies import Setting
from hashfield.train.checkpoint import config_from_dict
from hashfield.train.loop import TrainResult
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class TrainSdf(TrainCommand):
    """Train a signed distance on a mesh."""

    path: Annotated[Path, tyro.conf.Positional]
    """OBJ, PLY, STL, GLB or GLTF file."""
    background: str = "white"
    """Colour behind the surface in pictures: white, black or #rrggbb."""
    config: Annotated[SdfConfig, tyro.conf.arg(name="")] = SdfConfig()
    """Model and recipe; --preset chooses the defaults of what follows."""


@contextmanager
def prepare_sdf(
    options: TrainSdf, plan: Plan, device: torch.device, folder: Callable[[str], RunFolder]
) -> Iterator[Training]:
    """The training of a signed distance: see `hashfield.cli.train.TrainKind`.

    Args:
        options: What the user asked for.
        plan: Configuration and length, and the run to go on with if there is one.
        device: Where to train.
        folder: Makes the run folder for data of this name, or gives the resumed run's.
    """
    background = parse_background(options.background)
    check_mesh_packages()  # now, not after the training
    mesh = read_mesh(options.path)
    say(f"{mesh.name}: {len(mesh.vertices)} vertices, {len(mesh.faces)} triangles")
    if plan.resumed is not None:
        _check_same_mesh(plan.resumed, plan.metadata, mesh)
    if device.type == "cuda":
        say_memory(gpu_memory(plan.config), device, options.max_gpu_memory, SMALLER)
    task = SdfTask(plan.config, mesh, seed=options.seed, background=background, device=device)
    for note in (*mesh.notes, *task.truth.notes()):
        say(note)
    yield Training(task, folder(mesh.name))


def _stored_options(run: RunFolder, metadata: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run takes from its checkpoint rather than from the command line."""
    path = run.checkpoint
    return {
        "seed": stored(metadata, "seed", int, path),
        "background": background_text(stored_background(metadata, path)),
    }


def _check_same_mesh(run: RunFolder, metadata: dict[str, Any], mesh: SourceMesh) -> None:
    """Raise unless the mesh has as many vertices and triangles as the one the run was begun with."""
    stored = tuple(metadata.get("scene", {}).get(name) for name in ("n_vertices", "n_faces"))
    found = (len(mesh.vertices), len(mesh.faces))
    if stored != found:
        raise ConfigError(
            f"{run.path}: was begun with a mesh of {stored[0]} vertices and {stored[1]} triangles, "
            f"{mesh.path} has {found[0]} and {found[1]}"
        )


# --- what follows a run

SHEET_SIDE = 480  # pixels of the sides of the pictures that are written
MESHED = 256  # resolution at which the surface is extracted for its figures


def finish_sdf(
    task: SdfTask, run: RunFolder, result: TrainResult, *, video_frames: int = 0, by_clock: bool = False
) -> dict[str, Any]:
    """Figures; pictures, video and report lie in the run folder afterwards.

    Args:
        task: The trained task.
        run: Where its checkpoint lies.
        result: How training ended.
        video_frames: Frames of a turntable; 0 makes none.
        by_clock: Whether the schedule followed the clock.
    """
    model = task.model()
    figures = evaluate_distance(model, task.truth, n_points=2**18, n_surface=2**16, surface=extracted(model, MESHED))
    say("; ".join(f"{name} {value}" for name, value in table_rows(figures)))
    sheets = []
    for k in (0, 3):
        camera = task.cameras["orbit"][k].resized(SHEET_SIDE, SHEET_SIDE)
        found = model.frame(camera, ("color", "normals", "opacity"), model.background)
        exact = task.truth.normals_seen(camera)
        row = [
            ("shaded", to_uint8(found["color"])),
            ("normals", colorize_normals(found["normals"], found["opacity"])),
            ("normals of the mesh", colorize_normals(exact, np.linalg.norm(exact, axis=-1).clip(0, 1))),
        ]
        sheet = comparison_sheet([row])
        write_png(run.renders / f"compare_{k:03d}.png", sheet)
        sheets.append((f"view {k}", sheet))
    video = None
    if video_frames:
        video = run.renders / "turntable.mp4"
        write_mp4(video, _turntable(model, video_frames), fps=20)
    encoding = task.config.encoding
    query = task.truth.query
    rows = table_rows(figures)
    outcome = Outcome(
        title=f"{task.mesh.name}: signed distance",
        data=[
            ("mesh", f"{task.mesh.path}: {len(task.mesh.vertices)} vertices, {len(task.mesh.faces)} triangles"),
            *(("about the mesh", note) for note in task.mesh.notes),
            *(("inside" if k == 0 else "about inside", note) for k, note in enumerate(task.truth.notes())),
            ("preset", task.config.preset),
            ("encoding", f"{encoding.otype}, L {encoding.n_levels}, F {encoding.n_features_per_level}, "
                         f"T 2^{encoding.log2_hashmap_size}, {table_of(task.field.encoding).numel():,} numbers"),
        ],
        figures=[
            *rows,
            *((name.removesuffix("_of"), str(text)) for name, text in figures.items() if name.endswith("_of")),
            ("sign of the exact distance", query.rule),
        ],
        headline=rows[:2],
        sheets=sheets,
        curves=[("relative error of the distance", "loss"), ("trained points per second", "samples_per_s")],
        trained=f"{result.n_samples / 1e6:.1f} M points",
        video=video,
    )  # fmt: skip
    write_outcome(run, result, outcome, device=task.device, seed=task.seed, by_clock=by_clock)
    return figures


def table_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the figures, for people."""

    def text(value: float | None, form: str) -> str:
        return "not defined" if value is None else format(value, form)

    return [
        ("IoU", text(figures["iou"], ".5f")),
        ("mean distance error near the surface",
         f"{figures['mean_distance']:.3g} world units ({figures['mean_distance_of_diagonal']:.2e} of the diagonal)"),
        ("Chamfer distance", f"{text(figures['chamfer'], '.3g')} world units"),
        ("F-score", text(figures["f_score"], ".4f")),
    ]  # fmt: skip


def extracted(model: SdfModel, resolution: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices (world) and faces of the model's surface; None where it has none."""
    surface = model.surface(resolution=resolution)
    try:
        mesh = extract_mesh(
            surface.value, surface.box, resolution, surface.level, inside=surface.inside, shortcut=surface.shortcut
        )
    except ConfigError as error:
        say(f"no surface extracted: {error}")
        return None
    return mesh.vertices, mesh.faces


def _turntable(model: SdfModel, n_frames: int) -> Iterator[np.ndarray]:
    for camera in orbit_path(model.cameras["orbit"], n_frames, width=400, height=400):
        yield to_uint8(model.render(camera, ("color",), model.background, oversample=1)["color"])


# --- the other verbs


def render_sdf(arguments: list[str]) -> int:
    """`render` for a signed distance."""
    return render(parse(Render, arguments, "render", Render(run=tyro.MISSING, views="orbit")))


@dataclass(frozen=True)
class EvaluateSdf:
    """IoU, distance error, Chamfer distance and F-score of a trained signed distance against its mesh."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    data: Path | None = None
    """The mesh to compare with; default: where it lay during training."""
    n_points: int = 2**20
    """Uniform points for the IoU."""
    n_surface: int = 2**17
    """Points on and near each surface, for the other figures."""
    resolution: int = 512
    """Cells along the longest side of the box of the extracted surface."""
    seed: int = 1
    """Seed of the points."""
    json: Path | None = None
    """Also write the figures here."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to ask the model; auto takes a supported GPU if there is one, else the CPU."""


def evaluate_sdf(arguments: list[str]) -> int:
    """`evaluate` for a signed distance."""
    options = parse(EvaluateSdf, arguments, "evaluate")
    device = set_up(options.device, options.threads)
    if not 8 <= options.resolution <= 4096:
        raise ConfigError(f"--resolution: expected 8 to 4096, got {options.resolution}")
    model = load(options.run, device)
    config = config_from_dict(SdfConfig, model.info.get("config"), f"{options.run}: config")
    mesh = _mesh_of(model, options)
    truth = MeshInUnitSpace(mesh, config.inside)
    if not np.allclose(truth.box, model.box.cpu().numpy(), atol=1e-6):
        raise DataError(f"{mesh.path}: is not the mesh of this run: its box differs")
    figures = evaluate_distance(
        model, truth, n_points=options.n_points, n_surface=options.n_surface, seed=options.seed,
        surface=extracted(model, options.resolution),
    )  # fmt: skip
    for name, value in table_rows(figures):
        say(f"{name}: {value}")
    say(f"inside: {figures['inside']}; {options.n_points} uniform points, {options.n_surface} on each surface, "
        f"seed {options.seed}, surface extracted with {options.resolution} cells")  # fmt: skip
    if options.json is not None:
        write_figures(options.json, {**figures, "resolution": options.resolution, "run": str(options.run)})
    return 0


def _mesh_of(model: SdfModel, options: EvaluateSdf) -> SourceMesh:
    """The mesh to compare with."""
    stored = model.info.get("scene", {})
    if options.data is None and stored.get("path") == DEMO_PATH:
        check_mesh_packages()
        return demo_mesh()
    path = options.data or Path(stored.get("path", ""))
    if not path.is_file():
        raise DataError(f"{path}: the mesh of this run is not there any more; name it with --data")
    return read_mesh(path)


@dataclass(frozen=True)
class DemoSdf(DemoCommand):
    """Make a mesh by formula, train on it, and write pictures, a video, a checkpoint and a report."""

    n_frames: int = 24
    """Frames of the turntable video; 0 makes none."""


@contextmanager
def make_demo(
    options: DemoSdf, device: torch.device, run: RunFolder
) -> Iterator[tuple[SdfTask, Callable[[TrainResult], Any]]]:
    """The task of a mesh made by formula.

    Args:
        options: What the user asked for.
        device: Where to train.
        run: Folder of the run.
    """
    mesh = demo_mesh()
    say(f"made a mesh of {len(mesh.vertices)} vertices and {len(mesh.faces)} triangles")
    task = SdfTask(PRESETS["fast"], mesh, seed=options.seed, device=device)
    yield task, lambda result: finish_sdf(task, run, result, video_frames=options.n_frames, by_clock=True)


# --- sweep

SWEEP_FINEST = 2048
"""Resolution of a hash grid's last level."""


@dataclass(frozen=True)
class SweepSdf(SweepOptions):
    """Train a matrix of settings on a mesh."""

    max_samples: int | None = None
    """Points that each cell is trained on, the budget that all share; default: 2^23."""
    batch: int = 2**15
    n_points: int = 2**20
    """Uniform points for the IoU."""


@contextmanager
def prepare_sweep(options: SweepSdf) -> Iterator[Subject]:
    """The mesh of a sweep: see `hashfield.cli.sweep.SweepKind`."""
    mesh, base = read_mesh(options.path), PRESETS["fast"]

    def config_of(setting: Setting, rates: Mapping[str, Any]) -> SdfConfig:
        return replace(
            base, preset="sweep", encoding=setting.encoding, finest_resolution=setting.finest,
            n_neurons=setting.n_neurons, n_hidden_layers=7 if setting.is_deep else 2,
            train=replace(base.train, batch=options.batch, **rates),
        )  # fmt: skip

    def n_parameters(config: SdfConfig) -> tuple[int, int]:
        grid = config.encoding.reaching(config.finest_resolution)
        shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(grid.n_output(3), 1)
        return grid.n_parameters(3), sum(a * b for a, b in shapes)

    def judge(task: SdfTask) -> dict[str, float]:
        found = evaluate_distance(task.model(), task.truth, n_points=options.n_points)
        return {k: found[k] for k in ("iou", "mean_distance_of_diagonal") if found[k] is not None}

    about = {
        "input": mesh.name, "triangles": len(mesh.faces), "points a step": options.batch, "N_max": SWEEP_FINEST,
        "seed": options.seed, "points of the IoU": options.n_points,
    }  # fmt: skip
    yield Subject(
        about, SWEEP_FINEST, config_of, n_parameters, lambda config: SdfTask(config, mesh, seed=options.seed), judge
    )


SMALLER = "--train.batch, --train.n-chunks or --encoding.log2-hashmap-size"
TRAIN = TrainKind(
    name="sdf", command=TrainSdf, presets=PRESETS, suits=preset_for, prepare=prepare_sdf, finish=finish_sdf,
    resumed=_stored_options, smaller=f"{SMALLER} (or --preset fast)", render_options="--views orbit --format mp4",
)  # fmt: skip
SWEEP = SweepKind(
    name="sdf", command=SweepSdf, prepare=prepare_sweep, max_samples=2**23, n_dims=3, quality=("iou", "IoU"),
    columns=(("mean_distance_of_diagonal", "mean error, of the diagonal"),), batches=("loss", "MAPE of batches"),
)  # fmt: skip
DEMO = DemoKind(train=TRAIN, command=DemoSdf, words="demo sdf", name="demo-sdf", sizes=None, make=make_demo,
    check=check_mesh_packages,
)  # fmt: skip
