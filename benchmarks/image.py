"""Pictures: PSNR against training time, a step beside the same model in torch, and peak memory of large files.

    python benchmarks/image.py FILE --seconds 30 60 300 [--preset default] [--save DIR]
    python benchmarks/image.py FILE --step            # points per second, by stage, beside torch and the machine
    python benchmarks/image.py --memory jpeg          # a picture of 60 megapixels, made for the test
    python benchmarks/image.py --memory tiff          # a tiled TIFF of a gigapixel (needs hashfield[tiff], 3 GB of disk)

Each number of seconds is a run of its own, planned for it. Time counts what happens after the picture is decoded;
evaluation, saving and first-use compilation are apart. PSNR is over all pixels and channels, see `tasks.image_model.compare`.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import append, cpu_model, fma_limit, gather_rates, gemm_rate, other_load, timed
from torch import nn

from hashfield.data.demo_picture import make_demo_picture
from hashfield.data.pictures import read_picture
from hashfield.export.images import write_png
from hashfield.geometry.fixed_point import from_fixed_point
from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.train_points import train_points
from hashfield.tasks.image import ImageTask
from hashfield.tasks.image_config import PRESETS, ImageConfig
from hashfield.tasks.image_model import compare
from hashfield.train.checkpoint import export_checkpoint, save_checkpoint


def exported_bytes(task: ImageTask) -> int:
    """Size of the model as `hashfield export` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        tensors, state = task.state()
        save_checkpoint(Path(folder) / "full", tensors, {"task": task.name, **task.describe(), "state": state})
        return export_checkpoint(Path(folder) / "full", Path(folder) / "small")


