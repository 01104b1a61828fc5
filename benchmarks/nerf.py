"""Quality against training time: PSNR on held-out views after stated seconds.

    python benchmarks/nerf.py SCENE ... --seconds 30 60 120 [--preset auto] [--background black] [--no-alpha]
        [--set train.distortion=0 occupancy.nearest=0 ...] [--pixels 12000] [--cpu-clock]

Each budget is a run of its own, planned for it. Time counts all that happens after the images are decoded (grid
work and carving included); evaluation, saving and first-use compilation are apart and stated. PSNR: every pixel of
every test view, sRGB, clipped, not quantised, mean of per-view values. For comparing settings on a machine that others use
too: --pixels judges so many random pixels of each view, the same ones every time, and --cpu-clock counts seconds of this
process's own processor time, divided by its threads, instead of the clock's. Both are stated in the row.
"""

import argparse
import ast
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import append, cpu_model, other_load, peak_memory_gb

from hashfield.data import load_scene
from hashfield.data.dataset import PosedImages
from hashfield.geometry.cameras import camera_table
from hashfield.ops.render_rays import MarchOptions, render_rays
from hashfield.ops.training_rays import training_rays
from hashfield.steps.pixel_source import pixel_pool
from hashfield.tasks.align import as_known
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.frames import DEFAULT_QUALITY, QUALITIES
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS, preset_for
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.shared import parse_background


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0])
    parser.add_argument("--preset", default="auto", choices=["auto", *PRESETS])
    parser.add_argument(
        "--background", nargs="+", default=["white"], help="behind photo and rendering; a line for each"
    )
    parser.add_argument("--no-alpha", action="store_true", help="never carve from alpha")
    parser.add_argument("--log2-hashmap-size", type=int)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], help="of lookups and networks")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other values of the configuration")
    parser.add_argument("--quality", choices=list(QUALITIES), default=DEFAULT_QUALITY, help="of the judged renderings")
    parser.add_argument("--n-steps", type=int, help="steps instead of seconds")
    parser.add_argument("--cpu-clock", action="store_true", help="seconds of own processor time, divided by threads")
    parser.add_argument("--pixels", type=int, help="judge so many random pixels of each view instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", type=Path, help="folder for renderings beside their photos")
    parser.add_argument("--save-views", type=int, nargs="+", default=[3], help="numbers of the test views to save")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    for path in options.scenes:
        scene = load_scene(path)
        for seconds in options.seconds:
            run(scene, seconds, options)


