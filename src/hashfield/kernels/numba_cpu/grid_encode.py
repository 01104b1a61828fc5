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
from hashfield.kernels.numba_cpu.encoders import (
    add_gradient,
    add_position_gradient,
    encode_range,
    encoder_scratch,
    implements,
)
from hashfield.kernels.numba_cpu.grid_corners import (
    BLOCK,
    Corners,
    GridEncoder,
    axes,
    cell_and_fraction,
    corners,
    eased,
    is_smooth,
    nearest,
    slope,
)
from hashfield.kernels.numba_cpu.grid_inputs import bf16_words, level_scales, level_table, lookup_table, to_planes
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
    """Write out[start + i*row + f] = sum over corners of weight * table[index, f], of one level's table.

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


@implements("encoder_scratch", GridEncoder)
def _encoder_scratch(encoder):
    slots = (2 * BLOCK) << axes(encoder)
    return Corners(np.zeros(slots, np.uint32), np.zeros(slots, np.float32), np.zeros(slots // 2, np.float32))


@implements("encode_range", GridEncoder)
def _encode_range(encoder, positions, begin, end, out, row, scratch):
    n_dims, n_features = axes(encoder), encoder.n_features
    table, levels, index, weight = encoder.table, encoder.levels, scratch.index, scratch.weight
    half = BLOCK << n_dims
    for level in range(encoder.n_levels):
        own = table[levels[level, 3] * n_features :]
        at = 0
        corners(encoder, positions, begin, level, scratch, at)
        for start in range(begin, end, BLOCK):
            following = start + BLOCK
            if following < end:
                corners(encoder, positions, following, level, scratch, half - at)
            count = min(BLOCK, end - start)
            where_to = (start - begin) * row + level * n_features
            read_block(own, n_features, n_dims, index, weight, at, half - at, count, out, where_to, row)
            at = half - at


@kernel
def _forward(encoder, positions, n, out, chunk, thread, threads):
    row = encoder.n_levels * encoder.n_features
    mode = flush_denormals()
    scratch = encoder_scratch(encoder)
    first, last = share(n, thread, threads), share(n, thread + 1, threads)
    for begin in range(first, last, chunk):
        encode_range(encoder, positions, begin, min(last, begin + chunk), out[begin * row :], row, scratch)
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


@implements("add_gradient", GridEncoder)
def _add_gradient(encoder, positions, n, grad, level, piece, parts, cotangent, start, row, scratch):
    n_dims, n_features = axes(encoder), encoder.n_features
    index, weight = scratch.index, scratch.weight
    half = BLOCK << n_dims
    size = encoder.levels[level, 1]
    low, high = share(size, piece, parts), share(size, piece + 1, parts)
    if parts == 1:
        high = -1  # the whole level: nothing to compare
    own = grad[encoder.levels[level, 3] * n_features :]
    at = 0
    corners(encoder, positions, 0, level, scratch, at)
    for point in range(0, n, BLOCK):
        following = point + BLOCK
        if following < n:
            corners(encoder, positions, following, level, scratch, half - at)
        count = min(BLOCK, n - point)
        first = start + point * row
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
def _backward_table(encoder, positions, n, grad, cotangent, parts, thread, threads):
    n_levels, n_features = encoder.n_levels, encoder.n_features
    mode = flush_denormals()
    scratch = encoder_scratch(encoder)
    for task in range(thread, n_levels * parts, threads):
        level, piece = task % n_levels, task // n_levels
        size, first = encoder.levels[level, 1], encoder.levels[level, 3]
        low, high = first + share(size, piece, parts), first + share(size, piece + 1, parts)
        grad[low * n_features : high * n_features] = np.float32(0.0)
        add_gradient(
            encoder, positions, n, grad, level, piece, parts, cotangent, level * n_features, n_levels * n_features, scratch
        )
    restore_denormals(mode)


def _dotters(n: int, is_bf16: bool):
    load_features, load_features_bf16, _, _ = FEATURES[n]
    fetch = load_features_bf16 if is_bf16 else load_features

    @inline
    def dots(table, index, at, ahead, n_corners, count, cotangent, start, row, out):
        for i in range(count):
            g = load_features(cotangent, start + i * row)
            for c in range(n_corners):
                k = c * BLOCK + i
                prefetch(table, peek(index, ahead + k) * n)
                poke(out, k, reduce_add(fetch(table, peek(index, at + k) * n) * g))

    return dots


_DOTTERS = {key: _dotters(*key) for key in itertools.product((1, 2, 4, 8), (False, True))}


@overloaded
def dot_corners(table, n_features, index, at, ahead, n_corners, count, cotangent, start, row, out):
    """Write out[c*BLOCK + i] = table[index[at + c*BLOCK + i]] . cotangent[start + i*row:], of one level's table."""
    d1, d2, d4, d8 = (_DOTTERS[n, table.dtype == types.uint16] for n in (1, 2, 4, 8))

    def dots(table, n_features, index, at, ahead, n_corners, count, cotangent, start, row, out):
        if n_features == 4:
            d4(table, index, at, ahead, n_corners, count, cotangent, start, row, out)
        elif n_features == 2:
            d2(table, index, at, ahead, n_corners, count, cotangent, start, row, out)
        elif n_features == 8:
            d8(table, index, at, ahead, n_corners, count, cotangent, start, row, out)
        else:
            d1(table, index, at, ahead, n_corners, count, cotangent, start, row, out)

    return dots


