"""Which entries of a level's table a point reads, and with what weights: the lookups of every grid kernel on CPUs.

One call works on blocks of points: with vectors, it computes the table index and the weight of each of the 2^D corners
into a small scratch, from where features are then read, or gradients added, corner by corner.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from hashfield.geometry.grid_layout import HASH_PRIMES
from hashfield.kernels.numba_cpu.common import inline, overloaded, part
from hashfield.kernels.numba_cpu.simd import (
    LANES,
    absolute,
    floor,
    fma,
    load,
    load_int,
    splat,
    splat_int,
    store,
    store_int,
    to_float,
    to_int_fast,
    unsigned_minimum,
    where,
)

BLOCK = max(16, LANES)  # points whose corner indices and weights are held at once
_PRIME_Y, _PRIME_Z = np.uint32(HASH_PRIMES[1]), np.uint32(HASH_PRIMES[2])
_LIMIT = np.float32(2.0**31)


class GridEncoder(NamedTuple):
    """A grid of features as the kernels read it.

    Where `n_dims` or `smoothstep` is None the compiler knows that the grid is 3-D, or linear: machine code for other
    grids is left out.
    """

    table: Any
    """All levels' entries, flat: float32, or uint16 that hold bfloat16."""
    n_features: int
    """Features to an entry: 1, 2, 4 or 8."""
    n_levels: int
    levels: Any
    """[level, 4]: resolution, entries, whether they are hashed, first entry."""
    scales: Any
    """[level]: cells to a unit of length."""
    n_dims: int | None
    smoothstep: bool | None


class Corners(NamedTuple):
    """Table indices and weights of the corners of two blocks of points: of this one, and of the next one."""

    index: Any
    weight: Any
    dot: Any
    """Products of one block's corners with the gradient of the features; of gradients to positions only."""


def _knows(encoder, field: str) -> bool:
    return encoder.types[encoder.fields.index(field)] == types.none


@overloaded
def axes(encoder):
    """Dimensions of the encoder's positions."""
    return (lambda encoder: 3) if _knows(encoder, "n_dims") else (lambda encoder: encoder.n_dims)


@overloaded
def is_smooth(encoder):
    """Whether the weights are smoothstep's."""
    return (lambda encoder: False) if _knows(encoder, "smoothstep") else (lambda encoder: encoder.smoothstep)


@inline
def cell_and_fraction(x, scale):
    """Integer cell and fraction of q = scale*x + 0.5 along one axis.

    A position that is not finite, or whose cell does not fit 32 bits, is given cell 0 and fraction 0.
    """
    q = fma(x, scale, splat(0.5))
    q = where(absolute(q) < splat(_LIMIT), q, splat(0.0))
    cell = floor(q)
    return to_int_fast(cell), q - cell


@inline
def cell_and_fraction_fixed(k, scale):
    """Integer cell and fraction, as `cell_and_fraction` has them, for a position k / 2^32 in fixed point; the fraction is good to 2^-23 of a cell on every level.

    scale * k falls into an upper half, of which the rounding error is kept, and a lower half of at most 2^-16 * scale.
    """
    high, low = to_float(k >> splat_int(16)), to_float(k & splat_int(0xFFFF))
    scale = scale * splat(2.0**-16)
    q = scale * high
    error = fma(scale, high, splat(0.0) - q)
    cell = floor(q)
    rest = (q - cell) + (fma(scale * splat(2.0**-16), low, error) + splat(0.5))
    whole = floor(rest)
    return to_int_fast(cell + whole), rest - whole


@overloaded
def locate(positions, at, scale):
    """Cells and fractions of LANES points along one axis: float32 positions, or uint32 ones in fixed point."""

    def floating(positions, at, scale):
        return cell_and_fraction(load(positions, at), scale)

    def fixed(positions, at, scale):
        return cell_and_fraction_fixed(load_int(positions, at), scale)

    return fixed if positions.dtype == types.uint32 else floating


@inline
def eased(f, smoothstep):
    """The interpolation weight of the upper corner: f, or f^2 (3 - 2f)."""
    if smoothstep:
        return f * f * fma(splat(-2.0), f, splat(3.0))
    return f


