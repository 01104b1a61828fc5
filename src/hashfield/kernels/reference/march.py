"""Reference of ray marching through the occupancy grid, in plain torch.

Every ray carries a lattice of points t_0 < t_1 < ..., equally spaced in a *stepping coordinate* n(t). A
sample is taken at a lattice point whose cell is occupied; empty cells are jumped over by whole steps, so
samples never leave the lattice.
"""

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hashfield.geometry.spaces import n_cascades_of
from hashfield.kernels.reference.occupancy import GRID_SIZE, in_cells, lookup, mip_from_step

FINEST_STEP = math.sqrt(3) / 1024
"""Step length of scene space at step_scale 1, near the camera: the unit cube's diagonal in 1024 steps."""
COARSEST_STEP = math.sqrt(3)
"""Longest step at step_scale 1."""


def march(
    origin: Float[Tensor, "n_rays 3"],
    direction: Float[Tensor, "n_rays 3"],
    t_min: Float[Tensor, " n_rays"],
    t_max: Float[Tensor, " n_rays"],
    bits: UInt8[Tensor, " n_bytes"],
    aabb_scale: int,
    cone_angle: float,
    step_scale: float,
    jitter: Float[Tensor, " n_rays"],
    max_samples_per_ray: int = 1024,
) -> tuple[Float[Tensor, " n_samples"], Float[Tensor, " n_samples"], Int64[Tensor, " n_rays+1"]]:
    """Distances, step lengths and ray offsets of the samples of each ray, sorted by ray, then by distance.

    Computed in float64 whatever the inputs, so that the lattice is exact; results have the origin's dtype.

    Args:
        origin, direction: Scene space, unit length.
        t_min, t_max: Part of the ray to sample, inside the box 0.5 +- aabb_scale / 2.
        bits: As `pack_bits` makes them, log2(aabb_scale) + 1 cascades.
        aabb_scale: Side of the box, a power of two.
        cone_angle: Growth of the step with distance; 0 for a constant step.
        step_scale: Makes every step this much longer.
        jitter: Fraction of a step by which each lattice is shifted.
        max_samples_per_ray: A ray ends at its last one.

    Source: instant-ngp src/testbed_nerf.cu (generate_training_samples_nerf), nerf_device.cuh.
    """
    n_rays, dtype, device = origin.shape[0], origin.dtype, origin.device
    n_cascades = n_cascades_of(aabb_scale)
    origin, direction = origin.double(), direction.double()
    ray = torch.nonzero(t_max > t_min).squeeze(1)
    n = steps_from_t(t_min.double(), cone_angle, step_scale) + jitter.double()
    n, end, left = n[ray], t_max.double()[ray], torch.full_like(ray, max_samples_per_ray)
    found_ray, found_t, found_dt = [ray[:0]], [end[:0]], [end[:0]]
    while ray.numel():
        t = t_from_steps(n, cone_angle, step_scale)
        alive = (t < end) & (left > 0)
        ray, n, end, left, t = ray[alive], n[alive], end[alive], left[alive], t[alive]
        dt = t_from_steps(n + 1, cone_angle, step_scale) - t
        position = origin[ray] + t[:, None] * direction[ray]
        mip = mip_from_step(position, dt, n_cascades)
        occupied = lookup(position, mip, bits)
        found_ray.append(ray[occupied])
        found_t.append(t[occupied])
        found_dt.append(dt[occupied])
        exit_n = steps_from_t(t + distance_to_exit(position, direction[ray], mip), cone_angle, step_scale)
        jump = (exit_n - n).clamp(min=0.5).ceil()
        n = n + torch.where(occupied, torch.ones_like(jump), jump)
        left = left - occupied.long()
    ray, t, dt = torch.cat(found_ray), torch.cat(found_t), torch.cat(found_dt)
    order = torch.argsort(ray, stable=True)
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64, device=device)
    offsets[1:] = torch.bincount(ray, minlength=n_rays).cumsum(0)
    return t[order].to(dtype), dt[order].to(dtype), offsets


def steps_from_t(t: Float[Tensor, " n"], cone_angle: float, step_scale: float) -> Float[Tensor, " n"]:
    """Stepping coordinate of each distance: it grows by 1 per step.

    With s the finest step, M the coarsest, c the cone angle (all times step_scale) and lambda = ln(1 + c):
    linear with slope 1/s up to t_a = s / lambda, then ln(t) / lambda up to t_b = M / lambda, then slope 1/M.
    """
    s, m, rate, t_a, n_a, t_b, n_b = _lattice(cone_angle, step_scale)
    if not rate:
        return t / s
    middle = torch.log(t.clamp(min=t_a)) / rate
    return torch.where(t <= t_a, (t - t_a) / s + n_a, torch.where(t <= t_b, middle, (t - t_b) / m + n_b))


def t_from_steps(n: Float[Tensor, " n"], cone_angle: float, step_scale: float) -> Float[Tensor, " n"]:
    """Distance at each stepping coordinate: the inverse of `steps_from_t`."""
    s, m, rate, t_a, n_a, t_b, n_b = _lattice(cone_angle, step_scale)
    if not rate:
        return n * s
    middle = torch.exp(n.clamp(max=n_b) * rate)
    return torch.where(n <= n_a, (n - n_a) * s + t_a, torch.where(n <= n_b, middle, (n - n_b) * m + t_b))


def distance_to_exit(
    position: Float[Tensor, "n 3"], direction: Float[Tensor, "n 3"], mip: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Distance along the ray to the face through which it leaves the mip's cell, at least 0."""
    x = in_cells(position, mip)
    face = torch.where(direction > 0, x.floor() + 1, x.floor())
    along = torch.where(direction == 0, torch.full_like(x, torch.inf), (face - x) / direction)
    return along.amin(1).clamp(min=0.0) * torch.exp2(mip.to(x.dtype)) / GRID_SIZE


def _lattice(cone_angle: float, step_scale: float) -> tuple[float, float, float, float, float, float, float]:
    s, m, rate = FINEST_STEP * step_scale, COARSEST_STEP * step_scale, math.log1p(cone_angle * step_scale)
    if not rate:
        return s, m, rate, 0.0, 0.0, 0.0, 0.0
    t_a, t_b = s / rate, m / rate
    return s, m, rate, t_a, math.log(t_a) / rate, t_b, math.log(t_b) / rate
