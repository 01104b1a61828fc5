"""The first half of a training step on GPUs: rays are marched in waves, and the samples that matter are gathered.

A wave takes a few samples of each ray, asks their density, and drops rays that see no light any more, so that hardly
any density is asked behind a surface. Of the samples found, those that matter to their pixel are packed by ray.

| | kernel | a thread to | reads | leaves |
|---|---|---|---|---|
| wave | `_wave_march` | a ray | bits | counts, lattice points |
| | (prefix sum) | | counts | ends |
| | `_wave_fill` | a ray | lattice points | positions, dt |
| | `field_density` | a sample | positions | log-density |
| | `_wave_cut` | a ray | log-density, dt | weights, light, kept counts |
| once | `_gather` | a ray | all that is kept | packed positions, directions |

Arguments of the kernels are records: a kernel gets all fields of one and reads those that it needs.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import box_low_of
from hashfield.kernels.triton_gpu.common import launch
from hashfield.kernels.triton_gpu.composite import load3, opaque_share, store3
from hashfield.kernels.triton_gpu.field import DeviceField, field_density
from hashfield.kernels.triton_gpu.march import (
    Bits,
    load_lattice,
    probe,
    ray_line,
    step_at,
    steps_from_t,
    t_from_steps,
)

WAVES = (16, 32, 0)
"""Samples of each ray that a wave takes at most; 0: all that are left, counted first and then marched again."""
STEEPEST = tl.constexpr(math.exp(15.0))  # largest density whose derivative is followed (instant-ngp clamps at 15)
DROPPED = tl.constexpr(-1.0)  # light of a ray that takes no part, as there was no room for its samples
NOWHERE = tl.constexpr(float("inf"))  # stepping coordinate of a ray that has left the box


# --- records -------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Rays of a step, on the device; the first n_rays of each tensor count."""

    origin: Tensor
    direction: Tensor
    t_min: Tensor
    t_max: Tensor
    jitter: Tensor
    target: Tensor
    background: Tensor
    n_rays: Tensor
    """How many rays count: int32 [1]."""
    weight: Tensor | None = None
    """How much each ray counts; None: 1 each."""
    log_distance: Tensor | None = None
    """The logarithm of the distance at which something is known to be on each ray; None: nothing is known."""
    trust: Tensor | None = None
    """Weight of the loss that draws each ray there; None with it."""


class Box(NamedTuple):
    """The training box: a scene's coordinate is low + side times that of the unit cube."""

    low: float
    side: float
    inverse_side: float

    @classmethod
    def of(cls, aabb_scale: int) -> "Box":
        """The box of this side."""
        return cls(box_low_of(aabb_scale), float(aabb_scale), 1.0 / aabb_scale)


class RayState(NamedTuple):
    """How far each of max_rays rays has come."""

    next_n: Tensor
    """Stepping coordinate at which the next wave goes on."""
    transmittances: Tensor
    """Light that is left; `DROPPED` for a ray that takes no part."""
    points: Tensor
    """Lattice points of a wave, [quota, max_rays]."""
    kept: Tensor
    """Samples that are kept, int32."""
    kept_ends: Tensor
    """Where those of each ray end among all that are kept, int32."""


class Wave(NamedTuple):
    """A wave's samples, packed by ray; or all waves', one behind the other."""

    counts: Tensor
    """Samples of each ray, int32."""
    ends: Tensor
    """Where those of each ray end, int32."""
    n_live: Tensor
    """How many there are, int32 [1]."""
    positions: Tensor
    dts: Tensor
    log_density: Tensor
    weights: Tensor
    """Weight of each sample in its pixel, -1 where it is not kept."""
    afters: Tensor
    """Light behind each sample."""

    def part(self, wave: int, capacity: int) -> "Wave":
        """One of the waves.

        Args:
            wave: Its number.
            capacity: Samples that each has room for.
        """
        samples = (x[wave * capacity : (wave + 1) * capacity] for x in self[3:])
        return Wave(self.counts[wave], self.ends[wave], self.n_live[wave, :1], *samples)


class Samples(NamedTuple):
    """Samples that are kept, packed by ray, and what the loss says about them."""

    n: Tensor
    """How many there are, int32 [1]."""
    positions: Tensor
    directions: Tensor
    weights: Tensor
    afters: Tensor
    """Light behind each."""
    slopes: Tensor
    """Derivative of the optical thickness to the log-density."""
    log_density: Tensor
    rgb: Tensor
    grad_rgb: Tensor
    grad_log_density: Tensor


