"""Other lane counts than this CPU's own give the same values: one source serves every width."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hashfield.kernels.numba_cpu.target import LANES, available_paths
from tests.forked import script

SCRIPT = """
import os
import torch
from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.numba_cpu.simd import LANES
from hashfield.ops.grid_encode import grid_encode
from hashfield.ops.mlp import mlp
g = torch.Generator().manual_seed(0)
layout = GridLayout(n_levels=6, n_features_per_level=4, log2_hashmap_size=10, per_level_scale=1.7)
x, table = torch.rand(101, 3, generator=g), torch.randn(layout.n_entries, 4, generator=g)
weights = [torch.randn(32, 24, generator=g), torch.randn(5, 32, generator=g)]
found = []
for backend in ("numba", "reference"):
    leaves = [t.clone().requires_grad_() for t in (x, table, *weights)]
    out = grid_encode(leaves[0], leaves[1], layout, backend=backend)
    if "GRID_ONLY" not in os.environ:
        out = mlp(out, leaves[2:], backend=backend)
    out.square().sum().backward()
    found.append([out.detach(), *(t.grad for t in leaves if t.grad is not None)])
for a, b in zip(*found):
    assert float((a - b).norm() / b.norm()) < 1e-4, (LANES, float((a - b).norm() / b.norm()))
print("lanes", LANES)
"""


BEGIN = "import hashfield.kernels.numba_cpu.target"
"""Enough to see whether a path is refused: nothing else is imported before that."""


def run(cache: Path, script: str = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "HASHFIELD_CACHE": str(cache), **environment},
    )


OTHER = 8 if LANES == 16 else 16
"""A width that this CPU does not have by itself."""


@pytest.mark.parametrize(
    "lanes", [OTHER, pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_lanes(lanes: int, tmp_path: Path):
    # Compiling the networks as well takes longest, so the unit suite leaves them to the slow cases.
    quick = {"GRID_ONLY": "1"} if lanes == OTHER else {}
    done = run(tmp_path, HASHFIELD_LANES=str(lanes), **quick)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"lanes {lanes}" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_scalar_path(tmp_path: Path):
    done = run(tmp_path, HASHFIELD_CPU="scalar")
    assert done.returncode == 0 and "lanes 1" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("path", ["pentium", "amx"])
def test_a_path_that_cannot_run_is_refused(path: str, tmp_path: Path):
    if path in available_paths():
        pytest.skip("this CPU can run it")
    done = run(tmp_path, BEGIN, HASHFIELD_CPU=path)
    assert done.returncode != 0 and "ConfigError" in done.stderr and f"HASHFIELD_CPU={path}" in done.stderr


def test_emulation_must_be_spelled_right(tmp_path: Path):
    done = run(tmp_path, BEGIN, HASHFIELD_AMX="yes")
    assert done.returncode != 0 and "ConfigError: HASHFIELD_AMX=yes: expected 'emulated'" in done.stderr


def test_two_python_threads_at_once_and_a_forked_child(tmp_path: Path):
    code = """
import os, threading, torch, warnings
warnings.simplefilter("ignore")  # of a fork beside threads
from hashfield.ops.mlp import mlp
torch.set_num_threads(2)
x, w = torch.randn(5000, 32), [torch.randn(64, 32), torch.randn(16, 64)]
want = mlp(x, w)
found = []
workers = [threading.Thread(target=lambda: found.extend(mlp(x, w) for _ in range(20))) for _ in range(2)]
[t.start() for t in workers]; [t.join() for t in workers]
assert len(found) == 40 and all(torch.equal(f, want) for f in found)
child = os.fork()
if child == 0:  # numpy, since torch's own threads do not survive a fork
    os._exit(0 if (mlp(x, w).numpy() == want.numpy()).all() else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this platform")
    done = script(code, tmp_path)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors[-2000:]
