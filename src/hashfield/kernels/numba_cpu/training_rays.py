"""Training batches on CPUs: pixel, ray, entry into the box and wanted colour in one pass."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.camera_rays import pixel_direction
from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, share
from hashfield.kernels.numba_cpu.simd import peek, poke, prefetch

GROUP = 64  # rays whose pixels are asked for together


@inline
def slab(o, d, low, high, near, far):
    """The part of [near, far] in which o + t d lies between two planes."""
    if d == 0.0:
        return (near, far) if low <= o <= high else (near, -1.0)
    a, b = (low - o) / d, (high - o) / d
    return max(near, min(a, b)), min(far, max(a, b))


@inline
def box_range(ox, oy, oz, dx, dy, dz, box):
    """(t_min >= 0, t_max) inside the box [x0, y0, z0, x1, y1, z1]; (0, 0) for a miss."""
    near, far = slab(ox, dx, box[0], box[3], 0.0, 1e30)
    near, far = slab(oy, dy, box[1], box[4], near, far)
    near, far = slab(oz, dz, box[2], box[5], near, far)
    return (near, far) if far > near else (0.0, 0.0)


class Pool(NamedTuple):
    """Photos, cameras, and the spans (runs of pixels in one image row) that pixels are drawn from."""

    spans: Any
    """[m, 3]: image, first pixel within the image, length."""
    span_ends: Any
    """[m]: running total of the lengths."""
    starts: Any
    """[images]: first pixel of each image."""
    widths: Any
    """[images]"""
    pixels: Any
    """All images' RGBA values, flat."""
    table: Any
    """[images, numbers]: cameras."""


class Drawn(NamedTuple):
    """The rays of the drawn pixels."""

    origin: Any
    direction: Any
    t_min: Any
    t_max: Any
    target: Any
    image_index: Any


@kernel
def _training_rays(chosen, pool, box, drawn, thread, threads):
    """Rays of pixels: chosen [n], each 0 or more and below the sum of all spans' lengths."""
    spans, span_ends, image_starts, widths, pixels, table = pool
    origin, direction, t_min, t_max, target, image_index = drawn
    last = share(chosen.size, thread + 1, threads)
    found = np.empty(GROUP, np.int64)
    for first in range(share(chosen.size, thread, threads), last, GROUP):
        count = min(GROUP, last - first)
        # Two passes, so that the searches of a group overlap, and its pixels (each in another page of memory) arrive
        # while others are looked for.
        for k in range(count):
            wanted, low, left = peek(chosen, first + k), 0, span_ends.size
            while left > 1:  # the first span whose end lies beyond the chosen number, without branches to mispredict
                half = left >> 1
                low += half if peek(span_ends, low + half - 1) <= wanted else 0
                left -= half
            poke(found, k, low)
            inside = spans[low, 1] + (wanted - (span_ends[low] - spans[low, 2]))
            prefetch(pixels, 4 * (image_starts[spans[low, 0]] + inside))
        for k in range(count):
            i, span = first + k, peek(found, k)
            image = spans[span, 0]
            inside = spans[span, 1] + (chosen[i] - (span_ends[span] - spans[span, 2]))
            row, column = inside // widths[image], inside % widths[image]
            camera = table[image]
            x, y, z = pixel_direction(camera, column + 0.5, row + 0.5)
            direction[i, 0], direction[i, 1], direction[i, 2] = x, y, z
            origin[i, 0], origin[i, 1], origin[i, 2] = camera[3], camera[7], camera[11]
            near, far = box_range(camera[3], camera[7], camera[11], x, y, z, box)
            t_min[i], t_max[i] = near, far
            image_index[i] = image
            at = 4 * (image_starts[image] + inside)
            for c in range(4):
                target[i, c] = np.float32(peek(pixels, at + c)) * np.float32(1.0 / 255.0)


def training_rays(chosen, pool, box):
    """Arrays origin, direction, t_min, t_max, target [n, 4], image_index; see `hashfield.ops.training_rays`."""
    n = chosen.shape[0]
    origin, direction, target = torch.empty((n, 3)), torch.empty((n, 3)), torch.empty((n, 4))
    t_min, t_max, image_index = torch.empty(n), torch.empty(n), torch.empty(n, dtype=torch.int64)
    if n:
        tensors = (pool.spans, pool.span_ends, pool.starts, pool.widths, pool.pixels.reshape(-1), pool.table)
        launch(
            _training_rays, as_array(chosen.contiguous()), Pool(*(as_array(x.contiguous()) for x in tensors)),
            as_array(box.contiguous()),
            Drawn(*map(as_array, (origin, direction, t_min, t_max, target, image_index))),
        )  # fmt: skip
    return origin, direction, t_min, t_max, target, image_index
