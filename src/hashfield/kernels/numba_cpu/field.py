"""The radiance field's two networks over blocks of samples, and the march of one wave: shared by training and
rendering.

A wave takes a few more samples of every ray that is still alive, encodes them, and asks the density network.
Samples behind an opaque surface are never marched, and the colour network sees only those that are kept.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from hashfield.kernels.numba_cpu.common import exp, overloaded, part
from hashfield.kernels.numba_cpu.encoders import encode_range
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
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


class RayState(NamedTuple):
    """Where each ray of a chunk stands, by its number within the chunk; one chunk at a time to a thread."""

    alive: Any
    """[rays]: numbers of the rays that go on, as many as the caller says."""
    counts: Any
    """[rays]: how many samples of the wave belong to each ray of `alive`."""
    next_step: Any
    """[rays]: stepping coordinate at which each ray goes on."""
    ended: Any
    """[rays]: whether the ray has left the occupied cells for good."""
    transmittance: Any
    """[rays]: light that is left."""
    harmonics: Any
    """[rays, 16]: spherical harmonics of the direction."""


def ray_state(n_rays: int, kind: type) -> RayState:
    """Room for a chunk of rays, with harmonics stored in this element type."""
    return RayState(
        np.zeros(n_rays, np.int64), np.zeros(n_rays, np.int64), np.zeros(n_rays), np.zeros(n_rays, np.bool_),
        np.zeros(n_rays, np.float32), np.zeros(n_rays * N_DIRECTION, kind),
    )  # fmt: skip


class Wave(NamedTuple):
    """Samples of one wave, ray after ray in the order of `RayState.alive`; flat, with room for a whole vector more."""

    positions: Any
    """Three planes of unit positions."""
    t: Any
    dt: Any
    tau: Any
    """Density times dt."""
    alpha: Any
    """1 - e^-tau."""
    row: int
    """Values from one sample's features to the next one's."""
    features: Any
    """[samples, row]: the encoding."""
    geometry: Any
    """[samples, 16]: outputs of the density network."""


def empty_wave(n_samples: int, row: int, kind: type) -> Wave:
    """Room for a wave of so many samples, with activations of this element type."""
    numbers = (np.zeros(n_samples + LANES, np.float32) for _ in range(4))
    return Wave(
        np.zeros(3 * (n_samples + 2 * BLOCK), np.float32), *numbers, row, np.zeros(n_samples * row, kind),
        np.zeros(n_samples * N_GEOMETRY, kind),
    )  # fmt: skip


class Scratch(NamedTuple):
    """A thread's memory for one block of samples on its way through the encoder and the networks."""

    encoder: Any
    """What the encoder needs for itself."""
    hidden: Any
    """[ROWS, width]: the density network's hidden layer."""
    sums: Any
    """[ROWS, 16 or more]: float32 outputs of either network."""


@overloaded
def quota_of(quota, r):
    """Samples that a ray may take in a wave: as many as all others, or its own entry of an array."""
    return (lambda quota, r: quota[r]) if isinstance(quota, types.Array) else (lambda quota, r: quota)


@part
def march_wave(rays, march, state, first_ray, n_alive, quota, wave):
    """Up to `quota` further samples of each of n_alive living rays; returns how many were found.

    Numbers of rays are relative to first_ray; quota is one number for all of them, or an array by ray.
    """
    alive, next_step, ended, counts = state.alive, state.next_step, state.ended, state.counts
    positions, t, dt, t_max, steps = wave.positions, wave.t, wave.dt, rays.t_max, march.steps
    box_min, inverse_side, stride = march.box_min, march.inverse_side, positions.size // 3
    m = 0
    for k in range(n_alive):
        r = alive[k]
        ray = first_ray + r
        line = ray_line(rays, ray)
        ox, oy, oz, dx, dy, dz = line[:6]
        n, end = next_step[r], np.float64(t_max[ray])
        following = max(t_from_steps(n, steps), 0.0)
        before, most = m, m + quota_of(quota, r)
        while m < most:
            n, at, step = next_sample(line, n, following, end, march)
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
        next_step[r] = n
        counts[k] = m - before
    for i in range(m, min(stride, m + 2 * BLOCK)):  # what the last block reads beyond the samples
        for axis in range(3):
            poke(positions, axis * stride + i, np.float32(0.0))
    return m


@part
def log_density(encoder, density, positions, m, features, geometry, scratch, out):
    """Encode m samples and ask the density network: features [m, row], geometry [m, 16] (or empty, if nobody needs it)
    and out [m], the log-density before the bias, taken from the float32 sums whatever the storage."""
    width, row, hidden, sums = density.width, density.row, scratch.hidden, scratch.sums
    w1t, w2t, p = density.w1t, density.w2t, paired(features)
    encode_range(encoder, positions, 0, m, features, row, scratch.encoder)
    for begin in range(0, m, ROWS):
        rows = min(ROWS, m - begin)
        product_relu(
            features, begin * row, row, p, w1t, 0, p * width, hidden, 0, width, rows, width,
            (density.n_in + p - 1) // p, hidden, 0,
        )  # fmt: skip
        product_store(
            hidden, 0, width, p, w2t, 0, p * N_GEOMETRY, sums, 0, N_GEOMETRY, rows, N_GEOMETRY, width // p, hidden, 0
        )
        if geometry.size > 0:
            put(sums, 0, geometry, begin * N_GEOMETRY, rows * N_GEOMETRY)
        for s in range(rows):
            poke(out, begin + s, peek(sums, s * N_GEOMETRY))


@part
def density_wave(encoder, density, wave, m, scratch, bias, is_relu):
    """Density of the wave's m samples: fills features, geometry, tau and alpha.

    The density is e^(raw + bias), or, where is_relu is set, max(0, raw + bias)."""
    tau, alpha, dt = wave.tau, wave.alpha, wave.dt
    log_density(encoder, density, wave.positions, m, wave.features, wave.geometry, scratch, tau)
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
def color_blocks(color, color_in, n, hidden1, hidden2, sums, rgb):
    """Raw colours of n samples: rgb [n, 3] before the sigmoid; both hidden layers are kept, [n, width]."""
    w1t, w2t, w3t, width, out_row = color.w1t, color.w2t, color.w3t, color.width, color.out_row
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
            sums, 0, out_row, rows, out_row, width // p, hidden1, 0,
        )  # fmt: skip
        for s in range(rows):
            for c in range(3):
                poke(rgb, (begin + s) * 3 + c, peek(sums, s * out_row + c))
