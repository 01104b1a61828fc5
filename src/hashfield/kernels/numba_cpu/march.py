"""Ray marching through the occupancy bits on CPUs.

64 consecutive Morton numbers are a block of 4x4x4 cells, so the bit field is read as 64-bit words and a word
of zeros lets the ray jump over the whole block, or over 16x16x16 cells where all 64 words of that block are zero.
Every jump is a whole number of steps of the ray's lattice.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.geometry.spaces import CELLS_PER_CASCADE, GRID_SIZE, box_low_of, n_cascades_of
from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, share
from hashfield.kernels.numba_cpu.simd import peek

WORDS_PER_CASCADE = CELLS_PER_CASCADE // 64
POWERS, LONGEST_JUMP = 9, 64
FINEST_STEP, COARSEST_STEP = math.sqrt(3) / 1024, math.sqrt(3)

# Bits of 0..127 spread to every third position.
SPREAD = np.array([sum(((v >> b) & 1) << (3 * b) for b in range(7)) for v in range(GRID_SIZE)], np.int64)


class RayArrays(NamedTuple):
    """Rays as the kernels read them, float32."""

    origin: Any
    """[n, 3]"""
    direction: Any
    """[n, 3]"""
    t_min: Any
    """[n]"""
    t_max: Any
    """[n]"""
    jitter: Any
    """[n]: fraction of a step by which each ray's lattice is shifted."""


class March(NamedTuple):
    """What rays are marched through: occupied cells, the lattice of steps, and the scene's box."""

    words: Any
    """The bit field, 64 cells to a word."""
    coarse: Any
    """Whether any of 64 words has a bit."""
    n_cascades: int
    steps: Any
    """See `lattice`."""
    box_min: float
    """The box's lower corner in scene space, on every axis."""
    inverse_side: float
    """One over the box's side."""


def lattice(cone_angle: float, step_scale: float) -> np.ndarray:
    """Numbers of the stepping coordinate: s, M, rate, t_a, n_a, t_b, n_b (algorithm: see the reference's `march`), then
    1/s, e^rate - 1, and from `POWERS` on e^(k rate): how distance grows over k steps in the part where steps grow."""
    s, m, rate = FINEST_STEP * step_scale, COARSEST_STEP * step_scale, math.log1p(cone_angle * step_scale)
    if not rate:
        return np.array([s, m, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0 / s, 0.0, *[1.0] * LONGEST_JUMP])
    t_a, t_b = s / rate, m / rate
    powers = np.exp(rate * np.arange(LONGEST_JUMP))
    return np.array([s, m, rate, t_a, math.log(t_a) / rate, t_b, math.log(t_b) / rate, 1.0 / s, math.expm1(rate), *powers])


@inline
def steps_from_t(t, steps):
    """Stepping coordinate of a distance."""
    if steps[2] == 0.0:
        return t / steps[0]
    if t <= steps[3]:
        return (t - steps[3]) / steps[0] + steps[4]
    if t <= steps[5]:
        return math.log(t) / steps[2]
    return (t - steps[5]) / steps[1] + steps[6]


@inline
def t_from_steps(n, steps):
    """Distance at a stepping coordinate."""
    if steps[2] == 0.0:
        return n * steps[0]
    if n <= steps[4]:
        return (n - steps[4]) * steps[0] + steps[3]
    if n <= steps[6]:
        return math.exp(n * steps[2])
    return (n - steps[6]) * steps[1] + steps[5]


@inline
def step_at(n, t, steps):
    """Length of the step that begins at stepping coordinate n, distance t."""
    if steps[2] == 0.0:
        return steps[0]
    if n >= steps[4] and n + 1.0 <= steps[6]:
        return t * steps[8]
    return t_from_steps(n + 1.0, steps) - t


@inline
def exponent(x):
    """The e of x = m 2^e with m from 1/2 to 1, of a normal positive number: `frexp` without a call into libm."""
    return (np.float64(x).view(np.int64) >> 52) - 1022


