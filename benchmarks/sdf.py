"""How close signed distances come to their meshes, by seconds of training: IoU, distance error, Chamfer, F-score.

python benchmarks/sdf.py MESH [MESH ...] --seconds 30 60 300 [--pictures DIR]
python benchmarks/sdf.py MESH [MESH ...] --n-steps 1450 [--pictures DIR]    where the machine is not quiet

Each length is a run of its own, since schedules follow the length. Training time excludes reading the mesh and its
search tree (stated), compiling, evaluating and saving, and includes the exact distances. Points are drawn with a seed of
their own; counts are stated in the table. On a machine that others use too, seconds mean little: runs of so many steps
compare, and cpu_s, the processor time of all threads while training (exact distances included, and compiling, if any),
over the number of threads is about what the run takes alone.
"""

import argparse
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch

from hashfield.cli.sdf import extracted
from hashfield.data.meshes import read_mesh
from hashfield.export.images import colorize_depth, colorize_normals, comparison_sheet, to_uint8, write_png
from hashfield.tasks.evaluate_surface import evaluate_distance
from hashfield.tasks.sdf import SdfTask
from hashfield.tasks.sdf_config import PRESETS, preset_for
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder


def pictures(task: SdfTask, path: Path, size: int = 640) -> None:
    """Shading, normals, depth and the mesh's own normals, from two sides."""
    model, rows = task.model(), []
    for k in (0, 3):
        camera = task.cameras["orbit"][k].resized(size, size)
        found = model.render(camera, ("color", "normals", "depth", "opacity"), model.background)
        exact = task.truth.normals_seen(camera)
        rows.append(
            [
                ("shaded", to_uint8(found["color"])),
                ("normals", colorize_normals(found["normals"], found["opacity"])),
                ("normals of the mesh", colorize_normals(exact, np.linalg.norm(exact, axis=-1).clip(0, 1))),
                ("depth", colorize_depth(found["depth"], found["opacity"])),
            ]
        )
    write_png(path, comparison_sheet(rows))


def main() -> None:
    """Train, judge, print and append to results/sdf.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0])
    parser.add_argument("--n-steps", type=int, nargs="+", default=[], help="instead of --seconds")
    parser.add_argument("--preset", help="default: the one that suits the length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-points", type=int, default=2**21)
    parser.add_argument("--n-surface", type=int, default=2**17)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--pictures", type=Path, help="folder for a sheet of pictures of each run")
    options = parser.parse_args()
    for path in options.meshes:
        mesh = read_mesh(path)
        lengths = [TrainOptions(n_steps=n, autosave_seconds=1e9) for n in options.n_steps]
        lengths = lengths or [TrainOptions(max_seconds=s, autosave_seconds=1e9) for s in options.seconds]
        for length in lengths:
            before = time.perf_counter()
            name = options.preset or preset_for(length.max_seconds, length.n_steps)
            task = SdfTask(PRESETS[name], mesh, seed=options.seed)
            tree = time.perf_counter() - before
            load, own, wall = common.other_load(), time.process_time(), time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                run = RunFolder.create(Path(folder) / "run", mesh.name)
                result = train(task, run, length)
            own, wall = time.process_time() - own, time.perf_counter() - wall
            print(f"{path.name}: trained {result.step} steps in {result.train_seconds:.1f} s", flush=True)
            model = task.model()
            figures = evaluate_distance(
                model, task.truth, n_points=options.n_points, n_surface=options.n_surface,
                surface=extracted(model, options.resolution),
            )  # fmt: skip
            row = {
                "mesh": path.name, "n_faces": len(mesh.faces), "inside": task.truth.query.rule,
                "planned": f"{length.n_steps} steps" if length.n_steps else f"{length.max_seconds:g} s",
                "train_s": round(result.train_seconds, 1), "cpu_s": round(own, 1),
                "preset": name, "steps": result.step, "points_M": round(result.n_samples / 1e6, 1),
                "points_per_s_M": round(result.n_samples / result.train_seconds / 1e6, 2), "tree_s": round(tree, 2),
                **{k: figures[k] for k in (
                    "iou", "mean_distance", "mean_distance_of_diagonal", "chamfer", "f_score", "diagonal", "n_points",
                    "n_surface", "seed",
                )},
                "resolution": options.resolution, "other_load": round(load, 2),
                "own_cpu_share": round(own / wall / torch.get_num_threads(), 3),
                "peak_memory_gb": round(common.peak_memory_gb(), 2),
            }  # fmt: skip
            common.append("sdf", [row])
            chamfer = "none" if row["chamfer"] is None else f"{row['chamfer'] / row['diagonal']:.2e}"
            f_score = "none" if row["f_score"] is None else f"{row['f_score']:.4f}"
            iou = "none" if row["iou"] is None else f"{row['iou']:.5f}"
            print(
                f"| {path.name} | {row['planned']} | {row['cpu_s']} | {name} | {row['points_M']} M | {iou} | "
                f"{row['mean_distance_of_diagonal']:.2e} | {chamfer} | {f_score} | {row['own_cpu_share']} |",
                flush=True,
            )
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                pictures(task, options.pictures / f"{path.stem}_{row['planned'].replace(' ', '')}.png")


if __name__ == "__main__":
    main()
