"""The commands of signed distances: `train sdf`, `demo sdf`, and `render` and `evaluate` of such runs."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import numpy as np
import tyro

from hashfield.api import load
from hashfield.cli.evaluate import write_figures
from hashfield.cli.render import Render, render
from hashfield.cli.shared import DeviceName, parse, place_of, say, set_up, uses_gpu, value_of
from hashfield.cli.train import (
    TrainCommand,
    demo_ended,
    ended_early,
    make_plan,
    new_run,
    preset_of,
    run_training,
    say_memory,
    say_what_a_demo_left,
    write_config,
    write_tensorboard,
)
from hashfield.data.demo_mesh import DEMO, demo_mesh
from hashfield.data.meshes import SourceMesh, check_mesh_packages, read_mesh
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import colorize_normals, comparison_sheet, to_uint8, write_png
from hashfield.export.meshes import extract_mesh
from hashfield.export.report import write_report
from hashfield.export.video import check_video, write_mp4
from hashfield.geometry.paths import orbit_path
from hashfield.tasks.evaluate_surface import evaluate_distance
from hashfield.tasks.sdf import MeshInUnitSpace, SdfTask, gpu_memory
from hashfield.tasks.sdf_config import PRESETS, SdfConfig, preset_for
from hashfield.tasks.sdf_model import SdfModel
from hashfield.tasks.shared import background_text, parse_background, stored, stored_background
from hashfield.train.checkpoint import config_from_dict, read_metadata
from hashfield.train.loop import TrainOptions, TrainResult
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class TrainSdf(TrainCommand):
    """Train a signed distance on a mesh."""

    path: Annotated[Path, tyro.conf.Positional]
    """OBJ, PLY, STL, GLB or GLTF file."""
    background: str = "white"
    """Behind the surface in pictures: white, black or #rrggbb."""
    max_gpu_memory: float | None = None
    """GiB of GPU memory that the run may take; default all there is. Exact distances are made on the host."""
    config: Annotated[SdfConfig, tyro.conf.arg(name="")] = SdfConfig()
    """Model and recipe; --preset chooses the defaults of what follows."""


def train_sdf(arguments: list[str]) -> int:
    """`train sdf` with its arguments."""
    options = parse(TrainSdf, arguments, "train sdf", _defaults(arguments))
    check_mesh_packages()  # now, not after the training
    device = set_up(options.device, options.threads, options.max_gpu_memory)
    plan = make_plan(options, _defaults(arguments).config, value_of(arguments, "--preset"))
    if plan.resumed is not None:
        options = replace(options, **_stored_options(plan.resumed, plan.metadata))
    background = parse_background(options.background)
    mesh = read_mesh(options.path)
    say(f"{mesh.name}: {len(mesh.vertices)} vertices, {len(mesh.faces)} triangles")
    if plan.resumed is not None:
        _check_same_mesh(plan.resumed, plan.metadata, mesh)
    if device.type == "cuda":
        say_memory(
            gpu_memory(plan.config), device, options.max_gpu_memory,
            "--train.batch, --train.n-chunks or --encoding.log2-hashmap-size",
        )  # fmt: skip
    task = SdfTask(plan.config, mesh, seed=options.seed, background=background, device=device)
    for note in (*mesh.notes, *task.truth.notes()):
        say(note)
    run = plan.resumed or new_run(options, mesh.name)
    say(f"run folder: {run.path}; preset {plan.config.preset}")
    write_config(run, task, plan.length)
    resume_command = f"hashfield train sdf {quote(str(options.path))} --out {quote(str(run.path))} --resume"
    result = run_training(task, run, plan.length, options.resume, resume_command)
    if options.tensorboard:
        write_tensorboard(run, result)
    if result.stopped_by != "done":
        return ended_early(result, run, resume_command)
    finish_sdf(task, run, result, by_clock=plan.length.max_seconds is not None)
    say(f"report: {run.report}")
    say(f"render it: hashfield render {quote(str(run.path))} --views orbit --format mp4")
    return 0


def _defaults(arguments: list[str]) -> TrainSdf:
    """The options' defaults: those of the preset that the arguments name, or that suits their length."""
    on_gpu = value_of(arguments, "--device") in (None, "auto", "cuda") and uses_gpu()
    return TrainSdf(
        path=tyro.MISSING,
        config=preset_of(arguments, PRESETS, lambda seconds, steps: preset_for(seconds, steps, on_gpu)),
    )


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


