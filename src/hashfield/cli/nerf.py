"""The commands of radiance fields that are theirs alone: `train nerf PATH`, `demo` and `sweep nerf PATH`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from hashfield.cli.demo import DemoCommand, DemoKind
from hashfield.cli.evaluate import Evaluate, views_of
from hashfield.cli.findings import SAID_BY_NOTES, say_findings
from hashfield.cli.outcome import Outcome, write_outcome
from hashfield.cli.prepare import n_threads, prepare_here
from hashfield.cli.progress import counted
from hashfield.cli.shared import DeviceName, parse, say
from hashfield.cli.sweep import Subject, SweepKind, SweepOptions
from hashfield.cli.train import Plan, TrainCommand, Training, TrainKind, say_memory
from hashfield.cli.view import View, view
from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.data.dataset import PosedImages, stored_reading
from hashfield.data.demo_scene import make_demo_scene, save_nerf_synthetic
from hashfield.data.doctor import examine
from hashfield.data.photo_cache import LazyPhotos
from hashfield.data.prepare import PrepareOptions, has_poses
from hashfield.errors import ConfigError
from hashfield.export.images import colorize_depth, comparison_sheet, error_picture, over, shrunk, to_uint8, write_png
from hashfield.export.video import write_mp4
from hashfield.geometry.paths import orbit_path
from hashfield.nn.config import RadianceFieldConfig
from hashfield.steps.ranks import current, working_alone
from hashfield.steps.refinement import summary
from hashfield.tasks.align import as_known, evaluate_aligned
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.frames import HasFrames
from hashfield.tasks.nerf import NerfTask, gpu_memory
from hashfield.tasks.nerf_config import PRESETS, NerfConfig, preset_for
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.shared import background_text, parse_background, stored, stored_background
from hashfield.tasks.studies import Setting
from hashfield.train.checkpoint import write_aside
from hashfield.train.loop import Progress, TrainResult
from hashfield.train.metrics import SSIM_WINDOW, psnr
from hashfield.train.run_folder import RunFolder
from hashfield.viewer.pictures import Photos


@dataclass(frozen=True)
class TrainNerf(TrainCommand):
    """Train a radiance field on photos with camera poses."""

    path: Annotated[Path, tyro.conf.Positional]
    """Folder with photos and transforms.json, a COLMAP model or LLFF's poses_bounds.npy, or the data file itself."""
    background: str = "white"
    """Colour behind the scene in evaluation and rendering: white, black or #rrggbb."""
    downscale: int = 1
    """Divide widths and heights of the photos by this whole number."""
    max_image_memory: float = 4.0
    """GiB that the decoded photos may take; more of them lie in files, and are trained on from there. Depth maps have
    what they leave."""
    image_cache: Path | None = None
    """Folder for decoded photos that do not fit --max-image-memory; default: in the user's cache."""
    aabb_scale: int | None = None
    """Side of the training box, a power of two up to 128; default: the file's, or chosen and printed."""
    camera_axes: Literal["opengl", "opencv"] = "opengl"
    """Axes of the cameras in the file: opengl looks along -z, as the formats have it; opencv along +z, as some
    exporters do."""
    prepare: bool = False
    """Find the cameras first where PATH is a folder of photos without poses, or a video: see hashfield prepare."""
    alpha: Literal["auto", "matte", "mask"] = "auto"
    """What alpha means where photos are not opaque: a matte cuts an object out, and nothing is where it is clear; a
    mask leaves out pixels that show something else; auto tells by how many pixels are clear."""
    masks: Path | None = None
    """Folder of a mask for each photo, by its name (a.png or a.jpg.png of a.jpg), besides those that the data state."""
    masks_keep: Literal["white", "black"] = "white"
    """Which pixels of --masks are learned from: those that are not black, or the black ones."""
    evaluation_seconds: float | None = None
    """About how long judging the held-out views may take when training is done: only so many of their rows are judged,
    and that is said. Default: a quarter of the training, at least 15. hashfield evaluate judges whole views."""
    config: Annotated[NerfConfig, tyro.conf.arg(name="")] = NerfConfig()
    """Model and recipe; --preset chooses the defaults of what follows."""


