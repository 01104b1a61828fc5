"""Reference of fused volume rendering: literally the composition of march, radiance field and compositing.

Fields that no fused kernel takes run through the same composition, with the small ops in place of the small
references (`FieldFunctions`): there is one definition of what rays see.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import box_low_of
from hashfield.kernels.reference.composite import composite
from hashfield.kernels.reference.encoded_mlp import encoded_mlp
from hashfield.kernels.reference.march import march
from hashfield.kernels.reference.radiance_field import radiance_field

POINTS_AT_ONCE = 2**18
"""Points asked for their density together: bounds the memory of what is only looked at."""


@dataclass(frozen=True)
class FieldFunctions:
    """How rays are marched and a field is asked, each differentiable in the field's tensors and its arguments."""

    march: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """With the signature of `kernels.reference.march.march`."""
    density: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]
    """Density per scene unit at positions in unit space."""
    color_and_density: Callable[[Float[Tensor, "n 3"], Float[Tensor, "n 3"]], tuple[Tensor, Tensor]]
    """Colour [n, 3] and density [n] at positions in unit space, seen along directions."""


class LitSamples(NamedTuple):
    """The samples of rays with their densities, and which of them are worth a colour."""

    t: Float[Tensor, " n_samples"]
    dt: Float[Tensor, " n_samples"]
    ray_offsets: Int64[Tensor, " n_offsets"]
    density: Float[Tensor, " n_samples"]
    """Without a gradient; 0 where it was not asked for, behind what lets no light through."""
    is_kept: Bool[Tensor, " n_samples"]
    """Whether light reaches the sample and it weighs enough: the others add no colour and get no gradient."""
    n_asked: int
    """Samples whose density was asked for."""


class SeenRays(NamedTuple):
    """What rays see over a background; differentiable in the field's tensors and in the rays' lines."""

    color: Float[Tensor, "n_rays 3"]
    opacity: Float[Tensor, " n_rays"]
    depth: Float[Tensor, " n_rays"]
    weight: Float[Tensor, " n_samples"]
    """Weight of each sample in its pixel, 0 where it is not kept."""
    transmittance: Float[Tensor, " n_rays"]
    """Light that passes all samples of a ray, faint ones too, whether or not the background is still added."""


