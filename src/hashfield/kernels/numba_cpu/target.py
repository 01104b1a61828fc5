"""Which vector instructions the kernels are compiled for.

`HASHFIELD_CPU=amx|avx512_bf16|avx512|avx2|scalar` forces a path; unset, the fastest one that this CPU has is taken. Must
be imported before anything is compiled, since a forced path narrows the features that Numba may use.
"""

import ctypes
import os
import sys
from functools import lru_cache

import llvmlite.binding as llvm
from numba import config

from hashfield.errors import ConfigError

PATHS = ("amx", "avx512_bf16", "avx512", "avx2", "scalar")
_AVX512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq")
_AVX512_BF16 = (*_AVX512, "avx512bf16")
_AVX2 = ("avx2", "fma")
_NEEDS = {
    "amx": (*_AVX512_BF16, "amx-tile", "amx-bf16"),
    "avx512_bf16": _AVX512_BF16,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "scalar": (),
}


@lru_cache
def host_features() -> dict[str, bool]:
    """LLVM's feature names of this CPU, each with whether it is there."""
    return dict(llvm.get_host_cpu_features())


def _has(features) -> bool:
    host = host_features()
    return all(host.get(name, False) for name in features)


@lru_cache
def _may_use_tiles() -> bool:
    """Ask the kernel, once a process, to let its threads hold tile data."""
    if sys.platform != "linux":
        return False  # other systems offer no such call, and none was tried
    arch_prctl, req_xcomp_perm, xtiledata = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, req_xcomp_perm, xtiledata) == 0
    except (OSError, AttributeError):
        return False


@lru_cache
def pairs_pay() -> bool:
    """Whether products of bfloat16 pairs in vectors, without tiles, are faster here than products of float32.

    On Zen 4 a step of training took 12 % less time with them. On an Intel CPU with AMX, whose tiles were not used, it
    took 1.09 to 1.18 us a sample with them and 0.71 with float32: there they are a slow instruction."""
    return llvm.get_host_cpu_name().startswith("znver")


def available_paths() -> tuple[str, ...]:
    """The paths this CPU can run, fastest first."""
    paths = [path for path in PATHS if _has(_NEEDS[path]) and (path != "amx" or _may_use_tiles())]
    if "avx512_bf16" in paths and not pairs_pay():
        paths.remove("avx512_bf16")
        paths.insert(paths.index("avx512") + 1, "avx512_bf16")
    return tuple(paths)


def _wants_emulation() -> bool:
    """Whether the tile instructions are to be emulated, which is for tests and slow."""
    asked = os.environ.get("HASHFIELD_AMX", "")
    if asked not in ("", "emulated"):
        raise ConfigError(f"HASHFIELD_AMX={asked}: expected 'emulated' or nothing")
    return asked == "emulated" and os.environ.get("HASHFIELD_CPU", "").lower() == "amx"


def _chosen_path() -> str:
    asked = os.environ.get("HASHFIELD_CPU", "").lower()
    available = available_paths()
    if not asked:
        return "simd128" if available[0] == "scalar" else available[0]
    if _wants_emulation():
        if os.name != "posix":
            raise ConfigError("HASHFIELD_AMX=emulated: the emulation tells threads apart as POSIX systems do")
        return "amx"
    if asked not in PATHS:
        raise ConfigError(f"HASHFIELD_CPU={asked}: expected one of {', '.join(PATHS)}")
    if asked not in available:
        raise ConfigError(f"HASHFIELD_CPU={asked}: this CPU offers only {', '.join(available)}")
    if asked == "avx2" and "avx512" in available:
        # Numba compiles for the host; a narrower path hides the wider instructions from it.
        features = {
            name: on and not name.startswith(("amx", "avx512", "avx10")) for name, on in host_features().items()
        }
        config.CPU_NAME = llvm.get_host_cpu_name()
        config.CPU_FEATURES = ",".join(("+" if on else "-") + name for name, on in features.items())
    return asked


PATH = _chosen_path()
# Products of bfloat16 matrices on tiles (Sapphire Rapids and later); see `amx.py`.
HAS_TILES = PATH == "amx"
ARE_TILES_EMULATED = _wants_emulation()
# Vectors of 512 bits, of which some lanes are pressed together or spread out in one instruction.
HAS_AVX512 = PATH in ("amx", "avx512_bf16", "avx512") and _has(_AVX512)
# Products of bfloat16 pairs in one instruction (Zen 4, Cooper Lake, Sapphire Rapids and later).
HAS_BF16_DOT = PATH in ("amx", "avx512_bf16") and _has(_AVX512_BF16)


def _lanes() -> int:
    # A lane count other than the path's own exercises the wide sources on a narrow CPU: LLVM splits the vectors.
    asked = int(os.environ.get("HASHFIELD_LANES", 0))
    if PATH == "scalar":
        return asked or 1
    # Without x86 vectors 4 lanes, which is NEON on ARM and SSE2 on old x86.
    host = PATH if PATH != "amx" else available_paths()[0]
    return asked or {"amx": 16, "avx512_bf16": 16, "avx512": 16, "avx2": 8}.get(host, 4)


LANES = _lanes()
