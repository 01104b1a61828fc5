"""Reference of a training batch: pixel look-up, ray, box, colour."""

import torch
from torch import Tensor

from hashfield.geometry.cameras import rays_from_pixels
from hashfield.geometry.rays import PixelPool
from hashfield.kernels.reference.ray_box import ray_box


def training_rays(
    chosen: Tensor, pool: PixelPool, box: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors origin, direction, t_min, t_max, target, image_index in float32."""
    span = torch.searchsorted(pool.span_ends.contiguous(), chosen.contiguous(), right=True)
    image = pool.spans[span, 0]
    inside = pool.spans[span, 1] + chosen - (pool.span_ends[span] - pool.spans[span, 2])
    width = pool.widths[image]
    centre = torch.stack([inside % width, inside // width], 1).double() + 0.5
    origin, direction = rays_from_pixels(pool.table, image, centre)
    t_min, t_max = ray_box(origin, direction, box[:3], box[3:])
    target = pool.pixels[pool.starts[image] + inside].float() / 255
    return origin.float(), direction.float(), t_min.float(), t_max.float(), target, image
