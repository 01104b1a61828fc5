"""One training step of a radiance field on GPUs, from rays to gradients, without a word to the host.

Rays are marched in waves: a few samples of each, their density, and who still sees light goes on, so that hardly any
density is asked behind a surface. Of the samples found, those that matter to their pixel are kept, packed by ray,
coloured, composited, and sent through the field's backward pass. Every buffer has a fixed size and every count stays
on the device, so that the whole step can be captured in a CUDA graph. Only the table's gradient is summed in an order
that is not fixed.

| | kernel | a thread to | reads | leaves |
|---|---|---|---|---|
| wave | `_wave_march` | a ray | bits | counts, lattice points |
| | (prefix sum) | | counts | ends |
| | `_wave_fill` | a ray | lattice points | positions, dt |
| | `field_density` | a sample | positions | log-density |
| | `_wave_cut` | a ray | log-density, dt | weights, light, kept counts |
| once | `_gather` | a ray | all that is kept | packed positions, directions |
| | `field_forward` | a sample | positions, directions | colours |
| | `_composite_loss` | a ray | colours, weights, photos | loss, gradients at the samples |
| | `field_backward` | a sample | gradients | gradients of table and matrices |
| asked | `_sum_over_rays` | a ray | gradients of positions, harmonics | gradients of origin, direction |
| | `_finish` | | sums | loss, counts, rays of the next step |
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import box_low_of, n_cascades_of
from hashfield.kernels.triton_gpu.common import count_of, launch
from hashfield.kernels.triton_gpu.composite import load3, opaque_share, store3
from hashfield.kernels.triton_gpu.field import DeviceField, field_backward, field_density, field_forward, scratch_width
from hashfield.kernels.triton_gpu.march import (
    N_LATTICE,
    as_words,
    lattice_values,
    load_lattice,
    probe,
    ray_block,
    ray_line,
    step_at,
    steps_from_t,
    t_from_steps,
)
from hashfield.kernels.triton_gpu.render_rays import device_field
from hashfield.kernels.triton_gpu.spherical_harmonics import direction_gradients

WAVES = (16, 32, 0)
"""Samples of each ray that a wave takes at most; 0: all that are left, counted first and then marched again."""
N_STATS = 6
"""Numbers a step reports: loss, squared error, rays that took part, kept samples, marched samples, rays of the next."""
STEEPEST = tl.constexpr(math.exp(15.0))  # largest density whose derivative is followed (instant-ngp clamps at 15)
DROPPED = tl.constexpr(-1.0)  # light of a ray that takes no part, as there was no room for its samples
NEAREST = tl.constexpr(math.sqrt(3) / 1024)  # below this, the finest step, losses on depth tell no distances apart
NOWHERE = tl.constexpr(float("inf"))  # stepping coordinate of a ray that has left the box


@triton.jit
def _wave_march(
    origin, direction, t_min, t_max, jitter, words, coarse, lattice_pointer, n_rays, min_transmittance, box_min,
    inverse_side, next_n, transmittances, counts, ends, points, positions, dts, n_live, kept, ray_weight, max_rays, capacity,
    N_CASCADES: tl.constexpr, HAS_CONE: tl.constexpr, FIRST: tl.constexpr, QUOTA: tl.constexpr, FILL: tl.constexpr,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The next samples of every ray that still sees light; where WEIGHTED, rays of weight 0 are dropped at once.

    With a QUOTA: at most so many, their lattice points left in points [QUOTA, max_rays]. Without: all, only counted,
    or where FILL, marched again and written from the ray's place on.
    """
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    if FIRST:
        tl.store(kept + ray, tl.zeros_like(ray), mask=ray < max_rays)
    if FILL:
        if tl.program_id(0) == 0:
            tl.store(n_live, tl.minimum(tl.load(ends + max_rays - 1), capacity))
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        lattice = load_lattice(lattice_pointer)
        begin = tl.load(t_min + ray, mask=mask, other=0.0)
        end = tl.load(t_max + ray, mask=mask, other=0.0)
        ox, oy, oz, dx, dy, dz, sx, sy, sz = ray_line(origin, direction, ray, mask)
        if FIRST:
            n = steps_from_t(begin, lattice, HAS_CONE) + tl.load(jitter + ray, mask=mask, other=0.0)
            alive = mask & (end > begin)
            if WEIGHTED:
                counts_for = mask & (tl.load(ray_weight + ray, mask=mask, other=0.0) > 0.0)
                alive = alive & counts_for
                tl.store(transmittances + ray, tl.where(counts_for, 1.0, DROPPED), mask=mask)
            else:
                tl.store(transmittances + ray, tl.full([BLOCK], 1.0, tl.float32), mask=mask)
        else:
            n = tl.load(next_n + ray, mask=mask, other=NOWHERE)
            alive = mask & (tl.load(transmittances + ray, mask=mask, other=0.0) >= min_transmittance) & (n < NOWHERE)
        n = tl.where(alive, n, 0.0)
        # As in `march`, and wherever a lattice point becomes a distance again: not before the ray's part of space.
        t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin)
        at = tl.zeros_like(ray)
        if FILL:
            last = tl.load(ends + ray, mask=mask, other=0)
            count = tl.load(counts + ray, mask=mask, other=0)
            at = last - count
            fits = last <= capacity
            tl.store(transmittances + ray, tl.full([BLOCK], DROPPED, tl.float32), mask=mask & (fits == 0))
            tl.store(kept + ray, tl.zeros_like(ray), mask=mask & (fits == 0))
            tl.store(counts + ray, tl.zeros_like(ray), mask=mask & (fits == 0))
            alive = alive & fits
        started = alive
        found = tl.zeros_like(ray)
        alive = alive & (t < end)
        while tl.max(alive.to(tl.int32), axis=0) > 0:
            occupied, dt, n_far, t_far = probe(
                n, t, ox, oy, oz, dx, dy, dz, sx, sy, sz, words, coarse, lattice, alive, N_CASCADES, HAS_CONE
            )
            if QUOTA > 0:
                tl.store(points + found * max_rays + ray, n, mask=occupied)
            if FILL:
                to = at + found
                x, y, z = (ox + t * dx - box_min), (oy + t * dy - box_min), (oz + t * dz - box_min)
                store3(positions, to, x * inverse_side, y * inverse_side, z * inverse_side, occupied)
                tl.store(dts + to, dt, mask=occupied)
            found = tl.where(occupied, found + 1, found)
            n = tl.where(alive, tl.where(occupied, n + 1.0, n_far), n)  # a finished ray resumes there in the next wave
            t_near = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
            t = tl.where(alive, tl.where(occupied, t_near, t_far), t)
            alive = alive & (t < end)
            if QUOTA > 0:
                alive = alive & (found < QUOTA)
        if QUOTA > 0:
            tl.store(next_n + ray, tl.where(started & (t < end), n, NOWHERE), mask=mask)
        if not FILL:
            tl.store(counts + ray, found, mask=ray < max_rays)
    elif not FILL:
        tl.store(counts + ray, tl.zeros_like(ray), mask=ray < max_rays)


