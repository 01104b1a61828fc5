"""What known depth is worth: PSNR on held-out views with and without it, of all photos and of few.

    python benchmarks/depth.py SCENE --seconds 60 [--photos 8] [--values 0 0.1] [--seeds 0 1]
    python benchmarks/depth.py SCENE --maps-from RUN --maps-to FOLDER

The first form trains for so many seconds of one thread's own processor time with each value of train.depth; 12,000
random pixels of each held-out view are judged, the same ones in every run. --photos takes so many of the training photos,
evenly spread; the held-out ones stay the same. The second form renders a depth map for every photo from a trained run
and writes them beside a transforms.json that is otherwise a copy: 16-bit PNG, depth along the axis, 0 where the rendering
is not solid. Such maps are what a depth camera would see at best, with the errors of that run.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import nerf
import numpy as np
import torch
from common import cpu_model, other_load
from PIL import Image

from hashfield import load
from hashfield.data import load_scene
from hashfield.data.dataset import ReadOptions, Scene
from hashfield.geometry.cameras import Camera, camera_rays

STEP = 2e-4
"""Units of the file that a step of a depth map is."""
SHRUNK = 4
"""Depth maps are by so much smaller than the photos, as those of phones are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--photos", type=int, help="training photos; default: all")
    parser.add_argument("--values", nargs="+", default=["0", "0.1"], help="of train.depth")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other values of the configuration")
    parser.add_argument("--maps-from", type=Path, help="run whose depth is rendered")
    parser.add_argument("--maps-to", type=Path, help="folder of the data set with depth maps")
    options = parser.parse_args()
    if options.maps_from:
        write_maps(options.scene, options.maps_from, options.maps_to)
        return
    torch.set_num_threads(1)
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    scene = load_scene(options.scene, ReadOptions(depth=("files", "points")))
    print("\n".join(note for note in scene.notes if "depth" in note or "points" in note))
    if options.photos:
        scene = fewer(scene, options.photos)
    for seed in options.seeds:
        for value in options.values:
            nerf.run(scene, options.seconds, argparse.Namespace(
                preset="auto", no_alpha=False, log2_hashmap_size=None, precision=None, quality="exact", n_steps=None,
                set=[f"train.depth={value}", *options.set], seed=seed, background=["white"], cpu_clock=True,
                pixels=12000, save=None,
            ), table="depth")  # fmt: skip


def fewer(scene: Scene, n: int) -> Scene:
    """The scene with so many of its training photos, evenly spread."""
    views = scene.splits["train"]
    chosen = np.unique(np.linspace(0, len(views) - 1, n).round().astype(int)).tolist()
    some = replace(
        views, cameras=tuple(views.cameras[k] for k in chosen), images=tuple(views.images[k] for k in chosen),
        names=tuple(views.names[k] for k in chosen),
        masks=None if views.masks is None else [views.masks[k] for k in chosen],
        depths=None if views.depths is None else tuple(views.depths[k] for k in chosen),
    )  # fmt: skip
    return replace(scene, name=f"{scene.name}, {n} photos", splits={**scene.splits, "train": some})


def write_maps(path: Path, run: Path, to: Path) -> None:
    """Render depth maps of all photos of a transforms.json from a run of it, and write a data set that names them."""
    model, scene = load(run), load_scene(path)
    stated = json.loads((path / "transforms.json").read_text())
    (to / "depth").mkdir(parents=True, exist_ok=True)
    cameras = {name: c for views in scene.splits.values() for name, c in zip(views.names, views.cameras, strict=True)}
    for name, camera in cameras.items():
        small = camera.resized(camera.width // SHRUNK, camera.height // SHRUNK)
        found = model.frame(small, ("depth", "opacity"))
        z = found["depth"] * share_along_axis(small)
        z = np.where(found["opacity"] > 0.9, np.minimum(z / STEP, 65535), 0).round().astype(np.uint16)
        Image.fromarray(z).save(to / "depth" / f"{Path(name).stem}.png")
    for frame in stated["frames"]:
        frame["depth_file_path"] = f"depth/{Path(frame['file_path']).stem}.png"
        frame["file_path"] = str((path / frame["file_path"]).resolve())
    (to / "transforms.json").write_text(json.dumps({**stated, "integer_depth_scale": STEP}))


def share_along_axis(camera: Camera) -> np.ndarray:
    """[h, w]: what part of the way along each pixel's ray lies along the camera's axis."""
    _, direction = camera_rays(camera)
    return (direction @ camera.forward.to(direction.dtype)).reshape(camera.height, camera.width).numpy()


if __name__ == "__main__":
    main()
