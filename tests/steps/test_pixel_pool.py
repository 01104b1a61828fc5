"""Which pixels are trained on: with masks exactly those that the masks hold, each of them once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield.geometry.cameras import camera_table
from hashfield.geometry.rays import PixelPool
from hashfield.ops.training_rays import training_rays
from hashfield.steps.pixel_source import masked_pool, pixel_pool
from tests.ops.cases import BOX, one_of_each_lens

SIZES = ((13, 17), (1, 9), (33, 1), (64, 5))
"""Width and height of each photo."""


def pool_of(images: list[np.ndarray]) -> PixelPool:
    """Photos behind one lens each."""
    cameras = [
        c.resized(i.shape[1], i.shape[0]) for c, i in zip(one_of_each_lens()[: len(images)], images, strict=True)
    ]
    return pixel_pool(images, camera_table(cameras))


@pytest.fixture
def pool(generator: torch.Generator) -> PixelPool:
    """Photos of noise, their sizes all different."""
    return pool_of([torch.randint(0, 256, (h, w, 4), generator=generator).byte().numpy() for w, h in SIZES])


def pool_pixels(pool: PixelPool) -> Tensor:
    """Number, among all pixels of all photos, of each pixel of the pool in its order."""
    lengths = pool.spans[:, 2]
    assert bool((lengths > 0).all()) and torch.equal(pool.span_ends, torch.cumsum(lengths, 0))
    width = pool.widths[pool.spans[:, 0]]
    # One photo's pixels are one array: a run may go on from row to row only where it covers whole rows.
    whole_rows = (pool.spans[:, 1] % width == 0) & (lengths % width == 0)
    assert bool((whole_rows | (pool.spans[:, 1] % width + lengths <= width)).all())
    starts = (pool.starts[pool.spans[:, 0]] + pool.spans[:, 1]).tolist()
    return torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths.tolist(), strict=True)])


def masks(kind: str, generator: torch.Generator) -> Tensor:
    """A mask over all pixels of all photos, not 0 where it holds one."""
    n = sum(w * h for w, h in SIZES)
    mask = torch.rand(n, generator=generator) < {"sparse": 0.05, "half": 0.5, "dense": 0.95}.get(kind, 1.0)
    if kind == "one-pixel holes":
        mask[torch.arange(0, n, 3)] = False
    if kind == "empty and full rows":
        start = 0
        for w, h in SIZES:
            rows = torch.arange(h) % 2 == 0
            mask[start : start + w * h] = rows[:, None].expand(h, w).flatten()
            start += w * h
    if kind == "corners":
        ends = torch.tensor([w * h for w, h in SIZES]).cumsum(0)
        mask = torch.zeros(n, dtype=torch.bool)
        mask[ends - 1], mask[0] = True, True
    if kind == "a photo without":
        mask[: SIZES[0][0] * SIZES[0][1]] = False
    return mask.byte() * 255


KINDS = ("sparse", "half", "dense", "one-pixel holes", "empty and full rows", "corners", "all", "a photo without")


@pytest.mark.parametrize("kind", KINDS)
def test_the_pool_is_exactly_the_pixels_of_the_masks(kind: str, pool: PixelPool, generator: torch.Generator) -> None:
    mask = masks(kind, generator)
    masked = masked_pool(pool, mask)
    wanted = torch.nonzero(mask)[:, 0]
    assert masked.n_pool == len(wanted) > 0
    assert torch.equal(pool_pixels(masked), wanted)


def test_without_masks_every_pixel_is_drawn_from(pool: PixelPool) -> None:
    assert torch.equal(pool_pixels(pool), torch.arange(len(pool.pixels)))


def test_masks_that_hold_no_pixel_leave_the_pool_as_it_is(pool: PixelPool) -> None:
    assert masked_pool(pool, torch.zeros(len(pool.pixels), dtype=torch.uint8)) is pool


def test_masks_of_an_odd_layout_are_the_same_masks(pool: PixelPool, generator: torch.Generator) -> None:
    mask = masks("half", generator)
    before = pool_pixels(masked_pool(pool, mask))
    assert torch.equal(pool_pixels(masked_pool(pool, torch.stack([mask, mask], 1)[:, 0])), before)


def test_a_hole_is_never_drawn_and_every_other_pixel_is(generator: torch.Generator) -> None:
    """Pixels say in their colour which they are; those of the hole appear in no batch."""
    images = []
    for photo, (w, h) in enumerate(SIZES):
        image = np.zeros((h, w, 4), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = np.arange(w), np.arange(h)[:, None], photo
        images.append(image)
    mask = masks("half", generator)
    pool = masked_pool(pool_of(images), mask)
    held = {tuple(pixel) for pixel in pool.pixels[mask != 0].tolist()}
    n = 40 * len(held)  # so that a pixel is missed once in e^40 batches of this size
    chosen = torch.from_numpy(np.random.default_rng(0).integers(0, pool.n_pool, n))
    box = torch.tensor(BOX, dtype=torch.float64)
    batch = training_rays(chosen, pool, box, jitter=torch.zeros(n), background=torch.zeros(n, 3))
    drawn = (batch.target * 255).round().long().tolist()
    assert {tuple(pixel) for pixel in drawn} == held
    counts = np.unique(np.array(drawn), axis=0, return_counts=True)[1]
    # Uniform: the sum over cells of (count - 40)^2 / 40 is chi-square of as many degrees, less one.
    chi_square = float(((counts - 40) ** 2 / 40).sum())
    assert abs(chi_square - (len(held) - 1)) < 5 * (2 * (len(held) - 1)) ** 0.5
