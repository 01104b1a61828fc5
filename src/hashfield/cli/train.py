"""`hashfield train nerf PATH`."""

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import torch
import tyro

from hashfield._version import __version__
from hashfield.cli.outcome import finish
from hashfield.cli.progress import ProgressView
from hashfield.cli.shared import DeviceName, parse, say, set_up, uses_gpu, value_of
from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.errors import CheckpointError, ConfigError
from hashfield.tasks.nerf import PRESETS, NerfConfig, NerfTask, gpu_memory, parse_background, preset_for
from hashfield.train.checkpoint import config_from_dict, config_to_dict, read_metadata, write_aside
from hashfield.train.loop import TrainOptions, TrainResult, planned_length, train
from hashfield.train.run_folder import CHECKPOINT_NAME, RunFolder

DEFAULT_SECONDS = 60.0


@dataclass(frozen=True)
class TrainNerf:
    """Train a radiance field on photos with camera poses."""

    path: Annotated[Path, tyro.conf.Positional]
    """Folder with the photos and transforms.json (or transforms_train.json ...), or that file."""
    out: Path | None = None
    """Run folder; default runs/<scene>-<n>."""
    overwrite: bool = False
    """Allow --out to hold a run already; it is replaced."""
    resume: bool = False
    """Go on with the run in --out from its checkpoint, on the length it was planned for."""
    n_steps: int | None = None
    """Length of the run in steps; then the same seed gives the same bits."""
    max_seconds: float | None = None
    """Length of the run in seconds of training; the clock enters the schedule. Default 60."""
    seed: int = 0
    """Of every random choice."""
    background: str = "white"
    """Behind the scene in evaluation and rendering: white, black or #rrggbb."""
    device: DeviceName = "auto"
    """Where to train; auto takes a GPU where one is."""
    max_gpu_memory: float | None = None
    """GiB of GPU memory that the run may take; default all there is."""
    threads: int | None = None
    """Threads of the kernels; default as many as torch takes."""
    downscale: int = 1
    """Divide widths and heights of the photos by this whole number."""
    max_image_memory: float = 4.0
    """GiB that the decoded photos may take."""
    aabb_scale: int | None = None
    """Side of the training box, a power of two up to 128; default the file's, or chosen and printed."""
    camera_axes: Literal["opengl", "opencv"] = "opengl"
    """Of the file's poses: opengl looks along -z, as the formats have it; opencv along +z, as some exporters do."""
    tensorboard: bool = False
    """Also write the figures for TensorBoard (extra: hashfield[tensorboard])."""
    config: Annotated[NerfConfig, tyro.conf.arg(name="")] = NerfConfig()
    """Model and recipe; --preset chooses the defaults of what follows."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    kinds = ("nerf",)
    if not arguments or arguments[0] not in kinds:
        if arguments and arguments[0] in ("-h", "--help"):
            say("usage: hashfield train nerf PATH [options]; see hashfield train nerf --help")
            return 0
        what = repr(arguments[0]) if arguments else "nothing"
        raise ConfigError(f"train: expected what to train ({', '.join(kinds)}), got {what}")
    return train_nerf(arguments[1:])


def train_nerf(arguments: list[str]) -> int:
    """`train nerf` with its arguments."""
    options = parse(TrainNerf, arguments, "train nerf", _defaults(arguments))
    device = set_up(options.device, options.threads, options.max_gpu_memory)
    n_steps, max_seconds, config = options.n_steps, options.max_seconds, options.config
    if n_steps is not None and max_seconds is not None:
        raise ConfigError("--n-steps and --max-seconds: give only one of them")
    if options.resume:
        if options.out is None:
            raise ConfigError("--resume: name the run to go on with by --out")
        run = RunFolder.open(options.out)
        metadata = read_metadata(run.checkpoint)
        planned = planned_length(run)
        if n_steps is None and max_seconds is None:
            n_steps, max_seconds = planned
        elif (n_steps, max_seconds) != planned:
            say("warning: the run was planned for another length; its schedules now follow the new one")
        stored = config_from_dict(NerfConfig, metadata.get("config"), f"{run.checkpoint}: config")
        preset = value_of(arguments, "--preset") or stored.preset
        if preset != stored.preset or config not in (stored, _defaults(arguments).config):
            say("warning: a resumed run keeps the model and recipe of its checkpoint; those given here are ignored")
        config = stored
        options = replace(options, **stored_options(run, metadata, options))
    elif n_steps is None and max_seconds is None:
        max_seconds = DEFAULT_SECONDS
    length = TrainOptions(n_steps=n_steps, max_seconds=max_seconds)
    # What can be refused is refused before minutes of decoding, not after.
    parse_background(options.background)
    if options.out is not None and not options.resume:
        RunFolder(options.out, options.out / CHECKPOINT_NAME).check_free(options.overwrite)
    if options.tensorboard:
        importlib.import_module("tensorboard")  # a missing extra is named now, not after the training
    if not options.max_image_memory > 0:
        raise ConfigError(f"--max-image-memory: expected GiB above 0, got {options.max_image_memory}")
    read = ReadOptions(
        downscale=options.downscale, aabb_scale=options.aabb_scale, camera_axes=options.camera_axes,
        max_image_memory=int(options.max_image_memory * 2**30),
    )  # fmt: skip
    scene = load_scene(options.path, read)
    for note in scene.notes:
        say(note)
    if device.type == "cuda":
        say_memory(config, scene, device, options.max_gpu_memory)
    task = NerfTask(config, scene, seed=options.seed, background=options.background, device=device)
    if options.resume:
        check_same_photos(run, metadata, scene)
    else:
        run = RunFolder.create(options.out, scene.name, options.overwrite)
        if options.overwrite:
            run.checkpoint.unlink(missing_ok=True)
            run.report.unlink(missing_ok=True)  # it would tell of the run before
    say(f"run folder: {run.path}; preset {config.preset}")
    write_config(run, task, length)
    # Quoted, so that a path with spaces can be copied too.
    resume_command = f"hashfield train nerf {quote(str(options.path))} --out {quote(str(run.path))} --resume"
    result = run_training(task, run, length, options.resume, resume_command)
    if options.tensorboard:
        write_tensorboard(run, result)
    if result.stopped_by == "done":
        finish(task, scene, run, result, by_clock=max_seconds is not None)
        say(f"report: {run.report}")
        say(f"render it: hashfield render {quote(str(run.path))} --views orbit --format mp4")
        return 0
    if result.stopped_by == "interrupted":
        say(f"interrupted after step {result.step}, saved; go on with: {resume_command}")
        return 130
    raise ConfigError(
        f"the loss of step {result.step} is not a finite number; the last good checkpoint is {run.checkpoint} "
        "(a lower --train.learning-rate may help)"
    )


def say_memory(config: NerfConfig, scene: Scene, device: torch.device, budget: float | None) -> None:
    """Say what the run takes of the GPU's memory, and refuse what cannot fit."""
    needed, free = gpu_memory(config, scene) / 2**30, torch.cuda.mem_get_info(device)[0] / 2**30
    say(f"on {torch.cuda.get_device_name(device)}: about {needed:.1f} GiB of GPU memory, {free:.1f} GiB are free")
    if needed > (free if budget is None else min(free, budget)):
        limit = f"--max-gpu-memory allows {budget:g}" if budget is not None and budget < free else "there is less"
        raise ConfigError(
            f"the run needs about {needed:.1f} GiB of GPU memory and {limit}: raise --max-gpu-memory, or try a smaller "
            "--train.batch-samples, --encoding.log2-hashmap-size or --downscale"
        )


