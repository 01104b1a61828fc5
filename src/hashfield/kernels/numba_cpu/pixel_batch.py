"""Training batches of an image on CPUs: place, position and value of each cell's pixel in one pass."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, overloaded, share
from hashfield.kernels.numba_cpu.grid_inputs import empty_positions, to_planes
from hashfield.kernels.numba_cpu.simd import peek, poke, prefetch

GROUP = 64  # pixels that are asked for together: each lies on another page of memory


@overloaded
def meaning(pixels, at, values, row):
    """The value of a stored number: what its code means, or itself."""

    def coded(pixels, at, values, row):
        return values[row, peek(pixels, at)]

    def plain(pixels, at, values, row):
        return peek(pixels, at)

    return plain if pixels.dtype.bitwidth == 32 else coded


@inline
def quotient(n, d, inverse):
    """The quotient n // d for 0 <= n < 2^63 and a result below 2^50, from 1 / d in float64: a fifth of a division's time."""
    q = np.int64(np.float64(n) * inverse)
    rest = n - q * d
    return q + np.int64(rest >= d) - np.int64(rest < 0)


class Picture(NamedTuple):
    """Stored pixels and what they mean; see `hashfield.ops.pixel_batch`."""

    pixels: Any
    """Flat: row by row, n_stored numbers to a pixel."""
    width: int
    height: int
    n_stored: int
    values: Any
    """[2, codes]: what codes mean, for colours and for alpha."""
    n_channels: int
    has_alpha: bool
    is_premultiplied: bool


@kernel
def _pixel_batch(picture, random, cells_x, cells_y, skipped, planes, target, thread, threads):
    pixels, width, height, n_stored, values, n_channels, has_alpha, is_premultiplied = picture
    n, stride = random.size, planes.size // 2
    one, sixteen, low = np.int64(1), np.int64(16), np.int64(0xFFFF)
    found = np.empty(GROUP, np.int64)
    across, down = cells_x << sixteen, cells_y << sixteen
    per_across, per_down, per_width, per_height = 1.0 / across, 1.0 / down, 1.0 / width, 1.0 / height
    first, last = share(n, thread, threads), share(n, thread + 1, threads)
    row, column = (skipped + first) // cells_x, (skipped + first) % cells_x
    for first in range(first, last, GROUP):
        count = min(GROUP, last - first)
        for k in range(count):
            i = first + k
            bits = peek(random, i)
            x = quotient(((column << sixteen) + (bits & low)) * width, across, per_across)
            y = quotient(((row << sixteen) + ((bits >> sixteen) & low)) * height, down, per_down)
            poke(planes, i, np.uint32(quotient((2 * x + 1) * (one << 31), width, per_width)))
            poke(planes, stride + i, np.uint32(quotient((2 * y + 1) * (one << 31), height, per_height)))
            poke(found, k, (y * width + x) * n_stored)
            prefetch(pixels, peek(found, k))
            column += 1
            if column == cells_x:
                row, column = row + 1, np.int64(0)
        for k in range(count):
            at, to = peek(found, k), (first + k) * n_channels
            colors = n_channels - 1 if has_alpha else n_channels
            for c in range(colors):
                poke(target, to + c, meaning(pixels, at + c, values, 0))
            if has_alpha:
                alpha = meaning(pixels, at + colors, values, 1)
                poke(target, to + colors, alpha)
                if not is_premultiplied:
                    for c in range(colors):
                        poke(target, to + c, peek(target, to + c) * alpha)


def pixel_batch(pixels, random, lattice, values, n_channels: int, has_alpha: bool, is_premultiplied: bool, first: int):
    """Arrays positions [n, 2] (padded planes in memory, which the kernels that follow read as they are) and target [n, C]."""
    height, width, n_stored = pixels.shape
    n = random.shape[0]
    positions, target = empty_positions(n, 2, torch.int32), torch.empty((n, n_channels), dtype=torch.float32)
    stored = as_array(pixels).reshape(-1)
    stored = stored.view(np.uint16) if stored.dtype == np.int16 else stored
    if n:
        picture = Picture(
            stored, width, height, n_stored, as_array(values.contiguous()), n_channels, has_alpha, is_premultiplied
        )
        launch(
            _pixel_batch, picture, as_array(random.contiguous()), *lattice, first, to_planes(positions),
            as_array(target).reshape(-1),
        )  # fmt: skip
    return positions, target
