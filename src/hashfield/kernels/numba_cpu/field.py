"""The radiance field's two networks over blocks of samples, and the march of one wave: shared by training and
rendering.

A wave takes a few more samples of every ray that is still alive, encodes them, and asks the density network.
Samples behind an opaque surface are never marched, and the colour network sees only those that are kept.
"""

import numpy as np

from hashfield.kernels.numba_cpu.common import exp, inline, part
from hashfield.kernels.numba_cpu.grid_encode import BLOCK, encode_range
from hashfield.kernels.numba_cpu.march import next_sample
from hashfield.kernels.numba_cpu.mlp import ROWS, product_relu, product_store
from hashfield.kernels.numba_cpu.simd import LANES, load, splat, store

N_GEOMETRY = 16  # outputs of the density network; the first is the logarithm of density
N_DIRECTION = 16  # spherical harmonics of degree 4
N_COLOR_IN = N_GEOMETRY + N_DIRECTION
# Samples a wave takes of each ray: first few, since most rays of a trained scene end within them.
WAVES = np.array([4, 4, 8, 16, 32], np.int64)
# Largest density whose derivative is still followed (instant-ngp clamps the exponent at 15).
STEEPEST = np.float32(np.exp(15.0))


@part
def march_wave(
    origin, direction, t_max, first_ray, alive, n_alive, quota, n_next, ended, counts, words, spread, n_cascades,
    steps, box_min, inverse_side, positions, stride, t, dt, sample_ray,
):  # fmt: skip
    """Up to `quota` further samples of each living ray; returns how many were found.

    `alive` holds ray numbers relative to first_ray, `n_next` where each continues on its lattice. Samples are
    written in the order of `alive`; counts[k] is how many belong to alive[k].
    """
    m = 0
    for k in range(n_alive):
        r = alive[k]
        ray = first_ray + r
        ox, oy, oz = np.float64(origin[ray, 0]), np.float64(origin[ray, 1]), np.float64(origin[ray, 2])
        dx, dy, dz = np.float64(direction[ray, 0]), np.float64(direction[ray, 1]), np.float64(direction[ray, 2])
        n, end = n_next[r], np.float64(t_max[ray])
        before = m
        while m - before < quota:
            n, at, step = next_sample(ox, oy, oz, dx, dy, dz, n, end, words, spread, n_cascades, steps)
            if at < 0.0:
                ended[r] = True
                break
            positions[m] = (ox + at * dx - box_min) * inverse_side
            positions[stride + m] = (oy + at * dy - box_min) * inverse_side
            positions[2 * stride + m] = (oz + at * dz - box_min) * inverse_side
            t[m], dt[m], sample_ray[m] = at, step, r
            m += 1
            n += 1.0
        n_next[r] = n
        counts[k] = m - before
    for i in range(m, min(stride, m + 2 * BLOCK)):
        positions[i] = positions[stride + i] = positions[2 * stride + i] = np.float32(0.0)
    return m


@part
def density_wave(
    positions, stride, m, table, n_features, levels, scales, index, weight, features, row, density_net, hidden,
    geometry, dt, tau, alpha, bias,
):  # fmt: skip
    """Encode m samples and ask the density network: features [m, row], geometry [m, 16], tau = density * dt
    and alpha = 1 - e^-tau."""
    w1t, w2t, width, n_in = density_net[2], density_net[3], density_net[4], density_net[5]
    encode_range(positions, 3, stride, 0, m, table, n_features, levels, scales, False, features, row, index, weight)
    for begin in range(0, m, ROWS):
        rows = min(ROWS, m - begin)
        product_relu(features, begin * row, row, 1, w1t, 0, width, hidden, 0, width, rows, width, n_in, hidden, 0)
        product_store(
            hidden, 0, width, 1, w2t, 0, N_GEOMETRY,
            geometry, begin * N_GEOMETRY, N_GEOMETRY, rows, N_GEOMETRY, width, hidden, 0,
        )  # fmt: skip
    for i in range(m):
        tau[i] = geometry[i * N_GEOMETRY]
    one, zero, bias_v = splat(np.float32(1.0)), splat(np.float32(0.0)), splat(bias)
    for i in range(0, m, LANES):
        thickness = exp(load(tau, i) + bias_v) * load(dt, i)
        store(tau, i, thickness)
        store(alpha, i, one - exp(zero - thickness))


@part
def color_blocks(color_in, n, color_net, hidden1, hidden2, out, out_row, rgb):
    """Raw colours of n samples: rgb [n, 3] before the sigmoid; both hidden layers are kept, [n, width]."""
    w1t, w2t, w3t, width = color_net[3], color_net[4], color_net[5], color_net[6]
    for begin in range(0, n, ROWS):
        rows = min(ROWS, n - begin)
        product_relu(
            color_in, begin * N_COLOR_IN, N_COLOR_IN, 1, w1t, 0, width,
            hidden1, begin * width, width, rows, width, N_COLOR_IN, hidden1, 0,
        )  # fmt: skip
        product_relu(
            hidden1, begin * width, width, 1, w2t, 0, width,
            hidden2, begin * width, width, rows, width, width, hidden1, 0,
        )  # fmt: skip
        product_store(
            hidden2, begin * width, width, 1, w3t, 0, out_row,
            out, 0, out_row, rows, out_row, width, hidden1, 0,
        )  # fmt: skip
        for s in range(rows):
            for c in range(3):
                rgb[(begin + s) * 3 + c] = out[s * out_row + c]


@inline
def copy(source, start, target, at, count):
    """Copy `count` floats, a multiple of LANES where the arrays are padded to it."""
    for i in range(0, count, LANES):
        store(target, at + i, load(source, start + i))
