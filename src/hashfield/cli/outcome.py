"""What follows a training run: evaluation, comparison pictures, turntable, report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hashfield.cli.shared import place_of, say
from hashfield.data.dataset import Scene
from hashfield.export.images import (
    colorize_depth,
    comparison_sheet,
    error_picture,
    shrunk,
    to_uint8,
    write_png,
)
from hashfield.export.report import write_report
from hashfield.export.video import write_mp4
from hashfield.geometry.paths import orbit_path
from hashfield.nn.config import RadianceFieldConfig
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_model import NerfModel
from hashfield.train.loop import TrainResult
from hashfield.train.run_folder import RunFolder

SHEETS = 4  # views whose comparison is written as a picture


def finish(
    task: NerfTask,
    scene: Scene,
    run: RunFolder,
    result: TrainResult,
    extra: Sequence[tuple[str, str]] = (),
    *,
    video_frames: int = 0,
    by_clock: bool = False,
) -> dict[str, Any]:
    """Figures on the held-out views; pictures, video and report lie in the run folder afterwards."""
    model = task.model()
    figures: dict[str, Any] = {}
    sheets: list[tuple[str, np.ndarray]] = []
    if "test" in scene.splits and len(scene.splits["test"]):
        views = scene.splits["test"]
        chosen = set(np.linspace(0, len(views) - 1, min(SHEETS, len(views))).round().astype(int).tolist())

        def keep(k: int, rendering: np.ndarray, photo: np.ndarray) -> None:
            if k in chosen:
                found = model.render(views.cameras[k], ("depth", "opacity"))
                row = [
                    ("photo", to_uint8(photo)), (f"rendering of {views.names[k]}", to_uint8(rendering)),
                    ("error x 5", error_picture(rendering, photo)),
                    ("depth", colorize_depth(found["depth"], found["opacity"])),
                ]  # fmt: skip
                sheet = comparison_sheet([[(name, shrunk(picture, 640)) for name, picture in row]])
                write_png(run.renders / f"compare_{k:03d}.png", sheet)
                sheets.append((f"held-out view {views.names[k]}", sheet))

        figures = evaluate_views(model, views, on_view=keep)
        say(
            f"held-out: {figures['n_views']} views, PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f}, "
            f"{np.median([v['seconds'] for v in figures['views']]):.2f} s a frame"
        )
    video = None
    if video_frames:
        video = run.renders / "turntable.mp4"
        write_mp4(video, turntable(model, scene, video_frames), fps=20)
    write_report(
        run.report, f"{scene.name}: radiance field", [*facts(task, scene, result, figures, by_clock), *extra],
        curves={
            "batch PSNR (dB)": [(line["elapsed_s"], line["psnr"]) for line in result.history],
            "loss": [(line["elapsed_s"], line["loss"]) for line in result.history],
            "trained samples per second": [(line["elapsed_s"], line["samples_per_s"]) for line in result.history],
        },
        images=sheets, video=video, x_label="seconds of training",
        headline=[("held-out PSNR", f"{figures['psnr']:.2f} dB"), ("SSIM", f"{figures['ssim']:.3f}"),
                  ("training", f"{result.train_seconds:.0f} s")] if figures else [],
    )  # fmt: skip
    return figures


def turntable(model: NerfModel, scene: Scene, n_frames: int):
    """Frames of one turn around the scene, uint8 [h, w, 3]."""
    first = scene.splits["train"].cameras[0]
    side = min(1.0, 480 / max(first.width, first.height))
    size = (max(2, round(first.width * side)), max(2, round(first.height * side)))
    for camera in orbit_path(scene.splits["train"].cameras, n_frames, width=size[0], height=size[1]):
        yield to_uint8(model.render(camera, ("color",), model.background)["color"])


def encoding_text(config: RadianceFieldConfig) -> str:
    """The encoding of positions in words."""
    encoding = config.encoding
    if not config.n_grid_parameters:
        return f"{getattr(encoding, 'otype', '')}, {config.n_encoded} features"
    return (
        f"{encoding.type} grid, L {encoding.n_levels}, F {encoding.n_features_per_level}, "
        f"T 2^{encoding.log2_hashmap_size}, {config.n_grid_parameters:,} numbers"
    )


def facts(
    task: NerfTask, scene: Scene, result: TrainResult, figures: dict[str, Any], by_clock: bool
) -> list[tuple[str, str]]:
    """Rows of the report's table."""
    sizes = task.field.config
    rows = [
        ("data", f"{scene.path} ({scene.form})"),
        ("views", ", ".join(f"{len(views)} {split}" for split, views in scene.splits.items())),
        ("preset", task.config.preset),
        ("encoding", encoding_text(sizes)),
        ("networks", ", ".join(" -> ".join(map(str, [shapes[0][1], *[n for n, _ in shapes]]))
                               for shapes in sizes.network_shapes())),
        ("carved from alpha", "yes" if task.is_carved else "no"),
        ("training", f"{result.train_seconds:.1f} s, {result.step} steps, {result.n_rays / 1e6:.1f} M rays, "
                     f"{result.n_samples / 1e6:.1f} M samples on {place_of(task.device)}"),
        ("schedule", "follows the clock, so a second run differs a little" if by_clock else "follows the steps"),
        ("kernels compiled or loaded in", f"{result.compile_seconds:.1f} s"),
        ("ended", result.stopped_by),
        ("seed", str(task.seed)),
    ]  # fmt: skip
    if figures:
        rows += [
            ("held-out PSNR", f"{figures['psnr']:.2f} dB, mean over {figures['n_views']} views on background "
                              f"{tuple(round(v, 3) for v in figures['background'])}"),
            ("held-out SSIM", f"{figures['ssim']:.4f} (11x11 Gaussian, RGB)"),
            ("colour", figures["color"]),
        ]  # fmt: skip
    return rows
