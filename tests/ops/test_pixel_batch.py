"""Training batches of an image: the promises that sampling makes. Values: `cases.PIXEL_BATCH_CASES`."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from hashfield.errors import ShapeError
from hashfield.geometry.fixed_point import from_fixed_point
from hashfield.ops.backend import INTERPRETER_VARIABLE
from hashfield.ops.pixel_batch import PixelBatch, pixel_batch
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.memory import checked_memory

INTERPRETED = os.environ.get(INTERPRETER_VARIABLE) == "1"
NONE = torch.zeros(2, 0)


def random_bits(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**32, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def within_bounds() -> Iterator[None]:
    """No interpreted kernel may touch memory that is not its own."""
    with checked_memory() if INTERPRETED else nullcontext():
        yield


def drawn(
    pixels: torch.Tensor, random: torch.Tensor, lattice: Any, values: torch.Tensor, *options: Any, backend: Any,
    **more: Any,
) -> PixelBatch:  # fmt: skip
    """A batch of a backend, whose tensors lie where it takes them."""
    there = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    own = (pixels.to(there), random.to(there), lattice, values.to(there))
    found = pixel_batch(*own, *options, backend=backend, **more)
    return PixelBatch(*(x.cpu() for x in found))


@pytest.mark.parametrize("backend", backend_params("pixel_batch"))
def test_each_cell_gives_one_pixel_and_all_pixels_come_equally_often(backend: Any) -> None:
    width, height, lattice = 12, 10, (4, 5)
    pixels = torch.arange(width * height, dtype=torch.float32).reshape(height, width, 1)
    counts, n_batches = torch.zeros(width * height), 100 if backend == "triton" and INTERPRETED else 400
    for seed in range(n_batches):
        batch = drawn(pixels, random_bits(20, seed), lattice, NONE, 1, backend=backend)
        place = from_fixed_point(batch.positions_unit) * torch.tensor([width, height])
        x, y = place[:, 0].floor().long(), place[:, 1].floor().long()
        assert torch.allclose(
            place - place.floor(), torch.full((20, 2), 0.5, dtype=torch.float64), atol=tolerances.SAME_NUMBER
        )
        assert torch.equal(batch.target[:, 0].long(), y * width + x)  # the position is that of the pixel shown
        assert torch.equal(x // 3 + lattice[0] * (y // 2), torch.arange(20))  # one from each cell
        counts[batch.target[:, 0].long()] += 1
    expected = counts.sum() / counts.numel()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 100 + 5 * (2 * 100) ** 0.5  # 120 pixels less one constraint a cell: 100 degrees of freedom


@pytest.mark.parametrize("backend", backend_params("pixel_batch", ("numba", "triton")))
def test_sides_of_millions_of_pixels(backend: Any) -> None:
    """Numbers of places, of which there are 65,536 to a cell, and of steps of the fixed point go far beyond 32 bits."""
    width, lattice = 2**24, (2**16, 1)
    pixels = (torch.arange(width) % 251).byte().view(1, width, 1)
    found, right = (
        drawn(pixels, random_bits(2**16), lattice, torch.arange(512.0).view(2, 256), 1, backend=name)
        for name in (backend, "reference")
    )
    assert torch.equal(found.positions_unit, right.positions_unit) and torch.equal(found.target, right.target)


def test_wrong_arguments_are_named() -> None:
    pixels, random = torch.zeros(4, 4, 3, dtype=torch.uint8), random_bits(4)
    with pytest.raises(ShapeError, match="random"):
        pixel_batch(pixels, random, (3, 2), torch.zeros(2, 256), 3)
    with pytest.raises(ShapeError, match="values"):
        pixel_batch(pixels, random, (2, 2), torch.zeros(2, 65536), 3)
    with pytest.raises(ShapeError, match="n_channels"):
        pixel_batch(pixels, random, (2, 2), torch.zeros(2, 256), 4)
    with pytest.raises(ShapeError, match="pixels"):
        pixel_batch(pixels.long(), random, (2, 2), torch.zeros(2, 256), 3)
