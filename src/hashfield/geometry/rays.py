"""Rays, the samples marched along them, and the pixels they come from: the data that flow between stages.

No physics here.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Float64, Int, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """A batch of rays, every field in one space: scene unless the maker says otherwise."""

    origin: Float[Tensor, "n_rays 3"]
    """Start of each ray."""
    direction: Float[Tensor, "n_rays 3"]
    """Direction of each ray, of unit length."""
    t_min: Float[Tensor, " n_rays"]
    """Distance along the ray at which the part of interest begins, at least 0."""
    t_max: Float[Tensor, " n_rays"]
    """Distance at which it ends; a ray with t_max <= t_min has no samples."""
    image_index: Int[Tensor, " n_rays"] | None = None
    """Photo the ray belongs to."""

    @property
    def n_rays(self) -> int:
        """Number of rays."""
        return self.origin.shape[0]

    def to(self, device: torch.device | str) -> "Rays":
        """A copy of the rays on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class RaySamples:
    """Points to evaluate along rays, packed: sorted by ray, then by t. The only packed form.

    Ray i owns the samples `ray_offsets[i]:ray_offsets[i + 1]`.
    """

    t: Float[Tensor, " n_samples"]
    """Distance along the unit ray of the evaluated point, which is the start of its step."""
    dt: Float[Tensor, " n_samples"]
    """Length of the step the sample stands for."""
    ray_offsets: Int64[Tensor, " n_offsets"]
    """Where each ray's samples begin: n_rays + 1 numbers, the last of which is n_samples."""

    @property
    def n_samples(self) -> int:
        """Number of samples of all rays."""
        return self.t.shape[0]

    @property
    def n_rays(self) -> int:
        """Number of rays, those without samples included."""
        return self.ray_offsets.shape[0] - 1

    def ray_index(self) -> Int64[Tensor, " n_samples"]:
        """The ray each sample belongs to."""
        counts = self.ray_offsets[1:] - self.ray_offsets[:-1]
        rays = torch.arange(self.n_rays, device=counts.device)
        return torch.repeat_interleave(rays, counts, output_size=self.n_samples)

    def to(self, device: torch.device | str) -> "RaySamples":
        """A copy of the samples on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class RayBatch:
    """What one training step looks at: rays, the colours they should have, and how each of them counts."""

    rays: Rays
    """Scene space, t_min and t_max within the box; `rays.image_index` says which photo each belongs to."""
    target: Float[Tensor, "n_rays 4"]
    """Colour of each ray's pixel: straight alpha, 0 to 1, in the photos' own space (sRGB)."""
    background: Float[Tensor, "n_rays 3"]
    """Colour behind each ray, 0 to 1; random ones teach empty space to be empty."""
    jitter: Float[Tensor, " n_rays"]
    """Fraction of a step by which each ray's lattice of samples is shifted, 0 to 1."""
    weight: Float[Tensor, " n_rays"] | None = None
    """How much each ray counts in the loss, at least 0; a ray of weight 0 is not marched at all. None: 1 each."""
    distance: Float[Tensor, " n_rays"] | None = None
    """Distance along each ray, in scene units, at which something is known to be, e.g. measured by a depth camera; any
    number above 0 where `trust` is 0. None: nothing is known of any ray."""
    trust: Float[Tensor, " n_rays"] | None = None
    """Weight of the loss that draws each ray to its `distance`, at least 0; 0: not known. None where `distance` is."""

    @property
    def n_rays(self) -> int:
        """Number of rays, those of weight 0 included."""
        return self.rays.n_rays

    def to(self, device: torch.device | str) -> "RayBatch":
        """A copy of the batch on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class PixelPool:
    """All training photos in one flat array, their cameras, and which of their pixels batches are drawn from."""

    pixels: UInt8[Tensor, "n_pixels 4"]
    """All images one after another, row by row: RGBA, straight alpha."""
    starts: Int64[Tensor, " n_images"]
    """First pixel of each image in `pixels`."""
    widths: Int64[Tensor, " n_images"]
    """Width of each image in pixels."""
    heights: Int64[Tensor, " n_images"]
    """Height of each image in pixels."""
    table: Float64[Tensor, "n_images 24"]
    """Cameras in scene space, see `geometry.cameras.camera_table`."""
    spans: Int64[Tensor, "n_spans 3"]
    """Pixels to draw from, as runs within one image: (image, first pixel within the image, length)."""
    span_ends: Int64[Tensor, " n_spans"]
    """Running total of the spans' lengths."""

    @property
    def n_pool(self) -> int:
        """Pixels that are drawn from. Read from the tensor: on a GPU that waits."""
        return int(self.span_ends[-1]) if len(self.span_ends) else 0

    def to(self, device: torch.device | str) -> "PixelPool":
        """A copy of the pool on another device."""
        return _moved(self, device)


_T = TypeVar("_T", Rays, RaySamples, RayBatch, PixelPool)


def _moved(value: _T, device: torch.device | str) -> _T:
    tensors = {f.name: getattr(value, f.name) for f in fields(value)}
    return replace(value, **{k: v.to(device) for k, v in tensors.items() if v is not None})
