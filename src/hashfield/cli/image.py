"""The verbs for pictures: `train image FILE`, `demo image`, `sweep image FILE`, and `render` and `evaluate`."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from hashfield.api import load
from hashfield.cli.demo import DemoCommand, DemoKind
from hashfield.cli.evaluate import write_figures
from hashfield.cli.outcome import Outcome, write_outcome
from hashfield.cli.progress import Countdown
from hashfield.cli.shared import DeviceName, parse, say, set_up
from hashfield.cli.sweep import Subject, SweepKind, SweepOptions
from hashfield.cli.train import Plan, TrainCommand, Training, TrainKind, memory_for_run, say_memory
from hashfield.cli.view import View, view
from hashfield.data.demo_picture import save_demo_picture
from hashfield.data.pictures import MAX_PIXELS, Picture, read_picture, read_picture_header
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import (
    ExrWriter,
    PngWriter,
    comparison_sheet,
    error_picture,
    shrunk,
    to_uint8,
    write_png,
)
from hashfield.nn.config import MLPConfig
from hashfield.tasks.frames import Frame
from hashfield.tasks.image import ImageTask, gpu_memory
from hashfield.tasks.image_config import PRESETS, ImageConfig, ImageTrainConfig, preset_for
from hashfield.tasks.image_model import ImageModel, compare, shape_of, to_linear
from hashfield.tasks.shared import parse_background, stored
from hashfield.tasks.studies import Setting
from hashfield.train.checkpoint import exported_size
from hashfield.train.loop import Progress, TrainResult
from hashfield.train.run_folder import RunFolder

PROGRESS_AT = (0.02, 0.05, 0.1, 0.2, 0.5)  # fractions of the run after which a picture is written
SHOWN_SIDE = 640  # pixels of pictures in sheets
LONG_TO_JUDGE = 5 * 10**7  # pixels from which that takes seconds
DETAIL = 320  # pixels of the crop that is shown at full size

# --- train


@dataclass(frozen=True)
class TrainImage(TrainCommand):
    """Train a picture as a function from position to colour."""

    path: Annotated[Path, tyro.conf.Positional]
    """PNG, JPEG, WebP, TIFF, EXR or HDR file: grey or RGB, with or without alpha, 8 or 16 bits or floats."""
    max_pixels: int = MAX_PIXELS
    """Pictures of more pixels are refused before they are decoded."""
    scratch: Path | None = None
    """Folder for the scratch file that a large picture is decoded into; default: the run's. It is removed at the
    end."""
    config: Annotated[ImageConfig, tyro.conf.arg(name="")] = ImageConfig()
    """Model and recipe; --preset chooses the defaults of what follows."""


@contextmanager
def prepare_image(
    options: TrainImage, plan: Plan, device: torch.device, folder: Callable[[str], RunFolder]
) -> Iterator[Training]:
    """The training of a picture: see `hashfield.cli.train.TrainKind`.

    Args:
        options: What the user asked for.
        plan: Configuration and length, and the run to go on with if there is one.
        device: Where to train.
        folder: Makes the run folder for data of this name, or gives the resumed run's.
    """
    header = read_picture_header(options.path, max_pixels=options.max_pixels)  # refused before anything is made
    run = folder(options.path.stem)
    say(f"reading {options.path}: {header.width}x{header.height}, {header.form}, {header.dtype} ...")
    try:
        picture = read_picture(options.path, max_pixels=options.max_pixels, scratch=options.scratch or run.path)
    except BaseException:  # Ctrl-C while decoding, too
        run.remove_if_empty()
        raise
    with picture:
        for note in picture.notes:
            say(note)
        fits = device.type != "cuda" or place_picture(plan.config, picture, device, options.max_gpu_memory)
        task = ImageTask(plan.config, picture, seed=options.seed, device=device, is_picture_on_device=fits)
        if plan.resumed is not None and plan.metadata.get("image") != task.describe()["image"]:
            raise ConfigError(f"{run.path}: was begun with {plan.metadata.get('image')}, this picture is {task.shape}")
        yield Training(task, run, sizes(task))


def place_picture(config: ImageConfig, picture: Picture, device: torch.device, budget: float | None) -> bool:
    """Whether the picture fits the GPU's memory beside the run; says what that takes, and refuses what cannot fit.

    Args:
        config: Model and recipe, fitted or not.
        picture: The decoded picture.
        device: A GPU.
        budget: GiB of the GPU's memory that the run may take; None: what is free.
    """

    def needed(n_pixel_bytes: int) -> int:
        return gpu_memory(config, picture.width, picture.height, picture.n_channels, n_pixel_bytes)

    fits = needed(picture.pixels.nbytes) <= memory_for_run(device, budget)[0] * 2**30
    say_memory(
        needed(picture.pixels.nbytes if fits else 0), device, budget, SMALLER
    )  # fmt: skip
    if not fits:
        size = picture.pixels.nbytes / 2**30
        say(f"the picture's {size:.1f} GiB do not fit beside that: batches are drawn on the host and copied")
    return fits


def sizes(task: ImageTask) -> str:
    """The grid in words."""
    if task.config.encoding.otype != "Grid":
        return f"none: {task.config.encoding.otype}, {task.config.encoding.n_output(2)} features"
    layout = task.config.grid().layout(2)
    hashed = int(layout.is_hashed.sum())
    return (
        f"L {layout.n_levels}, F {layout.n_features_per_level}, T 2^{layout.log2_hashmap_size} "
        f"({hashed} of the levels hashed), N_max {task.config.finest_resolution}, {layout.n_parameters:,} numbers"
    )


def progress_pictures(task: ImageTask, run: RunFolder) -> Callable[[Progress], None]:
    """Writes what the model shows at a few points of the run; not part of the training time."""
    left = list(PROGRESS_AT)

    def show(progress: Progress) -> None:
        if progress.phase != "training" or not left or progress.fraction < left[0]:
            return
        while left and progress.fraction >= left[0]:
            percent = round(100 * left.pop(0))
        shape = task.shape
        scale = min(1.0, SHOWN_SIDE / max(shape.width, shape.height))
        size = max(1, round(shape.width * scale)), max(1, round(shape.height * scale))
        model = task.model()
        seen = model.frame(model.view(None, *size, most_per_axis=2), background=model.background)
        write_png(run.renders / f"progress_{percent:02d}.png", display_bytes(seen["color"]))

    return show


def display_bytes(values: np.ndarray) -> np.ndarray:
    """Values of a model or picture as uint8 [h, w, 3], on white where they have alpha."""
    if values.shape[2] in (2, 4):  # colours are multiplied by alpha already
        values = values[..., :-1] + (1.0 - values[..., -1:])
    return to_uint8(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)


def finish_image(task: ImageTask, run: RunFolder, result: TrainResult, *, by_clock: bool = False) -> dict[str, Any]:
    """Figures over the whole picture; pictures and report lie in the run folder afterwards.

    Args:
        task: The trained task.
        run: Where its checkpoint lies.
        result: How training ended.
        by_clock: Whether the schedule followed the clock.
    """
    model, picture, config = task.model(), task.picture, task.config
    pixels = picture.width * picture.height
    before = time.perf_counter()
    if pixels > LONG_TO_JUDGE:
        say("judging every pixel ...")
    figures = judged(model, picture, run)
    say(
        f"whole picture: PSNR {figures['psnr']:.2f} dB, {figures['bits_per_pixel']:.3f} bits a pixel as exported "
        f"({time.perf_counter() - before:.1f} s)"
    )
    sheets = comparisons(model, picture)
    for name, sheet in sheets:
        write_png(run.renders / f"compare_{name.partition(',')[0].replace(' ', '_')}.png", sheet)
    outcome = Outcome(
        title=f"{picture.name}: picture",
        data=[
            ("picture", f"{picture.path} ({picture.header.form}, {picture.header.dtype})"),
            ("size", f"{picture.width}x{picture.height}, {picture.n_channels} channels"),
            ("preset", config.preset),
            ("grid", sizes(task)),
            ("network", f"{config.n_hidden_layers} hidden layers of {config.n_neurons}, {task.steps.precision}"),
        ],
        figures=figure_rows(figures),
        headline=[("PSNR", f"{figures['psnr']:.2f} dB"), ("bits a pixel", f"{figures['bits_per_pixel']:.2f}")],
        sheets=sheets,
        curves=[("batch PSNR (dB)", "psnr"), ("loss", "loss"), ("pixels per second", "samples_per_s")],
        trained=f"{result.n_samples / 1e6:.1f} M pixels ({result.n_samples / pixels:.1f} times the picture)",
    )
    write_outcome(run, result, outcome, device=task.device, seed=task.seed, by_clock=by_clock)
    return figures


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures of the whole picture, for people."""
    rows = [("PSNR", f"{figures['psnr']:.2f} dB: {figures['psnr_of']}")]
    if "psnr_clipped" in figures:
        rows += [
            ("PSNR, clipped", f"{figures['psnr_clipped']:.2f} dB: {figures['psnr_clipped_of']}"),
            ("PSNR of the peak", f"{figures['psnr_of_peak']:.2f} dB: not clipped, peak {figures['peak']:.2f}"),
        ]
    size = f"{figures['exported_bytes'] / 1e6:.2f} MB, {figures['bits_per_pixel']:.3f} bits a pixel"
    return [*rows, ("model as exported", size)]