def small_references(field: Any) -> FieldFunctions:
    """A fused field's numbers asked by the small references."""
    table = field.table if field.table_bf16 is None else field.table_bf16.to(field.table.dtype)

    def density(positions: Tensor) -> Tensor:
        h = encoded_mlp(
            positions, table, field.density_weights, field.layout, "linear", "relu", "none", field.precision
        )  # fmt: skip
        raw = h[:, 0] + field.density_bias
        return torch.relu(raw) if field.density_activation == "relu" else torch.exp(raw)

    def color_and_density(positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return radiance_field(
            positions, directions, table, field.density_weights, field.color_weights, field.layout,
            field.density_bias, precision=field.precision, density_activation=field.density_activation,
        )  # fmt: skip

    return FieldFunctions(march, density, color_and_density)


def unit_positions(rays: Rays, t: Tensor, ray: Tensor, aabb_scale: int) -> Tensor:
    """Samples' positions in unit space.

    Args:
        rays: Scene space.
        t: [n] distance of each sample along its ray.
        ray: [n] number of that ray.
        aabb_scale: Side of the box.
    """
    position = rays.origin[ray] + t[:, None] * rays.direction[ray]
    return (position - box_low_of(aabb_scale)) / aabb_scale


def all_densities(
    functions: FieldFunctions, rays: Rays, t: Tensor, dt: Tensor, ray_offsets: Tensor, options: Any
) -> tuple[Tensor, int]:
    """Density of every marched sample, and how many these are."""
    counts = ray_offsets[1:] - ray_offsets[:-1]
    ray = torch.repeat_interleave(torch.arange(rays.n_rays, device=t.device), counts)
    density = torch.empty_like(t)
    for begin in range(0, len(t), POINTS_AT_ONCE):
        part = slice(begin, begin + POINTS_AT_ONCE)
        density[part] = functions.density(unit_positions(rays, t[part], ray[part], options.aabb_scale))
    return density, len(t)


@torch.no_grad()
def lit_samples(
    functions: FieldFunctions, rays: Rays, bits: Tensor, options: Any, jitter: Tensor, densities: Any = all_densities
) -> LitSamples:
    """March rays, ask for densities, and find the samples that light reaches and that weigh enough.

    Args:
        functions: How to march and to ask.
        rays: Scene space.
        bits: Occupied cells.
        options: MarchOptions; samples that weigh less than its min_weight are not kept.
        jitter: Fraction of a step by which each ray's lattice is shifted.
        densities: `all_densities`, or what asks fewer samples and leaves 0 behind what lets no light through.
    """
    t, dt, offsets = functions.march(
        rays.origin, rays.direction, rays.t_min, rays.t_max, bits, options.aabb_scale, options.cone_angle,
        options.step_scale, jitter,
    )  # fmt: skip
    density, n_asked = densities(functions, rays, t, dt, offsets, options)
    blank, behind = t.new_zeros(len(t), 1), t.new_zeros(rays.n_rays, 1)
    _, _, _, weight = composite(blank, density, t, dt, offsets, behind, options.min_transmittance)
    return LitSamples(t, dt, offsets, density, (weight > 0) & (weight >= options.min_weight), n_asked)


def shade_rays(
    functions: FieldFunctions, rays: Rays, samples: LitSamples, background: Tensor, options: Any
) -> SeenRays:
    """What rays see of their samples over a background.

    Samples that are not kept shade what lies behind them but add no colour, and no gradient goes through them. Unlike
    the small op `composite`, which cuts a ray when a sample is refused, the fused ones do not look for one once too
    little light is left: the ray is cut then and there, and its background (that little) not added.

    Args:
        functions: How to ask for colours.
        rays: Scene space; gradients go to origins and directions, with t and dt held fixed.
        samples: As `lit_samples` finds them.
        background: [n_rays, 3].
        options: MarchOptions.
    """
    t, dt, offsets, n_rays = samples.t, samples.dt, samples.ray_offsets, rays.n_rays
    ray = torch.repeat_interleave(torch.arange(n_rays, device=t.device), offsets[1:] - offsets[:-1])
    kept = samples.is_kept.nonzero()[:, 0]
    positions = unit_positions(rays, t[kept], ray[kept], options.aabb_scale)
    color, density = functions.color_and_density(positions, rays.direction[ray[kept]])
    # A fourth channel, black but for a background of 1, becomes the light that reaches the background.
    color = t.new_zeros(len(t), 4).index_copy(0, kept, torch.nn.functional.pad(color, (0, 1)))
    density = samples.density.index_copy(0, kept, density)
    behind = torch.nn.functional.pad(background, (0, 1), value=1.0)
    found, covered, _, weight = composite(color, density, t, dt, offsets, behind, options.min_transmittance)
    weight = torch.where(samples.is_kept, weight, 0.0)
    light = found[:, 3]
    dark = torch.where(light < options.min_transmittance, light, 0.0)
    zero = weight.new_zeros(n_rays)
    return SeenRays(
        found[:, :3] - dark[:, None] * background, zero.index_add(0, ray, weight), zero.index_add(0, ray, weight * t),
        weight, 1 - covered,
    )  # fmt: skip


def render_rays(field: Any, rays: Rays, bits: Tensor, options: Any, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(color, opacity, depth) of rays, without background."""
    return composed_rendering(small_references(field), rays, bits, options, jitter)


def composed_rendering(
    functions: FieldFunctions, rays: Rays, bits: Tensor, options: Any, jitter: Tensor, densities: Any = all_densities
) -> tuple[Tensor, Tensor, Tensor]:
    """`render_rays` put together from small functions; every sample that light reaches is seen, faint as it may be,
    though only some have a colour of their own where options.min_weight is above 0.

    Args:
        functions: How to march and to ask.
        rays, bits, options, jitter: See `hashfield.ops.render_rays`.
        densities: See `lit_samples`.
    """
    samples = lit_samples(functions, rays, bits, replace(options, min_weight=0.0), jitter, densities)
    if options.min_weight > 0:
        return _seen_by_few(functions, rays, samples, options)
    seen = shade_rays(functions, rays, samples, torch.zeros_like(rays.origin), options)
    return seen.color, seen.opacity, seen.depth


@torch.no_grad()
def _seen_by_few(
    functions: FieldFunctions, rays: Rays, samples: LitSamples, options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(color, opacity, depth) of rays of whose samples few are asked for a colour.

    A sample is passed over while it and those passed over before weigh less than options.min_weight together; the next
    one that is not stands for all of them. What a ray's end leaves, and, where the ray was cut, the light that was
    left, is made up for by scaling.
    """
    t, offsets, n_rays = samples.t, samples.ray_offsets, rays.n_rays
    blank, behind = t.new_zeros(len(t), 1), t.new_zeros(n_rays, 1)
    _, covered, _, weight = composite(blank, samples.density, t, samples.dt, offsets, behind, options.min_transmittance)
    shown, passed_over = torch.zeros_like(weight), torch.zeros_like(covered)
    counts = offsets[1:] - offsets[:-1]
    for place in range(int(counts.max()) if n_rays else 0):
        ray = torch.nonzero(counts > place)[:, 0]
        at = offsets[ray] + place
        together = passed_over[ray] + weight[at]
        gets_color = (together > 0) & (together >= options.min_weight)
        shown[at] = torch.where(gets_color, together, 0.0)
        passed_over[ray] = torch.where(gets_color, 0.0, together)
    ray = torch.repeat_interleave(torch.arange(n_rays, device=t.device), counts)
    kept = shown.nonzero()[:, 0]
    own, w = ray[kept], shown[kept]
    position = unit_positions(rays, t[kept], own, options.aabb_scale)
    color, _ = functions.color_and_density(position, rays.direction[own])
    found = torch.zeros_like(rays.origin).index_add(0, own, w[:, None] * color)
    opacity, depth = (torch.zeros_like(covered).index_add(0, own, x) for x in (w, w * t[kept]))
    covered = torch.where(1 - covered < options.min_transmittance, 1.0, covered)
    scale = torch.where(opacity > 0, covered / opacity.clamp(min=1e-30), 0.0)
    return found * scale[:, None], opacity * scale, depth * scale
