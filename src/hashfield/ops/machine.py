"""What the compiled kernels are made for on this machine, and where they are kept."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CpuKernels:
    """The CPU's kernels."""

    path: str
    """Instructions they are compiled for, as HASHFIELD_CPU names them."""
    lanes: int
    """Number of float32 values in one of their vectors."""
    are_tiles_emulated: bool
    """Whether matrix tiles are emulated, which is for tests."""
    possible_paths: tuple[str, ...]
    """What this CPU can run, fastest first."""
    reason: str
    """Why a path with more instructions was not taken; empty where none was left."""
    cache: Path
    """Folder of compiled kernels."""


def cpu_kernels() -> CpuKernels:
    """Facts about the CPU's kernels. Imports Numba, which takes a moment."""
    from hashfield.kernels.numba_cpu.common import cache_folder
    from hashfield.kernels.numba_cpu.target import ARE_TILES_EMULATED, LANES, PATH, available_paths

    paths = available_paths()
    is_passed_over = PATH == "avx512" and paths[0] == PATH and "avx512_bf16" in paths
    reason = "products of bfloat16 pairs are slower on this CPU" if is_passed_over else ""
    return CpuKernels(PATH, LANES, ARE_TILES_EMULATED, paths, reason, Path(cache_folder()))


def is_kernel_cache_warm() -> bool:
    """Whether compiled CPU kernels are kept already, so that a first run need not wait for them."""
    from hashfield.kernels.numba_cpu.common import is_cache_warm

    return is_cache_warm()
