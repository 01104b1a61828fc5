"""Rays and the samples marched along them: the data that flow between stages. No physics here."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """A batch of rays, every field in one space: scene unless the maker says otherwise."""

    origin: Float[Tensor, "n_rays 3"]
    """Start of each ray."""
    direction: Float[Tensor, "n_rays 3"]
    """Unit length."""
    t_min: Float[Tensor, " n_rays"]
    """Distance along the ray at which the part of interest begins, at least 0."""
    t_max: Float[Tensor, " n_rays"]
    """Distance at which it ends; a ray with t_max <= t_min has no samples."""
    image_index: Int[Tensor, " n_rays"] | None = None
    """Photo the ray belongs to."""
    pixel: Float[Tensor, "n_rays 2"] | None = None
    """(x, y) in that photo; the centre of the first pixel is (0.5, 0.5)."""
    latent_index: Int[Tensor, " n_rays"] | None = None
    """Row of the per-image latent table, where a task has one."""

    @property
    def n_rays(self) -> int:
        """Number of rays."""
        return self.origin.shape[0]

    def to(self, device: torch.device | str) -> "Rays":
        """The same rays on another device."""
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
        """The same samples on another device."""
        return _moved(self, device)


_T = TypeVar("_T", Rays, RaySamples)


def _moved(value: _T, device: torch.device | str) -> _T:
    tensors = {f.name: getattr(value, f.name) for f in fields(value)}
    return replace(value, **{k: v.to(device) for k, v in tensors.items() if v is not None})