@inline
def cascade_of_step(dt):
    """The finest cascade whose cells are more than two steps wide; below 0 where all are."""
    return exponent(dt * (2 * GRID_SIZE))


@inline
def cascade_of(x, y, z, dt, n_cascades):
    """The finest cascade that holds a point of scene space and whose cells are more than two steps wide."""
    m = max(abs(x - 0.5), abs(y - 0.5), abs(z - 0.5))
    mip = 1 if m == 0.0 else max(0, exponent(m) + 1)
    mip = max(mip, cascade_of_step(dt))
    return min(mip, n_cascades - 1)


@inline
def ray_line(rays, ray):
    """A ray as `next_sample` takes it: origin, direction and 1/direction, float64."""
    origin, direction = rays.origin, rays.direction
    dx, dy, dz = (
        np.float64(direction[ray, 0]), np.float64(direction[ray, 1]), np.float64(direction[ray, 2])
    )  # fmt: skip
    far = 1e300  # finite, so that 0 times it is 0
    return (
        np.float64(origin[ray, 0]), np.float64(origin[ray, 1]), np.float64(origin[ray, 2]), dx, dy, dz,
        1.0 / dx if dx != 0.0 else far, 1.0 / dy if dy != 0.0 else far, 1.0 / dz if dz != 0.0 else far,
    )  # fmt: skip


@inline
def to_face(x, cell, size, slope):
    """Distance, in cells, to the face of the block of `size` cells through which an axis leaves; slope is 1/d."""
    face = cell & -size
    if slope > 0.0:
        face += size
    return (face - x) * slope


@inline
def first_step(rays, ray, steps):
    """Stepping coordinate at which a ray begins."""
    return steps_from_t(np.float64(rays.t_min[ray]), steps) + np.float64(rays.jitter[ray])


@inline
def next_sample(line, n, t, end, march):
    """The first lattice point from stepping coordinate n, distance t, on that lies in an occupied cell.

    Returns its stepping coordinate, t and dt; t < 0 where the ray ends before.
    """
    words, coarse, n_cascades, steps = march.words, march.coarse, march.n_cascades, march.steps
    ox, oy, oz, dx, dy, dz, inverse_x, inverse_y, inverse_z = line
    while True:
        if not t < end:
            return n, -1.0, 0.0
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        mip, side, inverse_side = 0, 1.0, 1.0
        if n_cascades > 1:
            mip = cascade_of(x, y, z, step_at(n, t, steps), n_cascades)
            side = float(1 << mip)
            inverse_side = 1.0 / side
        x = ((x - 0.5) * inverse_side + 0.5) * GRID_SIZE
        y = ((y - 0.5) * inverse_side + 0.5) * GRID_SIZE
        z = ((z - 0.5) * inverse_side + 0.5) * GRID_SIZE
        i, j, k = math.floor(x), math.floor(y), math.floor(z)
        size = 1
        if (i | j | k) & ~(GRID_SIZE - 1) == 0:
            address = peek(SPREAD, i) | (peek(SPREAD, j) << 1) | (peek(SPREAD, k) << 2)
            at = mip * WORDS_PER_CASCADE + (address >> 6)
            word = peek(words, at)
            if (word >> np.uint64(address & 63)) & np.uint64(1):
                return n, t, step_at(n, t, steps)
            if word == 0:
                size = 4 if peek(coarse, at >> 6) else 16
            elif (word >> np.uint64(address & 56)) & np.uint64(255) == 0:  # the byte: a block of 2x2x2 cells
                size = 2
        leave = min(to_face(x, i, size, inverse_x), to_face(y, j, size, inverse_y), to_face(z, k, size, inverse_z))
        leave = max(leave, 0.0) * (side / GRID_SIZE)
        if size > 1 and mip < n_cascades - 1 and cascade_of_step((t + leave) * steps[8]) > mip:
            # Longer steps at the block's far end ask a coarser cascade, which need not be empty: one cell only.
            leave = min(to_face(x, i, 1, inverse_x), to_face(y, j, 1, inverse_y), to_face(z, k, 1, inverse_z))
            leave = max(leave, 0.0) * (side / GRID_SIZE)
        if steps[2] == 0.0:
            n += max(1.0, math.ceil(leave * steps[7]))
            t = n * steps[0]
        elif steps[4] <= n and n + LONGEST_JUMP <= steps[6]:
            # Where steps grow: at least as many as fit if all were as long as the one at the end, which needs no
            # logarithm, then one by one; a table stands for the exponential.
            out = t + leave
            jump = max(1, min(LONGEST_JUMP - 1, math.ceil(leave / (out * steps[8]))))
            n += jump
            t *= peek(steps, POWERS + jump)
            while t < out:
                n += 1.0
                t *= peek(steps, POWERS + 1)
            if n > steps[6]:
                t = t_from_steps(n, steps)
        else:
            n += max(1.0, math.ceil(steps_from_t(t + leave, steps) - n))
            t = t_from_steps(n, steps)


