"""Multiresolution grid encoding on CPUs: forward, backward to the table, backward to positions.

`grid_corners` says which entries a block of points reads. The next block's indices are computed, and its lines asked
for, before this block is read, so that the reads overlap. The table's gradient is race-free by ownership: every level is
written by one thread.
"""

import itertools

import numpy as np
import torch
from numba import types

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    overloaded,
    recycled,
    restore_denormals,
    share,
)
from hashfield.kernels.numba_cpu.grid_corners import BLOCK, cell_and_fraction, corners, eased, nearest, slope
from hashfield.kernels.numba_cpu.grid_inputs import bf16_words, level_table, to_planes
from hashfield.kernels.numba_cpu.simd import (
    FEATURES,
    LANES,
    fma,
    load,
    peek,
    poke,
    prefetch,
    reduce_add,
    splat,
    store,
    store_bf16,
)


def _readers(n: int, n_corners: int, is_bf16: bool, to_bf16: bool):
    load_features, load_features_bf16, splat_features, store_features = FEATURES[n]
    fetch = load_features_bf16 if is_bf16 else load_features
    keep = store_bf16 if to_bf16 else store_features

    @inline
    def read(table, index, weight, at, ahead, count, out, start, row):
        for i in range(count):
            total = splat_features(np.float32(0.0))
            for c in range(n_corners):  # a constant, so the loop is unrolled
                k = c * BLOCK + i
                prefetch(table, peek(index, ahead + k) * n)
                total = fma(splat_features(peek(weight, at + k)), fetch(table, peek(index, at + k) * n), total)
            keep(out, start + i * row, total)

    return read


_READERS = {
    key: _readers(*key) for key in itertools.product((1, 2, 4, 8), (4, 8), (False, True), (False, True))
}


@overloaded
def read_block(table, n_features, n_dims, index, weight, at, ahead, count, out, start, row):
    """out[start + i*row + f] = sum over corners of weight * table[index, f], of one level's table.

    uint16 arrays hold bfloat16. The corners' indices lie at index[at:]; the lines of those at index[ahead:] are asked for on the way.
    """
    kinds = table.dtype == types.uint16, out.dtype == types.uint16
    one, two, four, eight = (_READERS[n, 8, *kinds] for n in (1, 2, 4, 8))
    one2, two2, four2, eight2 = (_READERS[n, 4, *kinds] for n in (1, 2, 4, 8))

    def read(table, n_features, n_dims, index, weight, at, ahead, count, out, start, row):
        if n_dims == 3:
            if n_features == 4:
                four(table, index, weight, at, ahead, count, out, start, row)
            elif n_features == 2:
                two(table, index, weight, at, ahead, count, out, start, row)
            elif n_features == 8:
                eight(table, index, weight, at, ahead, count, out, start, row)
            else:
                one(table, index, weight, at, ahead, count, out, start, row)
        elif n_features == 4:
            four2(table, index, weight, at, ahead, count, out, start, row)
        elif n_features == 2:
            two2(table, index, weight, at, ahead, count, out, start, row)
        elif n_features == 8:
            eight2(table, index, weight, at, ahead, count, out, start, row)
        else:
            one2(table, index, weight, at, ahead, count, out, start, row)

    return read


@inline
def encode_range(
    positions, n_dims, stride, begin, end, table, n_features, levels, scales, smoothstep, out, row, index, weight
):
    """Encode points begin to end, all levels in turn; point i goes to out[(i - begin)*row:]."""
    n_corners = 1 << n_dims
    half = n_corners * BLOCK
    for level in range(scales.size):
        own = table[levels[level, 3] * n_features :]
        at = 0
        corners(positions, n_dims, stride, begin, level, levels, scales, smoothstep, index, weight, at)
        for start in range(begin, end, BLOCK):
            following = start + BLOCK
            if following < end:
                corners(
                    positions, n_dims, stride, following, level, levels, scales, smoothstep, index, weight, half - at
                )
            count = min(BLOCK, end - start)
            where_to = (start - begin) * row + level * n_features
            read_block(own, n_features, n_dims, index, weight, at, half - at, count, out, where_to, row)
            at = half - at


