"""Known error in, known error out: photos whose cameras and exposures are spoilt, with and without --refine.

    python benchmarks/refine.py SCENE [--errors poses lens exposure] [--downscale 4] [--n-steps 1500 | --seconds 120]

Poses are turned by 0.5 degrees about a random axis and shifted by 1 % of the camera's distance from the box's centre in
a random direction, the focal length is 3 % too long, and photos are multiplied (in sRGB, then clipped) by gains from
0.6 to 1.6. Three runs are compared, each planned for its length: undisturbed, disturbed without refinement, disturbed
with; a fourth shows what refinement costs on clean data. Without --alpha, photos with alpha are laid on white. Every run is
judged twice: whole held-out views by the cameras of the file, and their right halves after pose and exposure of each
were fitted on its left half, which treats all runs alike. "Pixels off" is by how much the photos' cameras see points
around what they look at in the wrong place, after all of them were laid on the true ones by a similarity: a turn and a
shift that look alike do not count. With --cpu-clock seconds are those of this process's own processor time, divided by
its threads: for machines that others use too. A scene that has errors of its own (mouse) is measured with
--runs clean clean-refined.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import append, cpu_model, other_load

from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.data.dataset import PosedImages
from hashfield.data.demo_scene import make_demo_scene
from hashfield.export.images import over, to_uint8
from hashfield.geometry.cameras import Camera, camera_table, project
from hashfield.geometry.focus import focus_point
from hashfield.geometry.spaces import Spaces
from hashfield.steps.correction_units import rotation_of
from hashfield.steps.refinement import PARTS, summary
from hashfield.tasks.align import as_known, evaluate_aligned
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS, preset_for

DEGREES, SHIFT, FOCAL, GAINS = 0.5, 0.01, 1.03, (0.6, 1.6)
WHOLE = ("interval", "rays_per_update")


def opaque(scene: Scene) -> Scene:
    """The scene with its photos laid on white, as cameras without alpha would have taken them."""

    def laid(views: PosedImages) -> PosedImages:
        images = []
        for image in views.images:
            rgb = to_uint8(over(image, (1.0, 1.0, 1.0)))
            images.append(np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], 2))
        return replace(views, images=tuple(images))

    return replace(scene, splits={name: laid(views) for name, views in scene.splits.items()}, has_alpha=False)


def spoilt_pose(camera: Camera, spaces: Spaces, random: np.random.Generator) -> Camera:
    """The camera with a wrong pose."""
    axis, direction = (x / np.linalg.norm(x) for x in random.normal(size=(2, 3)))
    turn = rotation_of(torch.from_numpy(axis[None] * np.radians(DEGREES)))[0]
    pose = camera.camera_to_world
    distance = float((pose[:, 3] - spaces.box_center_world).norm())
    position = pose[:, 3] + SHIFT * distance * torch.from_numpy(direction)
    return camera.moved(torch.cat([turn @ pose[:, :3], position[:, None]], 1))


def spoilt(scene: Scene, errors: list[str], seed: int, *, held_out: bool) -> tuple[Scene, np.ndarray]:
    """The scene with wrong cameras and uneven exposures, and the gains of its training photos.

    Args:
        scene: Undisturbed.
        errors: Some of poses, lens, exposure.
        seed: Of the random errors.
        held_out: Whether the held-out views' poses and exposures are spoilt too; their lens always is.
    """
    random = np.random.default_rng(seed)
    splits, gains = {}, np.ones(len(scene.splits["train"]))
    for name, views in scene.splits.items():
        cameras, images = list(views.cameras), list(views.images)
        is_spoilt = name == "train" or held_out
        if "lens" in errors:
            cameras = [replace(c, fx=c.fx * FOCAL, fy=c.fy * FOCAL) for c in cameras]
        if "poses" in errors and is_spoilt:
            cameras = [spoilt_pose(camera, scene.spaces, random) for camera in cameras]
        if "exposure" in errors and is_spoilt:
            own = np.exp(random.uniform(*np.log(GAINS), len(images)))
            gains = own if name == "train" else gains
            for k, gain in enumerate(own):
                rgb = np.clip(images[k][..., :3].astype(np.float64) * gain + 0.5, 0, 255).astype(np.uint8)
                images[k] = np.concatenate([rgb, images[k][..., 3:]], 2)
        splits[name] = replace(views, cameras=tuple(cameras), images=tuple(images))
    return replace(scene, splits=splits), gains


def gain_error(task: NerfTask, truth: np.ndarray) -> float:
    """Root mean square of what the logarithms of gains miss the true ones by, but for their mean."""
    refinement = task.refinement
    gains = None if refinement is None else refinement.report().get("gains")
    off = np.log(truth)[:, None] - (0.0 if gains is None else np.log(np.array(gains)))
    return float(np.sqrt(np.square(off - off.mean(0)).mean()))


def pose_errors(found: list[Camera], truth: tuple[Camera, ...], spaces: Spaces) -> tuple[float, float, float]:
    """(degrees, world units, pixels): medians after the cameras were laid on the true ones by a similarity.

    Args:
        found, truth: Cameras, world.
        spaces: Of the scene: pixels are those of points around its centre, if the cameras look at nothing in common.
    """
    a, b = (torch.stack([camera.position for camera in cameras]) for cameras in (found, truth))
    x, y = a - a.mean(0), b - b.mean(0)
    u, s, v = torch.linalg.svd(y.T @ x)
    sign = torch.diag(torch.tensor([1.0, 1.0, float(torch.sign(torch.linalg.det(u @ v)))], dtype=x.dtype))
    turn = u @ sign @ v
    scale = float((s * sign.diagonal()).sum() / x.square().sum())
    shift = (scale * x @ turn.T - y).norm(dim=1)
    angles = []
    for one, other in zip(found, truth, strict=True):
        trace = float((turn @ one.camera_to_world[:, :3] * other.camera_to_world[:, :3]).sum())
        angles.append(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))))
    table = camera_table(truth)
    middle = focus_point(table)
    middle = spaces.box_center_world if middle is None else middle
    reach = 0.2 * float((b - middle).norm(dim=1).median())
    offsets = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = middle + reach * torch.nn.functional.normalize(offsets, dim=1)
    # The same points where the found cameras have them.
    moved = (points - b.mean(0)) @ turn / scale + a.mean(0)
    index = torch.arange(len(found)).repeat_interleave(len(points))
    seen, _ = project(camera_table(found), index, moved.repeat(len(found), 1))
    true, _ = project(table, index, points.repeat(len(found), 1))
    off = (seen - true).norm(dim=1)
    return float(np.median(angles)), float(shift.median()), float(off[off.isfinite()].median())


def trained(scene: Scene, refine: list[str], options: argparse.Namespace) -> tuple[NerfTask, dict[str, Any]]:
    """A task after its training, and what it took."""
    name = options.preset or preset_for(options.seconds, options.n_steps)
    config = replace(PRESETS[name], refine=tuple(refine))
    if options.set:
        changes = {k: float(v) for k, v in (x.split("=") for x in options.set)}
        changes = {k: int(v) if k in WHOLE else v for k, v in changes.items()}
        config = replace(config, refinement=replace(config.refinement, **changes))
    task = NerfTask(config, scene, seed=options.seed)
    task.warm_up()
    threads = torch.get_num_threads()

    def clock() -> float:
        return time.process_time() / threads if options.cpu_clock else time.perf_counter()

    start, own = clock(), time.process_time()
    task.begin()
    step, n_rays, n_samples, fraction, elapsed, ema = 0, 0, 0, 0.0, 0.0, 0.0
    while fraction < 1:
        result = task.step(step, fraction)
        step, n_rays, n_samples = step + 1, n_rays + int(result.n_rays), n_samples + int(result.n_samples)
        error = float(result.squared_error)
        ema = error if step == 1 else 0.98 * ema + 0.02 * error
        elapsed = clock() - start
        fraction = step / options.n_steps if options.n_steps else elapsed / options.seconds
    row = {"steps": step, "train_s": round(elapsed, 1), "train_cpu_s": round(time.process_time() - own, 1),
           "rays_M": round(n_rays / 1e6, 2), "kept_M": round(n_samples / 1e6, 1), "preset": name,
           "batches_psnr": round(-10 * math.log10(max(ema, 1e-12)), 2),
           "changed": " ".join(options.set or []), "clock": "own CPU time" if options.cpu_clock else ""}  # fmt: skip
    return task, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", help="folder, or demo")
    parser.add_argument("--errors", nargs="*", default=["poses", "lens"], choices=["poses", "lens", "exposure"])
    parser.add_argument("--refine", nargs="*", choices=["poses", "lens", "exposure"], help="default: as --errors")
    parser.add_argument(
        "--align", nargs="*", choices=PARTS, help="what is fitted to held-out views; default: as --errors"
    )
    parser.add_argument("--runs", nargs="+", default=["clean", "spoilt", "refined", "clean-refined"])
    parser.add_argument("--alpha", action="store_true", help="use the photos' alpha, and carve from it")
    parser.add_argument("--spoil-held-out", action="store_true", help="as where one file holds all views")
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--n-steps", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--cpu-clock", action="store_true", help="seconds of own processor time, divided by threads")
    parser.add_argument("--preset", choices=list(PRESETS))
    parser.add_argument("--set", nargs="*", help="NAME=NUMBER of RefineOptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--n-views", type=int, default=1000, help="held-out views that are judged, at most")
    options = parser.parse_args()
    if (options.seconds is None) == (options.n_steps is None):
        parser.error("give one of --seconds and --n-steps")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    if options.scene == "demo":
        clean = make_demo_scene(size=200 // options.downscale, n_train=40, n_test=8)[0]
    else:
        clean = load_scene(Path(options.scene), ReadOptions(downscale=options.downscale))
    clean = opaque(clean) if clean.has_alpha and not options.alpha else clean
    bad, gains = spoilt(clean, options.errors, options.seed, held_out=options.spoil_held_out)
    refine = options.errors if options.refine is None else options.refine
    for run in options.runs:
        scene = bad if run in ("spoilt", "refined") else clean
        task, row = trained(scene, refine if "refined" in run else [], options)
        found, true = task.cameras()["train"], clean.splits["train"].cameras
        degrees, units, pixels = pose_errors(found, true, clean.spaces)
        aligned = options.errors if options.align is None else options.align
        figures = judged(task, scene, aligned, options.n_views)
        row = {"scene": clean.name, "run": run, "errors": " ".join(options.errors), "refine": " ".join(refine) if "refined" in run else "",
               **figures, "degrees_off": round(degrees, 4), "units_off": round(units, 5),
               "pixels_off": round(pixels, 3),
               "gains_off": round(gain_error(task, gains if scene is bad else np.ones_like(gains)), 4), **row,
               "aligned": " ".join(aligned), "alpha": options.alpha, "downscale": options.downscale, "held_out_spoilt": options.spoil_held_out, "seed": options.seed,
               "threads": torch.get_num_threads()}  # fmt: skip
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        append("refine", [row])
        if task.refinement is not None:
            print("\n".join(f"  {name}: {text}" for name, text in summary(task.refinement.report())), flush=True)


def judged(task: NerfTask, scene: Scene, parts: list[str], n_views: int) -> dict[str, Any]:
    """Held-out figures: whole views as they are given, and right halves after left halves were fitted.

    Args:
        task: Trained.
        scene: What it was trained on, with its held-out views.
        parts: What is fitted to each view.
        n_views: How many views are judged, evenly spread.
    """
    model = task.model()
    views = as_known(scene.splits["test"], model, "test")
    some = sorted({round(k) for k in np.linspace(0, len(views) - 1, min(n_views, len(views)))})
    gains = None if views.gains is None else views.gains[some]
    views = PosedImages(*(tuple(x[k] for k in some) for x in (views.cameras, views.images, views.names)), gains=gains)
    plain = evaluate_views(model, views)
    aligned = evaluate_aligned(model, views, [part for part in PARTS if part in parts])
    moved = [view["degrees"] for view in aligned["views"]]
    return {"psnr": round(plain["psnr"], 3), "aligned_psnr": round(aligned["psnr"], 3),
            "aligned_ssim": round(aligned["ssim"], 4), "aligned_min": round(min(v["psnr"] for v in aligned["views"]), 2),
            "alignment_degrees": round(float(np.median(moved)), 4), "n_views": len(views)}  # fmt: skip


if __name__ == "__main__":
    main()
