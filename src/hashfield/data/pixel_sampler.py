"""Which pixels are trained on, and batches of rays drawn from them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from hashfield.geometry.rays import PixelPool, RayBatch
from hashfield.ops.training_rays import training_rays

_CPU = torch.device("cpu")


class PixelSampler:
    """All training pixels in one flat array, and a pool of row spans from which batches are drawn uniformly."""

    def __init__(
        self,
        images: Sequence[np.ndarray],
        table_scene: Float64[Tensor, "n_images 24"],
        device: torch.device = _CPU,
    ):
        """Args:
        images: uint8 [h, w, 4] each.
        table_scene: Their cameras in scene space, see `geometry.cameras.camera_table`.
        device: Where all of it lies.
        """
        self.device = device
        sizes = [image.shape[0] * image.shape[1] for image in images]
        self.pixels: UInt8[Tensor, "n_pixels 4"] = torch.from_numpy(
            np.concatenate([np.ascontiguousarray(image).reshape(-1, 4) for image in images])
        ).to(device)
        self.starts: Int64[Tensor, " n_images"] = torch.from_numpy(np.cumsum([0, *sizes[:-1]])).to(device)
        self.widths = torch.tensor([image.shape[1] for image in images], device=device)
        self.heights = torch.tensor([image.shape[0] for image in images], device=device)
        self.table = table_scene.double().contiguous().to(device)
        self.use_all()

    def use_all(self) -> None:
        """Draw from every pixel."""
        counts = self.widths * self.heights
        zeros = torch.zeros_like(counts)
        self._set_spans(torch.stack([torch.arange(len(counts), device=self.device), zeros, counts], 1))

    def use_masks(self, masks: UInt8[Tensor, " n_pixels"]) -> None:
        """Draw from the pixels of each image row between the first and the last that the mask holds."""
        spans = []
        for image, (start, w, h) in enumerate(
            zip(self.starts.tolist(), self.widths.tolist(), self.heights.tolist(), strict=True)
        ):
            mask = (masks[start : start + w * h] != 0).reshape(h, w)
            rows = torch.nonzero(mask.any(1))[:, 0]
            held = mask[rows].byte()
            first = held.argmax(1)  # of equal ones the first
            last = w - held.flip(1).argmax(1)
            spans.append(torch.stack([torch.full_like(rows, image), rows * w + first, last - first], 1))
        found = torch.cat(spans)
        if len(found):
            self._set_spans(found)

    def _set_spans(self, spans: Int64[Tensor, "n_spans 3"]) -> None:
        self.spans = spans.contiguous().to(self.device)
        self.span_ends = torch.cumsum(self.spans[:, 2], 0)

    @property
    def pool(self) -> PixelPool:
        """The pixels to draw from, with their photos and cameras, as the ops take them."""
        return PixelPool(
            self.pixels, self.starts, self.widths, self.heights, self.table, self.spans, self.span_ends
        )  # fmt: skip

    @property
    def n_pool(self) -> int:
        """Pixels that are drawn from."""
        return int(self.span_ends[-1])

    def draw(
        self, box: Float64[Tensor, " 6"], generator: np.random.Generator, *, jitter: Float[Tensor, " n_rays"],
        background: Float[Tensor, "n_rays 3"],
    ) -> RayBatch:  # fmt: skip
        """A batch of rays through uniformly drawn pixels, one for each jitter.

        Args:
            box: (x0, y0, z0, x1, y1, z1) in scene space; rays are clipped to it.
            generator: Chooses the pixels.
            jitter: Fraction of a step by which each ray's lattice of samples is shifted.
            background: Colour behind each ray.
        """
        chosen = torch.from_numpy(generator.integers(0, self.n_pool, len(jitter))).to(self.device)
        return training_rays(chosen, self.pool, box, jitter=jitter, background=background)