@kernel
def _forward(positions, n_dims, n, table, n_features, levels, scales, smoothstep, out, chunk, thread, threads):
    stride = positions.size // n_dims
    row = scales.size * n_features
    mode = flush_denormals()
    index = np.zeros((2 * BLOCK) << n_dims, np.uint32)
    weight = np.empty((2 * BLOCK) << n_dims, np.float32)
    first, last = share(n, thread, threads), share(n, thread + 1, threads)
    for begin in range(first, last, chunk):
        end = min(last, begin + chunk)
        encode_range(
            positions, n_dims, stride, begin, end, table, n_features, levels, scales, smoothstep,
            out[begin * row :], row, index, weight,
        )  # fmt: skip
    restore_denormals(mode)


def _adders(n: int, n_corners: int):
    load_features, _, splat_features, store_features = FEATURES[n]

    @inline
    def add(grad, index, weight, at, ahead, count, low, high, cotangent, start, row):
        is_whole = low == 0 and high < 0
        for i in range(count):
            g = load_features(cotangent, start + i * row)
            for c in range(n_corners):
                k = c * BLOCK + i
                prefetch(grad, peek(index, ahead + k) * n)
                entry = peek(index, at + k)
                if is_whole or low <= entry < high:
                    w = splat_features(peek(weight, at + k))
                    store_features(grad, entry * n, fma(w, g, load_features(grad, entry * n)))

    return add


_add1, _add2, _add4, _add8 = (_adders(n, 8) for n in (1, 2, 4, 8))
_add1_2d, _add2_2d, _add4_2d, _add8_2d = (_adders(n, 4) for n in (1, 2, 4, 8))