@contextmanager
def prepare_nerf(
    options: TrainNerf, plan: Plan, device: torch.device, folder: Callable[[str], RunFolder]
) -> Iterator[Training]:
    """The training of a radiance field: see `hashfield.cli.train.TrainKind`.

    Args:
        options: What the user asked for.
        plan: Configuration and length, and the run to go on with if there is one.
        device: Where to train.
        folder: Makes the run folder for data of this name, or gives the resumed run's.
    """
    # What can be refused is refused before minutes of decoding, not after.
    parse_background(options.background)
    if not options.max_image_memory > 0:
        raise ConfigError(f"--max-image-memory: expected GiB above 0, got {options.max_image_memory}")
    origin = "--aabb-scale" if plan.resumed is None else "as in the resumed run"
    read = ReadOptions(
        downscale=options.downscale, aabb_scale=options.aabb_scale, aabb_scale_origin=origin,
        camera_axes=options.camera_axes, max_image_memory=int(options.max_image_memory * 2**30), least_side=SSIM_WINDOW,
        alpha=options.alpha, masks=options.masks, masks_keep=options.masks_keep,
        image_cache=options.image_cache, say=say, depth=plan.config.train.depth_sources,
    )  # fmt: skip
    scene = load_scene(with_poses(options), read)
    scene = replace(scene, reading={**scene.reading, "downscale": str(options.downscale)})  # for hashfield evaluate
    for note in scene.notes:
        say(note)
    if scene.resident_bytes is not None:
        say(f"photos that are read from files are not looked at here: hashfield inspect {options.path} does it")
        if current().n > 1:
            say("each rank draws its rays from a part of the photos of its own, and holds so much of it in memory")
    elif plan.resumed is None:
        say_findings([finding for finding in examine(scene).findings if finding.kind not in SAID_BY_NOTES])
    if device.type == "cuda" and plan.config.refine:
        say("refining: steps are taken one by one on this GPU, not as a captured graph, which is slower")
    knows_depth = scene.splits["train"].depths is not None
    if device.type == "cuda" and plan.config.trains_on_device and not knows_depth:
        say_memory(gpu_memory(plan.config, scene), device, options.max_gpu_memory, SMALLER)
    task = NerfTask(plan.config, scene, seed=options.seed, background=options.background, device=device)
    if plan.config.refine is None and task.refinement is not None:
        say("light: how bright each photo was taken is learned with the scene (--refine without a name: it is not)")
    if task.depth_note is not None:
        say(task.depth_note)
    elif task.teacher is not None:
        say(f"the depth that is known teaches until {100 * plan.config.train.depth_until:.0f} % of the training")
    if plan.resumed is not None:
        check_same_photos(plan.resumed, plan.metadata, scene)
        check_same_depth(plan.resumed, plan.metadata, task)
    yield Training(task, folder(scene.name))


def with_poses(options: TrainNerf) -> Path:
    """The data set to train on: the path that was named, or what `hashfield prepare` makes of it."""
    if not options.prepare:
        return options.path
    if has_poses(options.path):
        say(f"--prepare has no effect: {options.path} has camera poses already")
        return options.path
    return prepare_here(options.path, None, PrepareOptions(threads=n_threads(options.threads))).path