def judged(model: ImageModel, picture: Picture, run: RunFolder) -> dict[str, Any]:
    """Figures of a run's model against the picture, with the size of the model as exported.

    Args:
        model: The trained model.
        picture: What it was trained on.
        run: Folder of the run. Its checkpoint is measured.
    """
    size = exported_size(run.checkpoint)
    pixels = picture.width * picture.height
    return {
        **compare(model, picture), "bits_per_pixel": 8 * size / pixels, "exported_bytes": size, "n_pixels": pixels,
        "width": picture.width, "height": picture.height, "n_channels": picture.n_channels,
    }  # fmt: skip


def comparisons(model: ImageModel, picture: Picture) -> list[tuple[str, np.ndarray]]:
    """(caption, sheet): the whole, every n-th pixel of it, and a part at full size; picture, model, error."""
    every = max(1, -(-max(picture.width, picture.height) // SHOWN_SIDE))
    # From the middle of the first few on; a picture that is thinner than that still has one row or column.
    rows, columns = (np.arange(min(every, n) // 2, n, every) for n in (picture.height, picture.width))
    whole = np.concatenate([picture.region(0, int(y), picture.width, 1)[:, columns] for y in rows])
    grid = np.stack(np.meshgrid((columns + 0.5) / picture.width, (rows + 0.5) / picture.height), -1)
    name = f"whole picture, every {every}th pixel" if every > 1 else "whole picture"
    found = [(name, whole, model(torch.from_numpy(grid)).numpy())]
    if every > 1:
        w, h = min(DETAIL, picture.width), min(DETAIL, picture.height)
        # Among some places, the one with most contrast: detail is where models fail.
        places = [(x, y) for x in np.linspace(0, picture.width - w, 5) for y in np.linspace(0, picture.height - h, 5)]
        x, y = max(places, key=lambda p: float(picture.region(int(p[0]), int(p[1]), w, h)[::4, ::4].std()))
        crop = int(x), int(y), w, h
        found.append((f"detail, {w}x{h} pixels at ({crop[0]}, {crop[1]})", picture.region(*crop), model.render(crop)))
    sheets = []
    for name, right, seen in found:
        n_colors = 1 if picture.n_channels < 3 else 3
        a, b = (np.repeat(v[..., :n_colors], 3 // n_colors, axis=2) for v in (seen, right))
        error = error_picture(a, b)
        row = [("picture", display_bytes(right)), ("model", display_bytes(seen)), ("error x 5", error)]
        sheets.append((name, comparison_sheet([[(label, shrunk(image, SHOWN_SIDE)) for label, image in row]])))
    return sheets


# --- evaluate


@dataclass(frozen=True)
class EvaluateImage:
    """PSNR of a trained picture over all its pixels, and the size of the model."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    data: Path | None = None
    """The picture to compare with; default: where it lay during training."""
    json: Path | None = None
    """Also write the figures here."""
    max_pixels: int = MAX_PIXELS
    """Pictures of more pixels are refused."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to ask the model; auto takes a supported GPU if there is one, else the CPU."""


def evaluate_image(arguments: list[str]) -> int:
    """`evaluate` of a picture's run."""
    options = parse(EvaluateImage, arguments, "evaluate")
    model = load(options.run, set_up(options.device, options.threads))
    path = options.data or Path(model.info.get("scene", {}).get("path", ""))
    if not path.is_file():
        raise DataError(f"{path}: the picture of this run is not there any more; name it with --data")
    with read_picture(path, max_pixels=options.max_pixels) as picture:
        figures = judged(model, picture, RunFolder.open(options.run))
    say(f"PSNR {figures['psnr']:.3f} dB ({figures['psnr_of']})")
    if "psnr_clipped" in figures:
        say(f"PSNR {figures['psnr_clipped']:.3f} dB ({figures['psnr_clipped_of']}); of the peak "
            f"{figures['peak']:.2f}: {figures['psnr_of_peak']:.3f} dB")  # fmt: skip
    say(f"{figures['bits_per_pixel']:.4f} bits a pixel ({figures['exported_bytes']} bytes as exported)")
    if options.json is not None:
        write_figures(options.json, {**figures, "run": str(options.run)})
    return 0


# --- view


def view_image(arguments: list[str]) -> int:
    """`view` of a trained picture, beside the picture itself."""
    options = parse(View, arguments, "view")
    with ExitStack() as opened:

        def read(model: ImageModel) -> Picture:
            path = options.data or Path(model.info.get("scene", {}).get("path", ""))
            if not path.is_file():
                raise DataError(f"{path}: the picture of this run is not there any more; name it with --data")
            picture = opened.enter_context(read_picture(path))
            if shape_of(picture) != model.shape:
                raise ConfigError(f"{path}: is {shape_of(picture)}, the model is of {model.shape}")
            return picture

        return view(options, read)


# --- render


@dataclass(frozen=True)
class RenderImage:
    """The reconstruction of a trained picture at any size, whole or in part. Needs no picture."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    crop: tuple[float, float, float, float] | None = None
    """Part to show: left, top, width and height in pixels of the picture."""
    width: int | None = None
    """Width of the result in pixels; default: that of the crop. Given alone, it keeps the shape."""
    height: int | None = None
    """Height of the result in pixels; default: that of the crop. Given alone, it keeps the shape."""
    format: Literal["png", "exr"] = "png"
    """Form of the file: png is sRGB, clipped to what it can hold; exr is linear light in half floats."""
    bits: Literal[8, 16] = 8
    """Bits of each channel of a PNG."""
    out: Path | None = None
    """File to write; default: renders/image.<format> in the run folder."""
    background: str | None = None
    """Colour behind a picture with alpha (white, black or #rrggbb); default: none, and the file has alpha."""
    overwrite: bool = False
    """Replace a file that is there."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to ask the model; auto takes a supported GPU if there is one, else the CPU."""


def render_image(arguments: list[str]) -> int:
    """`render` of a picture's run."""
    options = parse(RenderImage, arguments, "render")
    model: ImageModel = load(options.run, set_up(options.device, options.threads))
    target = options.out or RunFolder.open(options.run).renders / f"image.{options.format}"
    if target.is_dir():
        raise ConfigError(f"--out {target}: is a folder, expected a file")
    if target.exists() and not options.overwrite:
        raise ConfigError(f"{target}: is there already; choose another --out, or --overwrite")
    background = None if options.background is None else parse_background(options.background)
    view = model.view(options.crop, options.width, options.height)
    is_see_through = model.shape.has_alpha and background is None
    outputs = ("color", "opacity") if is_see_through else ("color",)
    n_channels = model.shape.n_channels if is_see_through or not model.shape.has_alpha else 3
    kind = ExrWriter if options.format == "exr" else PngWriter
    settings = {} if options.format == "exr" else {"bits": options.bits}
    with (
        kind(target, view.width, view.height, n_channels, **settings) as writer,
        Countdown(view.height, "rows") as countdown,
    ):
        for strip in model.frame_strips(view, outputs, background):
            writer.add(encoded(strip, options.format, options.bits))
            countdown.show(writer.n_rows)
    say(f"{target}: {view.width}x{view.height}")
    return 0


def encoded(strip: Frame, form: str, bits: int) -> np.ndarray:
    """A strip of a frame as a writer takes it; with alpha where the strip has an opacity.

    Args:
        strip: Its color is multiplied by its opacity, if that is there.
        form: "exr" is linear light; else sRGB, with straight alpha, as PNG wants it.
        bits: Bits of a channel of whole numbers.
    """
    color, has_alpha = strip["color"], "opacity" in strip
    if form == "exr":
        return to_linear(np.dstack([color, strip["opacity"]]) if has_alpha else color, has_alpha)
    if has_alpha:
        alpha = strip["opacity"][..., None]
        color = np.concatenate([color / np.maximum(alpha, 1e-4) * (alpha > 1e-4), alpha], axis=-1)
    top = 2**bits - 1
    return (np.clip(color, 0.0, 1.0) * top + 0.5).astype(np.uint8 if bits == 8 else np.uint16)


# --- demo


@dataclass(frozen=True)
class DemoImage(DemoCommand):
    """Make a picture by formula, train on it, and write pictures, a checkpoint and a report."""

    seconds: float = 15.0
    """Seconds to train for."""
    size: int = 1024
    """Width of the picture in pixels; its height is three quarters of that."""


@contextmanager
def make_demo(
    options: DemoImage, device: torch.device, run: RunFolder
) -> Iterator[tuple[ImageTask, Callable[[TrainResult], Any]]]:
    """The task of a picture made by formula.

    Args:
        options: What the user asked for.
        device: Where to train.
        run: Folder of the run.
    """
    say("making the picture ...")
    path = save_demo_picture(run.path / "picture.png", options.seed, options.size, 3 * options.size // 4)
    with read_picture(path, scratch=run.path) as picture:
        task = ImageTask(PRESETS["default"], picture, seed=options.seed, device=device)
        yield task, lambda result: finish_image(task, run, result, by_clock=True)


# --- sweep


@dataclass(frozen=True)
class SweepImage(SweepOptions):
    """Train a matrix of settings on a picture."""

    max_samples: int | None = None
    """Points that each cell is trained on, the budget that all share; default: 2^24."""


@contextmanager
def prepare_sweep(options: SweepImage) -> Iterator[Subject]:
    """The picture of a sweep: see `hashfield.cli.sweep.SweepKind`."""
    with read_picture(options.path) as picture:
        finest = max(16, -(-max(picture.width, picture.height) // 2))

        def config_of(setting: Setting, rates: Mapping[str, Any]) -> ImageConfig:
            return ImageConfig(
                preset="sweep", encoding=setting.encoding, finest_resolution=setting.finest, numbers_per_pixel=1e6,
                max_numbers=2**32, n_neurons=setting.n_neurons, n_hidden_layers=7 if setting.is_deep else 2,
                train=ImageTrainConfig(batch=options.batch, touches_per_update=0.0, **rates),
            )  # fmt: skip

        def n_parameters(config: ImageConfig) -> tuple[int, int]:
            network = MLPConfig(config.n_neurons, config.n_hidden_layers)
            shapes = network.shapes(config.grid().n_output(2), picture.n_channels)
            return config.grid().n_parameters(2), sum(a * b for a, b in shapes)

        about = {
            "input": picture.name, "pixels": f"{picture.width}x{picture.height}", "points a step": options.batch,
            "N_max": finest, "seed": options.seed,
        }  # fmt: skip
        yield Subject(
            about, finest, config_of, n_parameters, lambda config: ImageTask(config, picture, seed=options.seed),
            lambda task: {"psnr": compare(task.model(), picture)["psnr"]},
        )  # fmt: skip


SMALLER = "--train.batch, --encoding.log2-hashmap-size or --max-numbers"
TRAIN = TrainKind(
    name="image", command=TrainImage, presets=PRESETS, suits=lambda seconds, steps, on_gpu: preset_for(on_gpu),
    prepare=prepare_image, finish=finish_image, smaller=f"{SMALLER} (or --preset small)", on_progress=progress_pictures,
    resumed=lambda run, metadata: {"seed": stored(metadata, "seed", int, run.checkpoint)},
    reference=lambda task: task.picture,
)  # fmt: skip
SWEEP = SweepKind(
    name="image", command=SweepImage, prepare=prepare_sweep, max_samples=2**24, n_dims=2,
    quality=("psnr", "PSNR of every pixel, dB"),
)  # fmt: skip
DEMO = DemoKind(
    train=TRAIN, command=DemoImage, words="demo image", name="demo-image", sizes=(32, 8192), make=make_demo,
)  # fmt: skip