@triton.jit
def _wave_fill(
    origin, direction, t_min, lattice_pointer, n_rays, box_min, inverse_side, transmittances, counts, ends, points, positions,
    dts, n_live, kept, max_rays, capacity, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Positions and step lengths of a wave's samples, packed by ray. A ray for which there is no room, and all rays
    behind it, are dropped: no choice among rays by their length."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    if tl.program_id(0) == 0:
        tl.store(n_live, tl.minimum(tl.load(ends + max_rays - 1), capacity))
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        lattice = load_lattice(lattice_pointer)
        begin = tl.load(t_min + ray, mask=mask, other=0.0)
        ox, oy, oz, dx, dy, dz, _, _, _ = ray_line(origin, direction, ray, mask)
        last, count = tl.load(ends + ray, mask=mask, other=0), tl.load(counts + ray, mask=mask, other=0)
        misfit = mask & (last > capacity)
        tl.store(transmittances + ray, tl.full([BLOCK], DROPPED, tl.float32), mask=misfit)
        tl.store(kept + ray, tl.zeros_like(ray), mask=misfit)
        tl.store(counts + ray, tl.zeros_like(ray), mask=misfit)
        first = last - count
        count = tl.where(misfit, 0, count)
        for j in range(tl.max(count, axis=0)):
            here = mask & (j < count)
            n = tl.load(points + j * max_rays + ray, mask=here, other=0.0)
            t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin)
            x, y, z = (ox + t * dx - box_min), (oy + t * dy - box_min), (oz + t * dz - box_min)
            store3(positions, first + j, x * inverse_side, y * inverse_side, z * inverse_side, here)
            tl.store(dts + first + j, step_at(n, t, lattice, HAS_CONE), mask=here)


