"""What a frame costs and what its quality loses: seconds and PSNR of each quality, side by side.

    python benchmarks/frames.py RUN [--views 3] [--repeats 3] [--orbit 120 640 360] [--data DIR] [--save DIR]

Held-out views of a trained radiance field are rendered at every quality in turn, `repeats` times over; seconds are the
median over all of them, of the whole call that gives a picture. PSNR is against the photos, mean over views; "to exact" is
the PSNR of all pictures against the exact ones. The orbit is rendered once, at the default quality.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import append, cpu_model, other_load

import hashfield
from hashfield.data import ReadOptions, load_scene
from hashfield.export.images import error_picture, over, to_uint8, write_png
from hashfield.geometry.paths import orbit_path
from hashfield.tasks.frames import DEFAULT_QUALITY, QUALITIES
from hashfield.train.metrics import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="the photos; default: where they lay during training")
    parser.add_argument("--views", type=int, default=3, help="held-out views, spread over all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--qualities", nargs="+", default=list(QUALITIES), choices=list(QUALITIES))
    parser.add_argument("--orbit", type=int, nargs=3, metavar=("FRAMES", "WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", type=Path, help="folder for the first view, and its difference to the exact one")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = hashfield.load(options.run)
    name = model.info["scene"]["name"]
    path = options.data or Path(model.info["scene"]["path"])
    read = ReadOptions(aabb_scale=model.spaces.aabb_scale, splits=("test",))
    views = load_scene(path, read).splits["test"]
    chosen = sorted(set(np.linspace(0, len(views) - 1, options.views).round().astype(int).tolist()))
    photos = {k: over(views.images[k], model.background) for k in chosen}
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")

    def frame(k: int, quality: str) -> np.ndarray:
        model.quality = quality
        return np.clip(model.frame(views.cameras[k], ("color",), model.background)["color"], 0, 1)

    for quality in options.qualities:  # compiles, and fills the caches
        model.quality = quality
        model.frame(views.cameras[0].resized(64, 64), ("color",), model.background)
    seconds: dict[str, list[float]] = {quality: [] for quality in options.qualities}
    shares: dict[str, list[float]] = {quality: [] for quality in options.qualities}
    pictures: dict[tuple[str, int], np.ndarray] = {}
    for _ in range(options.repeats):
        for k in chosen:
            for quality in options.qualities:
                own, before = time.process_time(), time.perf_counter()
                pictures[quality, k] = frame(k, quality)
                wall = time.perf_counter() - before
                seconds[quality].append(wall)
                shares[quality].append((time.process_time() - own) / wall / torch.get_num_threads())
    rows = []
    for quality in options.qualities:
        found = [pictures[quality, k] for k in chosen]
        row = {
            "scene": name, "quality": quality, "size": f"{found[0].shape[1]}x{found[0].shape[0]}",
            "views": len(chosen), "frame_s": round(float(np.median(seconds[quality])), 3),
            "frame_s_best": round(min(seconds[quality]), 3), "frame_s_worst": round(max(seconds[quality]), 3),
            "psnr": round(float(np.mean([psnr(pictures[quality, k], photos[k]) for k in chosen])), 3),
            "own_cpu_share": round(float(np.median(shares[quality])), 3), "threads": torch.get_num_threads(),
        }  # fmt: skip
        if "exact" in options.qualities and quality != "exact":
            error = np.mean([np.square(pictures[quality, k] - pictures["exact", k]).mean() for k in chosen])
            row["to_exact_db"] = round(-10 * float(np.log10(error)), 1)
        rows.append(row)
    if options.orbit:
        n, width, height = options.orbit
        model.quality = DEFAULT_QUALITY
        own, before = time.process_time(), time.perf_counter()
        for camera in orbit_path(model.cameras["train"], n, width=width, height=height):
            to_uint8(model.frame(camera, ("color",), model.background)["color"])
        wall = time.perf_counter() - before
        share = (time.process_time() - own) / wall / torch.get_num_threads()
        rows.append(
            {"scene": name, "quality": DEFAULT_QUALITY, "size": f"{width}x{height}", "orbit_frames": n,
             "orbit_s": round(wall, 1), "frame_s": round(wall / n, 3), "own_cpu_share": round(share, 3),
             "threads": torch.get_num_threads()}
        )  # fmt: skip
    for row in rows:
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    append("frames", rows)
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        for quality in options.qualities:
            picture = pictures[quality, chosen[0]]
            write_png(options.save / f"{name}-{quality}.png", to_uint8(picture))
            if "exact" in options.qualities:
                difference = error_picture(picture, pictures["exact", chosen[0]])
                write_png(options.save / f"{name}-{quality}-difference.png", difference)


if __name__ == "__main__":
    main()
