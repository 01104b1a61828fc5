"""Everything there is to measure on one GPU, by one command, on a machine without a network:

    python benchmarks/gpu.py --out FOLDER [--data FOLDER] [--quick] [--parts NAME ...] [--minutes 8]

Needs Python 3.11 or newer, torch with CUDA, triton, numba, numpy, pillow, jaxtyping and safetensors, no installation: the
package is read from this checkout. Each part runs in a process of its own with a time limit, so that one that fails,
hangs or breaks the device costs the others nothing; what it found is written as it goes.

    info         the machine, its memory's bandwidth
    sanitize     small training steps under compute-sanitizer, where that is installed
    ops, parts, steps  every kernel against the float64 reference, side by side
    kernels      time of each kernel by device events (median, after warm-up), and over its limit
    step         lego's training step at 2^18 samples: time, and by kernel
    train        lego: PSNR after stated seconds (black background, sRGB); frames at 800x800 and 1920x1080, by kernel
    precisions   2,000 steps in each precision without a number that is not finite
    fox          a capture: PSNR after stated seconds
    cross        a checkpoint trained here evaluates and goes on on the CPU
    points       pictures and signed distances: a step against float64, points a second, PSNR and (with libigl) IoU

PSNR: every pixel of every test view, clipped, not quantised, mean of per-view values. Seconds of training are all that
happens after the images are decoded and on the device, first-use compilation apart.
"""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

CHECKS = ("sanitize", "ops", "parts", "steps")
PARTS = (*CHECKS, "info", "kernels", "step", "points", "train", "precisions", "fox", "cross")
QUICK_PARTS = (*CHECKS, "info", "kernels", "step", "train")
QUICK_LIMITS = {"kernels": 60, "step": 75, "train": 75}
LIMITS = {
    "info": 40, "kernels": 120, "step": 90, "points": 90, "train": 240, "precisions": 100, "fox": 140, "cross": 180,
}  # fmt: skip
CHECKS_LIMIT = 100
"""Seconds for all checks, which run side by side."""
L2_BYTES_PER_S = 5.5e12
"""What an H100's second-level cache gives random 32-byte sectors, roughly; the limit of table lookups."""
WARM_ONLY = "HASHFIELD_BENCHMARK_WARM_ONLY"
"""Set for a process that only compiles what a timed part will launch."""
HALF_FLOPS = 989e12
"""Dense float16 products of an H100."""


# --- the parent: one process a part --------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl, results.csv, summary.txt")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with lego/ and fox/")
    parser.add_argument("--quick", action="store_true", help="first contact, about three minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=0.0, help="of everything; 0: 3.5 if quick, else 9.5")
    parser.add_argument("--seconds", type=float, nargs="+", help="training times of lego")
    parser.add_argument("--fox-seconds", type=float, nargs="+", default=[10.0, 60.0])
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="changes of the training config")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.child:
        return child(options)
    parts = options.parts or (QUICK_PARTS if options.quick else PARTS)
    minutes = options.minutes or (4.0 if options.quick else 9.5)
    end = time.monotonic() + 60 * minutes
    limits = {**LIMITS, **(QUICK_LIMITS if options.quick else {})}
    (options.out / "results.jsonl").unlink(missing_ok=True)
    arguments = without_parts(sys.argv[1:])
    side_by_side(options, arguments, parts)
    for part in parts:
        if part in CHECKS:
            continue
        left = min(limits[part], end - time.monotonic())
        if left < 10:
            print(f"=== {part}: left out, the time is up", flush=True)
            continue
        print(f"=== {part} (at most {left:.0f} s)", flush=True)
        before = time.monotonic()
        command = [sys.executable, __file__, *arguments, "--child", part]
        try:
            code = subprocess.run(command, timeout=left, env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode
            how = "done" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            how = "stopped, its time was up"
        print(f"=== {part}: {how} after {time.monotonic() - before:.0f} s", flush=True)
    summary(options.out)


def side_by_side(options: argparse.Namespace, arguments: list[str], parts: tuple[str, ...]) -> None:
    """Everything that takes no times: the checks, and compiling what the timed parts need (Triton keeps it)."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    jobs: dict[str, tuple[list[str], dict[str, str]]] = {}
    for part in parts:
        own = [sys.executable, __file__, *arguments, "--child", part]
        if part == "sanitize":
            tool = next((t for t in (shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer")
                         if t and Path(t).exists()), None)  # fmt: skip
            if tool:
                jobs[part] = ([tool, "--tool", "memcheck", "--print-limit", "5", *own],
                              {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})  # fmt: skip
        elif part in CHECKS:
            jobs[part] = (own, environment)
        elif part in ("kernels", "step"):
            jobs[f"compile {part}"] = (own, {**environment, WARM_ONLY: "1"})
    before = time.monotonic()
    running = {}
    for name, (command, env) in jobs.items():
        log = open(options.out / f"{name.replace(' ', '_')}.txt", "w", encoding="utf-8")  # noqa: SIM115
        running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    for name, process in running.items():
        try:
            code: object = process.wait(max(1.0, CHECKS_LIMIT - (time.monotonic() - before)))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "stopped, its time was up"
        text = (options.out / f"{name.replace(' ', '_')}.txt").read_text(errors="replace").splitlines()
        print(f"=== {name}: {code} within {time.monotonic() - before:.0f} s", flush=True)
        if name == "sanitize":
            text = [line for line in text if "Host Frame" not in line]
        if not name.startswith("compile") or code != 0:
            print("\n".join(text[:120]), flush=True)


def without_parts(arguments: list[str]) -> list[str]:
    """The arguments without the list of parts."""
    kept, skipping = [], False
    for argument in arguments:
        if argument == "--parts":
            skipping = True
        elif argument.startswith("--"):
            skipping = False
        if not skipping and argument not in PARTS:
            kept.append(argument)
    return kept


def summary(out: Path) -> None:
    """The short table at the end, and the CSV."""
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with open(out / "results.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fields)
        writer.writeheader()
        writer.writerows(rows)
    (out / "results.json").write_text(json.dumps(rows, indent=1))
    lines = []
    for row in rows:
        shown = {k: v for k, v in row.items() if k not in ("part", "name", "ok", "traceback")}
        figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        lines.append(f"{row['part']:12s} {'' if row.get('ok', True) else 'FAILED '}{row['name']:44s} {figures}")
    text = "\n".join(lines)
    (out / "summary.txt").write_text(text + "\n")
    print("\n=== summary\n" + text, flush=True)


# --- a child: one part ---------------------------------------------------------------------------------------------


class Results:
    """Rows of one part, written as they come."""

    def __init__(self, out: Path, part: str) -> None:
        self.path, self.part = out / "results.jsonl", part

    def add(self, name: str, **values: Any) -> None:
        """One row."""
        if os.environ.get(WARM_ONLY):
            return
        row = {"part": self.part, "name": name, **values}
        print("  " + name + ": " + ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in
              values.items()), flush=True)  # fmt: skip
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """A block whose failure is noted, with the device's state after it."""
        import torch

        try:
            yield
            torch.cuda.synchronize()
        except Exception as error:
            text = traceback.format_exc()
            print(text, flush=True)
            self.add(name, ok=False, error=f"{type(error).__name__}: {str(error)[:300]}")
            if "CUDA error" in str(error) or "illegal" in str(error):
                raise  # the device is lost to this process


def child(options: argparse.Namespace) -> None:
    """Run one part."""
    import torch

    results = Results(options.out, options.child)
    if not torch.cuda.is_available():
        results.add("device", ok=False, error=f"torch {torch.__version__} sees no CUDA device")
        sys.exit(1)
    if options.child in CHECKS:
        name_failures()
    with results.guarded(options.child):
        PART_FUNCTIONS[options.child](options, results)


def name_failures() -> None:
    """Wait after every launch of a kernel and name the one that broke the device."""
    import torch
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, *args, **kwargs)
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            constants = {k: v for k, v in kwargs.items() if isinstance(v, int | str) and k.isupper()}
            raise RuntimeError(f"CUDA error in kernel {self.fn.__name__} {constants}: {error}") from error
        return found

    JITFunction.run = watched  # type: ignore[method-assign]


