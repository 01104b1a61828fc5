"""Reference of the occupancy bit grid: Morton addresses, packing with mips, lookup. Plain torch.

The grid is a set of nested cubes ("cascades") of 128^3 cells: cascade k covers 0.5 +- 2^k / 2 of scene space.
A cell's bit lies at address 128^3 * k + morton(i, j, k): bit address % 8 of byte address // 8.
"""

from functools import cache

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from hashfield.geometry.spaces import CELLS_PER_CASCADE, GRID_SIZE

BYTES_PER_CASCADE = CELLS_PER_CASCADE // 8


def morton3(cell: Int[Tensor, "n 3"]) -> Int64[Tensor, " n"]:
    """Morton number of each cell: the bits of its three coordinates interleaved, x lowest. 10 bits each."""
    x, y, z = (_spread(c) for c in cell.long().unbind(1))
    return x | (y << 1) | (z << 2)


def morton3_inverse(number: Int[Tensor, " n"]) -> Int64[Tensor, "n 3"]:
    """The cell that has each Morton number."""
    number = number.long()
    return torch.stack([_gather(number >> shift) for shift in range(3)], 1)


def pack_bits(values: Float[Tensor, " n_cells"], threshold: Float[Tensor, ""]) -> UInt8[Tensor, " n_bytes"]:
    """Bits of the cells whose value exceeds the threshold, with each coarser cascade covering the finer ones.

    A cell of the central half of cascade k + 1 is also set where any of the 2x2x2 cells it covers in cascade
    k is.

    Args:
        values: One number per cell, cascade by cascade in Morton order.
        threshold: NaN values never exceed it.

    Source: instant-ngp src/testbed_nerf.cu (grid_to_bitfield, bitfield_max_pool).
    """
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], device=values.device)
    bits = ((values > threshold).view(-1, 8) * powers).sum(1).to(torch.uint8)
    cascades = bits.view(-1, BYTES_PER_CASCADE)
    # Eight consecutive Morton numbers are one 2x2x2 block, so a byte of a cascade is a cell of the next.
    block = _central_half(values.device)
    for k in range(cascades.shape[0] - 1):
        covered = (cascades[k] != 0).to(torch.uint8)
        central = torch.zeros(CELLS_PER_CASCADE, dtype=torch.uint8, device=values.device)
        central[block] = covered
        cascades[k + 1] |= (central.view(-1, 8) * powers).sum(1).to(torch.uint8)
    return bits


def is_occupied(
    positions_scene: Float[Tensor, "n 3"], bits: UInt8[Tensor, " n_bytes"], n_cascades: int
) -> Bool[Tensor, " n"]:
    """Whether each position lies in an occupied cell of the finest cascade that holds it."""
    return lookup(positions_scene, mip_from_position(positions_scene, n_cascades), bits)


def mip_from_position(positions_scene: Float[Tensor, "n 3"], n_cascades: int) -> Int64[Tensor, " n"]:
    """The finest cascade that holds each position, capped at the last one.

    (The very centre of the scene answers 1 rather than 0, as in instant-ngp.)
    """
    distance = (positions_scene - 0.5).abs().amax(1)
    exponent = torch.frexp(torch.nan_to_num(distance))[1]
    return (exponent.long() + 1).clamp(0, n_cascades - 1)


def mip_from_step(
    positions_scene: Float[Tensor, "n 3"], dt: Float[Tensor, " n"], n_cascades: int
) -> Int64[Tensor, " n"]:
    """The finest cascade that holds each position and whose cells are more than two steps wide."""
    exponent = torch.frexp(dt * (2 * GRID_SIZE))[1].long().clamp(min=0)
    return torch.maximum(mip_from_position(positions_scene, n_cascades), exponent).clamp(max=n_cascades - 1)


def in_cells(positions_scene: Float[Tensor, "n 3"], mip: Int64[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Positions in units of the mip's cells, 0 to 128 inside it."""
    side = torch.exp2(mip.to(positions_scene.dtype))[:, None]
    return ((positions_scene - 0.5) / side + 0.5) * GRID_SIZE


def lookup(
    positions_scene: Float[Tensor, "n 3"], mip: Int64[Tensor, " n"], bits: UInt8[Tensor, " n_bytes"]
) -> Bool[Tensor, " n"]:
    """The bit of each position's cell in the given cascade; False outside it."""
    cells = in_cells(positions_scene, mip).floor()
    # False for NaN too, so the conversion below sees only numbers that fit.
    inside = ((cells >= 0) & (cells < GRID_SIZE)).all(1)
    cell = torch.where(inside[:, None], cells, torch.zeros_like(cells)).long()
    address = mip * CELLS_PER_CASCADE + morton3(cell)
    return inside & ((bits[address >> 3].long() >> (address & 7)) & 1).bool()


def _spread(x: Tensor) -> Tensor:
    x = x & 0x3FF
    x = (x | (x << 16)) & 0x30000FF
    x = (x | (x << 8)) & 0x300F00F
    x = (x | (x << 4)) & 0x30C30C3
    return (x | (x << 2)) & 0x9249249


def _gather(x: Tensor) -> Tensor:
    x = x & 0x9249249
    x = (x | (x >> 2)) & 0x30C30C3
    x = (x | (x >> 4)) & 0x300F00F
    x = (x | (x >> 8)) & 0x30000FF
    return (x | (x >> 16)) & 0x3FF


@cache
def _central_half(device: torch.device) -> Tensor:
    # Where the 64^3 blocks of a cascade, in Morton order, lie in the next one's 128^3 cells.
    blocks = torch.arange(BYTES_PER_CASCADE, device=device)
    return morton3(morton3_inverse(blocks) + GRID_SIZE // 4)
