"""Second derivatives of the grid encoding on CPUs: what a loss on gradients (an eikonal term) sends back.

The first derivative with respect to positions is g_j = sum over levels and corners c of dW_c/dx_j * (T_c . u), where u is
the cotangent of the features, T the table and W_c the corner's weight, a product of one factor per axis. For a cotangent
v of g this file computes

    to u:          sum over c of V_c T_c          V_c = sum over j of v_j dW_c/dx_j
    to the table:  V_c u added to entry c         (each level has one writer, so nothing races)
    to positions:  sum over c and j of v_j d2W_c/dx_j dx_k * (T_c . u)

So the first two are the encoding and its table gradient with V_c in the place of W_c.
"""

import numpy as np
import torch

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    part,
    recycled,
    restore_denormals,
    share,
)
from hashfield.kernels.numba_cpu.grid_corners import (
    BLOCK,
    cell_and_fraction,
    corners2,
    corners3,
    eased,
    fit,
    slope,
)
from hashfield.kernels.numba_cpu.grid_encode import read_block
from hashfield.kernels.numba_cpu.grid_inputs import level_scales, level_table, to_planes
from hashfield.kernels.numba_cpu.simd import (
    FEATURES,
    LANES,
    absolute,
    fma,
    load,
    peek,
    poke,
    prefetch,
    reduce_add,
    splat,
    store,
    where,
)


@inline
def _bend(x, scale, f, smoothstep):
    """Second derivative of the upper corner's weight to x: 0, or scale^2 (6 - 12 f); 0 where `slope` is."""
    if smoothstep:
        bend = scale * scale * fma(splat(-12.0), f, splat(6.0))
        return where(absolute(fma(x, scale, splat(0.5))) < splat(2.0**31), bend, splat(0.0))
    return splat(0.0)


@inline
def _axis(positions, at, scale, smoothstep):
    """Along one axis: the upper corner's weight, its first and its second derivative."""
    x = load(positions, at)
    _, f = cell_and_fraction(x, scale)
    return eased(f, smoothstep), slope(x, scale, f, smoothstep), _bend(x, scale, f, smoothstep)


@part
def _turned(positions, v, n_dims, stride, start, level, levels, scales, smoothstep, index, weight, at):
    """Indices of the corners of a block of points, and V_c in the place of their weights."""
    size, hashed = levels[level, 1], levels[level, 2] != 0
    scale, one, zero = splat(scales[level]), splat(1.0), splat(0.0)
    if n_dims == 3:
        corners3(
            positions, stride, start, scales[level], levels[level, 0], size, hashed, smoothstep, index, weight, at
        )  # fmt: skip
    else:
        corners2(
            positions, stride, start, scales[level], levels[level, 0], size, hashed, smoothstep, index, weight, at
        )  # fmt: skip
    if not hashed:
        fit(index, at, BLOCK << n_dims, size)
    for i in range(0, BLOCK, LANES):
        k, j = start + i, at + i
        fx, sx, _ = _axis(positions, k, scale, smoothstep)
        fy, sy, _ = _axis(positions, stride + k, scale, smoothstep)
        gx, gy = one - fx, one - fy
        tx, ty = sx * load(v, k), sy * load(v, stride + k)
        # For the two axes x and y: derivatives of the four products of weights along v.
        d00, d10 = zero - tx * gy - ty * gx, tx * gy - ty * fx
        d01, d11 = ty * gx - tx * fy, tx * fy + ty * fx
        if n_dims == 2:
            store(weight, j, d00)
            store(weight, j + BLOCK, d10)
            store(weight, j + 2 * BLOCK, d01)
            store(weight, j + 3 * BLOCK, d11)
        else:
            fz, sz, _ = _axis(positions, 2 * stride + k, scale, smoothstep)
            gz, tz = one - fz, sz * load(v, 2 * stride + k)
            w00, w10, w01, w11 = gx * gy, fx * gy, gx * fy, fx * fy
            store(weight, j, d00 * gz - w00 * tz)
            store(weight, j + BLOCK, d10 * gz - w10 * tz)
            store(weight, j + 2 * BLOCK, d01 * gz - w01 * tz)
            store(weight, j + 3 * BLOCK, d11 * gz - w11 * tz)
            store(weight, j + 4 * BLOCK, d00 * fz + w00 * tz)
            store(weight, j + 5 * BLOCK, d10 * fz + w10 * tz)
            store(weight, j + 6 * BLOCK, d01 * fz + w01 * tz)
            store(weight, j + 7 * BLOCK, d11 * fz + w11 * tz)