def stored_options(run: RunFolder, metadata: dict[str, Any], options: TrainNerf) -> dict[str, Any]:
    """What a resumed run takes from its checkpoint rather than from the command line."""
    try:
        r, g, b = (round(255 * value) for value in metadata["background"])
        return {
            "seed": int(metadata["seed"]),
            "aabb_scale": int(metadata["spaces"]["aabb_scale"]),
            "background": f"#{r:02x}{g:02x}{b:02x}",
            "camera_axes": metadata["scene"].get("camera_axes", "opengl"),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.checkpoint}: metadata: missing or wrong: {error}") from error


def check_same_photos(run: RunFolder, metadata: dict[str, Any], scene: Scene) -> None:
    """Raise unless the photos read are as many and as large as those the run was begun with."""
    stored = [(view.get("width"), view.get("height")) for view in metadata.get("cameras", {}).get("train", [])]
    found = [(camera.width, camera.height) for camera in scene.splits["train"].cameras]
    if stored != found:
        raise ConfigError(
            f"{run.path}: was begun with {len(stored)} training photos, the first {stored[:1]}, here are "
            f"{len(found)}, the first {found[:1]}: other data, or another --downscale"
        )


def _defaults(arguments: list[str]) -> TrainNerf:
    """The options' defaults: those of the preset that the arguments name, or that suits their length."""
    name = value_of(arguments, "--preset")
    if name is None:
        seconds, steps = value_of(arguments, "--max-seconds"), value_of(arguments, "--n-steps")
        try:
            name = preset_for(
                float(seconds) if seconds else None if steps else DEFAULT_SECONDS,
                int(steps) if steps else None,
                value_of(arguments, "--device") in (None, "auto", "cuda") and uses_gpu(),
            )
        except ValueError:
            name = "fast"  # tyro will name the wrong number
    if name not in PRESETS:
        raise ConfigError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return TrainNerf(path=tyro.MISSING, config=PRESETS[name])


def write_config(run: RunFolder, task: NerfTask, length: TrainOptions) -> None:
    """config.json: everything needed to repeat the run."""
    values = {
        "hashfield": __version__, "task": task.name, "data": str(task.scene.path), "seed": task.seed,
        "n_steps": length.n_steps, "max_seconds": length.max_seconds, "spaces": task.spaces.to_dict(),
        "config": config_to_dict(task.config),
    }  # fmt: skip
    text = json.dumps(values, indent=1) + "\n"
    write_aside(run.config_json, lambda aside: aside.write_text(text, encoding="utf-8"))


def run_training(
    task: NerfTask, run: RunFolder, length: TrainOptions, resume: bool = False, resume_command: str | None = None
) -> TrainResult:
    """Train with progress on the console; the command that would resume the run is named there."""
    with ProgressView(resume_command) as view:
        result = train(task, run, length, view.show, resume)
    say(
        f"trained {result.step} steps in {result.train_seconds:.1f} s "
        f"({result.n_rays / 1e6:.1f} M rays, {result.n_samples / 1e6:.1f} M samples; "
        f"kernels ready in {result.compile_seconds:.1f} s)"
    )
    return result


def write_tensorboard(run: RunFolder, result: TrainResult) -> None:
    """The metrics as TensorBoard events in the run folder."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path / "tensorboard")) as writer:
        for line in result.history:
            for name in ("loss", "psnr", "rays_per_s", "samples_per_s"):
                writer.add_scalar(name, line[name], line["step"])
