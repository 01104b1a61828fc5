"""Reference of fused volume rendering: literally the composition of march, radiance field and compositing."""

from typing import Any

import torch
from torch import Tensor

from hashfield.geometry.rays import Rays
from hashfield.kernels.reference.composite import composite
from hashfield.kernels.reference.march import march
from hashfield.kernels.reference.radiance_field import radiance_field


def evaluate_rays(
    field: Any, rays: Rays, bits: Tensor, options: Any, jitter: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(color, opacity, depth, weight) over a background; differentiable in the field's tensors."""
    t, dt, offsets = march(
        rays.origin, rays.direction, rays.t_min, rays.t_max, bits, options.aabb_scale, options.cone_angle,
        options.step_scale, jitter,
    )  # fmt: skip
    ray = torch.repeat_interleave(torch.arange(rays.n_rays, device=t.device), offsets[1:] - offsets[:-1])
    position = rays.origin[ray] + t[:, None] * rays.direction[ray]
    position = (position - (0.5 - 0.5 * options.aabb_scale)) / options.aabb_scale
    table = field.table if field.table_bf16 is None else field.table_bf16.to(field.table.dtype)
    color, density = radiance_field(
        position, rays.direction[ray], table, field.density_weights, field.color_weights, field.layout,
        field.density_bias,
    )  # fmt: skip
    return composite(color, density, t, dt, offsets, background, options.min_transmittance)


def render_rays(
    field: Any, rays: Rays, bits: Tensor, options: Any, jitter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(color, opacity, depth) of rays, without background."""
    color, opacity, depth, _ = evaluate_rays(
        field, rays, bits, options, jitter, torch.zeros_like(rays.origin)
    )
    return color, opacity, depth
