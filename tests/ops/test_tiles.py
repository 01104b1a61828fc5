"""Products on AMX tiles: their arithmetic, on the processor's tiles or else on the emulated twin's."""

import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from numba import njit

from hashfield.kernels.numba_cpu import amx
from hashfield.kernels.numba_cpu.simd import ADD, GATE, RELU, STORE
from tests import tolerances
from tests.ops.compare import relative_error

ROOT = Path(__file__).resolve().parents[2]
POISON = 0x7FC1  # a NaN in bfloat16, and twice over in float32


def kernel(mode: int) -> Any:
    """A function that multiplies between configuring the tiles and releasing them."""
    product = amx.tile_product(mode)

    @njit(nogil=True)
    def multiply(
        turned, a, at_a, a_row, a_step, b, at_b, b_step, c, at_c, c_row, n_rows, n_columns, depth, gate, at_gate
    ):
        amx.configure(16, 16)
        if turned:
            amx.turn(a, turned, depth)
        product(a, at_a, a_row, a_step, b, at_b, b_step, c, at_c, c_row, n_rows, n_columns, depth, gate, at_gate)
        amx.release()

    return multiply


KERNELS = {mode: kernel(mode) for mode in (STORE, RELU, ADD, GATE)}


def halves(x: torch.Tensor) -> np.ndarray:
    """bfloat16 bit patterns."""
    return x.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def floats(x: np.ndarray) -> torch.Tensor:
    """The numbers that these bit patterns are."""
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).float()


def embedded(matrix: np.ndarray, row: int, before: int, after: int) -> np.ndarray:
    """The matrix with longer rows, in the midst of poison."""
    poison = POISON if matrix.dtype == np.uint16 else np.uint32(POISON << 16 | POISON).view(np.float32)
    flat = np.full(before + matrix.shape[0] * row + after, poison, matrix.dtype)
    flat[before : before + matrix.shape[0] * row].reshape(-1, row)[:, : matrix.shape[1]] = matrix
    return flat


def paired(matrix: np.ndarray) -> np.ndarray:
    """[2k, n] as words [k, n] of two rows' values."""
    return np.ascontiguousarray(matrix.reshape(-1, 2, matrix.shape[1]).transpose(0, 2, 1)).reshape(len(matrix) // 2, -1)


def summed_as_on_tiles(a: torch.Tensor, b: torch.Tensor, pairs: int, start: torch.Tensor) -> torch.Tensor:
    """float32 sums in the processor's order: per tile the low halves, the high ones, both together, then added."""
    total = start.clone()
    for first in range(0, a.shape[1], 2 * pairs):
        low, high = torch.zeros_like(total), torch.zeros_like(total)
        for k in range(first, first + 2 * pairs, 2):
            low = low + a[:, k, None] * b[k]
            high = high + a[:, k + 1, None] * b[k + 1]
        total = total + (low + high)
    return total


SHAPES = [(96, 64, 16, 16), (1, 16, 1, 1), (33, 48, 5, 5), (95, 32, 24, 12), (47, 16, 19, 1), (31, 80, 32, 16)]


@pytest.mark.parametrize(("rows", "columns", "depth", "tile"), SHAPES)
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        pytest.param(RELU, np.uint16, id="relu"),
        pytest.param(ADD, np.float32, id="add"),
        # Every other pair compiles for as long again.
        *(
            pytest.param(mode, dtype, id=f"{name}-{dtype.__name__}", marks=pytest.mark.slow)
            for mode, name in ((STORE, "store"), (RELU, "relu"), (GATE, "gate"))
            for dtype in (np.float32, np.uint16)
            if (mode, dtype) != (RELU, np.uint16)
        ),
    ],
)
def test_product(mode: int, dtype: type, rows: int, columns: int, depth: int, tile: int) -> None:
    g = torch.Generator().manual_seed(rows)
    a, b = halves(torch.randn(rows, 2 * depth, generator=g)), halves(torch.randn(2 * depth, columns, generator=g))
    before, gate = torch.randn(rows, columns, generator=g), torch.randn(rows, columns, generator=g)
    gate[0, 0], gate[-1, -1] = 0.0, -0.0
    a_row, b_row, c_row = 2 * depth + 6, columns + 3, columns + 5
    flat_a, flat_b = embedded(a, a_row, 7, 0), embedded(paired(b), 2 * b_row, 2, 0)
    exact = summed_as_on_tiles(floats(a), floats(b), tile, before if mode == ADD else torch.zeros(rows, columns))
    double = floats(a).double() @ floats(b).double() + (before if mode == ADD else 0.0)
    assert relative_error(exact, double) < tolerances.FAST_OUTPUT
    wanted = {STORE: exact, ADD: exact, RELU: exact.clamp(min=0), GATE: torch.where(gate > 0, exact, 0.0)}[mode]
    stored = halves if dtype is np.uint16 else torch.Tensor.numpy
    c, gates = embedded(stored(before), c_row, 3, 9), embedded(stored(gate), c_row, 4, 0)
    right = embedded(stored(wanted), c_row, 3, 9)
    KERNELS[mode](0, flat_a, 7, a_row, 2, flat_b, 2, 2 * b_row, c, 3, c_row, rows, columns, depth, gates, 4)
    bits = np.uint16 if dtype is np.uint16 else np.uint32
    # Bit for bit, and what lies around C is untouched; only a zero may have either sign.
    assert not ((c.view(bits) != right.view(bits)) & ~((c == 0) & (right == 0))).any()


