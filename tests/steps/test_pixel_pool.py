"""The pixels that rays are drawn from: exactly those of the masks, each once."""

import numpy as np
import pytest
import torch

from hashfield.geometry.rays import PixelPool
from hashfield.steps.pixel_source import masked_pool, pixel_pool

SIZES = ((3, 5), (1, 7), (4, 1), (6, 6))


def whole_pool() -> PixelPool:
    """Photos of different sizes whose pixels hold their number."""
    images = [np.zeros((h, w, 4), np.uint8) for h, w in SIZES]
    return pixel_pool(images, torch.zeros(len(SIZES), 24, dtype=torch.float64))


def drawn(pool: PixelPool) -> list[int]:
    """Number of every pixel that the pool holds, as often as it does."""
    return [int(pool.starts[image]) + first + k for image, first, length in pool.spans.tolist() for k in range(length)]


def test_whole_photos_are_drawn_from_at_first() -> None:
    pool = whole_pool()
    assert drawn(pool) == list(range(sum(h * w for h, w in SIZES))) and pool.n_pool == len(drawn(pool))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_pool_holds_exactly_the_pixels_of_the_masks(share: float, seed: int) -> None:
    whole = whole_pool()
    masks = (torch.rand(len(whole.pixels), generator=torch.Generator().manual_seed(seed)) < share).byte() * 255
    masks[3] = 1
    pool = masked_pool(whole, masks)
    assert drawn(pool) == torch.nonzero(masks)[:, 0].tolist()  # holes within a row are not drawn from
    assert pool.n_pool == int((masks != 0).sum()) == int(pool.span_ends[-1])
    assert torch.equal(pool.span_ends, torch.cumsum(pool.spans[:, 2], 0))
    for image, first, length in pool.spans.tolist():  # within one row, as `training_rays` relies on
        width = int(whole.widths[image])
        assert length >= 1 and first // width == (first + length - 1) // width


def test_holes_split_a_row() -> None:
    masks = torch.tensor([1, 1, 0, 1, 1, *[0] * 10, *[0] * (7 + 4 + 36)], dtype=torch.uint8)
    assert masked_pool(whole_pool(), masks).spans.tolist() == [[0, 0, 2], [0, 3, 2]]


def test_masks_that_hold_nothing_leave_every_pixel() -> None:
    whole = whole_pool()
    assert masked_pool(whole, torch.zeros(len(whole.pixels), dtype=torch.uint8)) is whole