def quality(path: Path, seconds: float, config: ImageConfig, save: Path | None, note: str) -> dict:
    """One run."""
    with read_picture(path) as picture:
        task = ImageTask(config, picture)
        before = time.perf_counter()
        task.warm_up()
        compile_s = time.perf_counter() - before
        own, start, step, n_points = time.process_time(), time.perf_counter(), 0, 0
        while (elapsed := time.perf_counter() - start) < seconds:
            n_points += task.step(step, elapsed / seconds).n_samples
            step += 1
        share = (time.process_time() - own) / elapsed / torch.get_num_threads()
        model = task.model()
        figures = compare(model, picture)
        size, pixels = exported_bytes(task), picture.width * picture.height
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            w, h = min(640, picture.width), min(480, picture.height)
            crop = ((picture.width - w) // 2, (picture.height - h) // 2, w, h)
            pair = np.concatenate([model.render(crop), picture.region(*crop)], 1)[..., :3]
            write_png(save / f"{picture.name}-{seconds:.0f}.png", (np.clip(pair, 0, 1) * 255 + 0.5).astype(np.uint8))
        grid, layout = task.config.encoding, task.config.grid().layout(2)
        return {
            "picture": path.name, "pixels": pixels, "seconds": round(elapsed, 1), "preset": task.config.preset,
            "note": note, "L": grid.n_levels, "F": grid.n_features_per_level, "log2_T": grid.log2_hashmap_size,
            "N_max": task.config.finest_resolution, "numbers": layout.n_parameters,
            "network": f"{task.config.n_hidden_layers} x {task.config.n_neurons} {task.steps.precision}",
            "batch": task.steps.source.n_points, "steps": step, "points_M": round(n_points / 1e6, 1),
            "passes": round(n_points / pixels, 1), "psnr": round(figures["psnr"], 3),
            **{k: round(figures[k], 3) for k in ("psnr_clipped", "psnr_of_peak", "peak") if k in figures},
            "bits_per_pixel": round(8 * size / pixels, 3), "points_per_s": round(n_points / elapsed),
            "compile_s": round(compile_s, 1), "own_cpu_share": round(share, 3),
        }  # fmt: skip


class TorchImage(nn.Module):
    """The same model as anybody would write it in torch: `embedding_bag` per level, linear layers, no biases."""

    def __init__(self, layout: GridLayout, n_neurons: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.layout = layout
        sizes = layout.entries.tolist()
        self.tables = nn.ParameterList(torch.rand(n, layout.n_features_per_level) * 2e-4 - 1e-4 for n in sizes)
        widths = [layout.n_output, *[n_neurons] * n_hidden, n_out]
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = []
        for level, table in enumerate(self.tables):
            q = x * float(self.layout.scales[level]) + 0.5
            cell = q.floor()
            f = (q - cell).float()
            cell = cell.long()
            stride = self.layout.strides[level].astype(np.int64).tolist()
            cx = torch.stack([cell[:, 0], cell[:, 0] + 1], 1) * stride[0]
            cy = torch.stack([cell[:, 1], cell[:, 1] + 1], 1) * stride[1]
            pairs = (
                (cx[:, None, :] ^ cy[:, :, None]) if self.layout.is_hashed[level] else cx[:, None, :] + cy[:, :, None]
            )
            index = (pairs & 0xFFFFFFFF) % len(table)
            wx, wy = torch.stack([1 - f[:, 0], f[:, 0]], 1), torch.stack([1 - f[:, 1], f[:, 1]], 1)
            weight = wx[:, None, :] * wy[:, :, None]
            features.append(
                nn.functional.embedding_bag(
                    index.reshape(-1, 4), table, per_sample_weights=weight.reshape(-1, 4), mode="sum"
                )
            )
        return self.network(torch.cat(features, 1))


def step_rows(path: Path, config: ImageConfig) -> list[dict]:
    """Ours, with its stages and the machine's limits, and torch's, on the same points."""
    with read_picture(path) as picture:
        task = ImageTask(config, picture)
        task.warm_up()
        for k in range(20):
            task.step(k, 0.0)
        steps = task.steps
        positions, target = steps.source.draw(steps.random)
        n, stages = len(target), {}
        timings = {
            "draw_ns": timed(lambda: steps.source.draw(steps.random), 15),
            "train_points_ns": timed(lambda: train_points(steps.values(), positions, target, steps.workspace), 15),
        }
        for _ in range(10):
            found = train_points(steps.values(), positions, target, steps.workspace)
            for name, value in found.stage_cycles.items():
                stages[name] = stages.get(name, 0.0) + value
        grads = {"table": [steps.workspace.grad_table], "matrices": found.grad_weights}
        timings["adam_ns"] = timed(lambda: steps.optimizer.step(grads, 1e-9), 15)
        step = timed(lambda: task.step(0, 0.5), 25)
        total = sum(stages.values())
        row = {
            "what": f"hashfield, {task.steps.precision} network", "n": n, "ns_per_point": step["p50"] / n * 1e9,
            "best_ns_per_point": step["best"] / n * 1e9, "points_per_s": n / step["p50"], "own": step["own"],
            **{k: t["p50"] / n * 1e9 for k, t in timings.items()},
            **{f"{k} ns": timings["train_points_ns"]["p50"] / n * 1e9 * v / total for k, v in stages.items()},
        }  # fmt: skip
        layout, width, hidden = task.config.grid().layout(2), task.config.n_neurons, task.config.n_hidden_layers
        table_bytes = layout.n_parameters * 2
        limits = gather_rates(table_bytes // layout.n_levels * 2)
        macs = layout.n_output * width + width * width * (hidden - 1) + width * picture.n_channels
        row |= {
            "gather limit ns": limits["gather8_s"] * 4 * layout.n_levels * 1e9,
            "scatter limit ns": limits["scatter16_s"] * 4 * layout.n_levels * 1e9,
            "network limit ns": 6 * macs / fma_limit(), "torch gemm gflops": gemm_rate(),
            "adam limit ns": layout.n_parameters * 26 / 26e9 / n * 1e9,
        }  # fmt: skip
        rival = TorchImage(layout, width, hidden, picture.n_channels)
        optimizer = torch.optim.Adam(rival.parameters(), 1e-2, betas=(0.9, 0.99), eps=1e-15)
        x, parts = from_fixed_point(positions), {}

        def rival_step() -> None:
            a = time.perf_counter()
            loss = nn.functional.mse_loss(rival(x), target)
            b = time.perf_counter()
            optimizer.zero_grad()
            loss.backward()
            c = time.perf_counter()
            optimizer.step()
            parts.update(forward=b - a, backward=c - b, adam=time.perf_counter() - c)

        other = timed(rival_step, 9, 1)
        rows = [row, {
            "what": "torch, embedding_bag and linear layers, float32", "n": n, "ns_per_point": other["p50"] / n * 1e9,
            "best_ns_per_point": other["best"] / n * 1e9, "points_per_s": n / other["p50"], "own": other["own"],
            **{f"{k} ns": v / n * 1e9 for k, v in parts.items()},
        }]  # fmt: skip
        for r in rows:
            r |= {
                "shape": f"L{layout.n_levels} F{layout.n_features_per_level} T2^{layout.log2_hashmap_size}, "
                f"{layout.n_parameters} numbers, {hidden} x {width}",
                "times_torch": other["p50"] / (r["ns_per_point"] * n / 1e9),  # medians
                "times_torch_best": other["best"] / (r["best_ns_per_point"] * n / 1e9),
            }
        return rows


def make_large(kind: str, folder: Path) -> Path:
    """A file of 60 megapixels or of a gigapixel: the demo picture, repeated with changing brightness, so that it is
    neither constant nor larger than it needs to be."""
    tile = make_demo_picture(0, 1024, 1024)
    if kind == "jpeg":
        from PIL import Image

        width, height = 9472, 6336
        image = Image.new("RGB", (width, height))
        for y in range(0, height, 1024):
            for x in range(0, width, 1024):
                shade = 0.5 + 0.5 * ((x + 3 * y) / (width + 3 * height))
                image.paste(Image.fromarray((tile * shade).astype(np.uint8)), (x, y))
        image.save(folder / "large.jpg", quality=90)
        return folder / "large.jpg"
    import tifffile

    side, piece = 2**15, 256

    def tiles():
        for y in range(0, side, piece):
            for x in range(0, side, piece):
                shade = 0.5 + 0.5 * (x + 3 * y) / (4 * side)
                part = tile[y % 1024 : y % 1024 + piece, x % 1024 : x % 1024 + piece]
                yield (part * shade).astype(np.uint8)

    tifffile.imwrite(
        folder / "large.tif", tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(piece, piece), photometric="rgb",
        compression="zlib", compressionargs={"level": 1}, bigtiff=True,
    )  # fmt: skip
    return folder / "large.tif"


def memory(kind: str, seconds: float, folder: Path) -> dict:
    """Peak of the anonymous and of the file-backed resident pages of `hashfield train image` on a large file."""
    path = folder / ("large.jpg" if kind == "jpeg" else "large.tif")
    if not path.exists():
        make_large(kind, folder)
    out = folder / f"run-{kind}"
    command = [
        sys.executable, "-m", "hashfield", "train", "image", str(path), "--out", str(out), "--overwrite",
        "--max-seconds", str(seconds),
    ]  # fmt: skip
    started = time.perf_counter()
    with open(folder / f"{kind}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    peaks = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0, "VmRSS": 0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))
        time.sleep(0.05)
    process.wait()
    text = (folder / f"{kind}.log").read_text()
    grid = next((line for line in text.splitlines() if line.startswith("run folder")), "")
    whole = next((line for line in text.splitlines() if line.startswith("whole picture")), "")
    return {
        "file": path.name, "file_MB": round(path.stat().st_size / 1e6, 1), "exit": process.returncode,
        "train_seconds": seconds, "wall_seconds": round(time.perf_counter() - started, 1),
        "anonymous_GB": round(peaks["RssAnon"] / 2**20, 3), "file_backed_GB": round(peaks["RssFile"] / 2**20, 3),
        "shared_GB": round(peaks["RssShmem"] / 2**20, 3), "resident_GB": round(peaks["VmRSS"] / 2**20, 3),
        "grid": grid.partition("; ")[2], "result": whole,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0])
    parser.add_argument("--preset", default="default", choices=list(PRESETS))
    parser.add_argument("--numbers-per-pixel", type=float, help="instead of the preset's")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--memory", choices=["jpeg", "tiff"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of the large files")
    parser.add_argument("--save", type=Path, help="folder for a crop beside its original")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    config = PRESETS[options.preset]
    if options.numbers_per_pixel:
        config = replace(config, numbers_per_pixel=options.numbers_per_pixel)
    if options.memory:
        rows, name = [memory(options.memory, options.seconds[0], options.folder)], "image_memory"
    elif options.file is None:
        parser.error("a FILE is needed, or --memory")
    elif options.step:
        rows, name = step_rows(options.file, config), "image_step"
    else:
        name = "image"
        rows = []
        for seconds in options.seconds:
            row = quality(options.file, seconds, config, options.save, options.note)
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            append(name, [row])
    if name != "image":
        for r in rows:
            print("\n".join(f"  {k:24s} {v:.4g}" if isinstance(v, float) else f"  {k:24s} {v}" for k, v in r.items()))
            print()
        append(name, rows)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