def _dotters(n: int):
    load_features, _, _, _ = FEATURES[n]

    @inline
    def dots(table, index, n_corners, count, cotangent, start, row, out):
        for i in range(count):
            g = load_features(cotangent, start + i * row)
            for c in range(n_corners):
                k = c * BLOCK + i
                poke(out, k, reduce_add(load_features(table, peek(index, k) * n) * g))

    return dots


_dots1, _dots2, _dots4, _dots8 = (_dotters(n) for n in (1, 2, 4, 8))


@part
def _bent(positions, v, n_dims, stride, start, level, scales, smoothstep, d, grad):
    """Add one level's share of what goes to positions, for a block of points; d holds T_c . u of each corner."""
    scale, one = splat(scales[level]), splat(1.0)
    for i in range(0, BLOCK, LANES):
        k = start + i
        fx, sx, bx = _axis(positions, k, scale, smoothstep)
        fy, sy, by = _axis(positions, stride + k, scale, smoothstep)
        gx, gy = one - fx, one - fy
        v0, v1 = load(v, k), load(v, stride + k)
        d0, d1, d2, d3 = load(d, i), load(d, BLOCK + i), load(d, 2 * BLOCK + i), load(d, 3 * BLOCK + i)
        # Differences along each axis, interpolated over the others, and differences along two axes.
        x, y, xy = gy * (d1 - d0) + fy * (d3 - d2), gx * (d2 - d0) + fx * (d3 - d1), d3 - d2 - d1 + d0
        if n_dims == 3:
            fz, sz, bz = _axis(positions, 2 * stride + k, scale, smoothstep)
            gz, v2 = one - fz, load(v, 2 * stride + k)
            d4, d5, d6, d7 = (
                load(d, 4 * BLOCK + i), load(d, 5 * BLOCK + i), load(d, 6 * BLOCK + i), load(d, 7 * BLOCK + i)
            )  # fmt: skip
            z = gy * (gx * (d4 - d0) + fx * (d5 - d1)) + fy * (gx * (d6 - d2) + fx * (d7 - d3))
            xz = gy * (d5 - d4 - d1 + d0) + fy * (d7 - d6 - d3 + d2)
            yz = gx * (d6 - d4 - d2 + d0) + fx * (d7 - d5 - d3 + d1)
            x = gz * x + fz * (gy * (d5 - d4) + fy * (d7 - d6))
            y = gz * y + fz * (gx * (d6 - d4) + fx * (d7 - d5))
            xy = gz * xy + fz * (d7 - d6 - d5 + d4)
            m = 2 * stride + k
            store(grad, m, load(grad, m) + v2 * bz * z + sz * (v0 * sx * xz + v1 * sy * yz))
            store(grad, k, load(grad, k) + sx * (v2 * sz * xz))
            store(grad, stride + k, load(grad, stride + k) + sy * (v2 * sz * yz))
        store(grad, k, load(grad, k) + v0 * bx * x + sx * (v1 * sy * xy))
        store(grad, stride + k, load(grad, stride + k) + v1 * by * y + sy * (v0 * sx * xy))


@kernel
def _points(
    positions, v, n_dims, n, table, n_features, levels, scales, smoothstep, cotangent, out, grad, wants_positions,
    thread, threads,
):  # fmt: skip
    """What goes to the cotangent and to positions; whole blocks of points are shared out."""
    stride, row, n_corners = positions.size // n_dims, scales.size * n_features, 1 << n_dims
    n_blocks = (n + BLOCK - 1) // BLOCK
    mode = flush_denormals()
    index, weight = np.zeros(BLOCK << n_dims, np.uint32), np.empty(BLOCK << n_dims, np.float32)
    d = np.zeros(BLOCK << n_dims, np.float32)
    begin, end = share(n_blocks, thread, threads) * BLOCK, min(n, share(n_blocks, thread + 1, threads) * BLOCK)
    for level in range(scales.size):
        own = table[levels[level, 3] * n_features :]
        for start in range(begin, end, BLOCK):
            count, first = min(BLOCK, end - start), start * row + level * n_features
            _turned(positions, v, n_dims, stride, start, level, levels, scales, smoothstep, index, weight, 0)
            read_block(own, n_features, n_dims, index, weight, 0, 0, count, out, first, row)
            if wants_positions:
                if n_features == 4:
                    _dots4(own, index, n_corners, count, cotangent, first, row, d)
                elif n_features == 2:
                    _dots2(own, index, n_corners, count, cotangent, first, row, d)
                elif n_features == 8:
                    _dots8(own, index, n_corners, count, cotangent, first, row, d)
                else:
                    _dots1(own, index, n_corners, count, cotangent, first, row, d)
                _bent(positions, v, n_dims, stride, start, level, scales, smoothstep, d, grad)
    restore_denormals(mode)


