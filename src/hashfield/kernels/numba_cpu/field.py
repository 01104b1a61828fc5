"""The radiance field's two networks over blocks of samples, and the march of one wave: shared by training and
rendering.

A wave takes a few more samples of every ray that is still alive, encodes them, and asks the density network.
Samples behind an opaque surface are never marched, and the colour network sees only those that are kept.
"""

import numpy as np

from hashfield.kernels.numba_cpu.common import exp, part
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import encode_range
from hashfield.kernels.numba_cpu.march import next_sample, ray_line, t_from_steps
from hashfield.kernels.numba_cpu.mlp import ROWS, paired, product_relu, product_store, put
from hashfield.kernels.numba_cpu.simd import LANES, load, maximum, peek, poke, splat, store

N_GEOMETRY = 16  # outputs of the density network; the first is the logarithm of density
N_DIRECTION = 16  # spherical harmonics of degree 4
N_COLOR_IN = N_GEOMETRY + N_DIRECTION
# Samples a wave takes of each ray: first few, since most rays of a trained scene end within them.
WAVES = np.array([4, 4, 8, 16, 32], np.int64)
# Largest density whose derivative is still followed (instant-ngp clamps the exponent at 15).
STEEPEST = np.float32(np.exp(15.0))


@part
def march_wave(
    origin, direction, t_max, first_ray, alive, n_alive, quota, n_next, ended, counts, words, coarse, n_cascades,
    steps, box_min, inverse_side, positions, stride, t, dt,
):  # fmt: skip
    """Up to `quota` further samples of each living ray; returns how many were found.

    `alive` holds ray numbers relative to first_ray, `n_next` where each continues on its lattice. Samples are
    written in the order of `alive`; counts[k] is how many belong to alive[k].
    """
    m = 0
    for k in range(n_alive):
        r = alive[k]
        ray = first_ray + r
        line = ray_line(origin, direction, ray)
        ox, oy, oz, dx, dy, dz = line[:6]
        n, end = n_next[r], np.float64(t_max[ray])
        following = max(t_from_steps(n, steps), 0.0)
        before = m
        while m - before < quota:
            n, at, step = next_sample(line, n, following, end, words, coarse, n_cascades, steps)
            if at < 0.0:
                ended[r] = True
                break
            poke(positions, m, np.float32((ox + at * dx - box_min) * inverse_side))
            poke(positions, stride + m, np.float32((oy + at * dy - box_min) * inverse_side))
            poke(positions, 2 * stride + m, np.float32((oz + at * dz - box_min) * inverse_side))
            poke(t, m, np.float32(at))
            poke(dt, m, np.float32(step))
            m += 1
            n += 1.0
            following = at + step
        n_next[r] = n
        counts[k] = m - before
    for i in range(m, min(stride, m + 2 * BLOCK)):  # what the last block reads beyond the samples
        for axis in range(3):
            poke(positions, axis * stride + i, np.float32(0.0))
    return m


@part
def log_density(
    positions, stride, m, table, n_features, levels, scales, index, weight, features, row, density_net, hidden, raw,
    geometry, out,
):  # fmt: skip
    """Encode m samples and ask the density network: features [m, row], geometry [m, 16] (or empty, if nobody needs it)
    and out [m], the log-density before the bias, taken from the float32 sums `raw` [ROWS, 16] whatever the storage."""
    w1t, w2t, width, n_in = density_net[2], density_net[3], density_net[4], density_net[5]
    p = paired(features)
    encode_range(positions, 3, stride, 0, m, table, n_features, levels, scales, False, features, row, index, weight)
    for begin in range(0, m, ROWS):
        rows = min(ROWS, m - begin)
        product_relu(
            features, begin * row, row, p, w1t, 0, p * width, hidden, 0, width, rows, width, (n_in + p - 1) // p,
            hidden, 0,
        )  # fmt: skip
        product_store(
            hidden, 0, width, p, w2t, 0, p * N_GEOMETRY, raw, 0, N_GEOMETRY, rows, N_GEOMETRY, width // p, hidden, 0
        )
        if geometry.size > 0:
            put(raw, 0, geometry, begin * N_GEOMETRY, rows * N_GEOMETRY)
        for s in range(rows):
            poke(out, begin + s, peek(raw, s * N_GEOMETRY))


@part
def density_wave(
    positions, stride, m, table, n_features, levels, scales, index, weight, features, row, density_net, hidden,
    raw, geometry, dt, tau, alpha, bias, is_relu,
):  # fmt: skip
    """Density of m samples: features [m, row], geometry [m, 16], tau = density * dt and alpha = 1 - e^-tau.

    The density is e^(raw + bias), or, where is_relu is set, max(0, raw + bias)."""
    log_density(
        positions, stride, m, table, n_features, levels, scales, index, weight, features, row, density_net, hidden,
        raw, geometry, tau,
    )  # fmt: skip
    one, zero, bias_v = splat(np.float32(1.0)), splat(np.float32(0.0)), splat(bias)
    if is_relu:
        for i in range(0, m, LANES):
            thickness = maximum(load(tau, i) + bias_v, zero) * load(dt, i)
            store(tau, i, thickness)
            store(alpha, i, one - exp(zero - thickness))
        return
    for i in range(0, m, LANES):
        thickness = exp(load(tau, i) + bias_v) * load(dt, i)
        store(tau, i, thickness)
        store(alpha, i, one - exp(zero - thickness))


@part
def color_blocks(color_in, n, color_net, hidden1, hidden2, out, out_row, rgb):
    """Raw colours of n samples: rgb [n, 3] before the sigmoid; both hidden layers are kept, [n, width]."""
    w1t, w2t, w3t, width = color_net[3], color_net[4], color_net[5], color_net[6]
    p = paired(color_in)
    for begin in range(0, n, ROWS):
        rows = min(ROWS, n - begin)
        product_relu(
            color_in, begin * N_COLOR_IN, N_COLOR_IN, p, w1t, 0, p * width,
            hidden1, begin * width, width, rows, width, N_COLOR_IN // p, hidden1, 0,
        )  # fmt: skip
        product_relu(
            hidden1, begin * width, width, p, w2t, 0, p * width,
            hidden2, begin * width, width, rows, width, width // p, hidden1, 0,
        )  # fmt: skip
        product_store(
            hidden2, begin * width, width, p, w3t, 0, p * out_row,
            out, 0, out_row, rows, out_row, width // p, hidden1, 0,
        )  # fmt: skip
        for s in range(rows):
            for c in range(3):
                poke(rgb, (begin + s) * 3 + c, peek(out, s * out_row + c))
