"""Which vector instructions the kernels are compiled for.

`HASHFIELD_CPU=avx512_bf16|avx512|avx2|scalar` forces a path; unset, the best one that this CPU has is taken. Must be
imported before anything is compiled, since a forced path narrows the features that Numba may use.
"""

import os
from functools import lru_cache

import llvmlite.binding as llvm
from numba import config

from hashfield.errors import ConfigError

PATHS = ("avx512_bf16", "avx512", "avx2", "scalar")
_AVX512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq")
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
    needs = {"avx512_bf16": (*_AVX512, "avx512bf16"), "avx512": _AVX512, "avx2": _AVX2, "scalar": ()}
    return tuple(path for path in PATHS if _has(needs[path]))


def _chosen_path() -> str:
    asked = os.environ.get("HASHFIELD_CPU", "").lower()
    available = available_paths()
    if not asked:
        if "scalar" == available[0]:
            return "simd128"  # no x86 vectors: 4 lanes, which is NEON on ARM and SSE2 on old x86
        return available[0]
    if asked == "amx":
        raise ConfigError("HASHFIELD_CPU=amx: kernels for AMX tiles are not built yet; use avx512_bf16")
    if asked not in PATHS:
        raise ConfigError(f"HASHFIELD_CPU={asked}: expected one of {', '.join(PATHS)}")
    if asked not in available:
        raise ConfigError(f"HASHFIELD_CPU={asked}: this CPU offers only {', '.join(available)}")
    if asked == "avx2" and "avx512" in available:
        # Numba compiles for the host; a narrower path hides the wider instructions from it.
        features = {name: on and not name.startswith(("amx", "avx512", "avx10")) for name, on in host_features().items()}
        config.CPU_NAME = llvm.get_host_cpu_name()
        config.CPU_FEATURES = ",".join(("+" if on else "-") + name for name, on in features.items())
    return asked


PATH = _chosen_path()
# Products of bfloat16 pairs in one instruction (Zen 4, Cooper Lake, Sapphire Rapids and later).
HAS_BF16_DOT = PATH == "avx512_bf16"
# A lane count other than the path's own exercises the wide sources on a narrow CPU: LLVM splits the vectors.
LANES = (
    int(os.environ.get("HASHFIELD_LANES", 0)) or {"avx512_bf16": 16, "avx512": 16, "avx2": 8, "simd128": 4, "scalar": 1}[PATH]
)
