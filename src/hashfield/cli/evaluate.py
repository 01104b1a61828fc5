"""`hashfield evaluate RUN`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hashfield.api import load
from hashfield.aside import write_aside
from hashfield.cli.progress import counted
from hashfield.cli.shared import DeviceName, check_same_model, kind_of_run, parse, run_command, say, set_up
from hashfield.data import ReadOptions, load_scene
from hashfield.data.dataset import PosedImages, stored_reading
from hashfield.data.demo_scene import make_demo_scene
from hashfield.errors import DataError
from hashfield.steps.ranks import current
from hashfield.tasks.align import as_known, evaluate_aligned
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.frames import DEFAULT_QUALITY, Quality
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.shared import parse_background
from hashfield.train.checkpoint import read_metadata
from hashfield.train.metrics import SSIM_WINDOW
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class Evaluate:
    """PSNR and SSIM of a trained model against photos."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    data: Path | None = None
    """The photos to compare with; default: where they lay during training."""
    split: Literal["test", "train", "val"] = "test"
    """Which of the data's views to judge."""
    background: str | None = None
    """Colour behind photo and rendering (white, black or #rrggbb); default: that of the run."""
    quality: Quality = DEFAULT_QUALITY
    """Quality of the renderings, as for hashfield render; said with the figures."""
    max_seconds: float | None = None
    """About how long rendering may take, and as long again where views are also aligned; only so many bands of rows are
    then judged. Default: whole views."""
    json: Path | None = None
    """Also write the figures here."""
    downscale: int | None = None
    """Divide widths and heights of the photos by this whole number; default: the run's own."""
    max_image_memory: float = 4.0
    """GiB that the decoded photos may take."""
    masks: Path | None = None
    """Folder of masks, where those of the training are not there any more."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to render; auto takes a supported GPU if there is one, else the CPU."""


def main(arguments: list[str]) -> int:
    """Run the verb for whatever kind of run is named."""
    return run_command(kind_of_run("evaluate", arguments), "evaluate", arguments)


def evaluate_nerf(arguments: list[str]) -> int:
    """`evaluate` for a radiance field."""
    options = parse(Evaluate, arguments, "evaluate")
    device = set_up(options.device, options.threads)
    ranks = current()
    with ranks.agreed():
        model = load(options.run, device)
        model.quality = options.quality
        background = None if options.background is None else parse_background(options.background)
        views = views_of(model, options)
    check_same_model(ranks, options.run)
    refined = model.info.get("refinement", {}).get("parts", [])
    figures = evaluate_views(
        model, views, background, max_seconds=options.max_seconds,
        watch=lambda parts, total: counted(parts, total, "views or parts of views judged"),
    )  # fmt: skip
    if not ranks.is_first:
        return 0
    for view in figures["views"]:
        say(f"{view['name']}: PSNR {view['psnr']:.2f} dB, SSIM {view['ssim']:.4f}, {view['seconds']:.2f} s")
    say(
        f"mean of {figures['n_views']} views, {figures['pixels']} of their pixels, quality {figures['quality']}: PSNR "
        f"{figures['psnr']:.3f} dB, SSIM {figures['ssim']:.4f}; exposure {figures['exposure']}"
    )
    if "poses" in refined or "exposure" in refined:
        figures["aligned"] = evaluate_aligned(model, views, refined, background, max_seconds=options.max_seconds)
        aligned = figures["aligned"]
        say(f"aligned: PSNR {aligned['psnr']:.3f} dB, SSIM {aligned['ssim']:.4f}; {aligned['alignment']}")
    if options.json is not None:
        write_figures(options.json, {**figures, "split": options.split, "run": str(options.run)})
    return 0


def write_figures(target: Path, figures: dict[str, Any]) -> None:
    """Figures as a JSON file."""
    text = json.dumps(figures, indent=1) + "\n"
    try:
        write_aside(target, lambda aside: aside.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}") from error
    say(f"figures: {target}")


def demo_views(model: NerfModel, options: Evaluate) -> PosedImages:
    """The views of the demo's scene as its run had them: made again, of the same seed and size."""
    known = {split: cameras for split, cameras in model.cameras.items() if cameras}
    if options.split not in known:
        raise DataError(f"{options.run}: the demo's scene has no split {options.split!r}")
    seed = read_metadata(RunFolder.open(options.run).checkpoint).get("seed", 0)
    counts = {split: len(known.get(split, ())) for split in ("train", "test")}
    scene, _ = make_demo_scene(seed, size=known[options.split][0].width, n_train=counts["train"], n_test=counts["test"])
    return scene.splits[options.split]


def trained_downscale(scene: Mapping[str, Any]) -> int:
    """By what widths and heights of the photos were divided in training, from what a checkpoint tells of its scene; 1
    where it does not tell, as checkpoints of earlier versions."""
    reading = scene.get("reading")
    text = str(reading.get("downscale", "")) if isinstance(reading, dict) else ""
    return int(text) if text.isdecimal() and text != "0" else 1


def views_of(model: NerfModel, options: Evaluate) -> PosedImages:
    """The photos to compare with, seen by the cameras as training refined them, where it did."""
    stored = model.info.get("scene", {})
    if options.data is None and stored.get("path") == "demo" and stored.get("name") == "demo":
        return as_known(demo_views(model, options), model, options.split)
    path = options.data or Path(stored.get("path", ""))
    if not path.exists():
        raise DataError(f"{path}: the photos of this run are not there any more; name them with --data")
    reading = stored_reading(stored)
    downscale = trained_downscale(stored) if options.downscale is None else options.downscale
    if options.masks is not None:
        reading["masks"] = options.masks
    read = ReadOptions(
        downscale=downscale, aabb_scale=model.spaces.aabb_scale, splits=(options.split,),
        camera_axes=stored.get("camera_axes", "opengl"),
        max_image_memory=int(options.max_image_memory * 2**30), least_side=SSIM_WINDOW, **reading,
    )  # fmt: skip
    scene = load_scene(path, read)
    if options.split not in scene.splits:
        raise DataError(f"{path}: has no split {options.split!r}")
    views = scene.splits[options.split]
    return as_known(views, model, options.split)