@triton.jit
def _wave_cut(
    log_density, dts, n_rays, min_transmittance, min_weight, counts, ends, transmittances, kept, weights, afters,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Weight of each of a wave's samples, -1 where it is not kept; the light behind it; and how many a ray keeps."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        count = tl.load(counts + ray, mask=mask, other=0)
        first = tl.load(ends + ray, mask=mask, other=0) - count
        transmittance = tl.load(transmittances + ray, mask=mask, other=0.0)
        own = tl.load(kept + ray, mask=mask, other=0)
        for j in range(tl.max(count, axis=0)):
            here = mask & (j < count)
            thickness = tl.exp(tl.load(log_density + first + j, mask=here, other=0.0))
            alpha = opaque_share(thickness * tl.load(dts + first + j, mask=here, other=0.0))
            lit = here & (transmittance >= min_transmittance)
            w = transmittance * alpha
            keeps = lit & (w >= min_weight)
            transmittance = tl.where(lit, transmittance * (1.0 - alpha), transmittance)
            own = tl.where(keeps, own + 1, own)
            tl.store(weights + first + j, tl.where(keeps, w, -1.0), mask=here)
            tl.store(afters + first + j, transmittance, mask=here)
        tl.store(transmittances + ray, transmittance, mask=mask & (count > 0))
        tl.store(kept + ray, own, mask=mask & (count > 0))


@triton.jit
def _gather(
    direction, positions, dts, log_density, weights, afters, n_rays, counts, ends, transmittances, kept, kept_ends,
    k_positions, k_directions, k_weights, k_afters, k_slopes, n_kept, max_rays, wave_capacity, capacity,
    N_WAVES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is kept, packed by ray: positions, directions, weights, light behind, derivative of the optical thickness
    to the log-density. Rays for which there is no room are dropped, see `_wave_fill`."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    if tl.program_id(0) == 0:
        tl.store(n_kept, tl.minimum(tl.load(kept_ends + max_rays - 1), capacity))
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        last, own = tl.load(kept_ends + ray, mask=mask, other=0), tl.load(kept + ray, mask=mask, other=0)
        misfit = mask & (last > capacity)
        tl.store(transmittances + ray, tl.full([BLOCK], DROPPED, tl.float32), mask=misfit)
        tl.store(kept + ray, tl.zeros_like(ray), mask=misfit)
        to = last - own
        takes_part = mask & (misfit == 0) & (own > 0)
        dx, dy, dz = load3(direction, ray, takes_part)
        for wave in tl.static_range(N_WAVES):
            count = tl.load(counts + wave * max_rays + ray, mask=takes_part, other=0)
            first = tl.load(ends + wave * max_rays + ray, mask=takes_part, other=0) - count + wave * wave_capacity
            for j in range(tl.max(count, axis=0)):
                here = takes_part & (j < count)
                w = tl.load(weights + first + j, mask=here, other=-1.0)
                here = here & (w >= 0.0)
                x, y, z = load3(positions, first + j, here)
                store3(k_positions, to, x, y, z, here)
                store3(k_directions, to, dx, dy, dz, here)
                tl.store(k_weights + to, w, mask=here)
                tl.store(k_afters + to, tl.load(afters + first + j, mask=here, other=0.0), mask=here)
                density = tl.exp(tl.load(log_density + first + j, mask=here, other=0.0))
                step = tl.load(dts + first + j, mask=here, other=0.0)
                tl.store(k_slopes + to, tl.minimum(density, STEEPEST) * step, mask=here)
                to = tl.where(here, to + 1, to)


@triton.jit
def loss_and_slope(difference, delta, HUBER: tl.constexpr):
    """Squared error, or instant-ngp's Huber loss (scaled by 1/5), and its derivative."""
    if not HUBER:
        return difference * difference, 2.0 * difference
    size = tl.abs(difference)
    small = size <= delta
    loss = tl.where(small, 0.1 * difference * difference / delta, 0.2 * (size - 0.5 * delta))
    return loss, tl.where(small, 0.2 * difference / delta, tl.where(difference > 0.0, 0.2, -0.2))


@triton.jit
def log_distance(k_positions, at, here, side, box_min, ox, oy, oz, dx, dy, dz):
    """The logarithm of the distance of samples along their rays, read off where they are."""
    x, y, z = load3(k_positions, at, here)
    t = (x * side + box_min - ox) * dx + (y * side + box_min - oy) * dy + (z * side + box_min - oz) * dz
    return tl.log(tl.maximum(t, NEAREST))


@triton.jit
def pull(w, m, before, moment_before, spread, moment):
    """The slope of the distortion loss to the weight w of a sample at log t = m: twice the distance to every other
    sample of its ray, times that one's weight. Given are the sums of w and w m before it, and over all samples."""
    behind, moment_behind = spread - before - w, moment - moment_before - w * m
    return 2.0 * ((m * before - moment_before) + (moment_behind - m * behind))


@triton.jit
def _composite_loss(
    rgb, k_weights, k_afters, k_slopes, transmittances, kept, kept_ends, target, background, ray_weight, n_rays,
    min_transmittance, delta, loss_scale, grad_rgb, grad_log_density, ray_color, ray_grad_color, sums, max_blocks,
    origin, direction, k_positions, side, box_min, ray_log_distance, ray_trust, distortion, nearness, log_horizon,
    tolerance, HUBER: tl.constexpr, HAS_DEPTH: tl.constexpr, TAUGHT: tl.constexpr, WEIGHTED: tl.constexpr,
    PER_RAY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixel colours, their loss, and its gradient at the colour and log-density of every kept sample; where PER_RAY,
    also each ray's colour and the gradient there, 0 for rays that take no part. Where TAUGHT (and HAS_DEPTH), distances
    of rays are known.

    Gradients are of the sum over the rays, times loss_scale, or where that is 0, divided by the number of rays given.
    """
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    total, error, used, coloured = 0.0, 0.0, 0.0, 0.0
    if tl.program_id(0) * BLOCK < n_given:
        transmittance = tl.load(transmittances + ray, mask=ray < n_given, other=DROPPED)
        mask = (ray < n_given) & (transmittance >= 0.0)
        count = tl.load(kept + ray, mask=mask, other=0)
        first = tl.load(kept_ends + ray, mask=mask, other=0) - count
        r, g, b = tl.zeros_like(transmittance), tl.zeros_like(transmittance), tl.zeros_like(transmittance)
        longest = tl.max(count, axis=0)
        for j in range(longest):
            here = mask & (j < count)
            w = tl.load(k_weights + first + j, mask=here, other=0.0)
            x, y, z = load3(rgb, first + j, here)
            r, g, b = r + w * x, g + w * y, b + w * z
        left = tl.where(transmittance >= min_transmittance, transmittance, 0.0)
        behind_r, behind_g, behind_b = load3(background, ray, mask)
        alpha = tl.load(target + 4 * ray + 3, mask=mask, other=0.0)
        r, g, b = r + left * behind_r, g + left * behind_g, b + left * behind_b
        off_r = r - tl.load(target + 4 * ray, mask=mask, other=0.0) * alpha - behind_r * (1.0 - alpha)
        off_g = g - tl.load(target + 4 * ray + 1, mask=mask, other=0.0) * alpha - behind_g * (1.0 - alpha)
        off_b = b - tl.load(target + 4 * ray + 2, mask=mask, other=0.0) * alpha - behind_b * (1.0 - alpha)
        loss_r, g_r = loss_and_slope(off_r, delta, HUBER)
        loss_g, g_g = loss_and_slope(off_g, delta, HUBER)
        loss_b, g_b = loss_and_slope(off_b, delta, HUBER)
        loss, wrong = loss_r + loss_g + loss_b, off_r * off_r + off_g * off_g + off_b * off_b
        if WEIGHTED:
            own_weight = tl.load(ray_weight + ray, mask=mask, other=0.0)
            loss, wrong = loss * own_weight, wrong * own_weight
            g_r, g_g, g_b = g_r * own_weight, g_g * own_weight, g_b * own_weight
        spread, moment, bent = tl.zeros_like(transmittance), tl.zeros_like(transmittance), tl.zeros_like(transmittance)
        if HAS_DEPTH:
            ox, oy, oz = load3(origin, ray, mask)
            dx, dy, dz = load3(direction, ray, mask)
            if TAUGHT:
                known = tl.load(ray_log_distance + ray, mask=mask, other=0.0)
                trust = tl.load(ray_trust + ray, mask=mask, other=0.0)
            for j in range(longest):
                here = mask & (j < count)
                w = tl.load(k_weights + first + j, mask=here, other=0.0)
                m = log_distance(k_positions, first + j, here, side, box_min, ox, oy, oz, dx, dy, dz)
                spread, moment = spread + w, moment + w * m
            before, moment_before = tl.zeros_like(spread), tl.zeros_like(spread)
            for j in range(longest):
                here = mask & (j < count)
                w = tl.load(k_weights + first + j, mask=here, other=0.0)
                m = log_distance(k_positions, first + j, here, side, box_min, ox, oy, oz, dx, dy, dz)
                force = distortion * pull(w, m, before, moment_before, spread, moment)
                near = nearness * tl.maximum(log_horizon - m, 0.0)
                if TAUGHT:
                    near += trust * tl.maximum(tl.abs(m - known) - tolerance, 0.0)
                before, moment_before, bent = before + w, moment_before + w * m, bent + w * (force + near)
                share = w * (0.5 * force + near)  # every pair's share is counted from both of its ends
                if WEIGHTED:
                    share = share * own_weight
                loss += share
        total = tl.sum(tl.where(mask, loss, 0.0), axis=0)
        error = tl.sum(tl.where(mask, wrong, 0.0), axis=0)
        used = tl.sum(mask.to(tl.float32), axis=0)
        coloured = tl.sum(count, axis=0).to(tl.float32)
        scale = tl.where(loss_scale > 0.0, loss_scale, 1.0 / n_given.to(tl.float32))
        g_r, g_g, g_b = g_r * scale, g_g * scale, g_b * scale
        if PER_RAY:
            given = ray < n_given
            store3(ray_color, ray, tl.where(mask, r, 0.0), tl.where(mask, g, 0.0), tl.where(mask, b, 0.0), given)
            store3(
                ray_grad_color, ray, tl.where(mask, g_r, 0.0), tl.where(mask, g_g, 0.0), tl.where(mask, g_b, 0.0), given
            )
        force_scale = scale
        if WEIGHTED:
            force_scale = scale * own_weight
        before, moment_before = tl.zeros_like(spread), tl.zeros_like(spread)
        for j in range(longest):
            here = mask & (j < count)
            w = tl.load(k_weights + first + j, mask=here, other=0.0)
            after = tl.load(k_afters + first + j, mask=here, other=0.0)
            x, y, z = load3(rgb, first + j, here)
            r, g, b = r - w * x, g - w * y, b - w * z  # what the samples behind add
            store3(grad_rgb, first + j, w * g_r, w * g_g, w * g_b, here)
            slope = g_r * (after * x - r) + g_g * (after * y - g) + g_b * (after * z - b)
            if HAS_DEPTH:
                m = log_distance(k_positions, first + j, here, side, box_min, ox, oy, oz, dx, dy, dz)
                force = distortion * pull(w, m, before, moment_before, spread, moment)
                force += nearness * tl.maximum(log_horizon - m, 0.0)
                if TAUGHT:
                    force += trust * tl.maximum(tl.abs(m - known) - tolerance, 0.0)
                before, moment_before, bent = before + w, moment_before + w * m, bent - w * force
                slope += force_scale * (after * force - bent)
            slope *= tl.load(k_slopes + first + j, mask=here, other=0.0)
            tl.store(grad_log_density + first + j, slope, mask=here)
    own = sums + tl.program_id(0)
    tl.store(own, total)
    tl.store(own + max_blocks, error)
    tl.store(own + 2 * max_blocks, used)
    tl.store(own + 3 * max_blocks, coloured)


@triton.jit
def _sum_over_rays(
    origin, direction, transmittances, kept, kept_ends, k_positions, k_grad_positions, k_grad_harmonics, n_rays, box_min, side,
    inverse_side, grad_origin, grad_direction, grad_harmonics, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of each ray's origin and, through the positions, of its direction, and the sum of its samples' gradients
    of the spherical harmonics; 0 for rays that take no part. How far a sample is along its ray is read off where it is.
    """
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(n_rays)
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        part = mask & (tl.load(transmittances + ray, mask=mask, other=DROPPED) >= 0.0)
        count = tl.load(kept + ray, mask=part, other=0)
        first = tl.load(kept_ends + ray, mask=part, other=0) - count
        ox, oy, oz = load3(origin, ray, mask)
        dx, dy, dz = load3(direction, ray, mask)
        columns = tl.arange(0, 16)[None, :]
        harmonics = tl.zeros([BLOCK, 16], tl.float32)
        ax, ay, az = tl.zeros_like(ox), tl.zeros_like(ox), tl.zeros_like(ox)
        bx, by, bz = tl.zeros_like(ox), tl.zeros_like(ox), tl.zeros_like(ox)
        for j in range(tl.max(count, axis=0)):
            here = part & (j < count)
            x, y, z = load3(k_positions, first + j, here)
            t = (x * side + box_min - ox) * dx + (y * side + box_min - oy) * dy + (z * side + box_min - oz) * dz
            gx, gy, gz = load3(k_grad_positions, first + j, here)
            ax, ay, az = ax + gx, ay + gy, az + gz
            bx, by, bz = bx + t * gx, by + t * gy, bz + t * gz
            at = (first + j)[:, None] * 16 + columns
            harmonics += tl.load(k_grad_harmonics + at, here[:, None], other=0.0)
        store3(grad_origin, ray, ax * inverse_side, ay * inverse_side, az * inverse_side, mask)
        store3(grad_direction, ray, bx * inverse_side, by * inverse_side, bz * inverse_side, mask)
        tl.store(grad_harmonics + ray[:, None] * 16 + columns, harmonics, mask[:, None])


@triton.jit
def _finish(
    sums, n_blocks, n_live, n_waves, n_rays, hyper, stats, target_samples, fewest_rays, growth, most_rays, loss_scale,
    ADAPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The step's figures; where ADAPT, the rays of the next step and what the optimiser multiplies gradients by."""
    place = tl.arange(0, BLOCK)
    total, error = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    used, kept = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for begin in range(0, n_blocks, BLOCK):
        at, mask = begin + place, begin + place < n_blocks
        total += tl.load(sums + at, mask=mask, other=0.0)
        error += tl.load(sums + n_blocks + at, mask=mask, other=0.0)
        used += tl.load(sums + 2 * n_blocks + at, mask=mask, other=0.0)
        kept += tl.load(sums + 3 * n_blocks + at, mask=mask, other=0.0)
    n_used, n_kept = tl.sum(used, axis=0), tl.sum(kept, axis=0)
    share = 1.0 / tl.maximum(n_used, 1.0)
    loss = tl.sum(total, axis=0) * share
    marched = tl.sum(tl.load(n_live + 4 * place, mask=place < n_waves, other=0), axis=0)
    given = tl.maximum(tl.load(n_rays), 1)
    wanted = n_used * target_samples / tl.maximum(n_kept, 1.0)
    following = tl.minimum(tl.maximum(fewest_rays, tl.minimum(growth * n_used, wanted)), most_rays).to(tl.int32)
    tl.store(stats, loss)
    tl.store(stats + 1, tl.sum(error, axis=0) * share * (1.0 / 3.0))
    tl.store(stats + 2, n_used)
    tl.store(stats + 3, n_kept)
    tl.store(stats + 4, marched.to(tl.float32))
    tl.store(stats + 5, following.to(tl.float32))
    if ADAPT:
        tl.store(n_rays, following)
        good = (tl.abs(loss) < float("inf")) & (n_used > 0.0)
        tl.store(hyper + 1, tl.where(good, 1.0 / (loss_scale * given.to(tl.float32)), 0.0))


# --- on the host ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
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


class RayGradientBuffers:
    """Room for the gradients of a step's rays, which `enqueue` fills."""

    def __init__(self, device: torch.device, max_samples: int, max_rays: int) -> None:
        """Args:
        device: Where the buffers lie.
        max_samples: Samples that can be kept.
        max_rays: Rays that can be given.
        """
        self.color, self.grad_color, self.grad_origin, self.grad_direction, self.through_harmonics = (
            torch.zeros((max_rays, 3), device=device) for _ in range(5)
        )
        self.grad_harmonics = torch.zeros((max_rays, 16), device=device)
        self.k_grad_positions = torch.zeros((max_samples, 3), device=device)
        self.k_grad_harmonics = torch.zeros((max_samples, 16), device=device)


class Buffers:
    """Room for a step: fixed, so that a captured step finds it again."""

    def __init__(self, field: DeviceField, max_samples: int, max_rays: int) -> None:
        """Args:
        field: Whose device, sizes and types they have.
        max_samples: Samples that can be kept; twice as many can be marched in each wave.
        max_rays: Rays that can be given.
        """

        device = field.weights.device

        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        def counts(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.device, self.max_samples, self.wave_capacity = device, max_samples, 2 * max_samples
        marched = len(WAVES) * self.wave_capacity
        self.positions, self.dts, self.log_density = floats(marched, 3), floats(marched), floats(marched)
        self.weights, self.afters = floats(marched), floats(marched)
        self.k_positions, self.k_directions = floats(max_samples, 3), floats(max_samples, 3)
        self.k_weights, self.k_afters, self.k_slopes = floats(max_samples), floats(max_samples), floats(max_samples)
        self.k_log_density, self.rgb = floats(max_samples), floats(max_samples, 3)
        self.grad_rgb, self.grad_log_density = floats(max_samples, 3), floats(max_samples)
        self.n_live, self.n_kept = counts(len(WAVES), 4), counts(1)  # 16 bytes apart, as all that kernels get
        self.lattice, self.stats, self.hyper = floats(N_LATTICE), floats(N_STATS), floats(2)
        self.features, self.grad_features = (
            torch.zeros((max_samples, width), dtype=field.weights.dtype, device=device)
            for width in (field.layout.n_output, scratch_width(field.layout))
        )
        self.grad_weights = floats(field.n_weights)
        self.reserve(max_rays)

    def reserve(self, max_rays: int) -> None:
        """Make room for so many rays."""
        self.max_rays = max_rays
        self.next_n, self.transmittances = (torch.zeros(max_rays, device=self.device) for _ in range(2))
        self.counts, self.ends = (
            torch.zeros((len(WAVES), max_rays), dtype=torch.int32, device=self.device) for _ in range(2)
        )
        self.kept, self.kept_ends = (torch.zeros(max_rays, dtype=torch.int32, device=self.device) for _ in range(2))
        self.points = torch.zeros(max(WAVES) * max_rays, device=self.device)
        self.n_blocks = triton.cdiv(max_rays, ray_block(max_rays)["BLOCK"])
        self.sums = torch.zeros(4 * self.n_blocks, device=self.device)

    def n_bytes(self) -> int:
        """Memory that the buffers take."""
        return sum(x.numel() * x.element_size() for x in vars(self).values() if isinstance(x, Tensor))


def enqueue(
    field: DeviceField, batch: Batch, words: Tensor, coarse: Tensor, aabb_scale: int, has_cone: bool, buffers: Buffers,
    grad_table: Tensor, *, min_transmittance: float, min_weight: float, huber_delta: float, depth: Any,
    loss_scale: float = 0.0,
    target_samples: int = 0, fewest_rays: int = 0, growth: float = 1.0, most_rays: int = 0,
    per_ray: RayGradientBuffers | None = None,
) -> None:  # fmt: skip
    """Launch a whole step up to its gradients; nothing is waited for.

    Args:
        field: DeviceField.
        batch: Rays.
        words, coarse: The occupied bits, see `as_words`.
        aabb_scale: Side of the box.
        has_cone: Whether steps grow with distance; buffers.lattice holds the numbers.
        buffers: Room; results are stats, hyper[1], grad_weights.
        grad_table: Added to.
        min_transmittance, min_weight, huber_delta: As MarchOptions and `train_rays` have them.
        depth: DepthLosses.
        loss_scale: What the gradient of a ray's loss is multiplied by; 0 divides by the number of rays instead.
        target_samples: Kept samples that the next step should have; where more than 0, batch.n_rays is set for it,
            to at least `fewest_rays`, at most `most_rays` and at most `growth` times the rays of this step.
        fewest_rays, growth, most_rays: See there.
        per_ray: Filled with the rays' colours and gradients (scaled like all others), which cost kernels of their own;
            None: not wanted.
    """
    b = buffers
    n, block = b.max_rays, ray_block(b.max_rays)
    grid = (b.n_blocks,)
    n_cascades, inverse_side, box_min = n_cascades_of(aabb_scale), 1.0 / aabb_scale, box_low_of(aabb_scale)
    weighted, ray_weight = batch.weight is not None, batch.jitter if batch.weight is None else batch.weight
    taught = batch.log_distance is not None
    for wave, quota in enumerate(WAVES):
        part = slice(wave * b.wave_capacity, (wave + 1) * b.wave_capacity)
        positions, dts, log_density = b.positions[part], b.dts[part], b.log_density[part]
        counts, ends, n_live = b.counts[wave], b.ends[wave], b.n_live[wave, :1]
        shared = (
            batch.origin, batch.direction, batch.t_min, batch.t_max, batch.jitter, words, coarse, b.lattice,
            batch.n_rays, min_transmittance, box_min, inverse_side, b.next_n, b.transmittances, counts, ends, b.points,
            positions, dts, n_live, b.kept, ray_weight, n, b.wave_capacity,
        )  # fmt: skip
        options = {
            "N_CASCADES": n_cascades, "HAS_CONE": has_cone, "FIRST": wave == 0, "QUOTA": quota, "WEIGHTED": weighted,
            **block,
        }  # fmt: skip
        launch(_wave_march, grid, *shared, FILL=False, **options)
        torch.cumsum(counts, 0, dtype=torch.int32, out=ends)
        if quota:
            launch(
                _wave_fill, grid, batch.origin, batch.direction, batch.t_min, b.lattice, batch.n_rays, box_min,
                inverse_side, b.transmittances, counts, ends, b.points, positions, dts, n_live, b.kept, n, b.wave_capacity,
                HAS_CONE=has_cone, **block,
            )  # fmt: skip
        else:
            launch(_wave_march, grid, *shared, FILL=True, **options)
        field_density(field, positions, n_live, log_density)
        launch(
            _wave_cut, grid, log_density, dts, batch.n_rays, min_transmittance, min_weight, counts, ends, b.transmittances,
            b.kept, b.weights[part], b.afters[part], **block,
        )  # fmt: skip
    torch.cumsum(b.kept, 0, dtype=torch.int32, out=b.kept_ends)
    launch(
        _gather, grid, batch.direction, b.positions, b.dts, b.log_density, b.weights, b.afters, batch.n_rays,
        b.counts, b.ends, b.transmittances, b.kept, b.kept_ends, b.k_positions, b.k_directions, b.k_weights, b.k_afters,
        b.k_slopes, b.n_kept, n, b.wave_capacity, b.max_samples, N_WAVES=len(WAVES), **block,
    )  # fmt: skip
    field_forward(
        field, b.k_positions, b.k_directions, b.n_kept, b.k_log_density, b.rgb, features=b.features
    )
    launch(
        _composite_loss, grid, b.rgb, b.k_weights, b.k_afters, b.k_slopes, b.transmittances, b.kept, b.kept_ends, batch.target,
        batch.background, ray_weight, batch.n_rays, min_transmittance, huber_delta, loss_scale, b.grad_rgb,
        b.grad_log_density, b.grad_rgb if per_ray is None else per_ray.color,
        b.grad_rgb if per_ray is None else per_ray.grad_color, b.sums, b.n_blocks, batch.origin, batch.direction,
        b.k_positions, float(aabb_scale), box_min, batch.log_distance if taught else batch.jitter,
        batch.trust if taught else batch.jitter, *depth, HUBER=huber_delta > 0.0, HAS_DEPTH=depth.has_any or taught,
        TAUGHT=taught, WEIGHTED=weighted, PER_RAY=per_ray is not None, **block,
    )  # fmt: skip
    b.grad_weights.zero_()
    field_backward(
        field, b.k_positions, b.k_directions, b.n_kept, b.grad_log_density, b.grad_rgb, grad_table, b.grad_weights,
        features=b.features, grad_features=b.grad_features,
        grad_positions=None if per_ray is None else per_ray.k_grad_positions,
        grad_harmonics=None if per_ray is None else per_ray.k_grad_harmonics,
    )  # fmt: skip
    if per_ray is not None:
        launch(
            _sum_over_rays, grid, batch.origin, batch.direction, b.transmittances, b.kept, b.kept_ends, b.k_positions,
            per_ray.k_grad_positions, per_ray.k_grad_harmonics, batch.n_rays, box_min, float(aabb_scale), inverse_side,
            per_ray.grad_origin, per_ray.grad_direction, per_ray.grad_harmonics, **block,
        )  # fmt: skip
        direction_gradients(batch.direction, batch.n_rays, per_ray.grad_harmonics, per_ray.through_harmonics, 4)
        per_ray.grad_direction[: len(batch.direction)] += per_ray.through_harmonics[: len(batch.direction)]
    launch(
        _finish, (1,), b.sums, b.n_blocks, b.n_live, len(WAVES), batch.n_rays, b.hyper, b.stats,
        float(target_samples), float(fewest_rays), float(growth), float(most_rays), loss_scale,
        ADAPT=target_samples > 0, BLOCK=1024, num_warps=4,
    )  # fmt: skip


def make_buffers(field: Any, max_samples: int) -> Buffers:
    """Buffers for one field; room for rays is made when a batch comes."""
    return Buffers(device_field(field), max_samples, 1)


def train_rays(
    field: Any, batch: Any, bits: Tensor, options: Any, workspace: Any, huber_delta: float, sparsity: float,
    depth: Any, wants_ray_gradients: bool,
) -> dict[str, Any]:  # fmt: skip
    """See `hashfield.ops.train_rays`; adds to workspace.grad_table. Waits for the result. Takes no sparsity loss."""
    assert sparsity == 0.0, "the op leaves such calls to others"
    rays, buffers = batch.rays, workspace.buffers
    n, device = rays.n_rays, buffers.device
    if n > buffers.max_rays:
        buffers.reserve(n)
    buffers.lattice.copy_(torch.tensor(lattice_values(options.cone_angle, options.step_scale)))
    given = (rays.origin, rays.direction, rays.t_min, rays.t_max, batch.jitter, batch.target, batch.background)
    weight = None if batch.weight is None else batch.weight.contiguous()
    log_distance = None if batch.distance is None else batch.distance.clamp(min=NEAREST.value).log().contiguous()
    trust = None if batch.trust is None else batch.trust.contiguous()
    batch = Batch(*(x.contiguous() for x in given), count_of(n, device), weight, log_distance, trust)
    per_ray = RayGradientBuffers(device, buffers.max_samples, buffers.max_rays) if wants_ray_gradients else None
    enqueue(
        device_field(field), batch, *as_words(bits), options.aabb_scale, options.cone_angle > 0.0, buffers, workspace.grad_table,
        min_transmittance=options.min_transmittance, min_weight=options.min_weight, huber_delta=huber_delta,
        depth=depth, per_ray=per_ray,
    )  # fmt: skip
    loss, error, used, kept, marched, _ = buffers.stats.tolist()
    workspace.samples_per_ray = kept / max(used, 1.0)
    weights = [*field.density_weights, *field.color_weights]
    grads = [
        g.view(w.shape).clone()
        for g, w in zip(buffers.grad_weights.split([w.numel() for w in weights]), weights, strict=True)
    ]
    return {
        "loss": loss, "squared_error": error, "n_rays": int(used), "n_kept": int(kept), "n_marched": int(marched),
        "grad_density_weights": grads[:2], "grad_color_weights": grads[2:], "stage_cycles": {},
        "ray_gradients": None if per_ray is None else tuple(
            x[:n] for x in (per_ray.color, per_ray.grad_color, per_ray.grad_origin, per_ray.grad_direction)
        ),
    }  # fmt: skip
