"""Reference of a training batch: pixel look-up, ray, box, colour."""

import torch
from torch import Tensor

from hashfield.geometry.cameras import rays_from_pixels
from hashfield.kernels.reference.ray_box import ray_box


def training_rays(
    chosen: Tensor, spans: Tensor, span_ends: Tensor, starts: Tensor, widths: Tensor, pixels: Tensor, table: Tensor,
    box: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """origin, direction, t_min, t_max, target, image_index in float32."""
    span = torch.searchsorted(span_ends, chosen, right=True)
    image = spans[span, 0]
    inside = spans[span, 1] + chosen - (span_ends[span] - spans[span, 2])
    centre = torch.stack([inside % widths[image], inside // widths[image]], 1).double() + 0.5
    origin, direction = rays_from_pixels(table, image, centre)
    t_min, t_max = ray_box(origin, direction, box[:3], box[3:])
    target = pixels[starts[image] + inside].float() / 255
    return origin.float(), direction.float(), t_min.float(), t_max.float(), target, image
