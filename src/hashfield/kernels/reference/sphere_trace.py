"""Reference of sphere tracing, in plain torch: any distance, asked at the rays that are under way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def sphere_trace(
    distance: Callable[[Tensor], Tensor], rays: Any, max_steps: int, hit_distance: float, step: float
) -> tuple[Tensor, Tensor]:
    """Distance t and flag is_hit of each ray; see `hashfield.ops.sphere_trace`."""
    t = rays.t_min.clone()
    is_hit = torch.zeros_like(t, dtype=torch.bool)
    active = torch.nonzero(rays.t_max > rays.t_min)[:, 0]
    for _ in range(max_steps):
        if not len(active):
            break
        found = distance(rays.origin[active] + t[active, None] * rays.direction[active])
        arrived = ~(found >= hit_distance)  # a NaN ends its ray too
        is_hit[active[arrived]] = True
        active, found = active[~arrived], found[~arrived]
        t[active] += step * found
        active = active[t[active] < rays.t_max[active]]
    is_hit[active] = True
    return t, is_hit
