"""Sphere tracing through a grid-encoded network on GPUs: a thread to a ray, the whole network in each step.

A program walks its rays for a few steps, encode and network in registers, and is done when all of them are. Then the
rays under way are packed, so that few lanes idle: first after few steps, since most rays miss or arrive early. How many
there are stays on the device: every wave launches as many programs as there are rays, and those without rays end at
once. Nothing synchronises.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import count_of, dot_precision, encode, launch, levels_of, pack
from hashfield.kernels.triton_gpu.encoded_mlp import device_network
from hashfield.kernels.triton_gpu.field import log2_levels
from hashfield.kernels.triton_gpu.mlp import network

WAVES = (4, 8, 16, 32, 64)
"""Steps that a wave takes at most; the last one repeats."""


class TracedRays(NamedTuple):
    """Rays, how far each has come, and whether it has met the surface."""

    origin: Tensor
    direction: Tensor
    t_max: Tensor
    t: Tensor
    is_hit: Tensor


@triton.jit(do_not_specialize=["n_steps", "is_last"])
def _trace(
    rays, box, under_way, n_under_way, living, n_rays, n_steps, is_last, step, hit_distance, table, weights,
    LEVELS: tl.constexpr, L: tl.constexpr, LOG2_L: tl.constexpr, F: tl.constexpr, INTERPOLATION: tl.constexpr,
    ROUND: tl.constexpr, WIDTHS: tl.constexpr, PADS: tl.constexpr, OFFSETS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """At most n_steps of each ray under way, and which of them still are. After the last wave those count as hits."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.load(n_under_way)
    walks = k < n
    if tl.program_id(0) * BLOCK < n:
        ray = tl.load(under_way + k, walks, other=0)
        end = tl.load(rays.t_max + ray, walks, other=0.0)
        t = tl.load(rays.t + ray, walks, other=0.0)
        low_x, low_y, low_z = tl.load(box), tl.load(box + 1), tl.load(box + 2)
        high_x, high_y, high_z = tl.load(box + 3), tl.load(box + 4), tl.load(box + 5)
        DTYPE: tl.constexpr = weights.dtype.element_ty
        columns = tl.arange(0, PADS[DEPTH])[None, :]
        mine = walks
        hit = tl.zeros([BLOCK], tl.int32)
        walks = walks & (t < end)
        # Hoisting out of the loop is off: the matrices would be loaded before it and spill. Rays are read anew each time.
        for s in tl.range(0, n_steps, disable_licm=True):
            if tl.max(walks.to(tl.int32), axis=0) > 0:
                origin, direction = rays.origin + 3 * ray, rays.direction + 3 * ray
                x = tl.load(origin, walks, other=0.0) + t * tl.load(direction, walks, other=0.0)
                y = tl.load(origin + 1, walks, other=0.0) + t * tl.load(direction + 1, walks, other=0.0)
                z = tl.load(origin + 2, walks, other=0.0) + t * tl.load(direction + 2, walks, other=0.0)
                in_x = tl.minimum(tl.maximum(x, low_x), high_x)
                in_y = tl.minimum(tl.maximum(y, low_y), high_y)
                in_z = tl.minimum(tl.maximum(z, low_z), high_z)
                features = encode(table, in_x, in_y, in_z, LEVELS, L, LOG2_L, 3, F, INTERPOLATION, ROUND, DTYPE)
                _, out = network(features, weights, WIDTHS, PADS, OFFSETS, DEPTH, "none", PRECISION)
                found = tl.sum(tl.where(columns == 0, out, 0.0), axis=1)
                x, y, z = x - in_x, y - in_y, z - in_z
                found += tl.sqrt(x * x + y * y + z * z)
                goes_on = walks & (found >= hit_distance)  # a NaN ends its ray too
                hit = tl.where(walks & (goes_on == 0), 1, hit)
                t = tl.where(goes_on, t + step * found, t)
                walks = goes_on & (t < end)
        hit = tl.where(walks, is_last, hit)
        tl.store(rays.t + ray, t, mine)
        tl.store(rays.is_hit + ray, hit.to(tl.int8), mine)
    tl.store(living + k, walks.to(tl.int32), k < n_rays)


def sphere_trace(
    network: Any, box: Tensor, rays: Any, max_steps: int, hit_distance: float, step: float
) -> tuple[Tensor, Tensor]:
    """Distance t and flag is_hit of each ray; see `hashfield.ops.sphere_trace`."""
    n, device = rays.n_rays, rays.origin.device
    t, is_hit = rays.t_min.contiguous().clone(), torch.zeros(n, dtype=torch.bool, device=device)
    if not n:
        return t, is_hit
    net = device_network(network)
    layout, (block, warps) = net.layout, net.tile(backward=False)
    if net.weights.dtype != torch.float32:
        block //= 2  # a ray's own numbers need registers too
    traced = TracedRays(
        rays.origin.contiguous(), rays.direction.contiguous(), rays.t_max.contiguous(), t, is_hit.view(torch.int8)
    )
    under_way, packed = (torch.arange(n, dtype=torch.int32, device=device) for _ in range(2))
    living = torch.empty(n, dtype=torch.int32, device=device)
    n_under_way, done, wave = count_of(n, device), 0, 0
    while done < max_steps:
        n_steps = min(WAVES[min(wave, len(WAVES) - 1)], max_steps - done)
        done, wave = done + n_steps, wave + 1
        launch(
            _trace, (triton.cdiv(n, block),), traced, box.to(device, torch.float32).contiguous(), under_way, n_under_way,
            living, n, n_steps, int(done == max_steps), step, hit_distance, net.table, net.weights,
            LEVELS=levels_of(layout), L=layout.n_levels, LOG2_L=log2_levels(layout), F=layout.n_features_per_level,
            INTERPOLATION=net.interpolation, ROUND=net.is_rounded, **net.shape,
            PRECISION=dot_precision(net.weights.dtype), BLOCK=block, num_warps=warps,
        )  # fmt: skip
        if done < max_steps:
            pack(under_way, living, packed, n_under_way)
            under_way, packed = packed, under_way
    return t, is_hit
