"""Nanoseconds per sample of a whole training step, split by stage, against the machine's limits; and a frame.

    python benchmarks/step.py [--scene PATH] [--threads 1 2]

(a) at a preset's own batch and table on a scene trained for a while, (b) at L8 F4, T 2^19 and 2^18 samples, where
every marched sample is kept (no empty space is asked, nothing is cut): what a sample costs through all stages.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import append, cpu_model, fma_limit, gather_rates, gemm_rate, other_load

from hashfield.data import load_scene
from hashfield.geometry.rays import RayBatch, Rays
from hashfield.nn.config import GridConfig, RadianceFieldConfig
from hashfield.nn.fields import RadianceField, field_parameters
from hashfield.ops.render_rays import MarchOptions
from hashfield.ops.train_rays import TrainWorkspace, train_rays
from hashfield.steps.optimizers import HostOptimizer, network_groups
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS


def ticks_per_second() -> float:
    """Rate of the processor's time stamp counter, from a short busy wait."""
    from hashfield.kernels.numba_cpu.common import kernel
    from hashfield.kernels.numba_cpu.simd import cycles

    @kernel
    def stamp(out):
        out[0] = cycles()

    a, b = np.zeros(1, np.int64), np.zeros(1, np.int64)
    stamp(a)
    stamp(a)
    start = time.perf_counter()
    time.sleep(0.3)
    stamp(b)
    return float(b[0] - a[0]) / (time.perf_counter() - start)


def full_step(threads: int) -> dict:
    """(b): 2^18 samples, L8 F4, T 2^19; rays of 42 samples through a shell of occupied cells, nothing cut."""
    torch.set_num_threads(threads)
    config = RadianceFieldConfig(encoding=GridConfig(log2_hashmap_size=19), density_bias=-2.0)
    field = RadianceField(config, precision="bfloat16", generator=torch.Generator().manual_seed(0))
    matrices = [*field.density_network.weights, *field.color_network.weights]
    optimizer = HostOptimizer(network_groups(field.encoding.table, matrices))
    rng = np.random.default_rng(0)
    n_rays = 2**18 // 42
    direction = rng.standard_normal((n_rays, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    origin = 0.5 - direction * rng.uniform(0.1, 0.35, (n_rays, 1))
    rays = Rays(
        torch.from_numpy(origin.astype(np.float32)), torch.from_numpy(direction.astype(np.float32)),
        torch.zeros(n_rays), torch.full((n_rays,), 42.2 * 3**0.5 / 1024),
    )  # fmt: skip
    bits = torch.full((128**3 // 8,), 255, dtype=torch.uint8)
    target, background = torch.rand(n_rays, 4), torch.rand(n_rays, 3)
    parameters = field_parameters(field, optimizer.table_bf16)
    workspace = TrainWorkspace(parameters, 2**19)
    workspace.samples_per_ray = 42.0
    options = MarchOptions(1, min_transmittance=1e-6)
    times, stages, marched, kept = [], {}, 0, 0
    for repeat in range(14):
        batch = RayBatch(rays, target, background, torch.rand(n_rays))
        before = time.perf_counter()
        result = train_rays(parameters, batch, bits, options, workspace)
        middle = time.perf_counter()
        grads = [*result.grad_density_weights, *result.grad_color_weights]
        optimizer.step({"table": [workspace.grad_table], "matrices": grads}, 1e-9)
        after = time.perf_counter()
        if repeat >= 3:
            times.append((after - before, middle - before, after - middle))
            marched, kept = marched + result.n_marched, kept + result.n_kept
            for k, v in result.stage_cycles.items():
                stages[k] = stages.get(k, 0.0) + v
    order = sorted(times)[len(times) // 2]
    per_step = marched / len(times)
    return {
        "case": f"L8 F4 T2^19, {marched // len(times)} samples", "threads": threads,
        "ns_per_marched": order[0] / per_step * 1e9, "best_ns_per_marched": min(times)[0] / per_step * 1e9,
        "ns_per_kept": order[0] / (kept / len(times)) * 1e9, "marched_per_s": per_step / order[0],
        "kept_per_s": kept / len(times) / order[0], "rays_per_s": n_rays / order[0],
        "adam_ns": order[2] / per_step * 1e9, "train_ns": order[1] / per_step * 1e9,
        **split(stages, marched, threads),
    }  # fmt: skip


def split(stages: dict[str, float], samples: int, threads: int) -> dict[str, float]:
    """Stage cycles as wall nanoseconds per marched sample with all threads at work."""
    rate = ticks_per_second()
    return {f"{k}_ns": v / rate / threads / samples * 1e9 for k, v in stages.items()}


def preset_step(path: Path, preset: str, threads: int, seconds: float) -> list[dict]:
    """(a): the preset's own batch after some seconds of training; and one frame of the model."""
    torch.set_num_threads(threads)
    scene = load_scene(path)
    config = PRESETS[preset]
    task = NerfTask(config, scene)
    task.warm_up()
    start = time.perf_counter()
    task.begin()
    step = 0
    while time.perf_counter() - start < seconds:
        task.step(step, (time.perf_counter() - start) / seconds)
        step += 1
    before, rays, kept = time.perf_counter(), 0, 0
    for _ in range(60):
        result = task.step(step, 0.999)
        step, rays, kept = step + 1, rays + result.n_rays, kept + result.n_samples
    spent = time.perf_counter() - before
    row = {
        "case": f"{path.name}, preset {preset} after {seconds:.0f} s", "threads": threads,
        "ns_per_kept": spent / kept * 1e9, "kept_per_s": kept / spent, "rays_per_s": rays / spent,
    }  # fmt: skip
    model, camera = task.model(), scene.splits["test"].cameras[0]
    times = []
    for _ in range(7):
        before = time.perf_counter()
        model.render(camera, ("color",), (1.0, 1.0, 1.0))
        times.append(time.perf_counter() - before)
    frame = {"case": f"frame {camera.width}x{camera.height} of that model", "threads": threads,
             "seconds": sorted(times)[3], "best_seconds": min(times)}  # fmt: skip
    return [row, frame]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--preset", default="fast", choices=list(PRESETS))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        limits = {"gemm_gflops": gemm_rate(), "fma_gflops": fma_limit(), **gather_rates(4 << 20)}
        print(f"{threads} threads: " + ", ".join(f"{k} {v:.3g}" for k, v in limits.items()))
        rows.append({**full_step(threads), **limits})
    if options.scene:
        rows.extend(preset_step(options.scene, options.preset, max(options.threads), options.seconds))
    for r in rows:
        print("\n".join(f"  {k:24s} {v:.4g}" if isinstance(v, float) else f"  {k:24s} {v}" for k, v in r.items()))
        print()
    append("step", rows)


if __name__ == "__main__":
    main()
