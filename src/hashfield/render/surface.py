"""Pictures of a surface that is given by its signed distance, once rays have met it: soft shadow, shading."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.rays import Rays
from hashfield.geometry.srgb import srgb_from_linear
from hashfield.ops.sphere_trace import DistanceFunction

SHADOW_START: Final = 4e-3
"""Shadow rays start this far off the surface: closer, its own small bumps shade it."""


@torch.no_grad()
def soft_shadow(
    distance: DistanceFunction,
    rays: Rays,
    *,
    softness: float = 0.06,
    max_steps: int = 64,
) -> Float[Tensor, " n_rays"]:
    """Share of a light that reaches the start of each ray, 0 to 1: min over the ray of distance / (softness * t).

    Args:
        distance: The field.
        rays: From points off the surface towards the light.
        softness: Size of the light as the tangent of half its angle; smaller gives harder shadows.
        max_steps: At most.

    Source: Quilez' penumbra estimate, as in instant-ngp src/testbed_sdf.cu.
    """
    t = rays.t_min.clone()
    share = torch.ones_like(t)
    active = torch.nonzero(rays.t_max > rays.t_min)[:, 0]
    for _ in range(max_steps):
        if not len(active):
            break
        found = distance(rays.origin[active] + t[active, None] * rays.direction[active])
        share[active] = torch.minimum(share[active], (found / (softness * t[active])).clamp(0, 1))
        t[active] += found.clamp(min=2e-3)
        active = active[(share[active] > 1e-2) & (t[active] < rays.t_max[active])]
    return torch.where(share > 1e-2, share, 0.0)


def shade(
    normal: Float[Tensor, "n 3"],
    view: Float[Tensor, "n 3"],
    light: Float[Tensor, "n 3"],
    light_share: Float[Tensor, " n"],
    *,
    albedo: tuple[float, float, float] = (0.78, 0.74, 0.68),
) -> Float[Tensor, "n 3"]:
    """Colours of a matt surface with a faint gloss, sRGB.

    A key light with shadow, a faint light from the eye, and light from above and below that needs none.

    Args:
        normal: Unit, outwards.
        view: Unit, from the surface to the eye.
        light: Unit, from the surface to the key light.
        light_share: Share of the key light that arrives.
        albedo: Linear colour.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1)

    diffuse = dot(normal, light).clamp(min=0) * light_share
    half = torch.nn.functional.normalize(light + view, dim=1)
    gloss = 0.12 * dot(normal, half).clamp(min=0) ** 40 * light_share
    fill = 0.16 * dot(normal, view).clamp(min=0) + 0.12
    linear = normal.new_tensor(albedo) * (0.75 * diffuse + fill)[:, None] + gloss[:, None]
    return srgb_from_linear(linear.clamp(0, 1))
