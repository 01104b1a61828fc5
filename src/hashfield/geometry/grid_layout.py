"""Where each level of a multiresolution grid lies in its table: sizes, strides and offsets. Pure numpy.

Follows tiny-cuda-nn's rules bit for bit, in its float32 arithmetic, so that tables can be exchanged with it.
Sizing and lookup must use the same float32 scales: an integral N_min * b^l may land a hair above itself and
then the level has one vertex more.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

from hashfield.errors import ConfigError

GridType = Literal["Hash", "Tiled", "Dense"]
HashType = Literal["CoherentPrime", "Prime", "ReversedPrime", "Rng", "BaseConvert"]

# One factor per dimension of the spatial hash ("CoherentPrime"); the first is 1 so that neighbours in x hit
# neighbouring entries.
HASH_PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)
_HASH_FACTORS: dict[str, tuple[int, ...]] = {
    "CoherentPrime": HASH_PRIMES,
    "Prime": (1958374283, *HASH_PRIMES[1:]),
    "ReversedPrime": (*HASH_PRIMES[:0:-1], 1958374283),
}

# The largest resolution whose dense index still fits 32 bits, per number of dimensions.
_MAX_DENSE_RESOLUTION = {1: 2**32 - 1, 2: 65535, 3: 1625, 4: 255, 5: 84, 6: 40, 7: 23}


@dataclass(frozen=True)
class GridLayout:
    """Shape of a multiresolution grid. Hashable, so it can key caches of compiled kernels.

    The table has the shape [n_entries, n_features_per_level]: level-major, then entry, feature fastest.

    >>> GridLayout(log2_hashmap_size=19).n_entries
    2920448

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/grid.h; paper section 3 (whose text counts cells where
    the program counts vertices).
    """

    n_dims: int = 3
    """D, dimensions of a position: 1 to 7."""
    n_levels: int = 8
    """L, number of resolutions, 1 to 128."""
    n_features_per_level: int = 4
    """F: 1, 2, 4 or 8."""
    log2_hashmap_size: int = 19
    """Logarithm log2 T, where T is the most entries a level of type Hash has; 1 to 30."""
    base_resolution: int = 16
    """N_min, vertices per axis of level 0."""
    per_level_scale: float = 2.0
    """Growth b of the resolution from level to level, at least 1; rounded to float32."""
    type: GridType = "Hash"
    """Hash: levels above T entries are hashed. Tiled: they repeat every N_min^D entries. Dense: no limit."""
    hash: HashType = "CoherentPrime"
    """Function that spreads the vertices of hashed levels: XOR of products with primes, or as tiny-cuda-nn's
    others (Rng jumps ahead in a random sequence, BaseConvert is a polynomial of the coordinates)."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check every field and the level sizes they lead to.

        Raises:
            ConfigError: a field is out of range, or a Dense or Tiled level is too fine to be indexed.
        """
        _integer("n_dims", self.n_dims, 1, 7)
        _integer("n_levels", self.n_levels, 1, 128)
        if self.n_features_per_level not in (1, 2, 4, 8):
            raise ConfigError(f"n_features_per_level: expected 1, 2, 4 or 8, got {self.n_features_per_level!r}")
        _integer("log2_hashmap_size", self.log2_hashmap_size, 1, 30)
        _integer("base_resolution", self.base_resolution, 1, 2**24)
        if not (math.isfinite(self.per_level_scale) and self.per_level_scale >= 1.0):
            raise ConfigError(f"per_level_scale: expected a finite number of at least 1, got {self.per_level_scale!r}")
        if self.type not in ("Hash", "Tiled", "Dense"):
            raise ConfigError(f"type: expected 'Hash', 'Tiled' or 'Dense', got {self.type!r}")
        if self.hash not in get_args(HashType):
            raise ConfigError(f"hash: expected one of {', '.join(get_args(HashType))}, got {self.hash!r}")
        if not bool((self.scales < 2.0**30).all()):
            raise ConfigError(
                f"per_level_scale {self.per_level_scale:g} over {self.n_levels} levels from base_resolution "
                f"{self.base_resolution} passes 2^30 vertices per axis; lower one of them"
            )
        finest, limit = int(self.resolutions[-1]), _MAX_DENSE_RESOLUTION[self.n_dims]
        if self.type != "Hash" and finest > limit:
            raise ConfigError(
                f"type {self.type!r}: the finest level has {finest} vertices per axis, more than the {limit} "
                f"that a {self.n_dims}-D index can hold; use type 'Hash' or lower per_level_scale"
            )

    @cached_property
    def scales(self) -> Float32[np.ndarray, " n_levels"]:
        """Cells per unit length of each level: q = scale * x + 0.5 is a position in cells."""
        log2_b = np.float32(math.log2(np.float32(self.per_level_scale)))
        base, one = np.float32(self.base_resolution), np.float32(1.0)
        # exp2 in double, rounded once, is what a good single-precision libm returns on every machine; numpy's
        # own float32 exp2 differs between CPUs by several units in the last place.
        with np.errstate(over="ignore"):
            growth = [np.float32(_exp2(float(np.float32(level) * log2_b))) for level in range(self.n_levels)]
            return _frozen(np.array([g * base - one for g in growth], np.float32))

    @cached_property
    def resolutions(self) -> UInt32[np.ndarray, " n_levels"]:
        """Vertices per axis of each level."""
        return _frozen((np.ceil(self.scales) + 1).astype(np.uint32))

    @cached_property
    def entries(self) -> Int64[np.ndarray, " n_levels"]:
        """Table entries of each level."""
        sizes = []
        for resolution in self.resolutions.tolist():
            dense = -(-min(resolution**self.n_dims, 2**31 - 1) // 8) * 8
            cap = {
                "Hash": 2**self.log2_hashmap_size,
                "Tiled": self.base_resolution**self.n_dims,
                "Dense": dense,
            }[self.type]
            sizes.append(min(dense, cap))
        return _frozen(np.array(sizes, np.int64))

    @cached_property
    def is_hashed(self) -> Bool[np.ndarray, " n_levels"]:
        """Whether vertices of the level share entries through the spatial hash."""
        if self.type != "Hash":
            return _frozen(np.zeros(self.n_levels, bool))
        vertices = [resolution**self.n_dims for resolution in self.resolutions.tolist()]
        return _frozen(np.array([v > e for v, e in zip(vertices, self.entries.tolist(), strict=True)]))

    @cached_property
    def strides(self) -> UInt32[np.ndarray, "n_levels n_dims"]:
        """Factor of each vertex coordinate: powers of the resolution in dense levels, primes in hashed ones.

        Dense and tiled levels add the products, hashed levels XOR them; then `mod entries`. All in uint32. The hashes
        "Rng" and "BaseConvert" have no such factors and do not read these.
        """
        rows = [
            _HASH_FACTORS.get(self.hash, HASH_PRIMES)[: self.n_dims]
            if hashed
            else [resolution**d for d in range(self.n_dims)]
            for resolution, hashed in zip(self.resolutions.tolist(), self.is_hashed.tolist(), strict=True)
        ]
        return _frozen(np.array(rows, np.uint32))

    @cached_property
    def level_offsets(self) -> Int64[np.ndarray, " n_offsets"]:
        """First table entry of each level: n_levels + 1 numbers, the last of which is n_entries."""
        return _frozen(np.concatenate([np.zeros(1, np.int64), np.cumsum(self.entries)]))

    @property
    def beyond_kernels(self) -> str | None:
        """What the compiled kernels of all backends lack for this grid, or None where they cover it."""
        if self.n_dims not in (2, 3):
            return f"{self.n_dims} dimensions, it covers 2 and 3"
        if self.hash != "CoherentPrime" and bool(self.is_hashed.any()):
            return f"hash {self.hash!r}, it covers 'CoherentPrime'"
        return None

    @property
    def n_entries(self) -> int:
        """Table entries of all levels."""
        return int(self.level_offsets[-1])

    @property
    def n_parameters(self) -> int:
        """Numbers in the table."""
        return self.n_entries * self.n_features_per_level

    @property
    def n_output(self) -> int:
        """Features of an encoded position: n_levels * n_features_per_level, level-major."""
        return self.n_levels * self.n_features_per_level


def per_level_scale_between(base_resolution: int, finest_resolution: float, n_levels: int) -> float:
    """The per-level scale b that takes level 0 to `finest_resolution` vertices at the last level.

    Args:
        base_resolution: N_min, vertices per axis of level 0.
        finest_resolution: N_max; instant-ngp takes 2048 * aabb_scale for NeRF, for an image half its longer
            side.
        n_levels: L; with one level the answer is 1.

    Source: instant-ngp src/testbed.cu, in float32 as there.

    >>> per_level_scale_between(16, 2048, 8)
    2.0
    """
    if base_resolution < 1 or n_levels < 1 or not finest_resolution >= base_resolution:
        raise ConfigError(
            f"finest_resolution: expected at least base_resolution ({base_resolution}) and one level or "
            f"more, got {finest_resolution!r} with {n_levels} levels"
        )
    if n_levels == 1:
        return 1.0
    ratio = np.float32(math.log(np.float32(finest_resolution) / np.float32(base_resolution)))
    return float(np.float32(math.exp(ratio / np.float32(n_levels - 1))))


def _integer(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name}: expected an integer from {low} to {high}, got {value!r}")


def _exp2(x: float) -> float:
    try:
        return math.exp2(x)
    except OverflowError:
        return math.inf


_Array = TypeVar("_Array", bound=np.ndarray)


def _frozen(array: _Array) -> _Array:
    # Cached on a frozen object and shared by every caller.
    array.setflags(write=False)
    return array
