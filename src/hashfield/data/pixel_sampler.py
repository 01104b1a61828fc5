"""Which pixels are trained on, and batches of rays drawn from them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from hashfield.ops.training_rays import TrainingRays, training_rays


class PixelSampler:
    """All training pixels in one flat array, and a pool of row spans from which batches are drawn uniformly."""

    def __init__(self, images: Sequence[np.ndarray], table_scene: Float64[Tensor, "n_images 24"]):
        """Args:
        images: uint8 [h, w, 4] each.
        table_scene: Their cameras in scene space, see `geometry.cameras.camera_table`.
        """
        sizes = [image.shape[0] * image.shape[1] for image in images]
        self.pixels: UInt8[Tensor, "n_pixels 4"] = torch.from_numpy(
            np.concatenate([np.ascontiguousarray(image).reshape(-1, 4) for image in images])
        )
        self.starts: Int64[Tensor, " n_images"] = torch.from_numpy(np.cumsum([0, *sizes[:-1]]))
        self.widths = torch.tensor([image.shape[1] for image in images])
        self.heights = torch.tensor([image.shape[0] for image in images])
        self.table = table_scene.double().contiguous()
        self.use_all()

    def use_all(self) -> None:
        """Draw from every pixel."""
        counts = self.widths * self.heights
        zeros = torch.zeros_like(counts)
        self._set_spans(torch.stack([torch.arange(len(counts)), zeros, counts], 1))

    def use_masks(self, masks: UInt8[Tensor, " n_pixels"]) -> None:
        """Draw from the pixels of each image row between the first and the last that the mask holds."""
        spans = []
        for image, (start, w, h) in enumerate(
            zip(self.starts.tolist(), self.widths.tolist(), self.heights.tolist(), strict=True)
        ):
            mask = masks[start : start + w * h].numpy().reshape(h, w)
            rows = np.flatnonzero(mask.any(axis=1))
            first = mask[rows].argmax(axis=1)
            last = w - mask[rows, ::-1].argmax(axis=1)
            spans.append(np.stack([np.full_like(rows, image), rows * w + first, last - first], axis=1))
        found = torch.from_numpy(np.concatenate(spans).astype(np.int64))
        if len(found):
            self._set_spans(found)

    def _set_spans(self, spans: Int64[Tensor, "n_spans 3"]) -> None:
        self.spans = spans.contiguous()
        self.span_ends = torch.cumsum(spans[:, 2], 0)

    @property
    def n_pool(self) -> int:
        """Pixels that are drawn from."""
        return int(self.span_ends[-1])

    def draw(self, n_rays: int, box: Float64[Tensor, " 6"], generator: np.random.Generator) -> TrainingRays:
        """A batch of rays through uniformly drawn pixels, clipped to `box` (scene space)."""
        chosen = torch.from_numpy(generator.integers(0, self.n_pool, n_rays))
        return training_rays(chosen, self.spans, self.span_ends, self.starts, self.widths, self.pixels, self.table, box)
