"""Rays of randomly chosen pixels with the colours they should have: a training batch."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from hashfield.geometry.rays import Rays
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker


class TrainingRays(NamedTuple):
    """A batch."""

    rays: Rays
    """Scene space; t_min and t_max where the ray is inside the box, both 0 for a miss."""
    target: Float[Tensor, "n_rays 4"]
    """The pixels' colours, straight alpha, 0 to 1."""


@torch.no_grad()
def training_rays(
    chosen: Int64[Tensor, " n_rays"],
    spans: Int64[Tensor, "n_spans 3"],
    span_ends: Int64[Tensor, " n_spans"],
    starts: Int64[Tensor, " n_images"],
    widths: Int64[Tensor, " n_images"],
    pixels: UInt8[Tensor, "n_pixels 4"],
    table: Float64[Tensor, "n_images 24"],
    box: Float64[Tensor, " 6"],
    *,
    backend: Backend | None = None,
) -> TrainingRays:
    """The rays through the centres of chosen pixels and the pixels' colours.

    Args:
        chosen: Which pixels of the pool, 0 to span_ends[-1] - 1.
        spans: The pool: runs of pixels within one image row, as (image, first pixel in the image, length).
        span_ends: Running total of the lengths.
        starts: First pixel of each image in `pixels`.
        widths: Of each image.
        pixels: All images, RGBA.
        table: Cameras in scene space.
        box: (x0, y0, z0, x1, y1, z1) in scene space; rays are clipped to it.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
    """
    check = Checker("training_rays")
    check("chosen", chosen, ("n_rays",), "int64")
    check("spans", spans, ("n_spans", 3), "int64")
    check("span_ends", span_ends, ("n_spans",), "int64")
    check("starts", starts, ("n_images",), "int64")
    check("widths", widths, ("n_images",), "int64")
    check("pixels", pixels, ("n_pixels", 4), "uint8")
    choice = choose("training_rays", backend, chosen, pixels)
    origin, direction, t_min, t_max, target, image_index = choice.kernels.training_rays(
        chosen, spans, span_ends, starts, widths, pixels, table, box
    )
    return TrainingRays(Rays(origin, direction, t_min, t_max, image_index), target)
