"""Batches that know how far away things are: from depth maps, and from points of structure from motion.

A depth map speaks of every ray through its photo. Points are few, so a share of each batch is drawn from the pixels
that show one. What the step makes of it is `ops.train_rays`' loss on known distances; how much it counts is `weight`,
which the task lets fade, as measurements are a better start than an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hashfield.geometry.cameras import LENSES
from hashfield.geometry.rays import PixelPool, RayBatch, Rays
from hashfield.ops.training_rays import training_rays

POINTS_SHARE: Final = 16
"""One ray of so many goes through a pixel that shows a point, where there are any."""
POINTS_COUNT: Final = 16.0
"""How much more a point's ray is drawn to its distance than a depth map's: it speaks for its neighbours too."""
_LENS: Final = 16  # columns of the camera table, which has the pose's three rows before it
_FORWARD: Final = (2, 6, 10)


@dataclass(frozen=True)
class DepthOfPhoto:
    """What is known of one photo's depth, in scene units."""

    z: np.ndarray | None
    """See `hashfield.data.depth.PhotoDepth`."""
    scale: float
    """Scene units of 1 in `z`."""
    pixels: np.ndarray
    """[n, 2]: column and row of pixels that show points."""
    distance: np.ndarray
    """[n]: how far these are."""


class DepthTeacher:
    """Draws batches, and says of their rays what is known."""

    def __init__(self, photos: Sequence[DepthOfPhoto], pool: PixelPool) -> None:
        """Args:
        photos: What is known of each photo of the pool.
        pool: The photos.
        """
        device = pool.pixels.device
        self.weight = 0.0
        """How much a depth map's ray is drawn to its distance now; see `ops.train_rays`, batch.trust."""
        shapes = [(0, 0) if photo.z is None else photo.z.shape for photo in photos]
        self._heights, self._widths = (torch.tensor([s[k] for s in shapes], device=device) for k in (0, 1))
        sizes = [height * width for height, width in shapes]
        self._starts = torch.tensor(np.cumsum([0, *sizes[:-1]]), device=device)
        # A part in two thousand is finer than what measures depth, and half the memory.
        maps = [torch.from_numpy(_half(photo.z, photo.scale)) for photo in photos if photo.z is not None]
        self._z = (torch.cat(maps) if maps else torch.zeros(0, dtype=torch.float16)).to(device)
        widths = pool.widths.tolist()
        image = np.concatenate([np.full(len(photo.distance), k) for k, photo in enumerate(photos)])
        inside = np.concatenate(
            [photo.pixels[:, 1] * widths[k] + photo.pixels[:, 0] for k, photo in enumerate(photos)]
        )  # fmt: skip
        spans = np.column_stack([image, inside, np.ones_like(image)]).astype(np.int64)
        self._spans = torch.from_numpy(spans).to(device)
        self._span_ends = torch.arange(1, len(spans) + 1, device=device)
        distance = np.concatenate([photo.distance for photo in photos])
        self._distance = torch.from_numpy(distance.astype(np.float32)).to(device)

    @property
    def n_points(self) -> int:
        """Pixels that show a point."""
        return len(self._distance)

    def known(self) -> tuple[Tensor, ...]:
        """All that is known, to tell it from other knowledge."""
        return self._z, self._heights, self._widths, self._spans, self._distance

    def batch(
        self, chosen: Int64[Tensor, " n_rays"], pool: PixelPool, box: Float64[Tensor, " 6"],
        jitter: Float[Tensor, " n_rays"], background: Float[Tensor, "n_rays 3"], random: np.random.Generator,
    ) -> RayBatch:  # fmt: skip
        """The rays through chosen pixels, the last of which make way for pixels that show points.

        Args:
            chosen, pool, box, jitter, background: As `ops.training_rays` has them.
            random: Draws the pixels that show points.
        """
        n = len(chosen)
        n_points = n // POINTS_SHARE if self.n_points and self.weight > 0 else 0
        few = slice(0, n - n_points)
        batch = training_rays(chosen[few], pool, box, jitter=jitter[few], background=background[few])
        batch = self.taught(batch, chosen[few], pool)
        if not n_points:
            return batch
        rest = slice(n - n_points, n)
        drawn = torch.from_numpy(random.integers(0, self.n_points, n_points)).to(chosen.device)
        seen = replace(pool, spans=self._spans, span_ends=self._span_ends)
        more = training_rays(drawn, seen, box, jitter=jitter[rest], background=background[rest])
        trust = torch.full_like(more.jitter, POINTS_COUNT * self.weight)
        return _joined(batch, replace(more, distance=self._distance[drawn], trust=trust))

    def taught(self, batch: RayBatch, chosen: Int64[Tensor, " n_rays"], pool: PixelPool) -> RayBatch:
        """The batch with what depth maps know of its rays.

        Args:
            batch: As `ops.training_rays` made it.
            chosen: The pixels it was made of.
            pool: Where they were drawn from.
        """
        nothing = torch.zeros_like(batch.jitter)
        if not len(self._z) or not self.weight > 0 or not batch.n_rays:
            return replace(batch, distance=torch.ones_like(nothing), trust=nothing)
        span = torch.searchsorted(pool.span_ends, chosen, right=True)
        image = pool.spans[span, 0]
        inside = pool.spans[span, 1] + chosen - (pool.span_ends[span] - pool.spans[span, 2])
        width, height = self._widths[image], self._heights[image]
        column = inside % pool.widths[image] * width // pool.widths[image]
        row = inside // pool.widths[image] * height // pool.heights[image]
        has_map = width > 0
        z = self._z[torch.where(has_map, self._starts[image] + row * width + column, 0)].float()
        distance = z / self._share_along_axis(batch.rays, image, pool)
        is_known = has_map & (z > 0)
        return replace(
            batch, distance=torch.where(is_known, distance, 1.0), trust=torch.where(is_known, self.weight, nothing)
        )

    @staticmethod
    def _share_along_axis(rays: Rays, image: Tensor, pool: PixelPool) -> Tensor:
        """What part of the way along a ray lies along its camera's axis; in panoramas depth is the way itself: 1."""
        forward = pool.table[image][:, _FORWARD].float()
        along = (rays.direction * forward).sum(1).clamp(min=1e-3)
        return torch.where(pool.table[image, _LENS] == LENSES.index("equirectangular"), 1.0, along)


def _half(z: np.ndarray, scale: float) -> np.ndarray:
    """A depth map in scene units, row by row, 0 where it is not known."""
    values = z.reshape(-1).astype(np.float32) * np.float32(scale)
    values[~(np.isfinite(values) & (values > 0) & (values < 6e4))] = 0.0
    return values.astype(np.float16)


def _joined(one: RayBatch, other: RayBatch) -> RayBatch:
    """Two batches as one; both have or lack the same things."""

    def parts(a: object, b: object) -> dict[str, Tensor]:
        pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(a)}  # type: ignore[arg-type]
        return {name: torch.cat(pair) for name, pair in pairs.items() if isinstance(pair[0], Tensor)}

    return replace(one, rays=replace(one.rays, **parts(one.rays, other.rays)), **parts(one, other))
