"""Compositing packed samples to ray colours on GPUs, forward and backward: a thread to a ray."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import launch
from hashfield.kernels.triton_gpu.march import ray_block


class Packed(NamedTuple):
    """Samples packed by ray, and what lies behind them."""

    color: Tensor
    density: Tensor
    t: Tensor
    dt: Tensor
    offsets: Tensor
    background: Tensor


class Cotangents(NamedTuple):
    """Derivatives of the objective to what compositing gives."""

    color: Tensor
    opacity: Tensor
    depth: Tensor
    weight: Tensor


class Gradients(NamedTuple):
    """Derivatives of the objective to what was composited."""

    color: Tensor
    density: Tensor
    background: Tensor


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
def _forward(packed, min_transmittance, n_rays, out, opacity, depth, weight, BLOCK: tl.constexpr):
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    first = tl.load(packed.offsets + ray, mask=mask, other=0)
    count = (tl.load(packed.offsets + ray + 1, mask=mask, other=0) - first).to(tl.int32)
    transmittance = tl.full([BLOCK], 1.0, tl.float32)
    r, g, b = tl.zeros_like(transmittance), tl.zeros_like(transmittance), tl.zeros_like(transmittance)
    opaque, distance = tl.zeros_like(transmittance), tl.zeros_like(transmittance)
    is_cut = tl.zeros_like(mask)
    for j in range(tl.max(count, axis=0)):
        here = mask & (j < count)
        at = first + j
        is_cut = is_cut | (here & (transmittance < min_transmittance))
        thickness = tl.load(packed.density + at, mask=here, other=0.0) * tl.load(packed.dt + at, mask=here, other=0.0)
        alpha = tl.where(here & (is_cut == 0), opaque_share(thickness), 0.0)
        w = transmittance * alpha
        tl.store(weight + at, w, mask=here)
        x, y, z = load3(packed.color, at, here)
        r, g, b = r + w * x, g + w * y, b + w * z
        opaque += w
        distance += w * tl.load(packed.t + at, mask=here, other=0.0)
        transmittance *= 1.0 - alpha
    x, y, z = load3(packed.background, ray, mask)
    left = tl.where(is_cut, 0.0, transmittance)
    store3(out, ray, r + left * x, g + left * y, b + left * z, mask)
    tl.store(opacity + ray, opaque, mask=mask)
    tl.store(depth + ray, distance, mask=mask)


@triton.jit
def _backward(packed, min_transmittance, n_rays, weight, given, gradients, BLOCK: tl.constexpr):
    """With a value v_i = d_color.c_i + d_opacity + d_depth t_i + d_weight_i for every sample (the cotangents given), the
    ray's objective is sum w_i v_i + T d_color.background, hence dL/d(density_i) = dt_i (T_{i+1} v_i - sum_{j>i} w_j v_j - T v_bg)."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    first = tl.load(packed.offsets + ray, mask=mask, other=0)
    count = (tl.load(packed.offsets + ray + 1, mask=mask, other=0) - first).to(tl.int32)
    gr, gg, gb = load3(given.color, ray, mask)
    g_opacity = tl.load(given.opacity + ray, mask=mask, other=0.0)
    g_depth = tl.load(given.depth + ray, mask=mask, other=0.0)
    transmittance = tl.full([BLOCK], 1.0, tl.float32)
    rest = tl.zeros_like(transmittance)
    is_cut = tl.zeros_like(mask)
    longest = tl.max(count, axis=0)
    for j in range(longest):
        here = mask & (j < count)
        at = first + j
        is_cut = is_cut | (here & (transmittance < min_transmittance))
        here = here & (is_cut == 0)
        x, y, z = load3(packed.color, at, here)
        value = gr * x + gg * y + gb * z + g_opacity + g_depth * tl.load(packed.t + at, mask=here, other=0.0)
        value += tl.load(given.weight + at, mask=here, other=0.0)
        rest += tl.load(weight + at, mask=here, other=0.0) * value
        thickness = tl.load(packed.density + at, mask=here, other=0.0) * tl.load(packed.dt + at, mask=here, other=0.0)
        transmittance *= tl.exp(-thickness)
    x, y, z = load3(packed.background, ray, mask)
    left = tl.where(is_cut, 0.0, transmittance)
    rest += left * (gr * x + gg * y + gb * z)
    store3(gradients.background, ray, left * gr, left * gg, left * gb, mask)
    transmittance = tl.full([BLOCK], 1.0, tl.float32)
    is_cut = tl.zeros_like(mask)
    for j in range(longest):
        here = mask & (j < count)
        at = first + j
        is_cut = is_cut | (here & (transmittance < min_transmittance))
        lit = here & (is_cut == 0)
        w = tl.load(weight + at, mask=lit, other=0.0)
        x, y, z = load3(packed.color, at, lit)
        value = gr * x + gg * y + gb * z + g_opacity + g_depth * tl.load(packed.t + at, mask=lit, other=0.0)
        value += tl.load(given.weight + at, mask=lit, other=0.0)
        store3(gradients.color, at, w * gr, w * gg, w * gb, here)
        step = tl.load(packed.dt + at, mask=lit, other=0.0)
        transmittance *= tl.exp(-tl.load(packed.density + at, mask=lit, other=0.0) * step)
        rest -= w * value
        tl.store(gradients.density + at, step * (transmittance * value - rest), mask=here)


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
            _forward, (triton.cdiv(n_rays, block["BLOCK"]),), Packed(color, density, t, dt, ray_offsets, background),
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
            _backward, (triton.cdiv(n_rays, block["BLOCK"]),), Packed(color, density, t, dt, ray_offsets, background),
            min_transmittance, n_rays, weight, Cotangents(grad_color, grad_opacity, grad_depth, grad_weight),
            Gradients(d_color, d_density, d_background), **block,
        )  # fmt: skip
    return d_color, d_density, d_background