@inline
def add_level(
    positions, n_dims, stride, begin, end, grad, n_features, levels, scales, smoothstep, level, low, high,
    cotangent, start, row, index, weight,
):  # fmt: skip
    """Add one level's table gradient for points begin to end: entries low to high of the level, or, where low
    is 0 and high negative, all of them.

    Point i's cotangent starts at cotangent[start + (i - begin)*row].
    """
    n_corners = 1 << n_dims
    half = n_corners * BLOCK
    own = grad[levels[level, 3] * n_features :]
    at = 0
    corners(positions, n_dims, stride, begin, level, levels, scales, smoothstep, index, weight, at)
    for point in range(begin, end, BLOCK):
        following = point + BLOCK
        if following < end:
            corners(positions, n_dims, stride, following, level, levels, scales, smoothstep, index, weight, half - at)
        count = min(BLOCK, end - point)
        first = start + (point - begin) * row
        ahead = half - at
        if n_dims == 3:
            if n_features == 4:
                _add4(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
            elif n_features == 2:
                _add2(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
            elif n_features == 8:
                _add8(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
            else:
                _add1(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
        elif n_features == 4:
            _add4_2d(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
        elif n_features == 2:
            _add2_2d(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
        elif n_features == 8:
            _add8_2d(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
        else:
            _add1_2d(own, index, weight, at, ahead, count, low, high, cotangent, first, row)
        at = ahead


@kernel
def _backward_table(
    positions, n_dims, n, grad, n_features, levels, scales, smoothstep, cotangent, parts, thread, threads
):
    stride = positions.size // n_dims
    n_levels = scales.size
    row = n_levels * n_features
    mode = flush_denormals()
    index = np.zeros((2 * BLOCK) << n_dims, np.uint32)
    weight = np.empty((2 * BLOCK) << n_dims, np.float32)
    for task in range(thread, n_levels * parts, threads):
        level, piece = task % n_levels, task // n_levels
        size = levels[level, 1]
        low, high = share(size, piece, parts), share(size, piece + 1, parts)
        first = levels[level, 3]
        grad[(first + low) * n_features : (first + high) * n_features] = np.float32(0.0)
        if parts == 1:
            high = -1  # the whole level: nothing to compare
        add_level(
            positions, n_dims, stride, 0, n, grad, n_features, levels, scales, smoothstep, level, low, high,
            cotangent, level * n_features, row, index, weight,
        )  # fmt: skip
    restore_denormals(mode)


def _dotters(n: int):
    load_features, _, _, _ = FEATURES[n]

    @inline
    def dots(table, offset, index, n_corners, count, cotangent, start, row, out):
        for i in range(count):
            g = load_features(cotangent, start + i * row)
            for c in range(n_corners):
                k = c * BLOCK + i
                poke(out, k, reduce_add(load_features(table, (offset + peek(index, k)) * n) * g))

    return dots


_dots1, _dots2, _dots4, _dots8 = (_dotters(n) for n in (1, 2, 4, 8))


@kernel
def _backward_positions(
    positions, n_dims, n, table, n_features, levels, scales, smoothstep, cotangent, grad, thread, threads
):
    """grad [D, stride] += scale * S'(f_d) * sum over the other axes' corners of weights * (right - left).cotangent."""
    stride = positions.size // n_dims
    n_levels = scales.size
    row = n_levels * n_features
    n_corners = 1 << n_dims
    n_blocks = (n + BLOCK - 1) // BLOCK
    mode = flush_denormals()
    index = np.empty(BLOCK << n_dims, np.uint32)
    weight = np.empty(BLOCK << n_dims, np.float32)
    dot = np.zeros(BLOCK << n_dims, np.float32)
    for block in range(share(n_blocks, thread, threads), share(n_blocks, thread + 1, threads)):
        start = block * BLOCK
        count = min(BLOCK, n - start)
        for level in range(n_levels):
            corners(positions, n_dims, stride, start, level, levels, scales, smoothstep, index, weight, 0)
            first, offset = start * row + level * n_features, levels[level, 3]
            if n_features == 4:
                _dots4(table, offset, index, n_corners, count, cotangent, first, row, dot)
            elif n_features == 2:
                _dots2(table, offset, index, n_corners, count, cotangent, first, row, dot)
            elif n_features == 8:
                _dots8(table, offset, index, n_corners, count, cotangent, first, row, dot)
            else:
                _dots1(table, offset, index, n_corners, count, cotangent, first, row, dot)
            scale, one = splat(scales[level]), splat(1.0)
            for i in range(0, BLOCK, LANES):
                x, y = load(positions, start + i), load(positions, stride + start + i)
                _, fx = cell_and_fraction(x, scale)
                _, fy = cell_and_fraction(y, scale)
                sx, sy = slope(x, scale, fx, smoothstep), slope(y, scale, fy, smoothstep)
                fx, fy = eased(fx, smoothstep), eased(fy, smoothstep)
                gx, gy = one - fx, one - fy
                d0, d1 = load(dot, i), load(dot, BLOCK + i)
                d2, d3 = load(dot, 2 * BLOCK + i), load(dot, 3 * BLOCK + i)
                if n_dims == 2:
                    px = gy * (d1 - d0) + fy * (d3 - d2)
                    py = gx * (d2 - d0) + fx * (d3 - d1)
                else:
                    z = load(positions, 2 * stride + start + i)
                    _, fz = cell_and_fraction(z, scale)
                    sz = slope(z, scale, fz, smoothstep)
                    fz = eased(fz, smoothstep)
                    gz = one - fz
                    d4, d5 = load(dot, 4 * BLOCK + i), load(dot, 5 * BLOCK + i)
                    d6, d7 = load(dot, 6 * BLOCK + i), load(dot, 7 * BLOCK + i)
                    px = gz * (gy * (d1 - d0) + fy * (d3 - d2)) + fz * (gy * (d5 - d4) + fy * (d7 - d6))
                    py = gz * (gx * (d2 - d0) + fx * (d3 - d1)) + fz * (gx * (d6 - d4) + fx * (d7 - d5))
                    pz = gy * (gx * (d4 - d0) + fx * (d5 - d1)) + fy * (gx * (d6 - d2) + fx * (d7 - d3))
                    j = 2 * stride + start + i
                    store(grad, j, load(grad, j) + sz * pz)
                j = start + i
                store(grad, j, load(grad, j) + sx * px)
                j = stride + start + i
                store(grad, j, load(grad, j) + sy * py)
    restore_denormals(mode)


# --- nearest interpolation: one corner of weight 1, apart from the kernels above, which stay as they are --------


_SINGLE = {key: _readers(key[0], 1, *key[1:]) for key in itertools.product((1, 2, 4, 8), (False, True), (False, True))}
_single1, _single2, _single4, _single8 = (_adders(n, 1) for n in (1, 2, 4, 8))


@overloaded
def read_nearest(table, n_features, index, one, count, out, start, row):
    """out[start + i*row + f] = table[index[i], f]; `one` holds ones, the corners' weights."""
    kinds = table.dtype == types.uint16, out.dtype == types.uint16
    r1, r2, r4, r8 = (_SINGLE[n, *kinds] for n in (1, 2, 4, 8))

    def read(table, n_features, index, one, count, out, start, row):
        if n_features == 4:
            r4(table, index, one, 0, 0, count, out, start, row)
        elif n_features == 2:
            r2(table, index, one, 0, 0, count, out, start, row)
        elif n_features == 8:
            r8(table, index, one, 0, 0, count, out, start, row)
        else:
            r1(table, index, one, 0, 0, count, out, start, row)

    return read


@kernel
def _forward_nearest(positions, n_dims, n, table, n_features, levels, scales, out, chunk, thread, threads):
    stride, row = positions.size // n_dims, scales.size * n_features
    mode = flush_denormals()
    index, one = np.zeros(BLOCK, np.uint32), np.ones(BLOCK, np.float32)
    # Shares begin on whole blocks, so that none is computed twice.
    n_blocks = (n + BLOCK - 1) // BLOCK
    first, last = share(n_blocks, thread, threads) * BLOCK, min(n, share(n_blocks, thread + 1, threads) * BLOCK)
    for begin in range(first, last, chunk):
        for level in range(scales.size):
            own = table[levels[level, 3] * n_features :]
            for start in range(begin, min(last, begin + chunk), BLOCK):
                nearest(positions, n_dims, stride, start, level, levels, scales, index)
                count = min(BLOCK, last - start)
                read_nearest(own, n_features, index, one, count, out, start * row + level * n_features, row)
    restore_denormals(mode)


@kernel
def _backward_nearest(
    positions, n_dims, n, grad, n_features, levels, scales, cotangent, parts, thread, threads
):
    """The table's gradient, cleared and then added to; every level, or part of one, has one writer."""
    stride, n_levels = positions.size // n_dims, scales.size
    row = n_levels * n_features
    mode = flush_denormals()
    index, one = np.zeros(BLOCK, np.uint32), np.ones(BLOCK, np.float32)
    for task in range(thread, n_levels * parts, threads):
        level, piece = task % n_levels, task // n_levels
        size = levels[level, 1]
        low, high = share(size, piece, parts), share(size, piece + 1, parts)
        own = grad[levels[level, 3] * n_features :]
        own[low * n_features : high * n_features] = np.float32(0.0)
        if parts == 1:
            high = -1  # the whole level: nothing to compare
        for start in range(0, n, BLOCK):
            nearest(positions, n_dims, stride, start, level, levels, scales, index)
            count, at = min(BLOCK, n - start), start * row + level * n_features
            if n_features == 4:
                _single4(own, index, one, 0, 0, count, low, high, cotangent, at, row)
            elif n_features == 2:
                _single2(own, index, one, 0, 0, count, low, high, cotangent, at, row)
            elif n_features == 8:
                _single8(own, index, one, 0, 0, count, low, high, cotangent, at, row)
            else:
                _single1(own, index, one, 0, 0, count, low, high, cotangent, at, row)
    restore_denormals(mode)


# --- entry points ------------------------------------------------------------------------------------------


def are_neighbours(positions: np.ndarray) -> bool:
    """Whether points [n, D] that follow each other mostly lie close together, as along rays; judged by a few."""
    if len(positions) < 2:
        return True
    first = np.linspace(0, len(positions) - 2, 64).astype(np.int64)
    with np.errstate(invalid="ignore", over="ignore"):  # positions may be anything
        apart = np.abs(positions[first + 1] - positions[first]).max(axis=1)
    return int(np.count_nonzero(apart < 1 / 64)) > len(first) // 2


def grid_encode_forward(positions, table, layout: GridLayout, interpolation: str, precision: str) -> torch.Tensor:
    """Features [n, L*F] of positions [n, D]; see `hashfield.ops.grid_encode`."""
    n = positions.shape[0]
    out = torch.from_numpy(recycled("grid_encode", n * layout.n_output).reshape(n, layout.n_output))
    flat = bf16_words(table) if precision == "bfloat16" else as_array(table).reshape(-1)
    if n:
        # Points in no order find a level of a large table in cache only while many of them read it in turn. Points
        # along rays find their neighbours' lines anyway, as all do in a small table, and then small chunks keep
        # the output in cache.
        small = flat.nbytes < 8 << 20 or are_neighbours(as_array(positions))
        chunk = 2048 if small else 2**18
        planes, levels, features = to_planes(as_array(positions)), level_table(layout), as_array(out).reshape(-1)
        if interpolation == "nearest":
            launch(
                _forward_nearest, planes, layout.n_dims, n, flat, layout.n_features_per_level, levels, layout.scales,
                features, chunk,
            )  # fmt: skip
        else:
            launch(
                _forward, planes, layout.n_dims, n, flat, layout.n_features_per_level, levels, layout.scales,
                interpolation == "smoothstep", features, chunk,
            )  # fmt: skip
    return out


def grid_encode_backward(
    positions, table, layout: GridLayout, interpolation: str, precision: str, grad_output,
    needs_table: bool, needs_positions: bool, room: int = 0,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """Gradients to the table and the positions for the cotangent [n, L*F]. Nearest has none to positions.

    `room` numbers are left free in front of the table's gradient, in the same memory."""
    n, n_dims = positions.shape
    planes, levels = to_planes(as_array(positions)), level_table(layout)
    smoothstep, cotangent = interpolation == "smoothstep", as_array(grad_output).reshape(-1)
    grad_table = grad_positions = None
    if needs_table:
        shape = (layout.n_entries, layout.n_features_per_level)
        grad_table = torch.from_numpy(recycled("grid_encode.grad_table", room + table.numel()))[room:].view(shape)
        parts = -(-n_threads() // layout.n_levels)
        if not n:
            grad_table.zero_()
        elif interpolation == "nearest":
            launch(
                _backward_nearest, planes, n_dims, n, as_array(grad_table).reshape(-1), layout.n_features_per_level,
                levels, layout.scales, cotangent, parts,
            )  # fmt: skip
        else:
            launch(
                _backward_table, planes, n_dims, n, as_array(grad_table).reshape(-1), layout.n_features_per_level,
                levels, layout.scales, smoothstep, cotangent, parts,
            )  # fmt: skip
    if needs_positions:
        values = table.detach().to(torch.bfloat16).float() if precision == "bfloat16" else table
        planes_grad = np.zeros_like(planes)
        if n:
            launch(
                _backward_positions, planes, n_dims, n, as_array(values).reshape(-1), layout.n_features_per_level,
                levels, layout.scales, smoothstep, cotangent, planes_grad,
            )  # fmt: skip
        grad_positions = torch.from_numpy(np.ascontiguousarray(planes_grad.reshape(n_dims, -1)[:, :n].T))
    return grad_table, grad_positions
