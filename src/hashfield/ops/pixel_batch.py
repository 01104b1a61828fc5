"""A training batch of an image: one pixel at random of each cell of a lattice, its position and what it shows."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker

STORED = (torch.uint8, torch.int16, torch.float32)
"""Types of stored pixels; int16 holds the bits of 16-bit codes, whether integers or half floats."""


class PixelBatch(NamedTuple):
    """Pixels of a step, row of cells by row of cells, so that neighbours in the batch are neighbours in the image."""

    positions_unit: Int32[Tensor, "n 2"]
    """Centres of the pixels, (x / width, y / height) in fixed point; y goes down."""
    target: Float[Tensor, "n n_channels"]
    """What the pixels show."""


@torch.no_grad()
def pixel_batch(
    pixels: Tensor,
    random: Int64[Tensor, " n"],
    lattice: tuple[int, int],
    values: Float[Tensor, "2 n_codes"],
    n_channels: int,
    *,
    has_alpha: bool = False,
    is_premultiplied: bool = False,
    first: int | None = None,
    backend: Backend | None = None,
) -> PixelBatch:
    """One pixel from each cell of a lattice over the image, uniform over the cell.

    Every pixel is drawn equally often, and the batch covers the image evenly, which leaves less noise in the gradient
    than drawing freely does.

    Args:
        pixels: [height, width, n_stored]: uint8, int16 (bits of 16-bit codes) or float32.
        random: For each cell, x fastest: 32 random bits, the lower 16 for x, the upper for y.
        lattice: Cells in x and in y; their product is n, or more where the batch is a part of the lattice.
        values: What the 2^8 or 2^16 codes mean, for colours and for alpha; not read for float32 pixels, which are what
            is wanted.
        n_channels: Channels that are learned, the first of those stored.
        has_alpha: The last of them is alpha.
        is_premultiplied: The colours are multiplied by it already; else they are now.
        first: Number of the first cell of the batch, where it may be a part of the lattice; None: it is all of it.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.

    Source: instant-ngp src/testbed_image.cu (stratified positions, snapped to pixel centres).
    """
    op = "pixel_batch"
    check = Checker(op)
    n_cells = lattice[0] * lattice[1]
    check("random", random, (n_cells if first is None else "n",), "int64")
    first = first or 0
    if not 0 <= first <= n_cells - len(random):
        raise ShapeError(f"{op}: first: expected a cell with {len(random)} of {n_cells} behind it, got {first}")
    if pixels.ndim != 3 or pixels.dtype not in STORED:
        raise ShapeError(
            f"{op}: pixels: expected [height, width, channels] of uint8, int16 or float32, got "
            f"{list(pixels.shape)} of {pixels.dtype}"
        )
    if not 1 <= n_channels <= pixels.shape[2] or pixels.numel() == 0:
        raise ShapeError(f"{op}: n_channels: expected 1 to {pixels.shape[2]}, of pixels that exist, got {n_channels}")
    codes = {torch.uint8: 256, torch.int16: 65536}.get(pixels.dtype)
    if codes is not None:
        check("values", values, (2, codes))
    choice = choose(op, backend, random, values)
    return PixelBatch(
        *choice.kernels.pixel_batch(pixels, random, lattice, values, n_channels, has_alpha, is_premultiplied, first)
    )