def timed(function: Callable[[], object], repeats: int = 20, warm: int = 3) -> float:
    """Median milliseconds of a call, by device events."""
    import torch

    if os.environ.get(WARM_ONLY):
        function()
        return math.nan
    for _ in range(warm):
        function()
    torch.cuda.synchronize()
    pairs = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in pairs)[repeats // 2]


# --- info ----------------------------------------------------------------------------------------------------------


def machine(options: argparse.Namespace, results: Results) -> None:
    import torch
    import triton

    card = torch.cuda.get_device_properties(0)
    a = torch.empty(2**28, device="cuda")
    b = torch.empty_like(a)
    copy = 2 * a.numel() * 4 / timed(lambda: b.copy_(a)) * 1e3
    results.add(
        card.name, capability=f"{card.major}.{card.minor}", memory_GiB=card.total_memory / 2**30,
        multiprocessors=card.multi_processor_count, L2_MiB=card.L2_cache_size / 2**20, copy_GB_s=copy / 1e9,
        torch=torch.__version__, triton=triton.__version__, python=sys.version.split()[0], cores=os.cpu_count() or 0,
    )  # fmt: skip
    from hashfield.ops.backend import available_backends, ops

    for op in ops():
        reason = available_backends(op)["triton"]
        if reason:
            results.add(f"op {op}", triton=reason)


# --- correctness ---------------------------------------------------------------------------------------------------


def moved(value: Any, device: str, double: bool = False) -> Any:
    """Tensors of a structure of lists and dicts on a device."""
    import torch

    if isinstance(value, dict):
        return {k: moved(v, device, double) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device, double) for v in value)
    if isinstance(value, torch.Tensor):
        value = value.to(device)
        return value.double() if double and value.dtype == torch.float32 else value
    return value


def evaluate(case: Any, backend: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs and gradients of an op's case, on the CPU in float64."""
    import torch

    def leaf(value: Any, wanted: bool) -> Any:
        if isinstance(value, list):
            return [leaf(v, wanted) for v in value]
        is_float = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
        return value.detach().requires_grad_(wanted) if is_float else value

    inputs = {name: leaf(value, name in case.grads) for name, value in inputs.items()}
    outputs = case.call(backend=backend, **inputs)
    found = {k: v.detach().double().cpu() for k, v in outputs.items()}
    leaves = [x for name in case.grads for x in (inputs[name] if isinstance(inputs[name], list) else [inputs[name]])]
    if leaves:
        g = torch.Generator().manual_seed(1)
        total = sum((o * torch.randn(o.shape, generator=g).to(o)).sum() for o in outputs.values() if o.requires_grad)
        for k, grad in enumerate(torch.autograd.grad(total, leaves)):
            found[f"grad{k}"] = grad.double().cpu()
    return found


def error_of(actual: Any, expected: Any) -> float:
    """RMS of the difference over RMS; infinite where something is not finite on one side only."""
    import torch

    actual, expected = actual.double().cpu(), expected.double().cpu()
    if actual.shape != expected.shape:
        return math.inf
    finite = torch.isfinite(expected)
    if bool((torch.isfinite(actual) != finite).any()):
        return math.inf
    if not expected.numel():
        return 0.0
    a, b = actual[finite], expected[finite]
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-30))


CHOSEN_CASES = (
    "grid_encode-3d_hash_n1000", "grid_encode-3d_hash_f2", "grid_encode-2d_hash_n65", "grid_encode-3d_on_faces",
    "grid_encode-3d_smoothstep", "grid_encode-3d_bfloat16", "spherical_harmonics-degree4_n1000", "mlp-density_n1000",
    "mlp-color_n1000", "mlp-odd_widths", "mlp-deep",
)  # fmt: skip