def _adders(n: int):
    load_features, _, splat_features, store_features = FEATURES[n]

    @inline
    def add(grad, index, weight, at, ahead, n_corners, count, low, high, cotangent, start, row):
        for i in range(count):
            g = load_features(cotangent, start + i * row)
            for c in range(n_corners):
                k = c * BLOCK + i
                prefetch(grad, peek(index, ahead + k) * n)
                entry = peek(index, at + k)
                if low <= entry < high:
                    w = splat_features(peek(weight, at + k))
                    store_features(grad, entry * n, fma(w, g, load_features(grad, entry * n)))

    return add


_add1, _add2, _add4, _add8 = (_adders(n) for n in (1, 2, 4, 8))


@kernel
def _table(
    positions, v, n_dims, n, grad, n_features, levels, scales, smoothstep, cotangent, parts, thread, threads
):
    """What goes to the table; levels, or parts of their entries where threads outnumber them, are shared out."""
    stride, n_levels, n_corners = positions.size // n_dims, scales.size, 1 << n_dims
    row, half = n_levels * n_features, BLOCK << n_dims
    mode = flush_denormals()
    index, weight = np.zeros(2 * half, np.uint32), np.empty(2 * half, np.float32)
    for task in range(thread, n_levels * parts, threads):
        level, piece = n_levels - 1 - task % n_levels, task // n_levels
        size = levels[level, 1]
        low, high = share(size, piece, parts), share(size, piece + 1, parts)
        own = grad[levels[level, 3] * n_features :]
        own[low * n_features : high * n_features] = np.float32(0.0)
        at = 0
        if n > 0:
            _turned(positions, v, n_dims, stride, 0, level, levels, scales, smoothstep, index, weight, at)
        for start in range(0, n, BLOCK):
            ahead = half - at
            if start + BLOCK < n:  # the next block's entries are asked for while this one's are added to
                _turned(
                    positions, v, n_dims, stride, start + BLOCK, level, levels, scales, smoothstep, index, weight, ahead
                )  # fmt: skip
            count, first = min(BLOCK, n - start), start * row + level * n_features
            if n_features == 4:
                _add4(own, index, weight, at, ahead, n_corners, count, low, high, cotangent, first, row)
            elif n_features == 2:
                _add2(own, index, weight, at, ahead, n_corners, count, low, high, cotangent, first, row)
            elif n_features == 8:
                _add8(own, index, weight, at, ahead, n_corners, count, low, high, cotangent, first, row)
            else:
                _add1(own, index, weight, at, ahead, n_corners, count, low, high, cotangent, first, row)
            at = ahead
    restore_denormals(mode)


def grid_encode_second(
    positions, table, layout: GridLayout, interpolation: str, precision: str, cotangent, v,
    needs_positions: bool, needs_table: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """Gradients of v . (position gradient of the encoding): to the cotangent, the positions and the table."""
    n, n_dims = positions.shape
    values = table.detach().to(torch.bfloat16).float() if precision == "bfloat16" else table
    planes, turn, levels = to_planes(positions), to_planes(v), level_table(layout)
    smoothstep, u = interpolation == "smoothstep", as_array(cotangent).reshape(-1)
    to_cotangent = torch.empty_like(cotangent)
    planes_grad = np.zeros_like(planes)
    if n:
        launch(
            _points, planes, turn, n_dims, n, as_array(values).reshape(-1), layout.n_features_per_level, levels,
            level_scales(layout), smoothstep, u, as_array(to_cotangent).reshape(-1), planes_grad, needs_positions,
        )  # fmt: skip
    to_positions = to_table = None
    if needs_positions:
        to_positions = torch.from_numpy(np.ascontiguousarray(planes_grad.reshape(n_dims, -1)[:, :n].T))
    if needs_table:
        to_table = torch.from_numpy(recycled("grid_encode_second", table.numel())).view(table.shape)
        launch(
            _table, planes, turn, n_dims, n, as_array(to_table).reshape(-1), layout.n_features_per_level, levels,
            level_scales(layout), smoothstep, u, -(-n_threads() // layout.n_levels),
        )  # fmt: skip
    return to_cotangent, to_positions, to_table
