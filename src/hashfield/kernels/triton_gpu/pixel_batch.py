"""Training batches of an image on GPUs: place, position and value of each cell's pixel in one pass, a thread to a cell."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import INTERPRETED, launch


@triton.jit
def _meaning(stored, values, IS_CODED: tl.constexpr, mask):
    """The value of a stored number: what its code means, or itself."""
    if IS_CODED:
        value = tl.load(values + (stored.to(tl.int32) & 0xFFFF), mask, other=0.0)
    else:
        value = stored
    return value


@triton.jit
def _pixel_batch(
    pixels, width, height, n_stored, random, cells_x, cells_y, values, n_codes, n, positions, target,
    CHANNELS: tl.constexpr, HAS_ALPHA: tl.constexpr, PREMULTIPLIED: tl.constexpr, IS_CODED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """See `reference/pixel_batch.py`. Places are computed in 64 bits: a cell's number and 16 random ones, times a side."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    bits = tl.load(random + i, mask, other=0)
    zero = tl.zeros_like(bits)
    wide_x, wide_y = zero + width, zero + height
    x = ((((i % cells_x).to(tl.int64) << 16) + (bits & 0xFFFF)) * wide_x) // ((zero + cells_x) << 16)
    y = ((((i // cells_x).to(tl.int64) << 16) + ((bits >> 16) & 0xFFFF)) * wide_y) // ((zero + cells_y) << 16)
    fixed_x, fixed_y = ((2 * x + 1) << 31) // wide_x, ((2 * y + 1) << 31) // wide_y
    tl.store(positions + 2 * i, fixed_x.to(tl.uint32).to(tl.int32, bitcast=True), mask)
    tl.store(positions + 2 * i + 1, fixed_y.to(tl.uint32).to(tl.int32, bitcast=True), mask)
    at = pixels + (y * wide_x + x) * n_stored
    to = target + i * CHANNELS
    alpha = tl.full([BLOCK], 1.0, tl.float32)
    if HAS_ALPHA:
        alpha = _meaning(tl.load(at + (CHANNELS - 1), mask, other=0), values + n_codes, IS_CODED, mask)
        tl.store(to + (CHANNELS - 1), alpha, mask)
    for c in tl.static_range(CHANNELS - HAS_ALPHA):
        color = _meaning(tl.load(at + c, mask, other=0), values, IS_CODED, mask)
        if HAS_ALPHA and not PREMULTIPLIED:
            color = color * alpha
        tl.store(to + c, color, mask)


def draw_pixels(
    pixels: Tensor, random: Tensor, lattice: tuple[int, int], values: Tensor, positions: Tensor, target: Tensor, *,
    has_alpha: bool, is_premultiplied: bool,
) -> None:  # fmt: skip
    """Fill positions (int32 [n, 2]) and target (float32 [n, n_channels]) as `pixel_batch` returns them.

    Args:
        pixels: [height, width, n_stored], contiguous like all others.
        random: int64 [n].
        lattice: Cells in x and in y.
        values: float32 [2, n_codes].
        positions, target: Filled; on the same device.
        has_alpha, is_premultiplied: As `pixel_batch` has them.
    """
    height, width, n_stored = pixels.shape
    n, is_coded = len(random), pixels.dtype != torch.float32
    block, warps = (1024, 4) if INTERPRETED.value else (128, 4)
    launch(
        _pixel_batch, (triton.cdiv(n, block),), pixels, width, height, n_stored, random, *lattice,
        values if is_coded else target, values.shape[1], n, positions, target, CHANNELS=target.shape[1],
        HAS_ALPHA=int(has_alpha), PREMULTIPLIED=is_premultiplied, IS_CODED=is_coded, BLOCK=block, num_warps=warps,
    )  # fmt: skip


def pixel_batch(
    pixels: Tensor, random: Tensor, lattice: tuple[int, int], values: Tensor, n_channels: int, has_alpha: bool,
    is_premultiplied: bool, first: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Tensors positions [n, 2] and target [n, C]; see `hashfield.ops.pixel_batch`."""
    if first:  # captured steps never take a part: what is drawn in vain does not matter
        padded = torch.nn.functional.pad(random, (first, 0))
        whole = pixel_batch(pixels, padded, lattice, values, n_channels, has_alpha, is_premultiplied, 0)
        return whole[0][first:], whole[1][first:]
    n, device = len(random), random.device
    positions = torch.empty((n, 2), dtype=torch.int32, device=device)
    target = torch.empty((n, n_channels), device=device)
    draw_pixels(
        pixels.contiguous(), random.contiguous(), lattice, values.contiguous(), positions, target,
        has_alpha=has_alpha, is_premultiplied=is_premultiplied,
    )  # fmt: skip
    return positions, target
