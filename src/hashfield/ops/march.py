"""Samples along rays, taken only in occupied cells."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashfield.geometry.rays import Rays, RaySamples
from hashfield.geometry.spaces import n_cells_of
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, at_least
from hashfield.ops.occupancy import check_aabb_scale
from hashfield.ops.ray_box import ray_box


@torch.no_grad()
def march(
    rays: Rays,
    bits: UInt8[Tensor, " n_bytes"],
    *,
    aabb_scale: int,
    cone_angle: float,
    step_scale: float = 1.0,
    jitter: Float[Tensor, " n_rays"] | None = None,
    max_samples_per_ray: int = 1024,
    backend: Backend | None = None,
) -> RaySamples:
    """Samples of each ray: the points of its step lattice that lie in occupied cells.

    The lattice starts at the ray's t_min, shifted by `jitter` steps. Its steps are sqrt(3)/1024 long; with a
    cone angle c they grow as c * t once that is longer, up to sqrt(3). A sample stands for the step that
    begins at it. Empty cells are left by whole steps. The cell that is asked belongs to the finest cascade
    that holds the point and whose cells are more than two steps wide.

    Args:
        rays: Scene space. Only the part between t_min and t_max that is inside the box 0.5 +- aabb_scale / 2
            is marched; a lattice begins where that part does.
        bits: Occupied cells, as `pack_bits` makes them, log2(aabb_scale) + 1 cascades.
        aabb_scale: Side of the box, a power of two from 1 to 128.
        cone_angle: 0 for steps of constant length; instant-ngp takes 1/256 where aabb_scale > 1.
        step_scale: Makes every step this much longer.
        jitter: In [0, 1); None means half a step for every ray.
        max_samples_per_ray: A ray ends at its last one.
        backend: Implementation; chosen by device if None.

    Returns:
        Samples sorted by ray, then by t. Rays that miss the box or meet nothing own none. The order and the
        counts do not depend on threads.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.
        BackendError: the backend asked for cannot take the call.

    Gradient:
        None. To move samples with a pose, compute positions from t, origin and direction.

    Source: instant-ngp src/testbed_nerf.cu (generate_training_samples_nerf); step_scale is ours.
    """
    check = Checker("march")
    check("rays.origin", rays.origin, ("n_rays", 3))
    check("rays.direction", rays.direction, ("n_rays", 3))
    check("rays.t_min", rays.t_min, ("n_rays",))
    check("rays.t_max", rays.t_max, ("n_rays",))
    if jitter is None:
        jitter = torch.full_like(rays.t_min, 0.5)
    check("jitter", jitter, ("n_rays",))
    check_aabb_scale(aabb_scale)
    check("bits", bits, (n_cells_of(aabb_scale) // 8,), "uint8")
    at_least("march", "cone_angle", cone_angle, 0.0)
    at_least("march", "step_scale", step_scale, 0.0, strictly=True)
    at_least("march", "max_samples_per_ray", max_samples_per_ray, 1)

    # Clipped here, so that no kernel can walk forever outside the box; for rays from `ray_box` it changes
    # nothing.
    centre = torch.full((3,), 0.5, dtype=rays.origin.dtype, device=rays.origin.device)
    enter, leave = ray_box(rays.origin, rays.direction, centre - aabb_scale / 2, centre + aabb_scale / 2)
    t_min, t_max = torch.maximum(rays.t_min, enter), torch.minimum(rays.t_max, leave)
    choice = choose("march", backend, rays.origin, rays.direction, t_min, t_max, bits, jitter)
    t, dt, ray_offsets = choice.kernels.march(
        rays.origin.contiguous(),
        rays.direction.contiguous(),
        t_min,
        t_max,
        bits.contiguous(),
        aabb_scale,
        float(cone_angle),
        float(step_scale),
        jitter.contiguous(),
        int(max_samples_per_ray),
    )
    return RaySamples(t, dt, ray_offsets)
