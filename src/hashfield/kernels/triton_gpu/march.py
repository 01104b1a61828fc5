"""Ray marching through the occupancy bits on GPUs: a thread to a ray, float32.

64 consecutive Morton numbers are a block of 4x4x4 cells, so the bit field is read as 64-bit words. A word of zeros
lets the ray jump over the whole block, or over 16x16x16 cells where all 64 words of that block are zero. Every jump
is a whole number of steps of the ray's lattice.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import n_cascades_of
from hashfield.kernels.triton_gpu.common import INTERPRETED, launch

FINEST_STEP, COARSEST_STEP = math.sqrt(3) / 1024, math.sqrt(3)
N_LATTICE = 9
"""Numbers that describe a lattice, see `lattice_values`."""


def lattice_values(cone_angle: float, step_scale: float) -> list[float]:
    """Numbers s, M, rate, t_a, n_a, t_b, n_b of the stepping coordinate (see the reference's `march`), 1/s, e^rate - 1."""
    s, m, rate = FINEST_STEP * step_scale, COARSEST_STEP * step_scale, math.log1p(cone_angle * step_scale)
    if not rate:
        return [s, m, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0 / s, 0.0]
    t_a, t_b = s / rate, m / rate
    return [s, m, rate, t_a, math.log(t_a) / rate, t_b, math.log(t_b) / rate, 1.0 / s, math.expm1(rate)]


class Bits(NamedTuple):
    """The occupied cells, as kernels read them."""

    words: Tensor
    """One int64 for 4x4x4 cells."""
    coarse: Tensor
    """Whether any of 64 words, 16x16x16 cells, has a bit; int32."""


def as_words(bits: Tensor) -> Bits:
    """The bit field in words."""
    words = bits.contiguous().view(torch.int64)
    return Bits(words, (words.view(-1, 64) != 0).any(1).to(torch.int32))


class MarchedRays(NamedTuple):
    """The rays of a march, as kernels read them."""

    origin: Tensor
    direction: Tensor
    t_min: Tensor
    t_max: Tensor
    jitter: Tensor


def ray_block(n_rays: int) -> dict[str, int]:
    """Rays to a program and its warps. One warp, so that it is done when its own rays are; the interpreter takes as
    much time for a thousand rays as for one."""
    if INTERPRETED.value:
        return {"BLOCK": min(1024, triton.next_power_of_2(n_rays)), "num_warps": 1}
    return {"BLOCK": 32, "num_warps": 1}


# --- device functions ----------------------------------------------------------------------------------------------


@triton.jit
def load_lattice(values):
    """The numbers of `lattice_values`, from memory."""
    return (
        tl.load(values), tl.load(values + 1), tl.load(values + 2), tl.load(values + 3), tl.load(values + 4),
        tl.load(values + 5), tl.load(values + 6), tl.load(values + 7), tl.load(values + 8),
    )  # fmt: skip


@triton.jit
def steps_from_t(t, lattice, HAS_CONE: tl.constexpr):
    """Stepping coordinate of a distance."""
    if not HAS_CONE:
        return t * lattice[7]
    s, m, rate = lattice[0], lattice[1], lattice[2]
    t_a, n_a, t_b, n_b = lattice[3], lattice[4], lattice[5], lattice[6]
    middle = tl.log(tl.maximum(t, t_a)) / rate
    return tl.where(t <= t_a, (t - t_a) / s + n_a, tl.where(t <= t_b, middle, (t - t_b) / m + n_b))


@triton.jit
def t_from_steps(n, lattice, HAS_CONE: tl.constexpr):
    """Distance at a stepping coordinate."""
    if not HAS_CONE:
        return n * lattice[0]
    s, m, rate = lattice[0], lattice[1], lattice[2]
    t_a, n_a, t_b, n_b = lattice[3], lattice[4], lattice[5], lattice[6]
    middle = tl.exp(tl.minimum(n, n_b) * rate)
    return tl.where(n <= n_a, (n - n_a) * s + t_a, tl.where(n <= n_b, middle, (n - n_b) * m + t_b))


@triton.jit
def step_at(n, t, lattice, HAS_CONE: tl.constexpr):
    """Length of the step that begins at stepping coordinate n, distance t."""
    if not HAS_CONE:
        return t * 0.0 + lattice[0]
    growing = (n >= lattice[4]) & (n + 1.0 <= lattice[6])
    return tl.where(growing, t * lattice[8], t_from_steps(n + 1.0, lattice, HAS_CONE) - t)


@triton.jit
def exponent(x):
    """The exponent e of x = f 2^e with f in [0.5, 1), as frexp; -126 or less for 0 and subnormal numbers."""
    return ((x.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 126


@triton.jit
def dilate_bits(v):
    """The seven bits of a cell number at every third position."""
    v = (v | (v << 8)) & 0x0300F00F
    v = (v | (v << 4)) & 0x030C30C3
    return (v | (v << 2)) & 0x09249249


@triton.jit
def to_face(x, cell, size, slope):
    """Distance, in cells, to the face of the block of `size` cells through which an axis leaves; slope is 1/d."""
    face = cell & -size
    face = tl.where(slope > 0.0, face + size, face)
    return (face.to(tl.float32) - x) * slope


@triton.jit
def probe(
    n, t, line, bits, lattice, alive, N_CASCADES: tl.constexpr, HAS_CONE: tl.constexpr,
):  # fmt: skip
    """Whether the lattice point at n, t lies in an occupied cell; the length of its step; and where a ray goes on that
    leaves an empty block: the next stepping coordinate and distance. The line is what `ray_line` gives."""
    ox, oy, oz, dx, dy, dz, slope_x, slope_y, slope_z = line
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    dt = step_at(n, t, lattice, HAS_CONE)
    if N_CASCADES > 1:
        m = tl.maximum(tl.maximum(tl.abs(x - 0.5), tl.abs(y - 0.5)), tl.abs(z - 0.5))
        mip = tl.where(m == 0.0, 1, tl.maximum(exponent(m) + 1, 0))
        mip = tl.minimum(tl.maximum(mip, exponent(dt * 256.0)), N_CASCADES - 1)
        inverse_side = ((127 - mip) << 23).to(tl.float32, bitcast=True)  # 2^-mip
        side = ((127 + mip) << 23).to(tl.float32, bitcast=True)
    else:
        mip = tl.zeros_like(n).to(tl.int32)
        side = tl.zeros_like(n) + 1.0
        inverse_side = side
    x = ((x - 0.5) * inverse_side + 0.5) * 128.0
    y = ((y - 0.5) * inverse_side + 0.5) * 128.0
    z = ((z - 0.5) * inverse_side + 0.5) * 128.0
    i, j, k = tl.floor(x).to(tl.int32), tl.floor(y).to(tl.int32), tl.floor(z).to(tl.int32)
    inside = alive & (((i | j | k) & ~127) == 0)
    address = dilate_bits(i & 127) | (dilate_bits(j & 127) << 1) | (dilate_bits(k & 127) << 2)
    at = mip * 32768 + (address >> 6)
    word = tl.load(bits.words + at, mask=inside, other=-1)
    crowded = tl.load(bits.coarse + (at >> 6), mask=inside, other=1)
    occupied = inside & (((word >> (address & 63).to(tl.int64)) & 1) != 0)
    size = tl.where(word == 0, tl.where(crowded != 0, 4, 16), 1)
    leave = tl.minimum(tl.minimum(to_face(x, i, size, slope_x), to_face(y, j, size, slope_y)), to_face(z, k, size, slope_z))
    leave = tl.maximum(leave, 0.0) * (side * 0.0078125)
    if HAS_CONE and N_CASCADES > 1:
        # Longer steps at the block's far end ask a coarser cascade, which need not be empty: one cell only.
        coarser = (mip < N_CASCADES - 1) & (exponent((t + leave) * (lattice[8] * 256.0)) > mip)
        one = tl.zeros_like(size) + 1
        near = tl.minimum(tl.minimum(to_face(x, i, one, slope_x), to_face(y, j, one, slope_y)), to_face(z, k, one, slope_z))
        leave = tl.where(coarser, tl.maximum(near, 0.0) * (side * 0.0078125), leave)
    if HAS_CONE:
        jump = steps_from_t(t + leave, lattice, HAS_CONE) - n
    else:
        jump = leave * lattice[7]
    n_far = n + tl.maximum(tl.ceil(jump), 1.0)
    return occupied, dt, n_far, tl.maximum(t_from_steps(n_far, lattice, HAS_CONE), 0.0)


@triton.jit
def ray_line(origin, direction, ray, mask):
    """A ray's origin, direction and 1/direction; a component of 0 counts as a slope of 1e30, times which 0 is 0."""
    ox = tl.load(origin + 3 * ray, mask=mask, other=0.0)
    oy = tl.load(origin + 3 * ray + 1, mask=mask, other=0.0)
    oz = tl.load(origin + 3 * ray + 2, mask=mask, other=0.0)
    dx = tl.load(direction + 3 * ray, mask=mask, other=1.0)
    dy = tl.load(direction + 3 * ray + 1, mask=mask, other=1.0)
    dz = tl.load(direction + 3 * ray + 2, mask=mask, other=1.0)
    sx = tl.where(dx == 0.0, 1e30, 1.0 / tl.where(dx == 0.0, 1.0, dx))
    sy = tl.where(dy == 0.0, 1e30, 1.0 / tl.where(dy == 0.0, 1.0, dy))
    sz = tl.where(dz == 0.0, 1e30, 1.0 / tl.where(dz == 0.0, 1.0, dz))
    return ox, oy, oz, dx, dy, dz, sx, sy, sz


@triton.jit
def _march(
    rays, bits, lattice_pointer, n_rays, most, counts, offsets, t_out, dt_out, N_CASCADES: tl.constexpr,
    HAS_CONE: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the samples of every ray, or, where WRITE, fill them in from the ray's offset on."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    lattice = load_lattice(lattice_pointer)
    begin = tl.load(rays.t_min + ray, mask=mask, other=0.0)
    end = tl.load(rays.t_max + ray, mask=mask, other=0.0)
    shift = tl.load(rays.jitter + ray, mask=mask, other=0.0)
    line = ray_line(rays.origin, rays.direction, ray, mask)
    n = steps_from_t(begin, lattice, HAS_CONE) + shift
    # The way to steps and back is rounded: a first point on the box's very face must not fall before it.
    t = tl.maximum(tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin), 0.0)
    if WRITE:
        at = tl.load(offsets + ray, mask=mask, other=0)
    found = tl.zeros_like(ray)
    alive = mask & (end > begin) & (t < end)
    while tl.max(alive.to(tl.int32), axis=0) > 0:
        occupied, dt, n_far, t_far = probe(n, t, line, bits, lattice, alive, N_CASCADES, HAS_CONE)
        if WRITE:
            tl.store(t_out + at + found, t, mask=occupied)
            tl.store(dt_out + at + found, dt, mask=occupied)
        found = tl.where(occupied, found + 1, found)
        n = tl.where(occupied, n + 1.0, n_far)
        t = tl.where(occupied, tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0), t_far)
        alive = alive & (t < end) & (found < most)
    if not WRITE:
        tl.store(counts + ray, found, mask=mask)


def march(
    origin: Tensor, direction: Tensor, t_min: Tensor, t_max: Tensor, bits: Tensor, aabb_scale: int, cone_angle: float,
    step_scale: float, jitter: Tensor, max_samples_per_ray: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The samples' t, dt and ray_offsets, by counting, prefix sum and writing; see `hashfield.ops.march`."""
    n_rays, device = t_min.shape[0], t_min.device
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64, device=device)
    if not n_rays:
        return torch.empty(0, device=device), torch.empty(0, device=device), offsets
    lattice = torch.tensor(lattice_values(cone_angle, step_scale), device=device)
    counts = torch.empty(n_rays, dtype=torch.int32, device=device)
    arguments = (
        MarchedRays(origin, direction, t_min.contiguous(), t_max.contiguous(), jitter), as_words(bits), lattice, n_rays,
        min(max_samples_per_ray, 2**30), counts, offsets,
    )  # fmt: skip
    options = {"N_CASCADES": n_cascades_of(aabb_scale), "HAS_CONE": cone_angle > 0.0, **ray_block(n_rays)}
    grid = (triton.cdiv(n_rays, options["BLOCK"]),)
    launch(_march, grid, *arguments, counts, counts, WRITE=False, **options)
    torch.cumsum(counts, 0, out=offsets[1:])
    total = int(offsets[-1])
    t, dt = torch.empty(total, device=device), torch.empty(total, device=device)
    if total:
        launch(_march, grid, *arguments, t, dt, WRITE=True, **options)
    return t, dt, offsets