@inline
def wrap(index, size):
    """Dense index modulo the level's entries, for indices below twice that size."""
    return unsigned_minimum(index, index - size)


@inline
def corners3(positions, stride, start, scale, resolution, size, hashed, smoothstep, index, weight, at):
    """Indices and weights of the 8 corners of BLOCK points in 3-D. `positions` is [3, stride]."""
    scale_v, one, one_i = splat(scale), splat(1.0), splat_int(1)
    size_v = splat_int(size)
    for i in range(0, BLOCK, LANES):
        ix, fx = locate(positions, start + i, scale_v)
        iy, fy = locate(positions, stride + start + i, scale_v)
        iz, fz = locate(positions, 2 * stride + start + i, scale_v)
        fx, fy, fz = eased(fx, smoothstep), eased(fy, smoothstep), eased(fz, smoothstep)
        gx, gy, gz = one - fx, one - fy, one - fz
        w00, w10, w01, w11 = gy * gz, fy * gz, gy * fz, fy * fz
        j = at + i
        store(weight, j, gx * w00)
        store(weight, j + BLOCK, fx * w00)
        store(weight, j + 2 * BLOCK, gx * w10)
        store(weight, j + 3 * BLOCK, fx * w10)
        store(weight, j + 4 * BLOCK, gx * w01)
        store(weight, j + 5 * BLOCK, fx * w01)
        store(weight, j + 6 * BLOCK, gx * w11)
        store(weight, j + 7 * BLOCK, fx * w11)
        if hashed:
            mask = size_v - one_i
            ix1 = ix + one_i
            y0 = iy * splat_int(_PRIME_Y)
            z0 = iz * splat_int(_PRIME_Z)
            y1, z1 = y0 + splat_int(_PRIME_Y), z0 + splat_int(_PRIME_Z)
            h00, h10, h01, h11 = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
            store_int(index, j, (ix ^ h00) & mask)
            store_int(index, j + BLOCK, (ix1 ^ h00) & mask)
            store_int(index, j + 2 * BLOCK, (ix ^ h10) & mask)
            store_int(index, j + 3 * BLOCK, (ix1 ^ h10) & mask)
            store_int(index, j + 4 * BLOCK, (ix ^ h01) & mask)
            store_int(index, j + 5 * BLOCK, (ix1 ^ h01) & mask)
            store_int(index, j + 6 * BLOCK, (ix ^ h11) & mask)
            store_int(index, j + 7 * BLOCK, (ix1 ^ h11) & mask)
        else:
            row = splat_int(resolution)
            plane = splat_int(resolution * resolution)
            k = ix + iy * row + iz * plane
            store_int(index, j, wrap(k, size_v))
            store_int(index, j + BLOCK, wrap(k + one_i, size_v))
            store_int(index, j + 2 * BLOCK, wrap(k + row, size_v))
            store_int(index, j + 3 * BLOCK, wrap(k + row + one_i, size_v))
            k = k + plane
            store_int(index, j + 4 * BLOCK, wrap(k, size_v))
            store_int(index, j + 5 * BLOCK, wrap(k + one_i, size_v))
            store_int(index, j + 6 * BLOCK, wrap(k + row, size_v))
            store_int(index, j + 7 * BLOCK, wrap(k + row + one_i, size_v))


