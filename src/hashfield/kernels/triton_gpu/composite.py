"""Compositing packed samples to ray colours on GPUs, forward and backward: a thread to a ray."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import launch
from hashfield.kernels.triton_gpu.march import ray_block


@triton.jit
def opaque_share(thickness):
    """1 - e^-thickness, accurate where it is small."""
    # Below 1/8 the series to the fifth power errs by less than 2^-24 of the result.
    x = thickness
    series = x * (1.0 - x * (0.5 - x * (1.0 / 6.0 - x * (1.0 / 24.0 - x * (1.0 / 120.0 - x * (1.0 / 720.0))))))
    return tl.where(x < 0.125, series, 1.0 - tl.exp(-x))


@triton.jit
def load3(pointer, at, mask):
    """Three neighbouring numbers of each lane."""
    return (
        tl.load(pointer + 3 * at, mask=mask, other=0.0), tl.load(pointer + 3 * at + 1, mask=mask, other=0.0),
        tl.load(pointer + 3 * at + 2, mask=mask, other=0.0),
    )  # fmt: skip


@triton.jit
def store3(pointer, at, x, y, z, mask):
    """Three neighbouring numbers of each lane."""
    tl.store(pointer + 3 * at, x, mask=mask)
    tl.store(pointer + 3 * at + 1, y, mask=mask)
    tl.store(pointer + 3 * at + 2, z, mask=mask)


@triton.jit
def _forward(
    color, density, t, dt, offsets, background, min_transmittance, n_rays, out, opacity, depth, weight,
    BLOCK: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    first = tl.load(offsets + ray, mask=mask, other=0)
    count = (tl.load(offsets + ray + 1, mask=mask, other=0) - first).to(tl.int32)
    transmittance = tl.full([BLOCK], 1.0, tl.float32)
    r, g, b = tl.zeros_like(transmittance), tl.zeros_like(transmittance), tl.zeros_like(transmittance)
    opaque, distance = tl.zeros_like(transmittance), tl.zeros_like(transmittance)
    is_cut = tl.zeros_like(mask)
    for j in range(tl.max(count, axis=0)):
        here = mask & (j < count)
        at = first + j
        is_cut = is_cut | (here & (transmittance < min_transmittance))
        thickness = tl.load(density + at, mask=here, other=0.0) * tl.load(dt + at, mask=here, other=0.0)
        alpha = tl.where(here & (is_cut == 0), opaque_share(thickness), 0.0)
        w = transmittance * alpha
        tl.store(weight + at, w, mask=here)
        x, y, z = load3(color, at, here)
        r, g, b = r + w * x, g + w * y, b + w * z
        opaque += w
        distance += w * tl.load(t + at, mask=here, other=0.0)
        transmittance *= 1.0 - alpha
    x, y, z = load3(background, ray, mask)
    left = tl.where(is_cut, 0.0, transmittance)
    store3(out, ray, r + left * x, g + left * y, b + left * z, mask)
    tl.store(opacity + ray, opaque, mask=mask)
    tl.store(depth + ray, distance, mask=mask)


@triton.jit
def _backward(
    color, density, t, dt, offsets, background, min_transmittance, n_rays, weight, d_out, d_opacity, d_depth, d_weight,
    d_color, d_density, d_background, BLOCK: tl.constexpr,
):  # fmt: skip
    """With a value v_i = d_out.c_i + d_opacity + d_depth t_i + d_weight_i for every sample, the ray's objective is
    sum w_i v_i + T d_out.background, hence dL/d(density_i) = dt_i (T_{i+1} v_i - sum_{j>i} w_j v_j - T v_bg)."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    first = tl.load(offsets + ray, mask=mask, other=0)
    count = (tl.load(offsets + ray + 1, mask=mask, other=0) - first).to(tl.int32)
    gr, gg, gb = load3(d_out, ray, mask)
    g_opacity = tl.load(d_opacity + ray, mask=mask, other=0.0)
    g_depth = tl.load(d_depth + ray, mask=mask, other=0.0)
    transmittance = tl.full([BLOCK], 1.0, tl.float32)
    rest = tl.zeros_like(transmittance)
    is_cut = tl.zeros_like(mask)
    longest = tl.max(count, axis=0)
    for j in range(longest):
        here = mask & (j < count)
        at = first + j
        is_cut = is_cut | (here & (transmittance < min_transmittance))
        here = here & (is_cut == 0)
        x, y, z = load3(color, at, here)
        value = gr * x + gg * y + gb * z + g_opacity + g_depth * tl.load(t + at, mask=here, other=0.0)
        value += tl.load(d_weight + at, mask=here, other=0.0)
        rest += tl.load(weight + at, mask=here, other=0.0) * value
        thickness = tl.load(density + at, mask=here, other=0.0) * tl.load(dt + at, mask=here, other=0.0)
        transmittance *= tl.exp(-thickness)
    x, y, z = load3(background, ray, mask)
    left = tl.where(is_cut, 0.0, transmittance)
    rest += left * (gr * x + gg * y + gb * z)
    store3(d_background, ray, left * gr, left * gg, left * gb, mask)
    transmittance = tl.full([BLOCK], 1.0, tl.float32)
    is_cut = tl.zeros_like(mask)
    for j in range(longest):
        here = mask & (j < count)
        at = first + j
        is_cut = is_cut | (here & (transmittance < min_transmittance))
        lit = here & (is_cut == 0)
        w = tl.load(weight + at, mask=lit, other=0.0)
        x, y, z = load3(color, at, lit)
        value = gr * x + gg * y + gb * z + g_opacity + g_depth * tl.load(t + at, mask=lit, other=0.0)
        value += tl.load(d_weight + at, mask=lit, other=0.0)
        store3(d_color, at, w * gr, w * gg, w * gb, here)
        step = tl.load(dt + at, mask=lit, other=0.0)
        transmittance *= tl.exp(-tl.load(density + at, mask=lit, other=0.0) * step)
        rest -= w * value
        tl.store(d_density + at, step * (transmittance * value - rest), mask=here)