def finish_sdf(
    task: SdfTask, run: RunFolder, result: TrainResult, *, video_frames: int = 0, by_clock: bool = False
) -> dict[str, Any]:
    """Figures; pictures, video and report lie in the run folder afterwards."""
    model = task.model()
    figures = evaluate_distance(model, task.truth, n_points=2**18, n_surface=2**16, surface=extracted(model, 256))
    say("; ".join(f"{name} {value}" for name, value in shown(figures)))
    sheets = []
    for k in (0, 3):
        camera = task.cameras["orbit"][k].resized(480, 480)
        found = model.render(camera, ("color", "normals", "opacity"), model.background)
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
    facts = [
        ("mesh", f"{task.mesh.path}: {len(task.mesh.vertices)} vertices, {len(task.mesh.faces)} triangles"),
        *(("about the mesh", note) for note in task.mesh.notes),
        *(("inside" if k == 0 else "about inside", note) for k, note in enumerate(task.truth.notes())),
        ("preset", task.config.preset),
        ("encoding", f"{encoding.otype}, L {encoding.n_levels}, F {encoding.n_features_per_level}, "
                     f"T 2^{encoding.log2_hashmap_size}, {task.steps.values().table.numel():,} numbers"),
        ("training", f"{result.train_seconds:.1f} s, {result.step} steps, {result.n_samples / 1e6:.1f} M points on "
                     f"{place_of(task.device)}"),
        ("schedule", "follows the clock, so a second run differs a little" if by_clock else "follows the steps"),
        ("kernels compiled or loaded in", f"{result.compile_seconds:.1f} s"),
        ("ended", result.stopped_by),
        ("seed", str(task.seed)),
        *shown(figures),
        *((name.removesuffix("_of"), str(text)) for name, text in figures.items() if name.endswith("_of")),
        ("sign of the exact distance", query.rule),
    ]  # fmt: skip
    write_report(
        run.report, f"{task.mesh.name}: signed distance", facts,
        curves={
            "relative error of the distance": [(line["elapsed_s"], line["loss"]) for line in result.history],
            "trained points per second": [(line["elapsed_s"], line["samples_per_s"]) for line in result.history],
        },
        images=sheets, video=video, x_label="seconds of training",
        headline=[*shown(figures)[:2], ("training", f"{result.train_seconds:.0f} s")],
    )  # fmt: skip
    return figures


def shown(figures: dict[str, Any]) -> list[tuple[str, str]]:
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


def _turntable(model: SdfModel, n_frames: int):
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
    """The mesh; default where it lay during training."""
    n_points: int = 2**20
    """Uniform points for the IoU."""
    n_surface: int = 2**17
    """Points on and near each surface, for the other figures."""
    resolution: int = 512
    """Cells along the longest side of the box of the extracted surface."""
    seed: int = 1
    """Of the points."""
    json: Path | None = None
    """Also write the figures here."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to ask the model; auto takes a GPU where one is."""


def evaluate_sdf(arguments: list[str]) -> int:
    """`evaluate` for a signed distance."""
    options = parse(EvaluateSdf, arguments, "evaluate")
    check_mesh_packages()
    device = set_up(options.device, options.threads)
    if not 8 <= options.resolution <= 4096:
        raise ConfigError(f"--resolution: expected 8 to 4096, got {options.resolution}")
    model = load(options.run, device)
    metadata = read_metadata(RunFolder.open(options.run).checkpoint)
    config = config_from_dict(SdfConfig, metadata.get("config"), f"{options.run}: config")
    mesh = _mesh_of(model, options)
    truth = MeshInUnitSpace(mesh, config.inside)
    if not np.allclose(truth.box, model.box.cpu().numpy(), atol=1e-6):
        raise DataError(f"{mesh.path}: is not the mesh of this run: its box differs")
    figures = evaluate_distance(
        model, truth, n_points=options.n_points, n_surface=options.n_surface, seed=options.seed,
        surface=extracted(model, options.resolution),
    )  # fmt: skip
    for name, value in shown(figures):
        say(f"{name}: {value}")
    say(f"inside: {figures['inside']}; {options.n_points} uniform points, {options.n_surface} on each surface, "
        f"seed {options.seed}, surface extracted with {options.resolution} cells")  # fmt: skip
    if options.json is not None:
        write_figures(options.json, {**figures, "resolution": options.resolution, "run": str(options.run)})
    return 0


def _mesh_of(model: SdfModel, options: EvaluateSdf) -> SourceMesh:
    """The mesh to compare with."""
    stored = model.info.get("scene", {})
    if options.data is None and stored.get("path") == DEMO:
        return demo_mesh()
    path = options.data or Path(stored.get("path", ""))
    if not path.is_file():
        raise DataError(f"{path}: the mesh of this run is not there any more; name it with --data")
    return read_mesh(path)


@dataclass(frozen=True)
class DemoSdf:
    """Make a mesh by formula, train on it, and write pictures, a video, a checkpoint and a report."""

    out: Path | None = None
    """Run folder; default runs/demo-sdf-<n>."""
    overwrite: bool = False
    """Allow --out to hold a run already."""
    seconds: float = 20.0
    """Of training."""
    seed: int = 0
    """Of training."""
    n_frames: int = 24
    """Of the turntable video; 0 for none."""
    threads: int | None = None
    """Threads of the kernels."""


def demo_sdf(arguments: list[str]) -> int:
    """`demo sdf`."""
    options = parse(DemoSdf, arguments, "demo sdf")
    set_up(threads=options.threads)
    if not 0 <= options.n_frames <= 100_000:
        raise ConfigError(f"--n-frames: expected 0 to 100000, got {options.n_frames}")
    if options.n_frames:
        check_video()  # now, not after the training
    check_mesh_packages()
    started = time.perf_counter()
    length = TrainOptions(max_seconds=options.seconds)
    run = RunFolder.create(options.out, "demo-sdf", options.overwrite)
    mesh = demo_mesh()
    say(f"made a mesh of {len(mesh.vertices)} vertices and {len(mesh.faces)} triangles")
    task = SdfTask(PRESETS["fast"], mesh, seed=options.seed)
    write_config(run, task, length)
    result = run_training(task, run, length)
    ended = demo_ended(result, run)
    if ended is not None:
        return ended
    finish_sdf(task, run, result, video_frames=options.n_frames, by_clock=True)
    say_what_a_demo_left(run, started)
    return 0