@implements("add_position_gradient", GridEncoder)
def _add_position_gradient(encoder, positions, begin, end, cotangent, start, level_step, row, grad, scratch):
    """Add scale * S'(f_d) * sum over the other axes' corners of weights * (right - left).cotangent to grad [D, stride]."""
    n_dims, n_features, smoothstep = axes(encoder), encoder.n_features, is_smooth(encoder)
    table, index, dot = encoder.table, scratch.index, scratch.dot
    stride, n_corners, one = positions.size // n_dims, 1 << n_dims, splat(1.0)
    half = BLOCK << n_dims
    for level in range(encoder.n_levels):
        own = table[encoder.levels[level, 3] * n_features :]
        at = 0
        corners(encoder, positions, begin, level, scratch, at)
        for point in range(begin, end, BLOCK):
            if point + BLOCK < end:
                corners(encoder, positions, point + BLOCK, level, scratch, half - at)
            count, first = min(BLOCK, end - point), start + level * level_step + point * row
            dot_corners(own, n_features, index, at, half - at, n_corners, count, cotangent, first, row, dot)
            at = half - at
            scale = splat(encoder.scales[level])
            for i in range(0, BLOCK, LANES):
                x, y = load(positions, point + i), load(positions, stride + point + i)
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
                    z = load(positions, 2 * stride + point + i)
                    _, fz = cell_and_fraction(z, scale)
                    sz = slope(z, scale, fz, smoothstep)
                    fz = eased(fz, smoothstep)
                    gz = one - fz
                    d4, d5 = load(dot, 4 * BLOCK + i), load(dot, 5 * BLOCK + i)
                    d6, d7 = load(dot, 6 * BLOCK + i), load(dot, 7 * BLOCK + i)
                    px = gz * (gy * (d1 - d0) + fy * (d3 - d2)) + fz * (gy * (d5 - d4) + fy * (d7 - d6))
                    py = gz * (gx * (d2 - d0) + fx * (d3 - d1)) + fz * (gx * (d6 - d4) + fx * (d7 - d5))
                    pz = gy * (gx * (d4 - d0) + fx * (d5 - d1)) + fy * (gx * (d6 - d2) + fx * (d7 - d3))
                    j = 2 * stride + point + i
                    store(grad, j, load(grad, j) + sz * pz)
                j = point + i
                store(grad, j, load(grad, j) + sx * px)
                j = stride + point + i
                store(grad, j, load(grad, j) + sy * py)


@kernel
def _backward_positions(encoder, positions, n, cotangent, grad, thread, threads):
    """Add to grad, laid out as positions; whole blocks of points to a thread."""
    n_features, n_blocks = encoder.n_features, (n + BLOCK - 1) // BLOCK
    mode = flush_denormals()
    scratch = encoder_scratch(encoder)
    begin, end = share(n_blocks, thread, threads) * BLOCK, min(n, share(n_blocks, thread + 1, threads) * BLOCK)
    row = encoder.n_levels * n_features
    add_position_gradient(encoder, positions, begin, end, cotangent, 0, n_features, row, grad, scratch)
    restore_denormals(mode)


# --- nearest interpolation: one corner of weight 1, apart from the kernels above, which stay as they are --------


_SINGLE = {key: _readers(key[0], 1, *key[1:]) for key in itertools.product((1, 2, 4, 8), (False, True), (False, True))}
_single1, _single2, _single4, _single8 = (_adders(n, 1) for n in (1, 2, 4, 8))


