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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(color, opacity, depth, weight, left) over a background; differentiable in the field's tensors. `left` is the
    light that passes all samples of a ray, faint ones too, whether or not the background is still added."""
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
        field.density_bias, precision=field.precision, density_activation=field.density_activation,
    )  # fmt: skip
    found = composite(color, density, t, dt, offsets, background, options.min_transmittance)
    # Unlike the small op, which cuts a ray when a sample is refused, the fused ones do not look for one once too
    # little light is left: the ray is cut then and there, and its background (that little) not added.
    light, _, _, _ = composite(
        torch.zeros_like(color), density, t, dt, offsets, torch.ones_like(background), options.min_transmittance
    )
    dark = light < options.min_transmittance
    if options.min_weight <= 0.0:
        return found[0] - torch.where(dark, light, 0.0) * background, *found[1:], 1 - found[1]
    # Faint samples shade what lies behind them but add no colour, and no gradient goes through them.
    faint = found[3] < options.min_weight
    density = torch.where(faint, density.detach(), density)
    _, covered, _, weight = composite(color, density, t, dt, offsets, background, options.min_transmittance)
    weight = torch.where(faint, 0.0, weight)
    black = torch.zeros_like(background)
    light, _, _, _ = composite(
        torch.zeros_like(color), density, t, dt, offsets, torch.ones_like(background), options.min_transmittance
    )  # that reaches the background
    pixel = black.index_add(0, ray, weight[:, None] * color) + torch.where(dark, 0.0, light) * background
    opacity = black[:, 0].index_add(0, ray, weight)
    return pixel, opacity, black[:, 0].index_add(0, ray, weight * t), weight, 1 - covered


def render_rays(field: Any, rays: Rays, bits: Tensor, options: Any, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(color, opacity, depth) of rays, without background."""
    color, opacity, depth, _, _ = evaluate_rays(field, rays, bits, options, jitter, torch.zeros_like(rays.origin))
    return color, opacity, depth