@inline
def corners2(positions, stride, start, scale, resolution, size, hashed, smoothstep, index, weight, at):
    """Indices and weights of the 4 corners of BLOCK points in 2-D. `positions` is [2, stride]."""
    scale_v, one, one_i = splat(scale), splat(1.0), splat_int(1)
    size_v = splat_int(size)
    for i in range(0, BLOCK, LANES):
        ix, fx = locate(positions, start + i, scale_v)
        iy, fy = locate(positions, stride + start + i, scale_v)
        fx, fy = eased(fx, smoothstep), eased(fy, smoothstep)
        gx, gy = one - fx, one - fy
        j = at + i
        store(weight, j, gx * gy)
        store(weight, j + BLOCK, fx * gy)
        store(weight, j + 2 * BLOCK, gx * fy)
        store(weight, j + 3 * BLOCK, fx * fy)
        if hashed:
            mask = size_v - one_i
            ix1 = ix + one_i
            y0 = iy * splat_int(_PRIME_Y)
            y1 = y0 + splat_int(_PRIME_Y)
            store_int(index, j, (ix ^ y0) & mask)
            store_int(index, j + BLOCK, (ix1 ^ y0) & mask)
            store_int(index, j + 2 * BLOCK, (ix ^ y1) & mask)
            store_int(index, j + 3 * BLOCK, (ix1 ^ y1) & mask)
        else:
            row = splat_int(resolution)
            k = ix + iy * row
            store_int(index, j, wrap(k, size_v))
            store_int(index, j + BLOCK, wrap(k + one_i, size_v))
            store_int(index, j + 2 * BLOCK, wrap(k + row, size_v))
            store_int(index, j + 3 * BLOCK, wrap(k + row + one_i, size_v))


@part
def reduce_indices(index, at, n, size):
    """Indices modulo the level's size, where one subtraction is not enough: tiled levels, points outside the unit box."""
    if size & (size - np.uint32(1)) == 0:
        for i in range(at, at + n):
            index[i] &= size - np.uint32(1)
        return
    for i in range(at, at + n):
        if index[i] >= size:
            index[i] = index[i] % size


@inline
def fit(index, at, n, size):
    """Bring n dense indices below the level's size; nearly always they are."""
    over = False
    for i in range(at, at + n):
        over |= index[i] >= size
    if over:
        reduce_indices(index, at, n, np.uint32(size))


@part
def corners(encoder, positions, start, level, scratch, at):
    """Fill the scratch from `at` on for one level and the block of points that begins at `start`."""
    n_dims, smoothstep, scale = axes(encoder), is_smooth(encoder), encoder.scales[level]
    resolution, size = encoder.levels[level, 0], encoder.levels[level, 1]
    hashed = encoder.levels[level, 2] != 0
    stride, index, weight = positions.size // n_dims, scratch.index, scratch.weight
    if n_dims == 3:
        corners3(positions, stride, start, scale, resolution, size, hashed, smoothstep, index, weight, at)
    else:
        corners2(positions, stride, start, scale, resolution, size, hashed, smoothstep, index, weight, at)
    if not hashed:
        fit(index, at, BLOCK << n_dims, size)


@inline
def slope(x, scale, f, smoothstep):
    """Derivative of the upper corner's weight to x: scale, or scale * 6 f (1 - f); 0 for positions that
    `cell_and_fraction` replaces."""
    rate = scale
    if smoothstep:
        rate = scale * splat(6.0) * f * (splat(1.0) - f)
    return where(absolute(fma(x, scale, splat(0.5))) < splat(_LIMIT), rate, splat(0.0))


@inline
def nearest(encoder, positions, start, level, index):
    """Table index of the vertex nearest to each of BLOCK points."""
    n_dims, levels = axes(encoder), encoder.levels
    stride, size, resolution = positions.size // n_dims, levels[level, 1], levels[level, 0]
    hashed = levels[level, 2] != 0
    scale_v, size_v = splat(encoder.scales[level]), splat_int(size)
    factor_y, factor_z = splat_int(resolution), splat_int(resolution * resolution)
    if hashed:
        factor_y, factor_z = splat_int(_PRIME_Y), splat_int(_PRIME_Z)
    for i in range(0, BLOCK, LANES):
        k, _ = locate(positions, start + i, scale_v)
        iy, _ = locate(positions, stride + start + i, scale_v)
        y = iy * factor_y
        z = splat_int(0)
        if n_dims == 3:
            iz, _ = locate(positions, 2 * stride + start + i, scale_v)
            z = iz * factor_z
        if hashed:
            store_int(index, i, (k ^ y ^ z) & (size_v - splat_int(1)))
        else:
            store_int(index, i, wrap(k + y + z, size_v))
    if not hashed:
        fit(index, 0, BLOCK, size)
