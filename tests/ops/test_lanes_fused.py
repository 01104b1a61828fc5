"""The fused training steps under other instructions and lane counts than this CPU's own. Compiles for minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os
from dataclasses import replace
import torch
from hashfield.kernels.numba_cpu.target import LANES, PATH
from hashfield.geometry.rays import RayBatch
from hashfield.ops.occupancy_update import refresh_cells
from hashfield.ops.render_rays import MarchOptions, render_rays
from hashfield.ops.train_rays import TrainWorkspace, train_rays
from hashfield.ops.eval_points import eval_points
from tests import tolerances
from tests.ops import fused
from tests.ops.fused import LAYOUTS, batch, field
for name, width, scale in (("L8F4", 64, 1), ("L5F2", 32, 4)):
    parameters = field(LAYOUTS[name], width, bf16=scale == 4)
    parameters = replace(parameters, precision=os.environ.get("PRECISION", "float32"))
    cells, noise = torch.arange(5000), torch.rand(5000, 3)
    rays, bits, target, background, jitter = batch(33, scale)
    options, found = MarchOptions(scale, 1 / 256 if scale > 1 else 0.0, 4.0, 1e-2), []
    for backend in ("numba", "reference"):
        workspace = TrainWorkspace(parameters, 2**14, backend)
        r = train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, workspace)
        seen = render_rays(parameters, rays, bits, options, jitter=jitter, backend=backend)
        values = torch.zeros(scale.bit_length() * 128**3)
        refresh_cells(values, cells, noise, parameters, aabb_scale=scale, backend=backend)
        seen = (*seen, values[:5000] / values.max())
        found.append((r, [workspace.grad_table, *r.grad_density_weights, *r.grad_color_weights], seen))
    (a, a_grads, a_seen), (b, b_grads, b_seen) = found
    assert a.n_rays == b.n_rays and a.n_kept == b.n_kept, (a.n_kept, b.n_kept)
    assert abs(a.loss / b.loss - 1) < tolerances.FAST_OUTPUT, (a.loss, b.loss)
    errors = [float((x - y).norm() / y.norm()) for x, y in zip(a_grads, b_grads)]
    assert max(errors) < tolerances.FLIPPED_UNIT, errors
    assert all(torch.allclose(x, y, atol=tolerances.ANY_PRECISION) for x, y in zip(a_seen, b_seen))
for name, hidden, fixed in (("2d_f4", (64, 64), True), ("L5F2", (16, 48, 32), False)):
    net = replace(fused.network(name, hidden), precision=os.environ.get("PRECISION", "float32"))
    positions, target = fused.points(net, 205, fixed)
    (a, mine), (b, theirs) = (fused.points_step(net, positions, target, backend) for backend in ("numba", "reference"))
    assert abs(a.loss / b.loss - 1) < tolerances.BFLOAT16_LOSS_FLOOR, (a.loss, b.loss)
    errors = [float((x - y).norm() / y.norm()) for x, y in zip(mine, theirs)]
    assert max(errors) < tolerances.FLIPPED_UNIT, errors
    seen = [eval_points(net, positions, backend=backend) for backend in ("numba", "reference")]
    assert torch.allclose(*seen, atol=tolerances.ANY_PRECISION)
print(PATH, LANES)
"""

# AMX tiles multiply bfloat16 only, here in their emulated twin.
EMULATED = {"HASHFIELD_CPU": "amx", "HASHFIELD_AMX": "emulated", "PRECISION": "bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"HASHFIELD_CPU": "avx2"}, "avx2 8", id="avx2"),
        pytest.param({"HASHFIELD_LANES": "4"}, " 4", id="lanes4"),
        pytest.param({"HASHFIELD_LANES": "1"}, " 1", id="lanes1"),
        pytest.param({"HASHFIELD_CPU": "scalar"}, "scalar 1", id="scalar"),
        pytest.param(EMULATED, "amx ", id="amx_emulated"),
        pytest.param({**EMULATED, "HASHFIELD_LANES": "8"}, "amx 8", id="amx_emulated_lanes8"),
    ],
)
def test_training_step_under_another_path(environment: dict[str, str], expected: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "HASHFIELD_CACHE": str(tmp_path),
            **environment,
        },
    )
    if "this CPU offers only" in done.stderr:
        pytest.skip(done.stderr.strip().rsplit("\n", 1)[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert expected in done.stdout
