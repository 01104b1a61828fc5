"""`hashfield demo [nerf]`: a scene made by formula, trained, judged and shown."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hashfield.cli.outcome import finish
from hashfield.cli.shared import DeviceName, kind_from_name, parse, run_command, say, set_up
from hashfield.cli.train import demo_ended, run_training, say_what_a_demo_left, write_config
from hashfield.data.dataset import Scene
from hashfield.data.demo_scene import make_demo_scene, save_nerf_synthetic
from hashfield.errors import ConfigError
from hashfield.export.images import over
from hashfield.export.video import check_video
from hashfield.ops.machine import is_kernel_cache_warm
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS
from hashfield.tasks.nerf_model import NerfModel
from hashfield.train.loop import TrainOptions
from hashfield.train.metrics import psnr
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class Demo:
    """Make a small scene by formula, train on it, and write pictures, a video, a checkpoint and a report."""

    out: Path | None = None
    """Run folder; default runs/demo-<n>."""
    overwrite: bool = False
    """Allow --out to hold a run already."""
    seconds: float = 60.0
    """Of training."""
    seed: int = 0
    """Of cameras and training."""
    size: int = 400
    """Width and height of the views."""
    n_frames: int = 60
    """Of the turntable video; 0 for none."""
    save_photos: bool = False
    """Also write the views in NeRF-synthetic form into the run folder, to see what such data look like."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to train; auto takes a GPU where one is."""


def main(arguments: list[str]) -> int:
    """Run the verb: `demo`, or `demo KIND`."""
    kind, rest = kind_from_name("demo", arguments, optional=True)
    return run_command(kind, "demo", rest)


def demo_nerf(arguments: list[str]) -> int:
    """`demo` of a radiance field."""
    options = parse(Demo, arguments, "demo")
    device = set_up(options.device, options.threads)
    if not 32 <= options.size <= 4096:
        raise ConfigError(f"--size: expected 32 to 4096, got {options.size}")
    if options.seed < 0:
        raise ConfigError(f"--seed: expected a whole number >= 0, got {options.seed}")
    if not 0 <= options.n_frames <= 100_000:
        raise ConfigError(f"--n-frames: expected 0 to 100000, got {options.n_frames}")
    if options.n_frames:
        check_video()  # now, not after the training
    started = time.perf_counter()
    length = TrainOptions(max_seconds=options.seconds)
    run = RunFolder.create(options.out, "demo", options.overwrite)
    say("making the scene ...")
    scene, depths = make_demo_scene(options.seed, size=options.size)
    for note in scene.notes:
        say(note)
    if options.save_photos:
        save_nerf_synthetic(scene, run.path / "photos")
    if not is_kernel_cache_warm():
        say("first start: the kernels are compiled now, which takes about a minute and is kept for the next time")
    task = NerfTask(PRESETS["gpu" if device.type == "cuda" else "fast"], scene, seed=options.seed, device=device)
    write_config(run, task, length)
    result = run_training(task, run, length)
    ended = demo_ended(result, run)
    if ended is not None:
        return ended
    extra = comparisons(task.model(), scene, depths["test"])
    finish(task, scene, run, result, extra, video_frames=options.n_frames, by_clock=True)
    for name, value in extra:
        say(f"{name}: {value}")
    say_what_a_demo_left(run, started)
    return 0


def comparisons(model: NerfModel, scene: Scene, depths: list[np.ndarray]) -> list[tuple[str, str]]:
    """Foreground PSNR and depth error of the held-out views, and what a blur of each view would reach."""
    views = scene.splits["test"]
    found: dict[str, list[Any]] = {"whole": [], "front": [], "blur": [], "blur_front": [], "depth": []}
    for camera, image, truth in zip(views.cameras, views.images, depths, strict=True):
        out = model.render(camera, ("color", "depth", "opacity"), model.background)
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
    """PSNR over the pixels of a mask."""
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