@kernel
def _march(rays, march, most, offsets, t_out, dt_out, write, thread, threads):
    """Count the samples of every ray into offsets[1:], or, where `write`, fill them in."""
    t_min, t_max, steps = rays.t_min, rays.t_max, march.steps
    n_rays = t_min.size
    for ray in range(share(n_rays, thread, threads), share(n_rays, thread + 1, threads)):
        found = 0
        if t_max[ray] > t_min[ray]:
            line = ray_line(rays, ray)
            n = first_step(rays, ray, steps)
            at, end = max(t_from_steps(n, steps), 0.0), np.float64(t_max[ray])
            while found < most:
                n, t, dt = next_sample(line, n, at, end, march)
                if t < 0.0:
                    break
                if write:
                    t_out[offsets[ray] + found] = t
                    dt_out[offsets[ray] + found] = dt
                found += 1
                n += 1.0
                at = t + dt
        if not write:
            offsets[ray + 1] = found


def as_words(bits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The bit field as the 64-bit words (4x4x4 cells) the kernels read, and whether any of 64 words (16x16x16 cells)
    has a bit."""
    words = as_array(bits.contiguous()).view(np.dtype("<u8")).astype(np.uint64, copy=False)
    return words, words.reshape(-1, 64).any(axis=1)


def ray_arrays(rays, jitter: torch.Tensor) -> RayArrays:
    """`Rays` and their jitter as the kernels read them."""
    tensors = (rays.origin, rays.direction, rays.t_min, rays.t_max, jitter)
    return RayArrays(*(as_array(x.contiguous()) for x in tensors))


def march_of(bits: torch.Tensor, aabb_scale: int, cone_angle: float, step_scale: float) -> March:
    """The march through a bit field with the given lattice; see `hashfield.ops.march`."""
    side = float(aabb_scale)
    steps = lattice(cone_angle, step_scale)
    return March(*as_words(bits), n_cascades_of(aabb_scale), steps, box_low_of(side), 1.0 / side)


def march(
    origin, direction, t_min, t_max, bits, aabb_scale: int, cone_angle: float, step_scale: float, jitter,
    max_samples_per_ray: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The samples' t, dt and ray_offsets, by counting, prefix sum and writing; see `hashfield.ops.march`."""
    n_rays = t_min.shape[0]
    offsets = np.zeros(n_rays + 1, np.int64)
    rays = RayArrays(*map(as_array, (origin, direction, t_min, t_max, jitter)))
    arguments = (rays, march_of(bits, aabb_scale, cone_angle, step_scale), max_samples_per_ray, offsets)
    empty = np.empty(0, np.float32)
    if n_rays:
        launch(_march, *arguments, empty, empty, False)
        np.cumsum(offsets, out=offsets)
    t, dt = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.float32)
    if n_rays:
        launch(_march, *arguments, t, dt, True)
    return torch.from_numpy(t), torch.from_numpy(dt), torch.from_numpy(offsets)