class Room:
    """Buffers of the waves: fixed, so that a captured step finds them again."""

    def __init__(self, device: torch.device, max_samples: int, max_rays: int) -> None:
        """Args:
        device: Where they lie.
        max_samples: Samples that can be kept; twice as many can be marched in each wave.
        max_rays: Rays that can be given.
        """

        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        self.device, self.max_samples, self.wave_capacity = device, max_samples, 2 * max_samples
        marched = len(WAVES) * self.wave_capacity
        self.per_sample = floats(marched, 3), floats(marched), floats(marched), floats(marched), floats(marched)
        self.n_live = torch.zeros((len(WAVES), 4), dtype=torch.int32, device=device)  # 16 bytes apart, as kernels want
        self.samples = Samples(
            torch.zeros(1, dtype=torch.int32, device=device), floats(max_samples, 3), floats(max_samples, 3),
            *(floats(max_samples) for _ in range(4)), floats(max_samples, 3), floats(max_samples, 3), floats(max_samples),
        )  # fmt: skip
        self.reserve(max_rays)

    def reserve(self, max_rays: int) -> None:
        """Make room for so many rays."""

        def per_ray(dtype: torch.dtype, *size: int) -> Tensor:
            return torch.zeros((*size, max_rays), dtype=dtype, device=self.device)

        self.max_rays = max_rays
        counts, ends = (per_ray(torch.int32, len(WAVES)) for _ in range(2))
        self.waves = Wave(counts, ends, self.n_live, *self.per_sample)
        self.state = RayState(
            per_ray(torch.float32), per_ray(torch.float32), per_ray(torch.float32, max(WAVES)), per_ray(torch.int32),
            per_ray(torch.int32),
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        """All of its memory."""
        return [*self.waves, *self.state, *self.samples]


# --- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def _wave_march(
    batch, bits, lattice_pointer, box, state, wave, min_transmittance, max_rays, capacity, N_CASCADES: tl.constexpr,
    HAS_CONE: tl.constexpr, FIRST: tl.constexpr, QUOTA: tl.constexpr, FILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The next samples of every ray that still sees light; rays of weight 0 are dropped at once.

    With a QUOTA: at most so many, their lattice points left in state.points [QUOTA, max_rays]. Without: all, only counted,
    or where FILL, marched again and written from the ray's place on.
    """
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(batch.n_rays)
    if FIRST:
        tl.store(state.kept + ray, tl.zeros_like(ray), mask=ray < max_rays)
    if FILL:
        if tl.program_id(0) == 0:
            tl.store(wave.n_live, tl.minimum(tl.load(wave.ends + max_rays - 1), capacity))
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        lattice = load_lattice(lattice_pointer)
        begin = tl.load(batch.t_min + ray, mask=mask, other=0.0)
        end = tl.load(batch.t_max + ray, mask=mask, other=0.0)
        line = ray_line(batch.origin, batch.direction, ray, mask)
        ox, oy, oz, dx, dy, dz, _, _, _ = line
        if FIRST:
            n = steps_from_t(begin, lattice, HAS_CONE) + tl.load(batch.jitter + ray, mask=mask, other=0.0)
            alive = mask & (end > begin)
            if batch.weight is not None:
                counts_for = mask & (tl.load(batch.weight + ray, mask=mask, other=0.0) > 0.0)
                alive = alive & counts_for
                tl.store(state.transmittances + ray, tl.where(counts_for, 1.0, DROPPED), mask=mask)
            else:
                tl.store(state.transmittances + ray, tl.full([BLOCK], 1.0, tl.float32), mask=mask)
        else:
            n = tl.load(state.next_n + ray, mask=mask, other=NOWHERE)
            alive = mask & (tl.load(state.transmittances + ray, mask=mask, other=0.0) >= min_transmittance) & (n < NOWHERE)
        n = tl.where(alive, n, 0.0)
        # As in `march`, and wherever a lattice point becomes a distance again: not before the ray's part of space.
        t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin)
        at = tl.zeros_like(ray)
        if FILL:
            last = tl.load(wave.ends + ray, mask=mask, other=0)
            count = tl.load(wave.counts + ray, mask=mask, other=0)
            at = last - count
            fits = last <= capacity
            tl.store(state.transmittances + ray, tl.full([BLOCK], DROPPED, tl.float32), mask=mask & (fits == 0))
            tl.store(state.kept + ray, tl.zeros_like(ray), mask=mask & (fits == 0))
            tl.store(wave.counts + ray, tl.zeros_like(ray), mask=mask & (fits == 0))
            alive = alive & fits
        started = alive
        found = tl.zeros_like(ray)
        alive = alive & (t < end)
        while tl.max(alive.to(tl.int32), axis=0) > 0:
            occupied, dt, n_far, t_far = probe(n, t, line, bits, lattice, alive, N_CASCADES, HAS_CONE)
            if QUOTA > 0:
                tl.store(state.points + found * max_rays + ray, n, mask=occupied)
            if FILL:
                to = at + found
                x, y, z = (ox + t * dx - box.low), (oy + t * dy - box.low), (oz + t * dz - box.low)
                store3(wave.positions, to, x * box.inverse_side, y * box.inverse_side, z * box.inverse_side, occupied)
                tl.store(wave.dts + to, dt, mask=occupied)
            found = tl.where(occupied, found + 1, found)
            n = tl.where(alive, tl.where(occupied, n + 1.0, n_far), n)  # a finished ray resumes there in the next wave
            t_near = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
            t = tl.where(alive, tl.where(occupied, t_near, t_far), t)
            alive = alive & (t < end)
            if QUOTA > 0:
                alive = alive & (found < QUOTA)
        if QUOTA > 0:
            tl.store(state.next_n + ray, tl.where(started & (t < end), n, NOWHERE), mask=mask)
        if not FILL:
            tl.store(wave.counts + ray, found, mask=ray < max_rays)
    elif not FILL:
        tl.store(wave.counts + ray, tl.zeros_like(ray), mask=ray < max_rays)


@triton.jit
def _wave_fill(
    batch, lattice_pointer, box, state, wave, max_rays, capacity, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Positions and step lengths of a wave's samples, packed by ray. A ray for which there is no room, and all rays
    behind it, are dropped: no choice among rays by their length."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(batch.n_rays)
    if tl.program_id(0) == 0:
        tl.store(wave.n_live, tl.minimum(tl.load(wave.ends + max_rays - 1), capacity))
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        lattice = load_lattice(lattice_pointer)
        begin = tl.load(batch.t_min + ray, mask=mask, other=0.0)
        ox, oy, oz, dx, dy, dz, _, _, _ = ray_line(batch.origin, batch.direction, ray, mask)
        last, count = tl.load(wave.ends + ray, mask=mask, other=0), tl.load(wave.counts + ray, mask=mask, other=0)
        misfit = mask & (last > capacity)
        tl.store(state.transmittances + ray, tl.full([BLOCK], DROPPED, tl.float32), mask=misfit)
        tl.store(state.kept + ray, tl.zeros_like(ray), mask=misfit)
        tl.store(wave.counts + ray, tl.zeros_like(ray), mask=misfit)
        first = last - count
        count = tl.where(misfit, 0, count)
        for j in range(tl.max(count, axis=0)):
            here = mask & (j < count)
            n = tl.load(state.points + j * max_rays + ray, mask=here, other=0.0)
            t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin)
            x, y, z = (ox + t * dx - box.low), (oy + t * dy - box.low), (oz + t * dz - box.low)
            store3(wave.positions, first + j, x * box.inverse_side, y * box.inverse_side, z * box.inverse_side, here)
            tl.store(wave.dts + first + j, step_at(n, t, lattice, HAS_CONE), mask=here)


@triton.jit
def _wave_cut(n_rays, state, wave, min_transmittance, min_weight, BLOCK: tl.constexpr):
    """Weight of each of a wave's samples, -1 where it is not kept; the light behind it; and how many a ray keeps."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        count = tl.load(wave.counts + ray, mask=mask, other=0)
        first = tl.load(wave.ends + ray, mask=mask, other=0) - count
        transmittance = tl.load(state.transmittances + ray, mask=mask, other=0.0)
        own = tl.load(state.kept + ray, mask=mask, other=0)
        for j in range(tl.max(count, axis=0)):
            here = mask & (j < count)
            thickness = tl.exp(tl.load(wave.log_density + first + j, mask=here, other=0.0))
            alpha = opaque_share(thickness * tl.load(wave.dts + first + j, mask=here, other=0.0))
            lit = here & (transmittance >= min_transmittance)
            w = transmittance * alpha
            keeps = lit & (w >= min_weight)
            transmittance = tl.where(lit, transmittance * (1.0 - alpha), transmittance)
            own = tl.where(keeps, own + 1, own)
            tl.store(wave.weights + first + j, tl.where(keeps, w, -1.0), mask=here)
            tl.store(wave.afters + first + j, transmittance, mask=here)
        tl.store(state.transmittances + ray, transmittance, mask=mask & (count > 0))
        tl.store(state.kept + ray, own, mask=mask & (count > 0))


@triton.jit
def _gather(
    batch, state, marched, samples, max_rays, wave_capacity, capacity, N_WAVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is kept, packed by ray: positions, directions, weights, light behind, derivative of the optical thickness
    to the log-density. Rays for which there is no room are dropped, see `_wave_fill`."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(batch.n_rays)
    if tl.program_id(0) == 0:
        tl.store(samples.n, tl.minimum(tl.load(state.kept_ends + max_rays - 1), capacity))
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        last, own = tl.load(state.kept_ends + ray, mask=mask, other=0), tl.load(state.kept + ray, mask=mask, other=0)
        misfit = mask & (last > capacity)
        tl.store(state.transmittances + ray, tl.full([BLOCK], DROPPED, tl.float32), mask=misfit)
        tl.store(state.kept + ray, tl.zeros_like(ray), mask=misfit)
        to = last - own
        takes_part = mask & (misfit == 0) & (own > 0)
        dx, dy, dz = load3(batch.direction, ray, takes_part)
        for wave in tl.static_range(N_WAVES):
            count = tl.load(marched.counts + wave * max_rays + ray, mask=takes_part, other=0)
            first = tl.load(marched.ends + wave * max_rays + ray, mask=takes_part, other=0) - count + wave * wave_capacity
            for j in range(tl.max(count, axis=0)):
                here = takes_part & (j < count)
                w = tl.load(marched.weights + first + j, mask=here, other=-1.0)
                here = here & (w >= 0.0)
                x, y, z = load3(marched.positions, first + j, here)
                store3(samples.positions, to, x, y, z, here)
                store3(samples.directions, to, dx, dy, dz, here)
                tl.store(samples.weights + to, w, mask=here)
                tl.store(samples.afters + to, tl.load(marched.afters + first + j, mask=here, other=0.0), mask=here)
                density = tl.exp(tl.load(marched.log_density + first + j, mask=here, other=0.0))
                step = tl.load(marched.dts + first + j, mask=here, other=0.0)
                tl.store(samples.slopes + to, tl.minimum(density, STEEPEST) * step, mask=here)
                to = tl.where(here, to + 1, to)


# --- on the host ---------------------------------------------------------------------------------------------------


def march_and_cut(
    field: DeviceField, batch: Batch, bits: Bits, box: Box, lattice: Tensor, room: Room, min_transmittance: float,
    min_weight: float, grid: tuple[int, ...], options: dict[str, Any], block: dict[str, int],
) -> None:  # fmt: skip
    """Launch the waves; room.samples then has all that is kept but colours and gradients.

    Args:
        field: DeviceField.
        batch: Rays.
        bits: The occupied ones.
        box: The training box.
        lattice: The numbers of `march.lattice_values`.
        room: Buffers.
        min_transmittance, min_weight: As MarchOptions has them.
        grid: Programs of a kernel that has a thread for each ray.
        options: The march's constants N_CASCADES and HAS_CONE.
        block: Rays to a program, and its warps.
    """
    state, n, capacity = room.state, room.max_rays, room.wave_capacity
    for number, quota in enumerate(WAVES):
        wave = room.waves.part(number, capacity)
        march = (batch, bits, lattice, box, state, wave, min_transmittance, n, capacity)
        kind = {"FIRST": number == 0, "QUOTA": quota, **options, **block}
        launch(_wave_march, grid, *march, FILL=False, **kind)
        torch.cumsum(wave.counts, 0, dtype=torch.int32, out=wave.ends)
        if quota:
            launch(
                _wave_fill, grid, batch, lattice, box, state, wave, n, capacity, HAS_CONE=options["HAS_CONE"], **block
            )
        else:
            launch(_wave_march, grid, *march, FILL=True, **kind)
        field_density(field, wave.positions, wave.n_live, wave.log_density)
        launch(_wave_cut, grid, batch.n_rays, state, wave, min_transmittance, min_weight, **block)
    torch.cumsum(state.kept, 0, dtype=torch.int32, out=state.kept_ends)
    launch(
        _gather, grid, batch, state, room.waves, room.samples, n, capacity, room.max_samples, N_WAVES=len(WAVES), **block
    )
