"""What masks are worth: something that moves is pasted into half of the training photos, and clean views judge.

python benchmarks/masks.py SCENE [--downscale 4] [--n-steps 700] [--write]

Three trainings of the same length: on the photos as they are, with the blob, and with the blob under masks.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import common
import numpy as np

from hashfield.data import PosedImages, ReadOptions, load_scene
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder


def with_blob(views: PosedImages, share: float, seed: int) -> PosedImages:
    """The views with a bright striped disk of a quarter of the height somewhere in a share of them, and its masks."""
    random = np.random.default_rng(seed)
    chosen = set(random.choice(len(views), round(share * len(views)), replace=False).tolist())
    images, masks = [], []
    for k, image in enumerate(views.images):
        image, mask = image.copy(), np.ones(image.shape[:2], np.bool_)
        if k in chosen:
            height, width = mask.shape
            radius = 0.125 * height
            x, y = random.uniform(radius, [width - radius, height - radius])
            rows, columns = np.mgrid[:height, :width] + 0.5
            inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
            stripes = np.where((columns + rows) // 8 % 2 < 1, 255, 40)
            image[inside, :3] = np.stack([stripes, stripes // 2, 255 - stripes], -1)[inside]
            # a mask by hand or by a network is a little larger than what it covers
            mask = (columns - x) ** 2 + (rows - y) ** 2 > (1.05 * radius) ** 2
        images.append(image)
        masks.append(mask)
    return replace(views, images=tuple(images), masks=masks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scene", type=Path)
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--n-steps", type=int, default=700, help="of each training")
    parser.add_argument("--share", type=float, default=0.5, help="of the photos that the blob is in")
    parser.add_argument("--out", type=Path, default=Path("runs/masks-benchmark"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="append to results/masks.csv")
    options = parser.parse_args()
    scene = load_scene(options.scene, ReadOptions(downscale=options.downscale))
    clean = scene.splits["train"]
    blob = with_blob(clean, options.share, seed=0)
    rows = []
    for name, views in (("clean", clean), ("blob", replace(blob, masks=None)), ("blob, masked", blob)):
        task = NerfTask(PRESETS["fast"], replace(scene, splits={**scene.splits, "train": views}))
        run = RunFolder.create(options.out / name.replace(", ", "-"), "masks", overwrite=True)
        result = train(task, run, TrainOptions(n_steps=options.n_steps))
        figures = evaluate_views(task.model(), scene.splits["test"])
        rows.append(
            {
                "scene": scene.name, "downscale": options.downscale, "photos": name, "steps": result.step,
                "seconds": round(result.train_seconds, 1), "psnr": round(figures["psnr"], 2), "ssim": round(figures["ssim"], 4),
                "worst_psnr": round(min(view["psnr"] for view in figures["views"]), 2),
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    if options.write:
        common.append("masks", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
