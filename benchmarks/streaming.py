"""Memory and speed of training on photos that do not fit --max-image-memory.

python benchmarks/streaming.py DIR --photos 1000 --memory 2      # makes the photos, trains, removes all of it again
python benchmarks/streaming.py DIR --photos 60 --memory 2 100    # streamed, and then all in memory
python benchmarks/streaming.py DIR --photos 1000 --keep          # leaves photos and cache for another call
python benchmarks/streaming.py DIR --photos 1000 --distinct 100  # each photo ten times, with one pose

Views of the demo's scene are drawn small, enlarged to 12 megapixels and written as JPEG, opaque on white. With
--distinct, only so many are drawn, and the others are hard links to them: the cache decodes and keeps each name anew.
1,000 photos take 34 GiB of disk. Each training is a process of its own. Peak memory is the largest resident set, pages of files that others may have at any time included.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import common

SIDE = 3464
"""Pixels of a side: 12.0 megapixels."""


def make(folder: Path, n: int, n_distinct: int) -> int:
    """Write photos and their cameras; bytes of the photos.

    Args:
        folder: Where.
        n: How many photos.
        n_distinct: How many of them differ.
    """
    from PIL import Image

    from hashfield.data.demo_scene import make_demo_scene
    from hashfield.data.write_cameras import write_transforms
    from hashfield.export.images import over, to_uint8

    scene, _ = make_demo_scene(size=160, n_train=n_distinct, n_test=1)
    views = scene.splits["train"]
    names = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(views.images):
        names.append(f"images/{k:04d}.jpg")
        if not (folder / names[-1]).exists():
            small = Image.fromarray(to_uint8(over(image, (1.0, 1.0, 1.0))))
            small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folder / names[-1], quality=90)
    for k in range(n_distinct, n):
        names.append(f"images/{k:04d}.jpg")
        if not (folder / names[-1]).exists():
            (folder / names[-1]).hardlink_to(folder / names[k % n_distinct])
    cameras = [views.cameras[k % n_distinct].resized(SIDE, SIDE) for k in range(n)]
    write_transforms(folder / "transforms.json", cameras, names, spaces=scene.spaces)
    return sum((folder / name).stat().st_size for name in names)


def train(folder: Path, memory_gib: float, seconds: float, connection: Connection) -> None:
    """What the other process does: read, train, tell."""
    import torch

    from hashfield.data import ReadOptions, load_scene
    from hashfield.tasks.nerf import NerfTask
    from hashfield.tasks.nerf_config import PRESETS
    from hashfield.train.loop import TrainOptions
    from hashfield.train.loop import train as run_training
    from hashfield.train.run_folder import RunFolder

    before = time.perf_counter()
    options = ReadOptions(
        max_image_memory=int(memory_gib * 2**30), image_cache=folder / "cache", say=lambda text: print(text, flush=True)
    )
    scene = load_scene(folder, options)
    read_seconds = time.perf_counter() - before
    read_peak = common.peak_memory_gb()
    before = time.perf_counter()
    task = NerfTask(PRESETS["fast"], scene)
    pool_seconds = time.perf_counter() - before
    run = RunFolder.create(folder / "run", "run", overwrite=True)
    result = run_training(task, run, TrainOptions(max_seconds=seconds, autosave_seconds=1e6))
    rates = [line["rays_per_s"] for line in result.history[len(result.history) // 2 :]]
    connection.send(
        {
            "streamed": scene.resident_bytes is not None,
            "memory_gib": memory_gib,
            "photos": sum(len(views) for views in scene.splits.values()),
            "megapixels": round(sum(views.n_pixels for views in scene.splits.values()) / 1e6),
            "read_seconds": round(read_seconds, 1),
            "pool_seconds": round(pool_seconds, 1),
            "cache_gb": round(sum(path.stat().st_size for path in (folder / "cache").glob("*")) / 1e9, 2),
            "peak_gb_reading": round(read_peak, 2),
            "peak_gb": round(common.peak_memory_gb(), 2),
            "steps": result.step,
            "train_seconds": round(result.train_seconds, 1),
            "rays_per_s_later_half": round(sum(rates) / max(1, len(rates))),
            "rays_per_cpu_s": round(result.n_rays / max(result.cpu_seconds, 1e-9)),
            "batch_psnr": round(result.history[-1]["psnr"], 2),
            "strips_moved": 0 if task.streamed is None else task.streamed.n_moved,
            "strips_held": 0 if task.streamed is None else task.streamed.n_held,
            "threads": torch.get_num_threads(),
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where photos, cache and run lie meanwhile; it must not exist")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--distinct", type=int, help="photos that differ; default: all")
    parser.add_argument("--memory", type=float, nargs="+", default=[2.0], help="GiB for --max-image-memory")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--keep", action="store_true", help="leave everything there, and use what is there already")
    parser.add_argument("--write", action="store_true", help="append to results/streaming.csv")
    options = parser.parse_args()
    if options.folder.exists() and not options.keep:
        parser.error(f"{options.folder} exists")
    try:
        before = time.perf_counter()
        size = make(options.folder, options.photos, min(options.photos, options.distinct or options.photos))
        print(f"{options.photos} photos, {size / 1e9:.2f} GB, in {time.perf_counter() - before:.0f} s", flush=True)
        context = multiprocessing.get_context("spawn")
        for memory in options.memory:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=train, args=(options.folder, memory, options.seconds, theirs))
            process.start()
            theirs.close()
            found = ours.recv()
            process.join()
            print(json.dumps(found), flush=True)
            if options.write:
                common.append("streaming", [found])
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
