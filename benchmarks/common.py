"""What every benchmark shares: the machine's own limits, timing that notices other load, result files."""

import csv
import datetime
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    """Name of the CPU, with the path the kernels take."""
    from hashfield.kernels.numba_cpu.target import PATH

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        field = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in lines if ":" in line)}
        name = f"{field['model name']} (family {field['cpu family']} model {field['model']})"
    except (OSError, KeyError):
        pass
    return f"{name}, {torch.get_num_threads()} threads, {PATH}"


def commit() -> str:
    """Short hash of the checked-out commit, with + if files differ from it."""
    try:
        here = Path(__file__).parent
        run = lambda *a: subprocess.run(["git", *a], cwd=here, capture_output=True, text=True).stdout.strip()  # noqa: E731
        return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "--", "../src") else "")
    except OSError:
        return "unknown"


def machine() -> dict[str, str]:
    """Columns that every result line carries."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": cpu_model(),
        "torch": torch.__version__,
    }


def append(name: str, rows: list[dict[str, Any]]) -> None:
    """Add rows to results/<name>.csv, the machine's columns last."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    rows = [{**row, **machine()} for row in rows]
    old: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as handle:
            old = list(csv.DictReader(handle))
    fields = list(dict.fromkeys(k for row in [*old, *rows] for k in row))
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fields)
        writer.writeheader()
        writer.writerows([*old, *rows])


def timed(function: Callable[[], object], repeats: int = 15, warm: int = 2) -> dict[str, float]:
    """Median, best and worst seconds of a call, and the share of the cores' time that was ours in the median."""
    for _ in range(warm):
        function()
    found = []
    for _ in range(repeats):
        own, wall = time.process_time(), time.perf_counter()
        function()
        wall = time.perf_counter() - wall
        found.append((wall, (time.process_time() - own) / wall / torch.get_num_threads()))
    found.sort()
    return {
        "p50": found[len(found) // 2][0],
        "best": found[0][0],
        "worst": found[-1][0],
        "own": found[len(found) // 2][1],
    }


def other_load(seconds: float = 1.0) -> float:
    """Cores kept busy by others right now; a benchmark with much more than 0 means little."""
    try:
        before = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        time.sleep(seconds)
        after = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return float("nan")
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return (sum(spent) - spent[3] - spent[4]) / os.sysconf("SC_CLK_TCK") / seconds


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gemm_rate() -> float:
    """GFLOP/s of torch's float32 product [4096, 64] x [64, 64]: the limit for the networks."""
    a, b, out = torch.randn(4096, 64), torch.randn(64, 64), torch.empty(4096, 64)
    return 2 * 4096 * 64 * 64 / timed(lambda: torch.mm(a, b, out=out), 50)["best"] / 1e9


def fma_limit() -> float:
    """GFLOP/s of independent multiply-adds that never leave the registers, all threads."""
    from hashfield.kernels.numba_cpu.common import kernel, launch
    from hashfield.kernels.numba_cpu.simd import LANES, fma, load, splat, store

    @kernel
    def chains(a, out, n, thread, threads):
        x, y = load(a, 0), splat(1e-3)
        c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = c8 = c9 = x
        for _ in range(n):
            c0, c1, c2, c3, c4 = fma(c0, x, y), fma(c1, x, y), fma(c2, x, y), fma(c3, x, y), fma(c4, x, y)
            c5, c6, c7, c8, c9 = fma(c5, x, y), fma(c6, x, y), fma(c7, x, y), fma(c8, x, y), fma(c9, x, y)
            y = y + c0
        store(out, thread * LANES, c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9)

    n, threads = 2_000_000, torch.get_num_threads()
    a, out = np.full(LANES, 0.5, np.float32), np.empty(threads * LANES, np.float32)
    best = timed(lambda: launch(chains, a, out, n), 7)["best"]
    return threads * n * 10 * LANES * 2 / best / 1e9


def gather_rates(n_bytes: int) -> dict[str, float]:
    """Seconds per random 8-byte read, and per random 16-byte read-modify-write, of a table of this size, with all
    threads; indices are streamed. Writers own disjoint halves, as levels do."""
    from hashfield.kernels.numba_cpu.common import kernel, launch, share
    from hashfield.kernels.numba_cpu.simd import FEATURES

    load4, _, splat4, store4 = FEATURES[4]

    @kernel
    def gather(table, index, out, thread, threads):
        s0 = s1 = s2 = s3 = np.uint64(0)
        for i in range(share(index.size, thread, threads) // 4 * 4, share(index.size, thread + 1, threads) // 4 * 4, 4):
            s0 += table[index[i]]
            s1 += table[index[i + 1]]
            s2 += table[index[i + 2]]
            s3 += table[index[i + 3]]
        out[thread] = s0 + s1 + s2 + s3

    @kernel
    def scatter(table, index, thread, threads):
        half = table.size // 4 // threads
        one = splat4(np.float32(1.0))
        for i in range(share(index.size, thread, threads), share(index.size, thread + 1, threads)):
            at = (thread * half + index[i] % half) * 4
            store4(table, at, load4(table, at) + one)

    rng = np.random.default_rng(0)
    words = np.zeros(n_bytes // 8, np.uint64)
    index = rng.integers(0, words.size, 2**21).astype(np.uint32)
    out = np.zeros(64, np.uint64)
    floats = np.zeros(n_bytes // 4, np.float32)
    power = np.uint32(2 ** int(np.log2(max(floats.size // 4 // torch.get_num_threads(), 1))) - 1)
    return {
        "gather8_s": timed(lambda: launch(gather, words, index, out), 9)["best"] / index.size,
        "scatter16_s": timed(lambda: launch(scatter, floats, index & power), 9)["best"] / index.size,
    }
