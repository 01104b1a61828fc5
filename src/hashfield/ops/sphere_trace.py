"""Where rays meet a surface that is given by its signed distance: sphere tracing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.rays import Rays
from hashfield.kernels.reference import sphere_trace as reference
from hashfield.ops.backend import Backend, fused_choice
from hashfield.ops.checks import Checker, at_least
from hashfield.ops.eval_points import EncodedNetwork, eval_points

DistanceFunction = Callable[[Tensor], Tensor]
"""Positions [n, 3] to signed distances [n], both in the rays' space."""

HIT_DISTANCE: Final = 1e-4
"""Scene units: a ray has arrived where the distance is below this, a fifth of the finest usual grid cell."""
STEP: Final = 0.95
"""Share of the distance that a ray moves: learned distances are a little off."""


@dataclass(frozen=True)
class DistanceField:
    """A learned signed distance that is known within a box: a network of one output, 3-D. A `DistanceFunction`."""

    network: EncodedNetwork
    """Positions in unit space to the distance there."""
    box: Float[Tensor, "2 3"]
    """Unit space, lowest and highest corner: where the network was trained."""

    def __call__(self, positions_unit: Float[Tensor, "n 3"], *, backend: Backend | None = None) -> Float[Tensor, " n"]:
        """Signed distance in unit space. Outside the box: that of the box's nearest point plus the way there, so
        rather too much. The network is asked in the precision of its table."""
        box = self.box.to(positions_unit.dtype)
        inside = torch.minimum(torch.maximum(positions_unit, box[0]), box[1])
        found = eval_points(self.network, inside.to(self.network.table.dtype), backend=backend)[:, 0]
        return found + (positions_unit - inside).norm(dim=1).to(found.dtype)

    def check(self, op: str) -> None:
        """Raise a ShapeError that names the field where it is no distance in space."""
        self.network.check(op)
        if self.network.layout.n_dims != 3 or self.network.n_outputs != 1:
            raise ShapeError(
                f"{op}: distance.network: expected 3 dimensions and 1 output, "
                f"got {self.network.layout.n_dims} and {self.network.n_outputs}"
            )
        if tuple(self.box.shape) != (2, 3):
            raise ShapeError(f"{op}: distance.box: expected shape [2, 3], got {list(self.box.shape)}")


class SphereTraceResult(NamedTuple):
    """Where rays ended."""

    t: Float[Tensor, " n_rays"]
    """Distance along the ray."""
    is_hit: Bool[Tensor, " n_rays"]
    """Whether the surface lies there; else the ray left its part of space."""
    position: Float[Tensor, "n_rays 3"]
    """Where each ray ends: origin + t * direction."""


@torch.no_grad()
def sphere_trace(
    distance: DistanceFunction,
    rays: Rays,
    *,
    max_steps: int = 160,
    hit_distance: float = HIT_DISTANCE,
    step: float = STEP,
    backend: Backend | None = None,
) -> SphereTraceResult:
    """How far along each ray the surface lies, and whether it was met before t_max.

    Each ray moves by `step` times the distance found where it is, until that is below `hit_distance`. A ray that starts
    inside the surface hits at once, and so does one that finds a NaN. A ray that is still under way after `max_steps`
    counts as a hit: steps so small mean that a surface is close by.

    Args:
        distance: The field, in the rays' space. A `DistanceField` is traced by one kernel where a backend has it;
            anything else is called with the positions of the rays that are under way.
        rays: t_min and t_max bound the search; a ray with t_max <= t_min hits nothing.
        max_steps: At most.
        hit_distance: Distance below which a ray has met the surface.
        step: Below 1 where the field is not an exact distance.
        backend: Implementation of a `DistanceField`; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.
        BackendError: the backend asked for cannot take the call.

    Gradient: none.

    Source: Hart 1996; constants after instant-ngp src/testbed_sdf.cu.

    >>> rays = Rays(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1), torch.ones(1))
    >>> sphere_trace(lambda position: 0.5 - position[:, 0], rays, step=1.0).t
    tensor([0.5000])
    """
    check = Checker("sphere_trace")
    check("rays.origin", rays.origin, ("n_rays", 3))
    check("rays.direction", rays.direction, ("n_rays", 3))
    check("rays.t_min", rays.t_min, ("n_rays",))
    check("rays.t_max", rays.t_max, ("n_rays",))
    at_least("sphere_trace", "max_steps", max_steps, 1)
    at_least("sphere_trace", "hit_distance", hit_distance, 0, strictly=True)
    at_least("sphere_trace", "step", step, 0, strictly=True)
    call: DistanceFunction = distance
    if isinstance(distance, DistanceField):
        distance.check("sphere_trace")
        network = distance.network

        def limit(name: Backend) -> str | None:
            return network.limit(name) if network.is_fused else "another encoding than a grid"

        whole = fused_choice("sphere_trace", backend, network.table, rays.origin, limit=limit)
        if whole is not None:
            t, is_hit = whole.kernels.sphere_trace(network, distance.box, rays, max_steps, hit_distance, step)
            return _result(rays, t, is_hit)
        call = partial(distance, backend=backend)
    return _result(rays, *reference.sphere_trace(call, rays, max_steps, hit_distance, step))


def _result(rays: Rays, t: Tensor, is_hit: Tensor) -> SphereTraceResult:
    return SphereTraceResult(t, is_hit, rays.origin + t[:, None] * rays.direction)
