"""Quality against training time: PSNR on held-out views after stated seconds.

    python benchmarks/nerf.py SCENE --seconds 30 60 120 [--preset auto] [--background black] [--no-alpha]

Each budget is a run of its own, planned for it. Time counts all that happens after the images are decoded (grid
work and carving included); evaluation, saving and first-use compilation are apart and stated. PSNR: every pixel of
every test view, sRGB, clipped, not quantised, mean of per-view values.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import append, cpu_model, other_load, peak_memory_gb

from hashfield.data import load_scene
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.frames import DEFAULT_QUALITY, QUALITIES
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS, preset_for
from hashfield.tasks.shared import parse_background


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0])
    parser.add_argument("--preset", default="auto", choices=["auto", *PRESETS])
    parser.add_argument(
        "--background", nargs="+", default=["white"], help="behind photo and rendering; a line for each"
    )
    parser.add_argument("--no-alpha", action="store_true", help="never carve from alpha")
    parser.add_argument("--log2-hashmap-size", type=int)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], help="of lookups and networks")
    parser.add_argument("--quality", choices=list(QUALITIES), default=DEFAULT_QUALITY, help="of the judged renderings")
    parser.add_argument("--n-steps", type=int, help="steps instead of seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", type=Path, help="folder for one rendering beside its photo")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    scene = load_scene(options.scene)
    for seconds in options.seconds:
        name = preset_for(seconds, None) if options.preset == "auto" else options.preset
        config = PRESETS[name]
        if options.no_alpha:
            config = replace(config, occupancy=replace(config.occupancy, use_alpha=False))
        if options.log2_hashmap_size:
            config = replace(config, encoding=replace(config.encoding, log2_hashmap_size=options.log2_hashmap_size))
        if options.precision:
            config = replace(config, precision=options.precision)
        task = NerfTask(config, scene, seed=options.seed, background=options.background[0])
        before = time.perf_counter()
        task.warm_up()
        compile_s = time.perf_counter() - before
        own, start = time.process_time(), time.perf_counter()
        task.begin()
        step, n_rays, n_samples = 0, 0, 0
        while True:
            elapsed = time.perf_counter() - start
            fraction = step / options.n_steps if options.n_steps else elapsed / seconds
            if fraction >= 1:
                break
            result = task.step(step, fraction)
            step, n_rays, n_samples = step + 1, n_rays + result.n_rays, n_samples + result.n_samples
        share = (time.process_time() - own) / elapsed / torch.get_num_threads()
        parameters = task.steps.values()
        lookups = "lookups float32" if parameters.table_bf16 is None else "lookups bfloat16"
        model = task.model()
        model.quality = options.quality
        for background in options.background:
            figures = evaluate_views(model, scene.splits["test"], parse_background(background))
            psnrs = [view["psnr"] for view in figures["views"]]
            frame = sorted(view["seconds"] for view in figures["views"])[len(psnrs) // 2]
            row = {
                "scene": scene.name, "seconds": round(elapsed, 1), "preset": name,
                "log2_T": config.encoding.log2_hashmap_size, "background": background,
                "alpha": "used" if task.is_carved else "not used",
                "quality": model.quality, "precision": f"{lookups}, networks {parameters.precision}",
                "psnr": round(figures["psnr"], 3), "psnr_min": round(min(psnrs), 2), "psnr_max": round(max(psnrs), 2),
                "ssim": round(figures["ssim"], 4), "steps": step, "rays_M": round(n_rays / 1e6, 2),
                "kept_M": round(n_samples / 1e6, 1), "frame_s": round(frame, 3), "compile_s": round(compile_s, 1),
                "own_cpu_share": round(share, 3), "peak_memory_GB": round(peak_memory_gb(), 2), "seed": options.seed,
                "threads": torch.get_num_threads(),
            }  # fmt: skip
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            append("nerf", [row])
        if options.save:
            from PIL import Image

            camera, image = scene.splits["test"].cameras[3], scene.splits["test"].images[3]
            background = torch.tensor(parse_background(options.background[0]))
            rendering = torch.from_numpy(model.render(camera, ("color",), tuple(background.tolist()))["color"])
            photo, alpha = torch.from_numpy(image).float().div(255).split([3, image.shape[2] - 3], 2)
            photo = photo * alpha + background * (1 - alpha) if alpha.numel() else photo
            picture = torch.cat([rendering.clamp(0, 1), photo], 1) * 255
            options.save.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.byte().numpy()).save(options.save / f"{scene.name}-{seconds:.0f}.png")


if __name__ == "__main__":
    main()