def run(scene: Any, seconds: float, options: argparse.Namespace, table: str = "nerf") -> None:
    """Train on a scene for so long and write down what came out.

    Args:
        scene: Photos.
        seconds: Length of the training.
        options: As the command line has them.
        table: Name of the table of results.
    """
    name = preset_for(seconds, None) if options.preset == "auto" else options.preset
    config = PRESETS[name]
    if options.no_alpha:
        config = changed(config, "occupancy.use_alpha", False)
    if options.log2_hashmap_size:
        config = changed(config, "encoding.log2_hashmap_size", options.log2_hashmap_size)
    if options.precision:
        config = changed(config, "precision", options.precision)
    for assignment in options.set:
        where, value = assignment.split("=", 1)
        config = changed(config, where, ast.literal_eval(value))
    task = NerfTask(config, scene, seed=options.seed, background=options.background[0])
    before = time.perf_counter()
    task.warm_up()
    compile_s = time.perf_counter() - before
    threads = torch.get_num_threads()

    def clock() -> float:
        return time.process_time() / threads if options.cpu_clock else time.perf_counter()

    own, wall, start = time.process_time(), time.perf_counter(), clock()
    task.begin()
    step, n_rays, n_samples = 0, 0, 0
    while True:
        elapsed = clock() - start
        fraction = step / options.n_steps if options.n_steps else elapsed / seconds
        if fraction >= 1:
            break
        result = task.step(step, fraction)
        step, n_rays, n_samples = step + 1, n_rays + result.n_rays, n_samples + result.n_samples
    share = (time.process_time() - own) / (time.perf_counter() - wall) / threads
    parameters = task.steps.values()
    lookups = "lookups float32" if parameters.table_bf16 is None else "lookups bfloat16"
    model = task.model()
    model.quality = options.quality
    views = as_known(scene.splits["test"], model, "test")
    for background in options.background:
        color = parse_background(background)
        found = judged(model, views, color, options.pixels) if options.pixels else evaluate_views(model, views, color)
        psnrs = [view["psnr"] for view in found["views"]]
        frame = sorted(view["seconds"] for view in found["views"])[len(psnrs) // 2]
        n_pixels = options.pixels or views.cameras[0].width * views.cameras[0].height
        row = {
            "scene": scene.name, "seconds": round(elapsed, 1), "preset": name,
            "log2_T": config.encoding.log2_hashmap_size, "background": background,
            "alpha": "used" if task.is_carved else "not used", "quality": "exact" if options.pixels else model.quality,
            "precision": f"{lookups}, networks {parameters.precision}",
            "psnr": round(found["psnr"], 3), "psnr_min": round(min(psnrs), 2), "psnr_max": round(max(psnrs), 2),
            "ssim": round(found["ssim"], 4) if "ssim" in found else "", "steps": step,
            "rays_M": round(n_rays / 1e6, 2), "kept_M": round(n_samples / 1e6, 1),
            "kept_per_ray": round(n_samples / max(n_rays, 1), 1), "rays_k_per_s": round(n_rays / elapsed / 1e3, 1),
            "frame_s": round(frame, 3), "us_per_pixel": round(frame / n_pixels * 1e6, 2),
            "compile_s": round(compile_s, 1), "own_cpu_share": round(share, 3),
            "peak_memory_GB": round(peak_memory_gb(), 2), "seed": options.seed, "threads": threads,
            "changed": " ".join(options.set), "clock": "own CPU time" if options.cpu_clock else "",
            "pixels_judged": options.pixels or "",
        }  # fmt: skip
        print(", ".join(f"{k} {v}" for k, v in row.items() if v != ""), flush=True)
        append(table, [row])
    if options.save:
        save(model, scene, options, f"{scene.name}-{seconds:.0f}")


def changed(config: Any, where: str, value: Any) -> Any:
    """A configuration with one value replaced, named as on the command line: train.batch."""
    name, _, rest = where.partition(".")
    return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def judged(
    model: NerfModel, views: PosedImages, background: tuple[float, float, float], n_pixels: int
) -> dict[str, Any]:
    """PSNR of random pixels of each view, which are the same in every run."""
    pool = pixel_pool(views.images, model.spaces.camera_table_to_scene(camera_table(views.cameras)))
    options = MarchOptions(model.spaces.aabb_scale, model.spaces.cone_angle, model.step_scale, 1e-4)
    behind, generator, figures = torch.tensor(background), np.random.default_rng(5), []
    for k, (width, height) in enumerate(zip(pool.widths.tolist(), pool.heights.tolist(), strict=True)):
        n = min(n_pixels, width * height)
        chosen = pool.starts[k] + torch.from_numpy(generator.choice(width * height, n, replace=False))
        batch = training_rays(
            chosen, pool, model.box, jitter=torch.full((n,), 0.5), background=behind.expand(n, 3).contiguous()
        )
        before = time.perf_counter()
        seen = render_rays(model.parameters_of_field(), batch.rays, model.bits, options)
        seconds = time.perf_counter() - before
        gain = 1.0 if views.gains is None else torch.from_numpy(views.gains[k]).float()
        color = (seen.color * gain + (1 - seen.opacity)[:, None] * behind).clamp(0, 1)
        alpha = batch.target[:, 3:]
        photo = batch.target[:, :3] * alpha + behind * (1 - alpha)
        figures.append({"psnr": -10 * math.log10(float((color - photo).square().mean())), "seconds": seconds})
    return {"psnr": float(np.mean([view["psnr"] for view in figures])), "views": figures}


def save(model: NerfModel, scene: Any, options: argparse.Namespace, name: str) -> None:
    """Write renderings of some test views, each beside its photo."""
    from PIL import Image

    views, background = scene.splits["test"], torch.tensor(parse_background(options.background[0]))
    options.save.mkdir(parents=True, exist_ok=True)
    for k in options.save_views:
        rendering = torch.from_numpy(model.render(views.cameras[k], ("color",), tuple(background.tolist()))["color"])
        photo, alpha = torch.from_numpy(views.images[k]).float().div(255).split([3, 1], 2)
        photo = photo * alpha + background * (1 - alpha)
        picture = torch.cat([rendering.clamp(0, 1), photo], 1) * 255
        Image.fromarray(picture.byte().numpy()).save(options.save / f"{name}-view{k}.png")


if __name__ == "__main__":
    main()
