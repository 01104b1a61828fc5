"""Training batches on GPUs: pixel, ray, entry into the box and wanted colour in one pass, a thread to a ray."""

from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.rays import PixelPool
from hashfield.kernels.triton_gpu.camera_rays import box_range, lenses_of, pixel_block, pixel_ray
from hashfield.kernels.triton_gpu.common import launch


class StoredPhotos(NamedTuple):
    """A `PixelPool` as the kernel reads it."""

    pixels: Tensor
    """The four bytes of each pixel as one int32."""
    starts: Tensor
    widths: Tensor
    table: Tensor
    spans: Tensor
    span_ends: Tensor


class DrawnRays(NamedTuple):
    """Where the rays of a batch are written."""

    origin: Tensor
    direction: Tensor
    t_min: Tensor
    t_max: Tensor
    target: Tensor
    image_index: Tensor

    @classmethod
    def room(cls, n: int, device: torch.device, make: Callable[..., Tensor]) -> "DrawnRays":
        """Room for so many rays.

        Args:
            n: Rays.
            device: Where they lie.
            make: torch.zeros or torch.empty.
        """
        shapes = ((n, 3), (n, 3), (n,), (n,), (n, 4))
        rays = (make(shape, device=device) for shape in shapes)
        return cls(*rays, make(n, dtype=torch.int64, device=device))


@triton.jit
def _training_rays(
    chosen, photos, n_spans, n_halvings, box, n_rays, out, HAS_OPENCV: tl.constexpr, HAS_FISHEYE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rays of pixels drawn from row spans; `n_rays` [1] lies on the device. See `numba_cpu/training_rays.py`."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.load(n_rays)
    if tl.program_id(0) * BLOCK < n:
        mask = i < n
        wanted = tl.load(chosen + i, mask=mask, other=0)
        low, high = tl.zeros_like(i), tl.zeros_like(i) + (n_spans - 1)
        for _ in range(n_halvings):  # the first span whose end lies beyond the chosen number
            middle = (low + high) // 2
            beyond = tl.load(photos.span_ends + middle, mask=mask, other=0) > wanted
            low, high = tl.where(beyond | (low == high), low, middle + 1), tl.where(beyond, middle, high)
        span = low
        image = tl.load(photos.spans + 3 * span, mask=mask, other=0)
        first = tl.load(photos.spans + 3 * span + 1, mask=mask, other=0)
        length = tl.load(photos.spans + 3 * span + 2, mask=mask, other=0)
        inside = first + (wanted - (tl.load(photos.span_ends + span, mask=mask, other=0) - length))
        width = tl.load(photos.widths + image, mask=mask, other=1)
        row = inside // width
        px, py = (inside - row * width).to(tl.float64) + 0.5, row.to(tl.float64) + 0.5
        ox, oy, oz, x, y, z = pixel_ray(photos.table, image, px, py, mask, HAS_OPENCV, HAS_FISHEYE)
        near, far = box_range(ox, oy, oz, x, y, z, box)
        tl.store(out.origin + 3 * i, ox.to(tl.float32), mask=mask)
        tl.store(out.origin + 3 * i + 1, oy.to(tl.float32), mask=mask)
        tl.store(out.origin + 3 * i + 2, oz.to(tl.float32), mask=mask)
        tl.store(out.direction + 3 * i, x.to(tl.float32), mask=mask)
        tl.store(out.direction + 3 * i + 1, y.to(tl.float32), mask=mask)
        tl.store(out.direction + 3 * i + 2, z.to(tl.float32), mask=mask)
        tl.store(out.t_min + i, near.to(tl.float32), mask=mask)
        tl.store(out.t_max + i, far.to(tl.float32), mask=mask)
        tl.store(out.image_index + i, image, mask=mask)
        rgba = tl.load(photos.pixels + tl.load(photos.starts + image, mask=mask, other=0) + inside, mask=mask, other=0)
        for c in tl.static_range(4):
            value = ((rgba >> (8 * c)) & 0xFF).to(tl.float32)
            tl.store(out.target + 4 * i + c, value * (1.0 / 255.0), mask=mask)


def draw_rays(
    pool: PixelPool, lenses: dict[str, bool], chosen: Tensor, n_rays: Tensor, box: Tensor, out: DrawnRays
) -> None:
    """Fill `out` for the first n_rays of the chosen pixels.

    Args:
        pool: On the device, every tensor contiguous.
        lenses: What kinds of lens its cameras have, see `lenses_of`; known beforehand, since asking waits.
        chosen: int64, as many as there is room for.
        n_rays: int32 [1] on the device.
        box: float64 [6].
        out: On the pool's device.
    """
    block, n_spans = pixel_block(chosen.shape[0]), pool.span_ends.shape[0]
    photos = StoredPhotos(
        pool.pixels.view(torch.int32), pool.starts, pool.widths, pool.table, pool.spans, pool.span_ends
    )
    launch(
        _training_rays, (triton.cdiv(chosen.shape[0], block["BLOCK"]),), chosen, photos, n_spans,
        max(1, n_spans.bit_length()), box, n_rays, out, **lenses, **block,
    )  # fmt: skip


def training_rays(
    chosen: Tensor, pool: PixelPool, box: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors origin, direction, t_min, t_max, target [n, 4], image_index; see `hashfield.ops.training_rays`."""
    n, device = chosen.shape[0], chosen.device
    out = DrawnRays.room(n, device, torch.empty)
    if n:
        pool = PixelPool(*(getattr(pool, f.name).contiguous() for f in fields(pool)))
        n_rays = torch.full((1,), n, dtype=torch.int32, device=device)
        draw_rays(pool, lenses_of(pool.table), chosen.contiguous(), n_rays, box.contiguous(), out)
    return out
