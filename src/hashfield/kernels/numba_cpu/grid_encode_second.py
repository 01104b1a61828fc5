"""Second derivatives of the grid encoding on CPUs: what a loss on gradients (an eikonal term) sends back.

The first derivative with respect to positions is g_j = sum over levels and corners c of dW_c/dx_j * (T_c . u), where u is
the cotangent of the features, T the table and W_c the corner's weight, a product of one factor per axis. For a cotangent
v of g this file computes

    to u:          sum over c of V_c T_c          V_c = sum over j of v_j dW_c/dx_j
    to the table:  V_c u added to entry c         (each level has one writer, so nothing races)
    to positions:  sum over c and j of v_j d2W_c/dx_j dx_k * (T_c . u)

Plain loops over points: the scattered reads dominate. Two dimensions run as three with the third coordinate fixed.
"""

import numpy as np
import torch

from hashfield.geometry.grid_layout import HASH_PRIMES, GridLayout
from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    restore_denormals,
    share,
)

_MASK = np.uint64(0xFFFFFFFF)
_PRIME_Y, _PRIME_Z = np.uint64(HASH_PRIMES[1]), np.uint64(HASH_PRIMES[2])


@inline
def _axis(x, scale, smoothstep):
    """Along one axis: the cell, and the upper corner's weight with its first and second derivative to x."""
    one = np.float32(1.0)
    q = np.float32(np.float64(x) * np.float64(scale) + 0.5)
    if not abs(q) < np.float32(2.0**31):
        return np.uint64(0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    cell = np.floor(q)
    f = q - cell
    whole = np.uint64(np.int64(cell)) & _MASK
    if smoothstep:
        w = f * f * (np.float32(3.0) - np.float32(2.0) * f)
        slope = scale * np.float32(6.0) * f * (one - f)
        bend = scale * scale * (np.float32(6.0) - np.float32(12.0) * f)
        return whole, w, slope, bend
    return whole, f, scale, np.float32(0.0)


@inline
def _entry(ix, iy, iz, resolution, size, hashed):
    """Table entry of a vertex within its level."""
    if hashed:
        return np.int64((ix ^ (iy * _PRIME_Y) ^ (iz * _PRIME_Z)) & (size - np.uint64(1)))
    k = (ix + iy * resolution + iz * resolution * resolution) & _MASK
    if k >= size:
        k = k % size
    return np.int64(k)


@inline
def _corner(c, ix, iy, iz, resolution, size, hashed):
    one = np.uint64(1)
    jx = (ix + one) & _MASK if c & 1 else ix
    jy = (iy + one) & _MASK if c & 2 else iy
    jz = (iz + one) & _MASK if c & 4 else iz
    return _entry(jx, jy, jz, resolution, size, hashed)


@inline
def _turned(c, wx, wy, wz, sx, sy, sz, v0, v1, v2):
    """V_c: the derivative of a corner's weight along v; s are the slopes of the weights."""
    one = np.float32(1.0)
    ax, dx = (wx, sx) if c & 1 else (one - wx, -sx)
    ay, dy = (wy, sy) if c & 2 else (one - wy, -sy)
    az, dz = (wz, sz) if c & 4 else (one - wz, -sz)
    return v0 * dx * ay * az + ax * (v1 * dy * az + v2 * ay * dz)


@kernel
def _points(
    positions, v, table, cotangent, levels, scales, smoothstep, to_cotangent, to_positions, wants_positions,
    thread, threads,
):  # fmt: skip
    """What goes to the cotangent and to positions; points are shared out."""
    n, n_dims = positions.shape
    n_features = table.shape[1]
    n_corners = 1 << n_dims
    mode = flush_denormals()
    d = np.zeros(8, np.float32)
    zero, one = np.float32(0.0), np.float32(1.0)
    for i in range(share(n, thread, threads), share(n, thread + 1, threads)):
        v0, v1, v2 = v[i, 0], v[i, 1], zero
        if n_dims == 3:
            v2 = v[i, 2]
        g0, g1, g2 = zero, zero, zero
        for level in range(scales.size):
            resolution, size = np.uint64(levels[level, 0]), np.uint64(levels[level, 1])
            hashed, first = levels[level, 2] != 0, levels[level, 3]
            ix, wx, sx, bx = _axis(positions[i, 0], scales[level], smoothstep)
            iy, wy, sy, by = _axis(positions[i, 1], scales[level], smoothstep)
            iz, wz, sz, bz = np.uint64(0), zero, zero, zero
            if n_dims == 3:
                iz, wz, sz, bz = _axis(positions[i, 2], scales[level], smoothstep)
            at = level * n_features
            for f in range(n_features):
                to_cotangent[i, at + f] = zero
            for c in range(n_corners):
                entry = first + _corner(c, ix, iy, iz, resolution, size, hashed)
                turned = _turned(c, wx, wy, wz, sx, sy, sz, v0, v1, v2)
                total = zero
                for f in range(n_features):
                    value = table[entry, f]
                    to_cotangent[i, at + f] += turned * value
                    total += value * cotangent[i, at + f]
                d[c] = total
            if wants_positions:
                ux, uy, uz = one - wx, one - wy, one - wz
                # Differences along each axis, interpolated over the others, and along two axes.
                x = uz * (uy * (d[1] - d[0]) + wy * (d[3] - d[2])) + wz * (uy * (d[5] - d[4]) + wy * (d[7] - d[6]))
                y = uz * (ux * (d[2] - d[0]) + wx * (d[3] - d[1])) + wz * (ux * (d[6] - d[4]) + wx * (d[7] - d[5]))
                z = uy * (ux * (d[4] - d[0]) + wx * (d[5] - d[1])) + wy * (ux * (d[6] - d[2]) + wx * (d[7] - d[3]))
                xy = uz * (d[3] - d[2] - d[1] + d[0]) + wz * (d[7] - d[6] - d[5] + d[4])
                xz = uy * (d[5] - d[4] - d[1] + d[0]) + wy * (d[7] - d[6] - d[3] + d[2])
                yz = ux * (d[6] - d[4] - d[2] + d[0]) + wx * (d[7] - d[5] - d[3] + d[1])
                g0 += v0 * bx * x + sx * (v1 * sy * xy + v2 * sz * xz)
                g1 += v1 * by * y + sy * (v0 * sx * xy + v2 * sz * yz)
                if n_dims == 3:
                    g2 += v2 * bz * z + sz * (v0 * sx * xz + v1 * sy * yz)
        if wants_positions:
            to_positions[i, 0], to_positions[i, 1] = g0, g1
            if n_dims == 3:
                to_positions[i, 2] = g2
    restore_denormals(mode)


@kernel
def _table(positions, v, grad, cotangent, levels, scales, smoothstep, parts, thread, threads):
    """What goes to the table; levels, or parts of their entries where threads outnumber them, are shared out."""
    n, n_dims = positions.shape
    n_features, n_levels = grad.shape[1], scales.size
    mode = flush_denormals()
    zero = np.float32(0.0)
    for task in range(thread, n_levels * parts, threads):
        level, piece = n_levels - 1 - task % n_levels, task // n_levels
        resolution, size = np.uint64(levels[level, 0]), np.uint64(levels[level, 1])
        hashed, first, at = levels[level, 2] != 0, levels[level, 3], level * n_features
        low, high = share(levels[level, 1], piece, parts), share(levels[level, 1], piece + 1, parts)
        grad[first + low : first + high] = zero
        for i in range(n):
            ix, wx, sx, _ = _axis(positions[i, 0], scales[level], smoothstep)
            iy, wy, sy, _ = _axis(positions[i, 1], scales[level], smoothstep)
            iz, wz, sz, v2 = np.uint64(0), zero, zero, zero
            if n_dims == 3:
                iz, wz, sz, _ = _axis(positions[i, 2], scales[level], smoothstep)
                v2 = v[i, 2]
            for c in range(1 << n_dims):
                entry = _corner(c, ix, iy, iz, resolution, size, hashed)
                if low <= entry < high:
                    turned = _turned(c, wx, wy, wz, sx, sy, sz, v[i, 0], v[i, 1], v2)
                    for f in range(n_features):
                        grad[first + entry, f] += turned * cotangent[i, at + f]
    restore_denormals(mode)


def grid_encode_second(
    positions, table, layout: GridLayout, interpolation: str, precision: str, cotangent, v,
    needs_positions: bool, needs_table: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """Gradients of v . (position gradient of the encoding): to the cotangent, the positions and the table."""
    values = table.detach().to(torch.bfloat16).float() if precision == "bfloat16" else table
    columns = (layout.resolutions, layout.entries, layout.is_hashed, layout.level_offsets[:-1])
    levels = np.stack([np.asarray(c).astype(np.int64) for c in columns], axis=1)
    smoothstep = interpolation == "smoothstep"
    to_cotangent, to_positions = torch.empty_like(cotangent), torch.empty_like(positions)
    x, turn, u = as_array(positions), as_array(v), as_array(cotangent)
    launch(
        _points, x, turn, as_array(values), u, levels, layout.scales, smoothstep, as_array(to_cotangent),
        as_array(to_positions), needs_positions,
    )  # fmt: skip
    to_table = None
    if needs_table:
        to_table = torch.empty_like(values)
        parts = -(-n_threads() // layout.n_levels)
        launch(_table, x, turn, as_array(to_table), u, levels, layout.scales, smoothstep, parts)
    return to_cotangent, (to_positions if needs_positions else None), to_table