def composite_forward(
    color: Tensor, density: Tensor, t: Tensor, dt: Tensor, ray_offsets: Tensor, background: Tensor,
    min_transmittance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Colour, opacity, depth of every ray and weight of every sample; see `hashfield.ops.composite`."""
    n_rays = ray_offsets.shape[0] - 1
    out, opacity, depth = torch.empty_like(background), color.new_empty(n_rays), color.new_empty(n_rays)
    weight = torch.empty_like(t)
    if n_rays:
        block = ray_block(n_rays)
        launch(
            _forward, (triton.cdiv(n_rays, block["BLOCK"]),), color, density, t, dt, ray_offsets, background,
            min_transmittance, n_rays, out, opacity, depth, weight, **block,
        )  # fmt: skip
    return out, opacity, depth, weight


def composite_backward(
    color: Tensor, density: Tensor, t: Tensor, dt: Tensor, ray_offsets: Tensor, background: Tensor,
    min_transmittance: float, grad_color: Tensor, grad_opacity: Tensor, grad_depth: Tensor, grad_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients to the samples' colour and density and to the background."""
    n_rays = ray_offsets.shape[0] - 1
    *_, weight = composite_forward(color, density, t, dt, ray_offsets, background, min_transmittance)
    d_color, d_density, d_background = (torch.empty_like(x) for x in (color, density, background))
    if n_rays:
        block = ray_block(n_rays)
        launch(
            _backward, (triton.cdiv(n_rays, block["BLOCK"]),), color, density, t, dt, ray_offsets, background,
            min_transmittance, n_rays, weight, grad_color, grad_opacity, grad_depth, grad_weight, d_color, d_density,
            d_background, **block,
        )  # fmt: skip
    return d_color, d_density, d_background
