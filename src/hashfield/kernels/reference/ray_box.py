"""Reference of the intersection of rays with an axis-aligned box, in plain torch."""

import torch
from jaxtyping import Float
from torch import Tensor


def ray_box(
    origin: Float[Tensor, "n_rays 3"],
    direction: Float[Tensor, "n_rays 3"],
    box_min: Float[Tensor, " 3"],
    box_max: Float[Tensor, " 3"],
) -> tuple[Float[Tensor, " n_rays"], Float[Tensor, " n_rays"]]:
    """Distances at which each ray enters (at least 0) and leaves the box; both 0 for a ray that misses it.

    Slab method: per axis the ray is between the two faces for t in an interval; the box is their
    intersection. A ray parallel to an axis is inside that slab always (faces included) or never.
    """
    infinity = torch.full_like(origin, torch.inf)
    with_faces = (torch.stack([box_min, box_max])[:, None, :] - origin) / direction  # [2, n_rays, 3]
    inside = (origin >= box_min) & (origin <= box_max)
    parallel = direction == 0
    near = torch.where(parallel, torch.where(inside, -infinity, infinity), with_faces.amin(0))
    far = torch.where(parallel, torch.where(inside, infinity, -infinity), with_faces.amax(0))
    t_min, t_max = near.amax(1).clamp(min=0.0), far.amin(1)
    # Also false for NaN and for a ray that only touches an edge: such rays have nothing to sample.
    hit = (t_max > t_min) & torch.isfinite(t_max)
    zero = torch.zeros_like(t_min)
    return torch.where(hit, t_min, zero), torch.where(hit, t_max, zero)
