"""Ray marching through the occupancy bits on CPUs.

64 consecutive Morton numbers are a block of 4x4x4 cells, so the bit field is read as 64-bit words and a word
of zeros lets the ray jump over the whole block. Every jump is a whole number of steps of the ray's lattice.
"""

import math

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, share

GRID_SIZE = 128
WORDS_PER_CASCADE = GRID_SIZE**3 // 64
FINEST_STEP, COARSEST_STEP = math.sqrt(3) / 1024, math.sqrt(3)

# Bits of 0..127 spread to every third position.
SPREAD = np.array([sum(((v >> b) & 1) << (3 * b) for b in range(7)) for v in range(GRID_SIZE)], np.int64)


def lattice(cone_angle: float, step_scale: float) -> np.ndarray:
    """s, M, rate, t_a, n_a, t_b, n_b of the stepping coordinate (algorithm: see the reference's `march`)."""
    s, m, rate = FINEST_STEP * step_scale, COARSEST_STEP * step_scale, math.log1p(cone_angle * step_scale)
    if not rate:
        return np.array([s, m, 0.0, 0.0, 0.0, 0.0, 0.0])
    t_a, t_b = s / rate, m / rate
    return np.array([s, m, rate, t_a, math.log(t_a) / rate, t_b, math.log(t_b) / rate])


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
def cascade_of(x, y, z, dt, n_cascades):
    """The finest cascade that holds a point of scene space and whose cells are more than two steps wide."""
    m = max(abs(x - 0.5), abs(y - 0.5), abs(z - 0.5))
    mip = 1 if m == 0.0 else max(0, math.frexp(m)[1] + 1)
    mip = max(mip, math.frexp(dt * (2 * GRID_SIZE))[1])
    return min(mip, n_cascades - 1)


@inline
def to_face(x, d, width):
    """Distance, in cells, to the face of the cell (or block of `width` cells) through which an axis leaves."""
    if d > 0.0:
        return (math.floor(x / width) * width + width - x) / d
    if d < 0.0:
        return (math.floor(x / width) * width - x) / d
    return np.inf


@inline
def next_sample(ox, oy, oz, dx, dy, dz, n, end, words, spread, n_cascades, steps):
    """The first lattice point from stepping coordinate n on that lies in an occupied cell.

    Returns its stepping coordinate, t and dt; t < 0 where the ray ends before.
    """
    while True:
        t = t_from_steps(n, steps)
        if not t < end:
            return n, -1.0, 0.0
        dt = steps[0] if steps[2] == 0.0 else t_from_steps(n + 1.0, steps) - t
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        mip = 0
        side = 1.0
        if n_cascades > 1:
            mip = cascade_of(x, y, z, dt, n_cascades)
            side = float(1 << mip)
            x, y, z = (x - 0.5) / side + 0.5, (y - 0.5) / side + 0.5, (z - 0.5) / side + 0.5
        x, y, z = x * GRID_SIZE, y * GRID_SIZE, z * GRID_SIZE
        width = 1.0
        if 0.0 <= x < GRID_SIZE and 0.0 <= y < GRID_SIZE and 0.0 <= z < GRID_SIZE:
            i, j, k = int(x), int(y), int(z)
            address = spread[i] | (spread[j] << 1) | (spread[k] << 2)
            word = words[mip * WORDS_PER_CASCADE + (address >> 6)]
            if (word >> np.uint64(address & 63)) & np.uint64(1):
                return n, t, dt
            if word == 0:
                width = 4.0
        leave = min(to_face(x, dx, width), to_face(y, dy, width), to_face(z, dz, width))
        leave = max(leave, 0.0) * side / GRID_SIZE
        if steps[2] == 0.0:
            jump = leave / steps[0]
        else:
            jump = steps_from_t(t + leave, steps) - n
        n += max(1.0, math.ceil(jump))


@kernel
def _march(
    origin, direction, t_min, t_max, words, spread, n_cascades, steps, jitter, most, offsets, t_out, dt_out, write,
    thread, threads,
):  # fmt: skip
    """Count the samples of every ray into offsets[1:], or, where `write`, fill them in."""
    n_rays = t_min.size
    for ray in range(share(n_rays, thread, threads), share(n_rays, thread + 1, threads)):
        found = 0
        if t_max[ray] > t_min[ray]:
            ox, oy, oz = np.float64(origin[ray, 0]), np.float64(origin[ray, 1]), np.float64(origin[ray, 2])
            dx, dy, dz = (
                np.float64(direction[ray, 0]), np.float64(direction[ray, 1]), np.float64(direction[ray, 2])
            )  # fmt: skip
            n = steps_from_t(np.float64(t_min[ray]), steps) + np.float64(jitter[ray])
            end = np.float64(t_max[ray])
            while found < most:
                n, t, dt = next_sample(ox, oy, oz, dx, dy, dz, n, end, words, spread, n_cascades, steps)
                if t < 0.0:
                    break
                if write:
                    t_out[offsets[ray] + found] = t
                    dt_out[offsets[ray] + found] = dt
                found += 1
                n += 1.0
        if not write:
            offsets[ray + 1] = found


def as_words(bits: torch.Tensor) -> np.ndarray:
    """The bit field as the 64-bit words the kernels read."""
    return as_array(bits.contiguous()).view(np.dtype("<u8")).astype(np.uint64, copy=False)


def march(
    origin, direction, t_min, t_max, bits, aabb_scale: int, cone_angle: float, step_scale: float, jitter,
    max_samples_per_ray: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """t, dt and ray_offsets of the samples; see `hashfield.ops.march`. Count, prefix sum, write."""
    n_rays = t_min.shape[0]
    offsets = np.zeros(n_rays + 1, np.int64)
    arguments = (
        as_array(origin), as_array(direction), as_array(t_min), as_array(t_max), as_words(bits), SPREAD,
        aabb_scale.bit_length(), lattice(cone_angle, step_scale), as_array(jitter), max_samples_per_ray, offsets,
    )  # fmt: skip
    empty = np.empty(0, np.float32)
    if n_rays:
        launch(_march, *arguments, empty, empty, False)
        np.cumsum(offsets, out=offsets)
    t, dt = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.float32)
    if n_rays:
        launch(_march, *arguments, t, dt, True)
    return torch.from_numpy(t), torch.from_numpy(dt), torch.from_numpy(offsets)