def stored_options(run: RunFolder, metadata: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run takes from its checkpoint rather than from the command line."""
    path = run.checkpoint
    spaces, scene = stored(metadata, "spaces", dict, path), stored(metadata, "scene", dict, path)
    return {
        "seed": stored(metadata, "seed", int, path),
        "aabb_scale": stored(spaces, "aabb_scale", int, path),
        "background": background_text(stored_background(metadata, path)),
        "camera_axes": scene.get("camera_axes", "opengl"),
        **stored_reading(scene),
    }


def same_data(options: TrainNerf) -> str:
    """The options that make the photos what they are."""
    said = [f"--downscale {options.downscale}"] if options.downscale > 1 else []
    return " ".join([*said, *(["--prepare"] if options.prepare else [])])


def check_same_photos(run: RunFolder, metadata: dict[str, Any], scene: Scene) -> None:
    """Raise unless the photos read are as many and as large as those the run was begun with.

    Args:
        run: Folder of the run, named in the error.
        metadata: Metadata of its checkpoint.
        scene: The photos read now.
    """
    stored = [(view.get("width"), view.get("height")) for view in metadata.get("cameras", {}).get("train", [])]
    found = [(camera.width, camera.height) for camera in scene.splits["train"].cameras]
    if stored != found:
        raise ConfigError(
            f"{run.path}: was begun with {len(stored)} training photos, the first {stored[:1]}, here are "
            f"{len(found)}, the first {found[:1]}: other data, or another --downscale"
        )


def check_same_depth(run: RunFolder, metadata: dict[str, Any], task: NerfTask) -> None:
    """Raise unless what is known of depth is what the run was begun with. Where it is not learned from any more, as
    with photos that do not fit into memory now, that is said elsewhere.

    Args:
        run: Folder of the run, named in the error.
        metadata: Metadata of its checkpoint.
        task: The task that is to go on.
    """
    scene = stored(metadata, "scene", dict, run.checkpoint)
    if "depth" not in scene or task.depth_print is None:  # runs of earlier versions do not tell
        return
    if scene["depth"] != task.depth_print:
        was = "nothing was known of depth" if scene["depth"] is None else "depth maps or points were others"
        raise ConfigError(
            f"{run.path}: {was} when the run was begun: give it the data of then, with the same --max-image-memory"
        )


# --- what follows a run

SHEETS = 4  # views whose comparison is written as a picture
SHEET_SIDE = 640  # pixels of the longer side of these pictures


def finish(
    task: NerfTask,
    run: RunFolder,
    result: TrainResult,
    extra: Sequence[tuple[str, str]] = (),
    *,
    video_frames: int = 0,
    by_clock: bool = False,
    evaluation_seconds: float | None = None,
) -> dict[str, Any]:
    """Figures on the held-out views; pictures, video and report lie in the run folder afterwards.

    Args:
        task: The trained task.
        run: Folder of the run, where files are written.
        result: How the training went.
        extra: Further lines (name, value) of the report.
        video_frames: Frames of a turn around the scene; 0: no video.
        by_clock: Whether the schedule followed the clock.
        evaluation_seconds: About how long judging views may take; None: a quarter of the training, at least 15.
    """
    model, scene = task.model(), task.scene
    figures: dict[str, Any] = {}
    sheets: list[tuple[str, np.ndarray]] = []
    if "test" in scene.splits and len(scene.splits["test"]):
        views = as_known(scene.splits["test"], model, "test")
        chosen = set(np.linspace(0, len(views) - 1, min(SHEETS, len(views))).round().astype(int).tolist())

        renderings: dict[int, np.ndarray] = {}

        def keep(k: int, rendering: np.ndarray, photo: np.ndarray) -> None:
            if k in chosen:
                renderings[k] = shrunk(to_uint8(rendering), SHEET_SIDE)

        seconds = max(15.0, result.train_seconds / 4) if evaluation_seconds is None else evaluation_seconds
        figures = evaluate_views(
            model, views, on_view=keep, max_seconds=seconds,
            watch=lambda parts, total: counted(parts, total, "parts of the held-out views judged"),
        )  # fmt: skip
        pace = seconds_a_frame(figures, views)
        say(f"held-out: {held_out_text(figures, views)}, {pace:.2f} s a frame; views not aligned")
        if views.gains is not None:
            say("held-out views are rendered as bright as the training photos near them; nothing was fitted to them")
        if fits_views(task):
            figures["aligned"] = evaluate_aligned(model, views, task.config.refine or (), max_seconds=seconds / 2)
            say(aligned_line(figures["aligned"]))
        for k in counted(sorted(chosen), len(chosen), "pictures for the report"):
            sheet = comparison(model, views, k, renderings.get(k))
            write_png(run.renders / f"compare_{k:03d}.png", sheet)
            sheets.append((f"held-out view {views.names[k]}", sheet))
    refined = [] if task.refinement is None else tell_refinement(task, run)
    video = None
    if video_frames:
        video = run.renders / "turntable.mp4"
        write_mp4(video, counted(turntable(model, scene, video_frames), video_frames, "frames of the video"), fps=20)
    sizes = task.field.config
    outcome = Outcome(
        title=f"{scene.name}: radiance field",
        data=[
            ("data", f"{scene.path} ({scene.form})"),
            ("views", ", ".join(f"{len(views)} {split}" for split, views in scene.splits.items())),
            ("preset", task.config.preset),
            ("encoding", encoding_text(sizes)),
            ("networks", ", ".join(" -> ".join(map(str, [shapes[0][1], *[n for n, _ in shapes]]))
                                   for shapes in sizes.network_shapes())),
            ("carved from alpha", "yes" if task.is_carved else "no"),
        ],
        figures=[*figure_rows(figures), *refined, *extra],
        headline=[("held-out PSNR", f"{figures['psnr']:.2f} dB"), ("SSIM", f"{figures['ssim']:.3f}")]
                 if figures else [],
        sheets=sheets,
        curves=[("batch PSNR (dB)", "psnr"), ("loss", "loss"), ("trained samples per second", "samples_per_s")],
        trained=f"{result.n_rays / 1e6:.1f} M rays, {result.n_samples / 1e6:.1f} M samples",
        video=video,
    )  # fmt: skip
    write_outcome(run, result, outcome, device=task.device, seed=task.seed, by_clock=by_clock)
    return figures


def held_out_text(figures: dict[str, Any], views: PosedImages) -> str:
    """How good held-out views are, and how much of them was judged at which quality, for people."""
    how = "" if figures["pixels"] == "all" else f" ({figures['pixels']} of their pixels; all: hashfield evaluate)"
    n = figures["n_views"]
    whole = f"{n} views" if n == len(views) else f"{n} of {len(views)} views"
    return f"{whole}{how}, PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f}, quality {figures['quality']}"


def seconds_a_frame(figures: dict[str, Any], views: PosedImages) -> float:
    """Seconds that a whole view of the middle size takes, by what was judged."""
    seconds, pixels = (sum(view[name] for view in figures["views"]) for name in ("seconds", "rendered_pixels"))
    return seconds / pixels * float(np.median([camera.width * camera.height for camera in views.cameras]))


def comparison(model: HasFrames, views: PosedImages, k: int, rendering: np.ndarray | None) -> np.ndarray:
    """A held-out view beside its rendering, the error and the depth.

    Args:
        model: What is shown.
        views: The held-out ones.
        k: Which of them.
        rendering: One of the size of the sheet's pictures, if there is one already; uint8.
    """
    camera = views.cameras[k]
    photo = shrunk(to_uint8(over(views.images[k], model.background)), SHEET_SIDE)
    found = model.frame(camera.resized(photo.shape[1], photo.shape[0]), ("color", "depth", "opacity"), model.background)
    rendering = to_uint8(found["color"]) if rendering is None else rendering
    error = error_picture(rendering / np.float32(255), photo / np.float32(255))
    row = [
        ("photo", photo), (f"rendering of {views.names[k]}", rendering),
        ("error x 5", error), ("depth", colorize_depth(found["depth"], found["opacity"])),
    ]  # fmt: skip
    return comparison_sheet([row])


SECONDS_ON_THE_WAY = 1.0
"""About how long the held-out views are looked at with each checkpoint."""


def held_out_on_the_way(task: NerfTask, run: RunFolder) -> Callable[[Progress], None]:
    """What tells, with each checkpoint, how good a few rows of the held-out views are so far."""

    def show(progress: Progress) -> None:
        if progress.phase == "saving" and len(task.scene.splits.get("test", ())):
            model = task.model()
            views = as_known(task.scene.splits["test"], model, "test")
            with working_alone():  # only the first rank shows anything
                figures = evaluate_views(model, views, max_seconds=SECONDS_ON_THE_WAY)
            say(f"held-out so far: {held_out_text(figures, views)}")

    return show


# --- view


def view_nerf(arguments: list[str]) -> int:
    """`view` of a radiance field, beside the photos it was learned from."""
    options = parse(View, arguments, "view")

    def read(model: NerfModel) -> Photos:
        splits: tuple[Literal["train", "test"], ...] = ("train", "test")
        known: list[Literal["train", "test"]] = [split for split in splits if model.cameras.get(split)]
        return photos_of([views_of(model, Evaluate(options.run, options.data, split)) for split in known])

    return view(options, read)


def photos_of(parts: Sequence[PosedImages]) -> Photos:
    """The photos of several splits, one after another, for the viewer."""
    return Photos(
        [camera for part in parts for camera in part.cameras],
        [name for part in parts for name in part.names],
        LazyPhotos.of(part.images for part in parts),
    )


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures on the held-out views, for people; nothing where there are no such views."""
    if not figures:
        return []
    aligned = figures.get("aligned")
    return [
        ("held-out PSNR", f"{figures['psnr']:.2f} dB, mean over {figures['n_views']} views on background "
                          f"{tuple(round(v, 3) for v in figures['background'])}"),
        ("judged", f"{figures['pixels']} of their pixels, rendered at quality {figures['quality']}"),
        ("held-out SSIM", f"{figures['ssim']:.4f} (11x11 Gaussian, RGB)"),
        *([("alignment of these views", "none")] if not aligned else [
            ("alignment of these views", "none; where a lens was corrected, they are seen through the corrected one"),
            ("aligned views", f"PSNR {aligned['psnr']:.2f} dB, SSIM {aligned['ssim']:.4f}: {aligned['alignment']}"),
        ]),
        ("colour", figures["color"]),
    ]  # fmt: skip


def fits_views(task: NerfTask) -> bool:
    """Whether a run refined what held-out views differ in too, so that they are judged aligned as well."""
    return any(part in (task.config.refine or ()) for part in ("poses", "exposure"))


def aligned_line(aligned: dict[str, Any]) -> str:
    """Figures of aligned views, and how they were aligned."""
    return (
        f"aligned: {aligned['n_views']} of {aligned['n_given']} views, PSNR {aligned['psnr']:.2f} dB, "
        f"SSIM {aligned['ssim']:.4f}; {aligned['alignment']}"
    )


def tell_refinement(task: NerfTask, run: RunFolder) -> list[tuple[str, str]]:
    """Say how far cameras, lenses and gains went, write it for each photo to refinement.json, and return it as rows."""
    assert task.refinement is not None
    report = {"photos": list(task.scene.splits["train"].names), **task.refinement.report()}
    text = json.dumps(report, indent=1) + "\n"
    write_aside(run.path / "refinement.json", lambda aside: aside.write_text(text, encoding="utf-8"))
    rows = summary(report)
    for name, value in rows:
        say(f"{name}: {value}")
    return rows


def turntable(model: HasFrames, scene: Scene, n_frames: int):
    """Frames of one turn around the scene, uint8 [h, w, 3].

    Args:
        model: What is shown.
        scene: Its training cameras tell the orbit and the picture's size.
        n_frames: Frames of the turn.
    """
    first = scene.splits["train"].cameras[0]
    side = min(1.0, 480 / max(first.width, first.height))
    size = (max(2, round(first.width * side)), max(2, round(first.height * side)))
    for camera in orbit_path(scene.splits["train"].cameras, n_frames, width=size[0], height=size[1]):
        yield to_uint8(model.frame(camera, ("color",), model.background)["color"])


def encoding_text(config: RadianceFieldConfig) -> str:
    """The encoding of positions in words."""
    encoding = config.encoding
    if not config.n_grid_parameters:
        return f"{getattr(encoding, 'otype', '')}, {config.n_encoded} features"
    return (
        f"{encoding.type} grid, L {encoding.n_levels}, F {encoding.n_features_per_level}, "
        f"T 2^{encoding.log2_hashmap_size}, {config.n_grid_parameters:,} numbers"
    )


# --- demo


@dataclass(frozen=True)
class Demo(DemoCommand):
    """Make a small scene by formula, train on it, and write pictures, a video, a checkpoint and a report."""

    out: Path | None = None
    """Run folder; default: runs/demo-<n>."""
    seconds: float = 60.0
    """Seconds to train for."""
    size: int = 400
    """Width and height of the views in pixels."""
    n_frames: int = 60
    """Frames of the turntable video; 0 makes none."""
    save_photos: bool = False
    """Also write the views in NeRF-synthetic form into the run folder, to see what such data look like."""
    device: DeviceName = "auto"
    """Where to train; auto takes a supported GPU if there is one, else the CPU."""


@contextmanager
def make_demo(
    options: Demo, device: torch.device, run: RunFolder
) -> Iterator[tuple[NerfTask, Callable[[TrainResult], Any]]]:
    """The task of a scene made by formula.

    Args:
        options: What the user asked for.
        device: Where to train.
        run: Folder of the run.
    """
    say("making the scene ...")
    scene, depths = make_demo_scene(options.seed, size=options.size)
    for note in scene.notes:
        say(note)
    if options.save_photos:
        save_nerf_synthetic(scene, run.path / "photos")
    preset = PRESETS["gpu" if device.type == "cuda" else "fast"]
    task = NerfTask(preset, scene, seed=options.seed, device=device)

    def finish_demo(result: TrainResult) -> None:
        extra = comparisons(task.model(), scene, depths["test"])
        finish(task, run, result, extra, video_frames=options.n_frames, by_clock=True)
        for name, value in extra:
            say(f"{name}: {value}")

    yield task, finish_demo


def comparisons(model: HasFrames, scene: Scene, depths: list[np.ndarray]) -> list[tuple[str, str]]:
    """Foreground PSNR and depth error of the held-out views, and what a blur of each view would reach.

    Args:
        model: The trained model.
        scene: The made scene, with its held-out views.
        depths: True depth [h, w] of each held-out view, in world units.
    """
    views = scene.splits["test"]
    found: dict[str, list[Any]] = {"whole": [], "front": [], "blur": [], "blur_front": [], "depth": []}
    for camera, image, truth in zip(views.cameras, views.images, depths, strict=True):
        out = model.frame(camera, ("color", "depth", "opacity"), model.background)
        photo = over(image, model.background)
        color = np.clip(out["color"], 0.0, 1.0)
        blurred = blur(photo)
        front = image[..., 3] > 127
        found["front"].append(masked_psnr(color, photo, front))
        found["blur"].append(psnr(blurred, photo))
        found["blur_front"].append(masked_psnr(blurred, photo, front))
        both = (truth > 0) & (out["opacity"] > 0.5)
        found["depth"].append(np.median(np.abs(out["depth"][both] - truth[both])) if both.any() else np.nan)
    mean = {name: float(np.mean(values)) for name, values in found.items() if values}
    return [
        ("foreground PSNR", f"{mean['front']:.2f} dB"),
        (
            "for comparison, each held-out view itself blurred (Gaussian, 4 px)",
            f"{mean['blur']:.2f} dB, foreground {mean['blur_front']:.2f} dB",
        ),
        ("median depth error", f"{mean['depth']:.4f} world units (cameras are about 4 away)"),
    ]


def masked_psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """PSNR over the pixels of a mask.

    Args:
        a: Picture [h, w, 3], 0 to 1.
        b: The one it is compared with.
        mask: Pixels that count, bool [h, w].
    """
    error = float(np.square(a[mask].astype(np.float64) - b[mask]).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def blur(image: np.ndarray, sigma: float = 4.0) -> np.ndarray:
    """Gaussian blur of [h, w, 3], borders reflected."""
    reach = round(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[:, None].float()
    x = torch.nn.functional.pad(x, (reach,) * 4, mode="reflect")
    x = torch.nn.functional.conv2d(x, kernel.view(1, 1, 1, -1))
    x = torch.nn.functional.conv2d(x, kernel.view(1, 1, -1, 1))
    return x[:, 0].permute(1, 2, 0).numpy()


# --- sweep

SWEEP_STEP = 4.0
"""Length of the march's steps: a deep network that has learnt little is a fog, and would be rendered for minutes."""
SWEEP_FINEST = 4096
"""Resolution of a hash grid's last level over the whole box."""


@dataclass(frozen=True)
class SweepNerf(SweepOptions):
    """Train a matrix of settings on photos with camera poses."""

    max_samples: int | None = None
    """Points that each cell is trained on, the budget that all share; default: 2^22."""
    batch: int = 2**14
    downscale: int = 1
    """Divide widths and heights of the photos by this whole number."""
    n_views: int = 5
    """Held-out views that are judged, evenly spread."""
    max_image_memory: float = 4.0
    """GiB that the decoded photos may take."""


@contextmanager
def prepare_sweep(options: SweepNerf) -> Iterator[Subject]:
    """The photos of a sweep: see `hashfield.cli.sweep.SweepKind`."""
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
        masks=None if test.masks is None else [test.masks[k] for k in chosen],
    )  # fmt: skip
    box, base = scene.spaces.aabb_scale, PRESETS["fast"]

    def config_of(setting: Setting, rates: Mapping[str, Any]) -> NerfConfig:
        return replace(
            base, preset="sweep", encoding=setting.encoding, finest_resolution=max(1, setting.finest // box),
            n_neurons=setting.n_neurons, density_layers=7 if setting.is_deep else 1,
            color_layers=1 if setting.is_deep else 2,
            train=replace(
                base.train, batch=options.batch, step_scales=(SWEEP_STEP,), step_until=(1.0,), **rates
            ),
            # A deep network is too slow to be asked for more cells than points it is trained on, and cells that wait
            # their turn must not be forgotten meanwhile.
            occupancy=replace(base.occupancy, decay=0.95, max_cells=options.batch, full_sweeps=1),
        )  # fmt: skip

    def n_parameters(config: NerfConfig) -> tuple[int, int]:
        sizes = config.field_config(box, 0.0)
        return sizes.n_grid_parameters, sum(a * b for shapes in sizes.network_shapes() for a, b in shapes)

    def judge(task: NerfTask) -> dict[str, float]:
        model = task.model()
        found = evaluate_views(model, as_known(views, model, "test"))
        return {k: found[k] for k in ("psnr", "ssim")}

    about = {
        "input": scene.name, "photos": f"{len(scene.splits['train'])} of {views.cameras[0].width} pixels a row",
        "held-out views": len(views), "points a step": options.batch, "N_max": SWEEP_FINEST, "seed": options.seed,
        "directions": "spherical harmonics of degree 4 in every row", "march": f"steps of {SWEEP_STEP:g} sqrt(3)/1024",
    }  # fmt: skip
    yield Subject(
        about, SWEEP_FINEST, config_of, n_parameters, lambda config: NerfTask(config, scene, seed=options.seed), judge
    )


SMALLER = "--train.batch, --encoding.log2-hashmap-size or --downscale"
TRAIN = TrainKind(
    name="nerf", command=TrainNerf, presets=PRESETS, suits=preset_for, prepare=prepare_nerf, finish=finish,
    resumed=stored_options, same_data=same_data, smaller=f"{SMALLER} (or --preset fast)",
    render_options="--views orbit --format mp4", on_progress=held_out_on_the_way,
    finish_options=lambda options: {"evaluation_seconds": options.evaluation_seconds},
    reference=lambda task: photos_of(list(task.scene.splits.values())),
)  # fmt: skip
SWEEP = SweepKind(
    name="nerf", command=SweepNerf, prepare=prepare_sweep, max_samples=2**22, n_dims=3,
    quality=("psnr", "held-out PSNR, dB"), columns=(("ssim", "SSIM"),), is_the_papers=True,
)  # fmt: skip
DEMO = DemoKind(train=TRAIN, command=Demo, words="demo", name="demo", sizes=(32, 4096), make=make_demo)
