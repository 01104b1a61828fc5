"""Which vector instructions the kernels are compiled for.

`HASHFIELD_CPU=amx|avx512|avx2|scalar` forces a path; unset, the best one that this CPU has is taken. Must be
imported before anything is compiled, since a forced path narrows the features that Numba may use.
"""

import os
from functools import lru_cache

import llvmlite.binding as llvm
from numba import config

from hashfield.errors import ConfigError

PATHS = ("amx", "avx512", "avx2", "scalar")
_AVX512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq")
_AMX = (*_AVX512, "avx512bf16", "amx-tile", "amx-bf16")
_AVX2 = ("avx2", "fma")


@lru_cache
def host_features() -> dict[str, bool]:
    """LLVM's feature names of this CPU, each with whether it is there."""
    return dict(llvm.get_host_cpu_features())


def _has(features) -> bool:
    host = host_features()
    return all(host.get(name, False) for name in features)


def available_paths() -> tuple[str, ...]:
    """The paths this CPU can run, best first."""
    needs = {"amx": _AMX, "avx512": _AVX512, "avx2": _AVX2, "scalar": ()}
    return tuple(path for path in PATHS if _has(needs[path]))


def _chosen_path() -> str:
    asked = os.environ.get("HASHFIELD_CPU", "").lower()
    available = available_paths()
    if not asked:
        if "scalar" == available[0]:
            return "simd128"  # no x86 vectors: 4 lanes, which is NEON on ARM and SSE2 on old x86
        return available[0]
    if asked not in PATHS:
        raise ConfigError(f"HASHFIELD_CPU={asked}: expected one of {', '.join(PATHS)}")
    if asked not in available:
        raise ConfigError(f"HASHFIELD_CPU={asked}: this CPU offers only {', '.join(available)}")
    if asked != available[0]:
        hidden = {"avx512": _AMX, "avx2": (*_AMX,), "scalar": ()}[asked]
        off = [f"-{name}" for name in host_features() if name in hidden or _newer(name, asked)]
        config.CPU_NAME = llvm.get_host_cpu_name()
        config.CPU_FEATURES = ",".join(
            [f"+{n}" for n, on in host_features().items() if on and f"-{n}" not in off] + off
        )
    return asked


def _newer(feature: str, path: str) -> bool:
    """Whether a feature belongs to an instruction set above the forced path."""
    if path == "avx512":
        return feature.startswith("amx")
    if path == "avx2":
        return feature.startswith(("amx", "avx512", "avx10"))
    return False


PATH = _chosen_path()
# A lane count other than the path's own exercises the wide sources on a narrow CPU: LLVM splits the vectors.
LANES = int(os.environ.get("HASHFIELD_LANES", 0)) or {"amx": 16, "avx512": 16, "avx2": 8, "simd128": 4, "scalar": 1}[PATH]
