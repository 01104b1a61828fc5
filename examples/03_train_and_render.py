"""Train a radiance field on a scene made by formula, judge it on views it has not seen, load it, render it.

python examples/03_train_and_render.py
"""

import os
import tempfile
from pathlib import Path

import hashfield
from hashfield.data.demo_scene import make_demo_scene
from hashfield.export.images import colorize_depth, comparison_sheet, to_uint8, write_png
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder

quick = bool(os.environ.get("HASHFIELD_QUICK"))
scene, _ = make_demo_scene(size=48 if quick else 200, n_train=12 if quick else 30, n_test=2)
folder = Path(tempfile.mkdtemp(prefix="hashfield-example-"))
run = RunFolder.create(folder / "run", scene.name)
result = train(NerfTask(PRESETS["fast"], scene, seed=1), run, TrainOptions(max_seconds=2 if quick else 20))
print(f"{result.step} steps in {result.train_seconds:.1f} s")

model = hashfield.load(run.path)
print(f"held-out PSNR {evaluate_views(model, scene.splits['test'])['psnr']:.2f} dB")
frame = model.render(scene.splits["test"].cameras[0], ("color", "depth", "opacity"), background=(1.0, 1.0, 1.0))
sheet = comparison_sheet(
    [[("color", to_uint8(frame["color"])), ("depth", colorize_depth(frame["depth"], frame["opacity"]))]]
)
print("picture:", write_png(folder / "frame.png", sheet))
