"""Where batches come from: the photos' pixels as a pool of rays, and a picture's as a lattice of points."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from hashfield.geometry.rays import PixelPool
from hashfield.ops.pixel_batch import pixel_batch
from hashfield.steps.ranks import ALONE, Ranks

_CPU = torch.device("cpu")


def pixel_pool(
    images: Sequence[np.ndarray], table_scene: Float64[Tensor, "n_images 24"], device: torch.device = _CPU
) -> PixelPool:
    """All pixels of the photos in one flat array, every one of them drawn from.

    Args:
        images: uint8 [h, w, 4] each.
        table_scene: Their cameras in scene space, see `geometry.cameras.camera_table`.
        device: Where all of it lies.
    """
    counts = [image.shape[0] * image.shape[1] for image in images]
    pixels = np.concatenate([np.ascontiguousarray(image).reshape(-1, 4) for image in images])
    spans = torch.tensor([(image, 0, count) for image, count in enumerate(counts)])
    return PixelPool(
        pixels=torch.from_numpy(pixels).to(device),
        starts=torch.from_numpy(np.cumsum([0, *counts[:-1]])).to(device),
        widths=torch.tensor([image.shape[1] for image in images], device=device),
        heights=torch.tensor([image.shape[0] for image in images], device=device),
        table=table_scene.double().contiguous().to(device),
        spans=spans.to(device),
        span_ends=torch.cumsum(spans[:, 2], 0).to(device),
    )


def flat_masks(masks: Sequence[np.ndarray], device: torch.device = _CPU) -> UInt8[Tensor, " n_pixels"]:
    """Masks of photos as `masked_pool` takes them: one after another, row by row, 1 where a mask holds a pixel.

    Args:
        masks: bool [height, width] each.
        device: Where they go.
    """
    flat = np.concatenate([np.ascontiguousarray(mask).reshape(-1) for mask in masks])
    return torch.from_numpy(flat.astype(np.uint8)).to(device)


def masked_pool(pool: PixelPool, masks: UInt8[Tensor, " n_pixels"]) -> PixelPool:
    """A pool of these photos that is drawn from only where a mask is not 0; the pool itself where it is 0 everywhere.

    Args:
        pool: Photos. Which of their pixels it is drawn from does not matter.
        masks: Masks of all photos, one after another, row by row.
    """
    runs = [
        _runs(masks[start : start + width * height], width, image)
        for image, (start, width, height) in enumerate(
            zip(pool.starts.tolist(), pool.widths.tolist(), pool.heights.tolist(), strict=True)
        )
    ]
    spans = torch.cat(runs)
    if not len(spans):
        return pool
    return replace(pool, spans=spans, span_ends=torch.cumsum(spans[:, 2], 0))


def _runs(mask: UInt8[Tensor, " n_pixels"], width: int, image: int) -> Int64[Tensor, "n_spans 3"]:
    """(image, first pixel, length) of each run of pixels within a row that the mask holds."""
    rows = torch.nn.functional.pad((mask != 0).reshape(-1, width), (1, 1))
    steps = rows[:, 1:].byte() != rows[:, :-1].byte()  # [height, width + 1]: where a run begins or has just ended
    row, column = torch.nonzero(steps, as_tuple=True)
    first = (row * width + column)[0::2]
    length = column[1::2] - column[0::2]  # of a row's steps every other one begins a run
    return torch.stack([torch.full_like(first, image), first, length], 1)


@dataclass(frozen=True)
class PictureSource:
    """A picture as `ops.pixel_batch` takes it: each batch has one pixel of every cell of a lattice."""

    pixels: Tensor
    """[height, width, stored channels]."""
    lattice: tuple[int, int]
    """Cells in x and in y; their product is the points of a step."""
    values: Float[Tensor, "2 n_codes"]
    """What stored codes mean."""
    n_channels: int
    """Channels that are learned."""
    has_alpha: bool
    """Whether the last of them is alpha."""
    is_premultiplied: bool
    """Whether colours are multiplied by it already."""

    @property
    def n_points(self) -> int:
        """Points of a batch."""
        return self.lattice[0] * self.lattice[1]

    def few(self) -> "PictureSource":
        """This source with a lattice of next to no cells, for warming up."""
        return replace(self, lattice=(2, 2))

    def draw(
        self, random: np.random.Generator, ranks: Ranks = ALONE
    ) -> tuple[Tensor, Float[Tensor, "n_points n_channels"]]:
        """(positions in 32-bit fixed point [n_points, 2], values) of a batch, where the picture lies.

        Args:
            random: All ranks' are in the same state, and all draw the same of it.
            ranks: Each gets the points of its share of the lattice.
        """
        own = ranks.share(self.n_points)
        drawn = random.integers(0, 2**32, self.n_points, dtype=np.int64)[own]
        bits = torch.from_numpy(drawn).to(self.pixels.device)
        return pixel_batch(
            self.pixels, bits, self.lattice, self.values, self.n_channels, has_alpha=self.has_alpha,
            is_premultiplied=self.is_premultiplied, first=own.start,
        )  # fmt: skip
