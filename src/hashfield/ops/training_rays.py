"""Rays of randomly chosen pixels with the colours they should have: a training batch."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hashfield.geometry.rays import PixelPool, RayBatch, Rays
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker


@torch.no_grad()
def training_rays(
    chosen: Int64[Tensor, " n_rays"],
    pool: PixelPool,
    box: Float64[Tensor, " 6"],
    *,
    jitter: Float[Tensor, " n_rays"],
    background: Float[Tensor, "n_rays 3"],
    backend: Backend | None = None,
) -> RayBatch:
    """The rays through the centres of chosen pixels, with the pixels' colours as their targets.

    Rays are in scene space, with t_min and t_max where they are inside the box, both 0 for a miss; their image_index
    is set.

    Args:
        chosen: Which pixels of the pool, 0 to pool.n_pool - 1.
        pool: Photos, cameras and the pixels to draw from.
        box: (x0, y0, z0, x1, y1, z1) in scene space; rays are clipped to it.
        jitter: Fraction of a step by which each ray's lattice of samples is shifted; passed on.
        background: Colour behind each ray, 0 to 1; passed on.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
    """
    check = Checker("training_rays")
    check("chosen", chosen, ("n_rays",), "int64")
    check("pool.spans", pool.spans, ("n_spans", 3), "int64")
    check("pool.span_ends", pool.span_ends, ("n_spans",), "int64")
    check("pool.starts", pool.starts, ("n_images",), "int64")
    check("pool.widths", pool.widths, ("n_images",), "int64")
    check("pool.pixels", pool.pixels, ("n_pixels", 4), "uint8")
    check("jitter", jitter, ("n_rays",))
    check("background", background, ("n_rays", 3))
    choice = choose("training_rays", backend, chosen, pool.pixels)
    origin, direction, t_min, t_max, target, image_index = choice.kernels.training_rays(chosen, pool, box)
    return RayBatch(Rays(origin, direction, t_min, t_max, image_index), target, background, jitter)