def sanitize(options: argparse.Namespace, results: Results) -> None:
    """One small step in float32 and float16."""
    from tests.ops import test_fused, test_fused_exact

    layout, width, march, huber, bf16, _, seed = test_fused_exact.EXACT["plain"]
    parameters = test_fused.field(test_fused.LAYOUTS[layout], width, bf16=bf16, seed=seed)
    for precision in ("float32", "float16"):
        step_correct(results, "small", parameters, test_fused.batch(9, march.aabb_scale), march, huber, (precision,))


def steps(options: argparse.Namespace, results: Results) -> None:
    """Whole training steps."""
    from tests.ops import test_fused, test_fused_exact

    names = (
        ("plain", "cone", "faint") if options.quick else ("plain", "cone", "faint", "bf16", "f2", "cone_huber", "odd")
    )
    for precision in ("float16", "float32", "bfloat16"):
        for name in names:
            with results.guarded(f"train_rays {name} {precision}"):
                layout, width, march, huber, bf16, n, seed = test_fused_exact.EXACT[name]
                parameters = test_fused.field(test_fused.LAYOUTS[layout], width, bf16=bf16, seed=seed)
                case = test_fused.batch(n, march.aabb_scale)
                step_correct(results, name, parameters, case, march, huber, (precision,))


def ops_correct(options: argparse.Namespace, results: Results) -> None:
    """The small ops."""
    import torch
    from tests.ops import cases

    for case in sorted(cases.CASES, key=lambda case: case.id not in CHOSEN_CASES):
        if case.id == "grid_encode-4d_hash":
            continue
        if options.quick and case.op != "composite" and case.id not in CHOSEN_CASES:
            continue
        with results.guarded(case.id):
            inputs = case.make(torch.Generator().manual_seed(0))
            mine = evaluate(case, "triton", moved(inputs, "cuda"))
            right = evaluate(case, "reference", moved(inputs, "cpu", double=True))
            same = evaluate(case, "reference", inputs)
            errors = {k: (error_of(mine[k], right[k]), error_of(same[k], right[k])) for k in right}
            worst = max(mine_error / (3 * own_error + 3e-5) for mine_error, own_error in errors.values())
            results.add(case.id, ok=worst <= 1, error=max(e for e, _ in errors.values()),
                        float32_reference=max(e for _, e in errors.values()))  # fmt: skip