@overloaded
def read_nearest(table, n_features, index, one, count, out, start, row):
    """Write out[start + i*row + f] = table[index[i], f]; `one` holds ones, the corners' weights."""
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
def _forward_nearest(encoder, positions, n, out, chunk, thread, threads):
    n_features, levels = encoder.n_features, encoder.levels
    row = encoder.n_levels * n_features
    mode = flush_denormals()
    index, one = np.zeros(BLOCK, np.uint32), np.ones(BLOCK, np.float32)
    # Shares begin on whole blocks, so that none is computed twice.
    n_blocks = (n + BLOCK - 1) // BLOCK
    first, last = share(n_blocks, thread, threads) * BLOCK, min(n, share(n_blocks, thread + 1, threads) * BLOCK)
    for begin in range(first, last, chunk):
        for level in range(encoder.n_levels):
            own = encoder.table[levels[level, 3] * n_features :]
            for start in range(begin, min(last, begin + chunk), BLOCK):
                nearest(encoder, positions, start, level, index)
                count = min(BLOCK, last - start)
                read_nearest(own, n_features, index, one, count, out, start * row + level * n_features, row)
    restore_denormals(mode)


@kernel
def _backward_nearest(encoder, positions, n, grad, cotangent, parts, thread, threads):
    """The table's gradient, cleared and then added to; every level, or part of one, has one writer."""
    n_levels, n_features = encoder.n_levels, encoder.n_features
    row = n_levels * n_features
    mode = flush_denormals()
    index, one = np.zeros(BLOCK, np.uint32), np.ones(BLOCK, np.float32)
    for task in range(thread, n_levels * parts, threads):
        level, piece = task % n_levels, task // n_levels
        size = encoder.levels[level, 1]
        low, high = share(size, piece, parts), share(size, piece + 1, parts)
        own = grad[encoder.levels[level, 3] * n_features :]
        own[low * n_features : high * n_features] = np.float32(0.0)
        if parts == 1:
            high = -1  # the whole level: nothing to compare
        for start in range(0, n, BLOCK):
            nearest(encoder, positions, start, level, index)
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


def grid_encoder(layout: GridLayout, table: np.ndarray, interpolation: str) -> GridEncoder:
    """Encoder of any grid, over a flat table."""
    return GridEncoder(
        table, layout.n_features_per_level, layout.n_levels, level_table(layout), level_scales(layout), layout.n_dims,
        interpolation == "smoothstep",
    )  # fmt: skip


def network_encoder(network) -> GridEncoder:
    """Encoder of an `EncodedNetwork`."""
    return grid_encoder(network.layout, lookup_table(network), network.interpolation)


def field_encoder(field) -> GridEncoder:
    """Encoder of a radiance field, whose grid is always 3-D and linear."""
    return grid_encoder(field.layout, lookup_table(field), "linear")._replace(n_dims=None, smoothstep=None)


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
        encoder, features = grid_encoder(layout, flat, interpolation), as_array(out).reshape(-1)
        launch(_forward_nearest if interpolation == "nearest" else _forward, encoder, to_planes(positions), n, features, chunk)
    return out


def grid_encode_backward(
    positions, table, layout: GridLayout, interpolation: str, precision: str, grad_output,
    needs_table: bool, needs_positions: bool, room: int = 0,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """Gradients to the table and the positions for the cotangent [n, L*F]. Nearest has none to positions.

    `room` numbers are left free in front of the table's gradient, in the same memory."""
    n, n_dims = positions.shape
    planes, cotangent = to_planes(positions), as_array(grad_output).reshape(-1)
    grad_table = grad_positions = None
    if needs_table:
        shape = (layout.n_entries, layout.n_features_per_level)
        grad_table = torch.from_numpy(recycled("grid_encode.grad_table", room + table.numel()))[room:].view(shape)
        if not n:
            grad_table.zero_()
        else:
            flat = as_array(grad_table).reshape(-1)
            encoder = grid_encoder(layout, flat, interpolation)  # table values have no part in their gradient
            add = _backward_nearest if interpolation == "nearest" else _backward_table
            launch(add, encoder, planes, n, flat, cotangent, -(-n_threads() // layout.n_levels))
    if needs_positions:
        planes_grad = np.zeros(planes.size, np.float32)
        if n:
            flat = bf16_words(table) if precision == "bfloat16" else as_array(table).reshape(-1)
            launch(_backward_positions, grid_encoder(layout, flat, interpolation), planes, n, cotangent, planes_grad)
        grad_positions = torch.from_numpy(np.ascontiguousarray(planes_grad.reshape(n_dims, -1)[:, :n].T))
    return grad_table, grad_positions
