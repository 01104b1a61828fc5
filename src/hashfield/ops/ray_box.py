"""Intersection of rays with an axis-aligned box."""

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker


@torch.no_grad()
def ray_box(
    origin: Float[Tensor, "n_rays 3"],
    direction: Float[Tensor, "n_rays 3"],
    box_min: Float[Tensor, " 3"],
    box_max: Float[Tensor, " 3"],
    *,
    backend: Backend | None = None,
) -> tuple[Float[Tensor, " n_rays"], Float[Tensor, " n_rays"]]:
    """Distances (t_min, t_max) at which each ray enters and leaves a box.

    Args:
        origin: Start of each ray, in any one space.
        direction: Distances are in units of its length.
        box_min: Lower corner.
        box_max: Upper corner.
        backend: Only the reference exists: plain torch is the fast path of this op.

    Returns:
        t_min >= 0 (0 for a ray that starts inside) and t_max > t_min; both exactly 0 for a ray that misses
        the box, only touches it, points away from it or is not finite, so that it has no samples.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.

    Gradient:
        None: where sampling begins and ends is not something to learn through.

    >>> origin, direction = torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> ray_box(origin, direction, torch.zeros(3), torch.ones(3))
    (tensor([1.]), tensor([2.]))
    """
    check = Checker("ray_box")
    check("origin", origin, ("n_rays", 3))
    check("direction", direction, ("n_rays", 3))
    check("box_min", box_min, (3,))
    check("box_max", box_max, (3,))
    choice = choose("ray_box", backend, origin, direction, box_min, box_max)
    return choice.kernels.ray_box(origin, direction, box_min, box_max)