def parts_correct(options: argparse.Namespace, results: Results) -> None:
    """March, rays, rendering, sphere tracing, the grid's upkeep, the optimiser."""
    import torch
    from tests.ops import test_camera_rays, test_fused, test_march

    from hashfield import ops

    with results.guarded("adam"):
        adam_correct(results)
    for aabb_scale in (1, 4):
        with results.guarded(f"march {aabb_scale}"):
            g = torch.Generator().manual_seed(5)
            bits = test_march.bits_from_boxes(g, aabb_scale, 0.2)
            rays = test_march.random_rays(g, 2000, aabb_scale)
            cone = 0.0 if aabb_scale == 1 else 1 / 256
            found = {}
            for backend, device in (("triton", "cuda"), ("reference", "cpu")):
                own = type(rays)(*(x.to(device) for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
                found[backend] = ops.march(
                    own, bits.to(device), aabb_scale=aabb_scale, cone_angle=cone, step_scale=2.0, backend=backend
                )
            mine, right = found["triton"], found["reference"]
            differing = float((mine.ray_offsets.cpu().diff() != right.ray_offsets.diff()).float().mean())
            total = mine.n_samples / max(right.n_samples, 1) - 1
            ok = differing < 0.05 and abs(total) < 1e-3
            results.add(f"march aabb {aabb_scale}", ok=ok, rays_that_differ=differing, samples_off_by=total)
    with results.guarded("camera_rays"):
        from hashfield.geometry.cameras import camera_table

        table, (index, pixel) = camera_table(test_camera_rays.cameras()), test_camera_rays.pixels(1000)
        exact = ops.camera_rays(table, index, pixel, dtype=torch.float64, backend="reference")
        found_rays = ops.camera_rays(table.cuda(), index.cuda(), pixel.cuda(), backend="triton")
        worst = max(float((a.double().cpu() - b).abs().max()) for a, b in zip(found_rays, exact, strict=True))
        results.add("camera_rays, every lens", ok=worst < 1e-6, worst=worst)
    with results.guarded("rendering"):
        parameters = test_fused.field(test_fused.LAYOUTS["L8F4"])
        for aabb_scale in (1, 4):
            rays, bits, _, _, jitter = test_fused.batch(1000, aabb_scale)
            march = test_fused.MarchOptions(aabb_scale, 0.0 if aabb_scale == 1 else 1 / 256, 2.0, 1e-4)
            shown = {}
            for backend, device in (("triton", "cuda"), ("reference", "cpu")):
                own = type(rays)(*(x.to(device) for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
                shown[backend] = test_fused.render_rays(
                    field_on(parameters, device), own, bits.to(device), march, jitter=jitter.to(device), backend=backend
                )
            worst = max(float((a.cpu() - b).abs().max()) for a, b in zip(*shown.values(), strict=True))
            results.add(f"render_rays aabb {aabb_scale}", ok=worst < 5e-3, worst=worst)
    with results.guarded("sphere tracing"):
        from tests.ops import test_sphere_trace

        distance, rays = test_sphere_trace.bumpy_sphere(test_sphere_trace.F4), test_sphere_trace.rays_at(2000)
        traced, exact = (
            test_sphere_trace.traced(distance, rays, "triton"), test_sphere_trace.exactly(distance, rays)
        )  # fmt: skip
        differing = float((traced.is_hit != exact.is_hit).float().mean())
        off = (traced.t - exact.t).abs()[traced.is_hit & exact.is_hit]
        ok = differing < 0.01 and float(off.median()) < 1e-5
        results.add("sphere_trace", ok=ok, rays_that_differ=differing, median_off=float(off.median()))
    with results.guarded("occupancy"):
        occupancy_correct(results)


def field_on(parameters: Any, device: str, **changes: Any) -> Any:
    """FieldParameters on a device."""
    return replace(
        parameters, table=parameters.table.to(device),
        table_bf16=None if parameters.table_bf16 is None else parameters.table_bf16.to(device),
        density_weights=tuple(w.to(device) for w in parameters.density_weights),
        color_weights=tuple(w.to(device) for w in parameters.color_weights), **changes,
    )  # fmt: skip


def step_correct(
    results: Results, name: str, parameters: Any, case: Any, march: Any, huber: float, precisions: tuple[str, ...]
) -> None:
    """A whole training step in some precisions against the float64 reference."""
    import torch
    from tests.ops.test_fused_exact import in_double, step

    from hashfield.ops.train_rays import TrainWorkspace

    wide, wide_case = in_double(parameters, case)
    exact, exact_grads = step(wide, wide_case, march, TrainWorkspace(wide, 2**15, "reference"), huber)
    rays, *rest = case
    own = type(rays)(*(x.cuda() for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
    for precision in precisions:
        bound = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.4}[precision]
        table = parameters.table
        field = field_on(parameters, "cuda", precision=precision)
        if precision == "float16":
            field = replace(field, table_bf16=None, table_fp16=table.cuda().half())
        workspace = TrainWorkspace(field, 2**15, "triton")
        found, grads = step(field, (own, *(x.cuda() for x in rest)), march, workspace, huber)
        torch.cuda.synchronize()
        errors = [error_of(a, b) for a, b in zip(grads, exact_grads, strict=True)]
        off = abs(found.loss / exact.loss - 1)
        ok = max(errors) < bound and off < bound and found.n_rays == exact.n_rays
        results.add(f"train_rays {name} {precision}", ok=ok, table_gradient=errors[0], matrix_gradient=max(errors[1:]),
                    loss_off_by=off, kept=found.n_kept, kept_right=exact.n_kept)  # fmt: skip


def occupancy_correct(results: Results) -> None:
    """Refresh, bits, carving and silhouettes."""
    import torch
    from tests.ops.test_fused import LAYOUTS, field
    from tests.ops.test_occupancy_update import CAMERAS, N_CELLS

    from hashfield.geometry.cameras import camera_table
    from hashfield.ops import occupancy_update as op

    parameters = field(LAYOUTS["L5F2"], 32)
    cells = torch.randperm(3 * N_CELLS, generator=torch.Generator().manual_seed(1))[:5000]
    noise = torch.rand(5000, 3, generator=torch.Generator().manual_seed(2))
    values = {}
    for backend, device in (("triton", "cuda"), ("reference", "cpu")):
        values[backend] = torch.full((3 * N_CELLS,), 1e-3, device=device)
        op.refresh_cells(
            values[backend], cells.to(device), noise.to(device), field_on(parameters, device), aabb_scale=4,
            backend=backend,
        )  # fmt: skip
    error = error_of(values["triton"], values["reference"])
    results.add("occupancy refresh", ok=error < 1e-4, error=error)
    random = torch.rand(3 * N_CELLS, generator=torch.Generator().manual_seed(2)) ** 8
    a, b = (op.occupied_bits(random.to(d), 0.5, aabb_scale=4, backend=k) for k, d in
            (("triton", "cuda"), ("reference", "cpu")))  # fmt: skip
    results.add("occupancy bits", ok=bool(torch.equal(a.cpu(), b)), bytes_that_differ=int((a.cpu() != b).sum()))
    for name in CAMERAS:
        cameras = CAMERAS[name]
        widths, heights = (torch.tensor([getattr(c, side) for c in cameras]) for side in ("width", "height"))
        starts = torch.cumsum(widths * heights, 0) - widths * heights
        n = int((widths * heights).sum())
        masks = (torch.rand(n, generator=torch.Generator().manual_seed(3)) < 0.7).byte()
        for mask in (None, masks):
            a, b = (
                op.carve(camera_table(cameras).to(d), starts.to(d), widths.to(d), heights.to(d),
                         None if mask is None else mask.to(d), aabb_scale=1, backend=k)
                for k, d in (("triton", "cuda"), ("reference", "cuda"))
            )  # fmt: skip
            off = int((a != b).sum())
            results.add(f"carve {name} {'masks' if mask is not None else 'frusta'}", ok=off < 50, cells_that_differ=off)


def adam_correct(results: Results) -> None:
    """Both optimiser kernels."""
    import torch

    from hashfield.ops.adam import adam, adam_table

    g = torch.Generator().manual_seed(0)
    start = torch.randn(10007, 4, generator=g)
    found = {}
    for backend, device in (("triton", "cuda"), ("reference", "cpu")):
        h = torch.Generator().manual_seed(1)
        param, m, v = (
            start.to(device, copy=True),
            torch.zeros(10007, 4, device=device),
            torch.zeros(10007, 4, device=device),
        )
        short = param.to(torch.bfloat16)
        for step in range(1, 4):
            grad = torch.randn(10007, 4, generator=h) * (torch.rand(10007, 1, generator=h) < 0.5)
            adam_table(param, grad.to(device, copy=True), m, v, short, step=step, learning_rate=0.01, backend=backend)
            adam(param, grad.to(device), m, v, step=step, learning_rate=0.01, l2=1e-6, skip_zero_gradient=False,
                 backend=backend)  # fmt: skip
        found[backend] = param
    error = error_of(found["triton"], found["reference"])
    results.add("adam", ok=error < 1e-6, error=error)


# --- kernels -------------------------------------------------------------------------------------------------------


def kernels(options: argparse.Namespace, results: Results) -> None:
    import torch

    from hashfield.geometry.grid_layout import GridLayout
    from hashfield.kernels.triton_gpu import field as fields
    from hashfield.kernels.triton_gpu.adam import adam_device
    from hashfield.kernels.triton_gpu.common import count_of
    from hashfield.kernels.triton_gpu.grid_encode import grid_encode_forward, scatter_features
    from hashfield.kernels.triton_gpu.occupancy_update import bits_device

    device = torch.device("cuda")
    layouts = {
        "L8F4": GridLayout(n_levels=8, n_features_per_level=4, log2_hashmap_size=19, per_level_scale=2.0),
        "L16F2": GridLayout(n_levels=16, n_features_per_level=2, log2_hashmap_size=19,
                            per_level_scale=1.3819129),
    }  # fmt: skip
    sizes = (2**18,) if options.quick else (2**16, 2**18, 2**20)
    compute_types = (torch.float16,) if options.quick else (torch.float16, torch.bfloat16, torch.float32)
    for name, layout in layouts.items():
        table32 = (torch.rand(layout.n_entries, layout.n_features_per_level, device=device) * 2 - 1) * 1e-1
        n_weights = 64 * layout.n_output + 16 * 64 + 64 * 32 + 64 * 64 + 3 * 64
        for compute in compute_types:
            kind = str(compute).removeprefix("torch.")
            weights = ((torch.rand(n_weights, device=device) * 2 - 1) * 0.3).to(compute)
            field = fields.DeviceField(layout, table32.to(compute), weights)
            half = 2 if compute != torch.float32 else 4
            for n in sizes:
                positions = torch.rand(n, 3, device=device)
                directions = torch.nn.functional.normalize(torch.randn(n, 3, device=device), dim=1)
                live, log_density, rgb = (
                    count_of(n, device),
                    torch.empty(n, device=device),
                    torch.empty(n, 3, device=device),
                )
                features, d_features = (
                    torch.empty(n, width, dtype=compute, device=device)
                    for width in (layout.n_output, fields.scratch_width(layout))
                )
                g_density, g_rgb = torch.randn(n, device=device) * 1e-2, torch.randn(n, 3, device=device) * 1e-2
                grad_table, grad_weights = torch.zeros_like(table32), torch.zeros(n_weights, device=device)
                sectors = layout.n_levels * (5 if layout.n_features_per_level == 4 else 4.5) * (half / 2)
                lookups = n * sectors * 32 / L2_BYTES_PER_S * 1e3
                macs = n_weights
                products = n * 2 * macs / HALF_FLOPS * 1e3

                def row(what: str, call: Callable[[], object], limit: float, name: str = name, kind: str = kind,
                        n: int = n) -> None:  # fmt: skip
                    with results.guarded(f"{what} {name} {kind} {n}"):
                        ms = timed(call)
                        results.add(f"{what} {name} {kind} 2^{n.bit_length() - 1}", ms=ms, limit_ms=limit,
                                    over_limit=ms / limit, M_per_s=n / ms / 1e3)  # fmt: skip

                row("field_forward", lambda: fields.field_forward(
                    field, positions, directions, live, log_density, rgb, features=features
                ), max(lookups, products))  # fmt: skip
                row("field_density", lambda: fields.field_density(field, positions, live, log_density), lookups)
                row("field_backward", lambda: fields.field_backward(
                    field, positions, directions, live, g_density, g_rgb, grad_table, grad_weights, features=features,
                    grad_features=d_features,
                ), 2 * lookups + 2 * products)  # fmt: skip
                row("  scatter", lambda: scatter_features(
                    positions, live, d_features, grad_table, layout, "linear"
                ), 2 * lookups)  # fmt: skip
                if compute == torch.float16:
                    row("grid_encode f32 out", lambda: grid_encode_forward(
                        positions, field.table, layout, "linear", "float32"
                    ), lookups)  # fmt: skip
        table = table32
        grad = torch.zeros_like(table)
        moments = [torch.zeros_like(table) for _ in range(2)]
        short, hyper = table.half(), torch.tensor([1e-3, 1.0], device=device)

        def one_adam(fill: bool, table: Any = table, grad: Any = grad, moments: Any = moments, short: Any = short,
                     hyper: Any = hyper) -> None:  # fmt: skip
            adam_device(table, grad, *moments, short, hyper, beta1=0.9, beta2=0.99, epsilon=1e-15, l2=0.0,
                        skip_zero=True, clear=fill, guard=True)  # fmt: skip

        for what, bytes_each in (("adam, no gradient", 4), ("adam, all touched", 30)):
            with results.guarded(what):
                if bytes_each > 4:
                    grad.fill_(1e-3)
                limit = table.numel() * bytes_each / 3.0e12 * 1e3
                ms = timed(lambda: one_adam(False))
                results.add(f"{what} {name}", ms=ms, limit_ms=limit, over_limit=ms / limit)
    with results.guarded("bits"):
        values = torch.rand(128**3, device=device)
        bits, threshold = torch.empty(128**3 // 8, dtype=torch.uint8, device=device), torch.full((1,), 0.5).cuda()
        ms, limit = timed(lambda: bits_device(values, threshold, bits, 1)), 128**3 * 4 / 3.0e12 * 1e3
        results.add("occupancy bits 128^3", ms=ms, limit_ms=limit, over_limit=ms / limit)


# --- training ------------------------------------------------------------------------------------------------------


def scene_of(options: argparse.Namespace, name: str) -> Any:
    """A scene of the data folder, decoded."""
    from hashfield.data import load_scene

    before = time.perf_counter()
    scene = load_scene(options.data / name)
    print(f"  {name} decoded in {time.perf_counter() - before:.1f} s", flush=True)
    return scene


def config_of(options: argparse.Namespace, seconds: float | None = None, steps: int | None = None) -> Any:
    """The configuration, with the changes asked for."""
    from hashfield.tasks.nerf_config import PRESETS, preset_for

    name = preset_for(seconds, steps, on_gpu=True) if options.preset == "auto" else options.preset
    config = PRESETS[name]
    groups: dict[str, dict[str, Any]] = {}
    for change in options.set:
        key, _, text = change.partition("=")
        value = json.loads(text) if text[:1] in "[0123456789-" else text
        group, _, field = key.rpartition(".")
        groups.setdefault(group, {})[field] = tuple(value) if isinstance(value, list) else value
    for group, values in groups.items():
        inner = replace(getattr(config, group), **values) if group else None
        config = replace(config, **({group: inner} if group else values))
    return config


def task_of(config: Any, scene: Any, background: str = "black") -> Any:
    """A warm task on the GPU, and seconds of compilation."""
    import torch

    from hashfield.tasks.nerf import NerfTask

    before = time.perf_counter()
    task = NerfTask(config, scene, background=background, device=torch.device("cuda"))
    made = time.perf_counter()
    task.warm_up()
    torch.cuda.synchronize()
    print(f"  task made in {made - before:.1f} s, warm in {time.perf_counter() - made:.1f} s", flush=True)
    assert task.steps.is_captured, "the Triton kernels were not chosen"
    return task


def run_for(task: Any, seconds: float | None = None, n_steps: int | None = None) -> dict[str, Any]:
    """Train; what came of it."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    task.begin()
    torch.cuda.synchronize()
    begun = time.perf_counter() - start
    step, last, kept, next_look = 0, None, [], 1.0
    while True:
        elapsed = time.perf_counter() - start
        fraction = step / n_steps if n_steps else elapsed / (seconds or 1.0)
        if fraction >= 1:
            break
        last = task.step(step, fraction)
        step += 1
        if elapsed >= next_look or step in (1, 10, 100):
            next_look = elapsed + (seconds or 10.0) / 6
            kept.append((step, round(elapsed, 2), last.loss.clone(), last.n_rays.clone(), last.n_samples.clone()))
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    for at, when, loss, rays, samples in kept:
        print(
            f"    step {at} at {when} s: loss {float(loss):.5f}, {int(rays)} rays, {int(samples)} samples", flush=True
        )
    return {
        "seconds": elapsed, "begin_s": begun, "steps": step, "ms_per_step": 1e3 * (elapsed - begun) / max(step, 1),
        "loss": float(last.loss), "rays": int(last.n_rays), "samples": int(last.n_samples),
        "peak_GiB": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


def quality(model: Any, views: Any, background: tuple[float, float, float], most: int | None = None) -> float:
    """Mean PSNR over views, computed on the device."""
    import torch

    found = []
    device = model.bits.device
    for camera, image in list(zip(views.cameras, views.images, strict=True))[:most]:
        shown = torch.cat([part["color"] for part in model.render_parts(camera, ("color",), background)])
        photo = torch.from_numpy(image).to(device).float().div(255).reshape(-1, image.shape[2])
        if photo.shape[1] == 4:
            photo = photo[:, :3] * photo[:, 3:] + torch.tensor(background, device=device) * (1 - photo[:, 3:])
        error = (shown.clamp(0, 1).double() - photo.double()).square().mean()
        found.append(-10 * math.log10(float(error)))
    return sum(found) / len(found)


def by_kernel(function: Callable[[], object], results: Results, what: str, most: int = 25) -> None:
    """Device time of a call by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        function()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
    total = sum(sum(t) for t in times.values())
    results.add(f"{what}, all kernels", us=total, kernels=sum(len(t) for t in times.values()))
    for name, spent in sorted(times.items(), key=lambda item: -sum(item[1]))[:most]:
        results.add(f"{what}: {name[:70]}", us=sum(spent), calls=len(spent), share=sum(spent) / total)


def step(options: argparse.Namespace, results: Results) -> None:
    """Lego's training step at 2^18 samples, late in a short run."""
    import torch

    from hashfield.steps.rays_device import DeviceCells

    scene = scene_of(options, "lego")
    config = config_of(options, 15.0)
    config = replace(config, train=replace(config.train, batch=2**18))
    task = task_of(config, scene)
    if os.environ.get(WARM_ONLY):
        run_for(task, n_steps=4)
        task.model().render(scene.splits["test"].cameras[0])
        return
    planned = 1500 if options.quick else 3000
    found = run_for(task, n_steps=planned)
    results.add(f"lego, {planned} steps at 2^18", **found)
    for name, step_scale in (("end", task.step_scale(1.0)),):
        rate = 1e-3
        for _ in range(20):
            task.steps.step(0, rate, step_scale)
        torch.cuda.synchronize()
        before, count = time.perf_counter(), 200
        results_of = [task.steps.step(0, rate, step_scale) for _ in range(count)]
        marched = float(task.steps.buffers.stats[4])  # of the last step
        torch.cuda.synchronize()
        ms = 1e3 * (time.perf_counter() - before) / count
        rays, kept = (
            float(torch.stack(x).mean()) for x in zip(*((r.n_rays, r.n_samples) for r in results_of), strict=True)
        )
        results.add(f"training step, {name} of run", ms=ms, kept=kept, marched=marched, rays=rays,
                    M_samples_per_s=kept / ms / 1e3)  # fmt: skip
        graph = task.steps._graphs.get(1)
        if graph is not None:
            results.add(f"graph replay, {name} of run", ms=timed(graph.replay))
        with results.guarded("profile of a step"):
            by_kernel(lambda: task.steps.step(0, rate, step_scale), results, "step")
        with results.guarded("profile of a refresh"):
            refresh = lambda: task.steps.grid.refresh(DeviceCells(task.steps), 0.95, 2**18)  # noqa: E731
            results.add("refresh", ms=timed(refresh, 10))
            by_kernel(refresh, results, "refresh", 6)
    with results.guarded("PSNR"):
        results.add("PSNR after those steps", psnr=quality(task.model(), scene.splits["test"], (0.0, 0.0, 0.0)))


def train(options: argparse.Namespace, results: Results) -> None:
    """Lego by the clock, then frames."""
    scene = scene_of(options, "lego")
    seconds = options.seconds or ([15.0] if options.quick else [1.0, 5.0, 15.0, 60.0])
    task = None
    for budget in seconds:
        with results.guarded(f"lego {budget:g} s"):
            task = None  # free its memory
            task = task_of(config_of(options, budget), scene)
            found = run_for(task, seconds=budget)
            psnr = quality(task.model(), scene.splits["test"], (0.0, 0.0, 0.0))
            results.add(f"lego {budget:g} s, {task.config.preset}", psnr=psnr, **found)
    if task is not None:
        with results.guarded("frames"):
            frames(task.model(), scene.splits["test"].cameras[0], results)
        with results.guarded("checkpoint"):
            save(task, options.out / "lego.safetensors")


def frames(model: Any, camera: Any, results: Results) -> None:
    """Times of a frame."""
    import torch

    wide = camera.resized(1920, 1080)
    for name, view in (("800x800", camera), ("1920x1080", wide)):

        def one(view: Any = view) -> None:
            for _ in model.render_parts(view, ("color",), (0.0, 0.0, 0.0)):
                pass

        ms = timed(one, 20)
        torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(5):
            model.render(view, ("color",), (0.0, 0.0, 0.0))
        results.add(f"frame {name}", ms=ms, with_copy_to_host_ms=1e3 * (time.perf_counter() - before) / 5)
        with results.guarded("profile of a frame"):
            by_kernel(one, results, f"frame {name}", 12)


def save(task: Any, path: Path) -> None:
    """A checkpoint as the training loop writes it."""
    from hashfield.train.checkpoint import save_checkpoint

    tensors, state = task.state()
    figures = {"steps": 1, "train_seconds": 0.0, "n_rays": 0, "n_samples": 0}
    save_checkpoint(path, tensors, {"task": task.name, **task.describe(), "figures": figures, "state": state})


def precisions(options: argparse.Namespace, results: Results) -> None:
    """2,000 steps in each precision."""
    scene = scene_of(options, "lego")
    for precision in ("float16", "bfloat16", "float32"):
        with results.guarded(precision):
            task = task_of(replace(config_of(options, 15.0), precision=precision), scene)
            found = run_for(task, n_steps=2000)
            finite = all(bool(p.isfinite().all()) for p in task.field.parameters())
            psnr = quality(task.model(), scene.splits["test"], (0.0, 0.0, 0.0), 8)
            results.add(
                f"2000 steps {precision}", ok=finite and math.isfinite(found["loss"]), psnr_8_views=psnr, **found
            )
            task = None


def fox(options: argparse.Namespace, results: Results) -> None:
    """A capture without silhouettes."""
    scene = scene_of(options, "fox")
    for budget in options.fox_seconds:
        with results.guarded(f"fox {budget:g} s"):
            task = task_of(config_of(options, budget), scene)
            found = run_for(task, seconds=budget)
            psnr = quality(task.model(), scene.splits["test"], (0.0, 0.0, 0.0))
            results.add(f"fox {budget:g} s, {task.config.preset}", psnr=psnr, **found)
            task = None


def cross(options: argparse.Namespace, results: Results) -> None:
    """The same checkpoint on the GPU and on the CPU."""
    import torch

    from hashfield.tasks.nerf import NerfTask
    from hashfield.tasks.nerf_model import load_model
    from hashfield.train.checkpoint import load_checkpoint

    scene = scene_of(options, "lego")
    path = options.out / "lego.safetensors"
    if not path.exists():
        task = task_of(config_of(options, 5.0), scene)
        run_for(task, n_steps=1000)
        save(task, path)
    black, views = (0.0, 0.0, 0.0), scene.splits["test"]
    on_gpu = quality(load_model(path, torch.device("cuda")), views, black, 3)
    on_cpu = quality(load_model(path), views, black, 3)
    results.add("evaluated", ok=abs(on_gpu - on_cpu) < 0.05, gpu=on_gpu, cpu=on_cpu, difference=on_gpu - on_cpu)
    tensors, metadata = load_checkpoint(path)
    config = replace(config_of(options, 15.0), train=replace(config_of(options, 15.0).train, batch=2**15))
    on_host = NerfTask(config, scene, background="black")
    on_host.restore(tensors, metadata["state"])
    losses = [float(on_host.step(k + 1, 1.0).loss) for k in range(20)]
    before = quality(on_host.model(), views, black, 1)
    results.add("goes on on the CPU", ok=all(map(math.isfinite, losses)), loss=losses[-1], psnr_1_view=before)
    tensors, state = on_host.state()
    back = task_of(config_of(options, 15.0), scene)
    back.restore(tensors, state)
    loss = [float(back.step(k + 1, 1.0).loss) for k in range(20)][-1]
    results.add("and back on the GPU", ok=math.isfinite(loss), loss=loss, psnr_1_view=quality(
        back.model(), views, black, 1
    ))  # fmt: skip


# --- pictures and signed distances ---------------------------------------------------------------------------------


def points(options: argparse.Namespace, results: Results) -> None:
    """A picture and a mesh made by formula, trained for a few seconds each."""
    import torch

    device = torch.device("cuda")
    with results.guarded("a step against float64"):
        points_correct(results, device)
    with results.guarded("picture"):
        picture(options.out, results, device, 2.0 if options.quick else 5.0)
    with results.guarded("distance"):
        distance(results, device, 2.0 if options.quick else 10.0)


def points_correct(results: Results, device: Any, n: int = 3000) -> None:
    """Steps of both shapes in each precision, and pixels drawn, against the reference."""
    import torch

    from hashfield.geometry.fixed_point import to_fixed_point
    from hashfield.geometry.grid_layout import GridLayout
    from hashfield.ops.eval_points import EncodedNetwork
    from hashfield.ops.pixel_batch import pixel_batch
    from hashfield.ops.train_points import PointsWorkspace, train_points

    g = torch.Generator().manual_seed(0)
    for name, n_dims, n_outputs, loss in (("picture", 2, 3, "l2"), ("distance", 3, 1, "mape")):
        layout = GridLayout(n_dims, 6, 4, 12, 8, 1.7)
        sizes = (layout.n_output, 64, 64, n_outputs)
        weights = [(torch.rand(b, a, generator=g) * 2 - 1) * (6 / (a + b)) ** 0.5 for a, b in itertools.pairwise(sizes)]
        table = torch.rand(layout.n_entries, 4, generator=g) * 2 - 1
        positions, target = torch.rand(n, n_dims, generator=g), torch.rand(n, n_outputs, generator=g) * 2 - 1
        positions = to_fixed_point(positions) if name == "picture" else positions

        def step(backend: str, precision: str, where: Any, kind: Any) -> list[Any]:
            wide = positions if positions.dtype == torch.int32 else positions.to(kind)
            network = EncodedNetwork(layout, table.to(where, kind), tuple(w.to(where, kind) for w in weights),
                                     precision=precision)  # fmt: skip
            workspace = PointsWorkspace(network, n, backend)
            found = train_points(network, wide.to(where), target.to(where, kind), workspace, loss=loss)
            return [torch.tensor(found.loss), workspace.grad_table, *found.grad_weights]

        right = step("reference", "float32", "cpu", torch.float64)
        for precision, bound in (("float32", 1e-3), ("float16", 0.1), ("bfloat16", 0.4)):
            errors = [
                error_of(a, b) for a, b in zip(step("triton", precision, device, torch.float32), right, strict=True)
            ]
            results.add(f"step {name} {precision}", ok=max(errors) < bound, loss=errors[0], table=errors[1],
                        matrices=max(errors[2:]))  # fmt: skip
    pixels, bits = (
        torch.randint(0, 256, (123, 457, 4), generator=g).byte(),
        torch.randint(0, 2**32, (640,), generator=g),
    )
    values = torch.rand(2, 256, generator=g)
    a, b = (pixel_batch(pixels.to(d), bits.to(d), (32, 20), values.to(d), 4, has_alpha=True, backend=k)
            for k, d in (("triton", device), ("reference", "cpu")))  # fmt: skip
    same = all(bool(torch.equal(x.cpu(), y)) for x, y in zip(a, b, strict=True))
    results.add("pixels drawn", ok=same)


def picture(out: Path, results: Results, device: Any, seconds: float, width: int = 2048, config: Any = None) -> None:
    """A picture by the clock, drawn from on the device, and for a moment on the host."""
    from hashfield.data.demo_picture import save_demo_picture
    from hashfield.data.pictures import read_picture
    from hashfield.tasks.image import ImageTask
    from hashfield.tasks.image_config import PRESETS
    from hashfield.tasks.image_model import compare

    path = save_demo_picture(out / "picture.png", 0, width, 3 * width // 4)
    config = config or PRESETS["gpu"]
    with read_picture(path) as image:
        task = ImageTask(config, image, device=device)
        found = learned(task, seconds)
        results.add(f"picture {image.width}x{image.height}", psnr=compare(task.model(), image)["psnr"], **found)
        if task.device.type == "cuda":
            results.add("picture, a step", ms=timed(lambda: task.steps.step(1e-3)))
            by_kernel(lambda: task.steps.step(1e-3), results, "picture, a step", 12)
        on_host = ImageTask(config, image, device=device, is_picture_on_device=False)
        results.add("picture, batches of the host", **learned(on_host, seconds / 4))


def distance(results: Results, device: Any, seconds: float, config: Any = None) -> None:
    """A mesh by the clock; without libigl, steps on points of any distance."""
    import torch

    from hashfield.steps.points_device import DevicePointSteps
    from hashfield.steps.recipes import PointRecipe
    from hashfield.tasks.sdf import SdfTask
    from hashfield.tasks.sdf_config import PRESETS

    config = config or PRESETS["gpu"]
    with contextlib.suppress(ModuleNotFoundError):
        import igl  # noqa: F401

        from hashfield.data.demo_mesh import demo_mesh
        from hashfield.tasks.evaluate_surface import evaluate_distance

        task = SdfTask(config, demo_mesh(), device=device)
        found = learned(task, seconds)
        iou = evaluate_distance(task.model(), task.truth, n_points=2**18, n_surface=2**14)["iou"]
        results.add("mesh of the demo", iou=iou, **found)
        model, view = task.model(), task.cameras["orbit"][0].resized(800, 800)
        ms = timed(lambda: model.render(view, ("color",), oversample=1), 5)
        results.add("distance, a shaded picture of 800x800 on the host", ms=ms)
    field, n = config.make_field(torch.Generator().manual_seed(0)).to(device), config.train.batch
    training = DevicePointSteps(field, PointRecipe(n_points=n, loss="mape", has_squared_error=False), "float16")
    batch = torch.rand(n, 3, device=device), torch.rand(n, 1, device=device) - 0.5
    if device.type == "cuda":
        ms = timed(lambda: training.step(1e-3, batch))
        results.add("distance, a step", ms=ms, M_points_per_s=n / ms / 1e3)
        by_kernel(lambda: training.step(1e-3, batch), results, "distance, a step", 12)
    else:
        results.add("distance, a step", loss=float(training.step(1e-3, batch).loss))


def learned(task: Any, seconds: float) -> dict[str, Any]:
    """Train a warm task by the clock; what came of it."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    task.warm_up()
    assert task.steps.is_captured, "the Triton kernels were not chosen"
    wait()
    start, step, last = time.perf_counter(), 0, None
    while last is None or (elapsed := time.perf_counter() - start) < seconds:
        last = task.step(step, 0.0 if last is None else elapsed / seconds)
        step += 1
    wait()
    elapsed = time.perf_counter() - start
    return {
        "seconds": elapsed, "steps": step, "ms_per_step": 1e3 * elapsed / step, "loss": float(last.loss),
        "M_points_per_s": step * int(last.n_samples) / elapsed / 1e6,
    }  # fmt: skip


PART_FUNCTIONS = {
    "info": machine, "sanitize": sanitize, "ops": ops_correct, "parts": parts_correct, "steps": steps, "kernels": kernels, "step": step, "train": train,
    "precisions": precisions, "fox": fox, "cross": cross, "points": points,
}  # fmt: skip


if __name__ == "__main__":
    main()