@pytest.mark.parametrize("rows", [3, 16, 64])
@pytest.mark.parametrize("samples", [96, 32])
def test_product_of_columns(rows: int, samples: int) -> None:
    """As for weight gradients: A is read down the columns of an array of pairs."""
    g = torch.Generator().manual_seed(rows)
    width, columns = max(16, rows), 32
    grad, x = halves(torch.randn(samples, width, generator=g)), halves(torch.randn(samples, columns, generator=g))
    own = torch.randn(rows, columns, generator=g)
    c = own.numpy().copy().reshape(-1)
    KERNELS[ADD](
        width, paired(grad).reshape(-1), 0, 2, 2 * width, paired(x).reshape(-1), 0, 2 * columns, c, 0, columns,
        rows, columns, samples // 2, c, 0,
    )  # fmt: skip
    exact = summed_as_on_tiles(floats(grad).T[:rows], floats(x), 16, own)
    assert np.array_equal(c.reshape(rows, columns), exact.numpy())


def test_threads_have_tiles_of_their_own() -> None:
    g = torch.Generator().manual_seed(0)
    cases = [(halves(torch.randn(96, 64, generator=g)), halves(torch.randn(64, 64, generator=g))) for _ in range(4)]

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        c = np.zeros(96 * 64, np.float32)
        KERNELS[ADD](0, a.reshape(-1), 0, 64, 2, paired(b).reshape(-1), 0, 128, c, 0, 64, 96, 64, 32, c, 0)
        return c

    wanted, found = [run(*case) for case in cases], [[] for _ in cases]
    workers = [
        threading.Thread(target=lambda case=case, out=out: out.extend(run(*case) for _ in range(5)))
        for case, out in zip(cases, found, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for right, results in zip(wanted, found, strict=True):
        assert len(results) == 5 and all(np.array_equal(r, right) for r in results)


@pytest.mark.skipif(amx.configure is amx._real_configure, reason="the processor raises a signal instead")
def test_the_twin_is_strict() -> None:
    """Tiles without a configuration hold nothing, and shapes that do not match give NaN."""

    @njit
    def misuse(a, c, rows, pairs):
        if rows:
            amx.configure(rows, pairs)
        amx.tile_zero(0)
        amx.tile_load(6, a, 0, 32)
        amx.tile_load(7, a, 0, 32)
        amx.tile_dot(0, 6, 7)  # tile 6 is for B: its rows are pairs
        amx.tile_store(0, c, 0, 16)
        amx.release()

    a, c = np.zeros(512, np.uint16), np.ones(256, np.float32)
    misuse(a, c, 0, 0)
    assert (c == 1).all()
    misuse(a, c, 16, 7)
    assert np.isnan(c).all()


# --- the processor's own instructions, compiled on any x86 machine and not run

CROSS = """
import ctypes, types
import numba, numpy as np, torch
import llvmlite.binding as llvm
features = "avx2 fma avx512f avx512vl avx512bw avx512dq avx512bf16 amx-tile amx-bf16".split()
llvm.get_host_cpu_features = lambda: dict.fromkeys(features, True)
right, ctypes.CDLL = ctypes.CDLL, lambda name: types.SimpleNamespace(syscall=lambda *a: 0)
from hashfield.kernels.numba_cpu import target
ctypes.CDLL = right
assert target.PATH == "amx" and not target.ARE_TILES_EMULATED
from tests.ops.test_tiles import ADD, KERNELS, RELU
half, single = (numba.typeof(np.zeros(1, d)) for d in (np.uint16, np.float32))
n = numba.intp
for mode, c in ((RELU, half), (ADD, single)):
    bare = numba.njit(KERNELS[mode].py_func, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
    bare.compile((n, half, n, n, n, half, n, n, c, n, n, n, n, n, c, n))
    (ir,) = bare.inspect_llvm().values()
    print(ir, end="-----")
"""

INSTRUCTIONS = ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease")


def assembly(ir: str) -> str:
    """What LLVM makes of a module for a processor with tiles."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        cpu="sapphirerapids",
        features="+amx-tile,+amx-bf16,+avx512bf16,+avx512f,+avx512vl,+avx512bw,+avx512dq",
        opt=3,
        codemodel="small",
    )
    return machine.emit_assembly(llvm.parse_assembly(ir))


def faults(text: str) -> list[str]:
    """Tile instructions that the assembly lacks, and calls to what it does not define."""
    missing = [name for name in INSTRUCTIONS if not re.search(rf"^\s+{name}\s*(%|\(|-?\d|$)", text, re.M)]
    called = set(re.findall(r"^\s+(?:call|jmp)q?\s+([A-Za-z_][\w$.]*)", text, re.M))
    defined = set(re.findall(r"^([A-Za-z_][\w$.]*):", text, re.M))
    return missing + sorted(name for name in called - defined if not name.startswith("NRT_"))


def test_instructions_of_the_processor(tmp_path: Path) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("Numba here has no x86 back end")
    done = subprocess.run(
        [sys.executable, "-c", CROSS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("HASHFIELD")},
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "HASHFIELD_CACHE": str(tmp_path),
            "NUMBA_CPU_NAME": "sapphirerapids",
            "NUMBA_CPU_FEATURES": "+amx-tile,+amx-bf16,+avx512bf16",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    finished, added, _ = done.stdout.split("-----")
    for ir in (finished, added):
        assert not faults(assembly(ir))
    assert faults(assembly(finished.replace("@llvm.x86.tdpbf16ps(", "@left.over("))) == ["tdpbf16ps", "left.over"]
    forgotten = re.sub(r"^.*call void @llvm.x86.tilerelease.*$", "", finished, flags=re.M)
    assert faults(assembly(forgotten)) == ["tilerelease"]
