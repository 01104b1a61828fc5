"""A pool of strips of photos that lie in files: what is drawn from it, and that in the end every pixel is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.errors import ConfigError
from hashfield.geometry.cameras import camera_table
from hashfield.geometry.rays import PixelPool
from hashfield.ops.occupancy_update import silhouettes
from hashfield.ops.training_rays import training_rays
from hashfield.steps import streamed_pool
from hashfield.steps.pixel_source import flat_masks, masked_pool, pixel_pool
from hashfield.steps.stored_photos import bytes_per_pixel
from hashfield.steps.streamed_pool import StreamedPool, overview
from tests.ops.cases import BOX, one_of_each_lens

OPAQUE = 3
"""This one has a file of three bytes a pixel."""
SIZES = ((13, 17), (1, 9), (33, 1), (64, 5), (10, 30))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Images, the files of their bytes, and their cameras; strips of about 64 pixels."""
    monkeypatch.setattr(streamed_pool, "STRIP_PIXELS", 64)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (h, w, 4), dtype=np.uint8) for w, h in SIZES]
    files = [tmp_path / (f"{k}.rgb" if k == OPAQUE else f"{k}.rgba") for k in range(len(images))]
    for k, (image, file) in enumerate(zip(images, files, strict=True)):
        if k == OPAQUE:
            image[..., 3] = 255
        else:
            image[: image.shape[0] // 3, :, 3] = 0
        np.ascontiguousarray(image[..., : bytes_per_pixel(file)]).tofile(file)
    cameras = [c.resized(*size) for c, size in zip(one_of_each_lens(), SIZES, strict=True)]
    return images, files, camera_table(cameras)


def drawn(pool: PixelPool) -> list[tuple[float, ...]]:
    """Everything about every pixel that a pool draws from, in an order of its own."""
    n = pool.n_pool
    batch = training_rays(
        torch.arange(n), pool, torch.tensor(BOX, dtype=torch.float64), jitter=torch.zeros(n),
        background=torch.zeros(n, 3), backend="reference",
    )  # fmt: skip
    rays = batch.rays
    rows = torch.cat([rays.origin, rays.direction, rays.t_min[:, None], rays.t_max[:, None], batch.target], 1)
    return sorted(tuple(round(value, 4) for value in row) for row in rows.tolist())


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("margin", [None, 2])
def test_a_round_draws_every_pixel_that_may_be_drawn_once(photos, is_masked: bool, margin: int | None) -> None:
    images, files, table = photos
    random = np.random.default_rng(1)
    masks = [random.random(image.shape[:2]) < 0.6 for image in images] if is_masked else None
    whole = pixel_pool(images, table)
    held = torch.ones(len(whole.pixels), dtype=torch.uint8) if masks is None else flat_masks(masks)
    if margin is not None:
        held = held * silhouettes(whole.pixels, whole.starts, whole.widths, whole.heights, margin)
    wanted = drawn(masked_pool(whole, held))
    streamed = StreamedPool(files, SIZES, table, 4 * 64 * 3, seed=5, masks=masks, margin_px=margin)
    assert streamed.n_held == 3 and streamed.n_strips % 3 != 0
    found: list[tuple[float, ...]] = []
    for first in range(0, streamed.n_strips, 3):
        streamed.move_to(first)
        n_new = min(3, streamed.n_strips - first)
        pool = streamed.pool()
        # the last time round, strips of the next round are there as well
        slots = {(first + k) % 3 for k in range(n_new)}
        spans = torch.stack([span for span in pool.spans if int(span[0]) in slots] or [torch.zeros(3).long()])
        found += drawn(PixelPool(pool.pixels, pool.starts, pool.widths, pool.heights, pool.table, spans,
                                 torch.cumsum(spans[:, 2], 0)))  # fmt: skip
    assert sorted(found) == wanted


def test_strips_make_way_for_as_many_pixels_as_were_drawn(photos, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files, table = photos
    monkeypatch.setattr(streamed_pool, "MOVED_AT_ONCE", 2)
    streamed = StreamedPool(files, SIZES, table, 4 * 64 * 4, seed=5)
    n_pool = streamed.pool().n_pool
    assert not streamed.advance(n_pool // 4) and streamed.n_moved == 0
    assert streamed.advance(n_pool // 4 + 4) and streamed.n_moved == 2
    before = drawn(streamed.pool())
    other = StreamedPool(files, SIZES, table, 4 * 64 * 4, seed=5)
    other.move_to(2)  # as a resumed run does
    assert drawn(other.pool()) == before and torch.equal(other.pool().spans, streamed.pool().spans)
    assert drawn(StreamedPool(files, SIZES, table, 4 * 64 * 4, seed=6).pool()) != before


def test_all_in_memory_never_moves(photos) -> None:
    images, files, table = photos
    streamed = StreamedPool(files, SIZES, table, 1 << 20, seed=0)
    assert streamed.n_held == streamed.n_strips and not streamed.advance(10**9)
    assert drawn(streamed.pool()) == drawn(pixel_pool(images, table))


@pytest.mark.parametrize("n_bytes", [1 << 20, 4 * 64 * 2])
def test_ranks_share_the_pixels_out(photos, n_bytes: int) -> None:
    images, files, table = photos
    masks = [np.arange(image.shape[1])[None] % 3 + np.zeros(image.shape[:2]) > 0 for image in images]
    whole = pixel_pool(images, table)
    wanted = drawn(masked_pool(whole, flat_masks(masks)))
    found: list[tuple[float, ...]] = []
    for rank in range(3):
        streamed = StreamedPool(files, SIZES, table, n_bytes, seed=5, masks=masks, rank=rank, n_ranks=3)
        own: set[tuple[float, ...]] = set()
        for first in range(streamed.n_strips):
            streamed.move_to(first)
            own |= set(drawn(streamed.pool()))
        assert len(own) == streamed.n_drawable
        found += own
    assert sorted(found) == wanted


def test_strips_without_a_pixel_are_passed_over(photos) -> None:
    images, files, table = photos
    masks = [np.zeros(image.shape[:2], bool) for image in images]
    masks[4][20:, 3] = True
    streamed = StreamedPool(files, SIZES, table, 4 * 64, seed=0, masks=masks)
    assert streamed.n_held == 1 and streamed.pool().n_pool > 0
    masks[4][:] = False
    with pytest.raises(ConfigError, match="no pixel"):
        StreamedPool(files, SIZES, table, 4 * 64, seed=0, masks=masks)


def test_the_overview_is_as_opaque_as_the_most_opaque_pixel(photos) -> None:
    images, files, table = photos
    pool, factor = overview(files, SIZES, table, n_bytes=4 * 200)
    assert factor > 1
    for k, image in enumerate(images):
        height, width = image.shape[:2]
        assert (int(pool.widths[k]), int(pool.heights[k])) == (-(-width // factor), -(-height // factor))
        start = int(pool.starts[k])
        small = pool.pixels[start : start + int(pool.widths[k] * pool.heights[k]), 3].reshape(int(pool.heights[k]), -1)
        for y in range(small.shape[0]):
            for x in range(small.shape[1]):
                block = image[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor, 3]
                is_whole = block.size == factor * factor
                assert int(small[y, x]) == (int(block.max()) if is_whole else 255)
    torch.testing.assert_close(pool.table[:, 12:16] * factor, table[:, 12:16])
    empty, factor = overview(files, SIZES, table, n_bytes=None)
    assert factor == 1 and len(empty.pixels) == 1 and torch.equal(empty.table, table)
