"""The occupancy bit grid: addresses, packing, lookup.

Nested cubes ("cascades") of 128^3 cells around the scene's centre: cascade k covers 0.5 +- 2^k / 2 of scene
space. Plain torch is the only implementation; nothing here has a gradient.
"""

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.spaces import is_aabb_scale
from hashfield.kernels.reference.occupancy import BYTES_PER_CASCADE, CELLS_PER_CASCADE, GRID_SIZE
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker

__all__ = [
    "BYTES_PER_CASCADE",
    "CELLS_PER_CASCADE",
    "GRID_SIZE",
    "check_aabb_scale",
    "is_occupied",
    "morton3",
    "morton3_inverse",
    "pack_bits",
]


@torch.no_grad()
def morton3(cell: Int[Tensor, "n 3"], *, backend: Backend | None = None) -> Int64[Tensor, " n"]:
    """Morton number of each cell: bits of x, y, z interleaved, x lowest.

    Args:
        cell: Coordinates, 0 to 1023; higher bits are dropped.
        backend: Only the reference exists.

    Raises:
        ShapeError: `cell` has the wrong shape or dtype.

    >>> morton3(torch.tensor([[1, 2, 3]]))
    tensor([53])
    """
    Checker("morton3")("cell", cell, ("n", 3), "integer")
    return choose("occupancy", backend, cell).kernels.morton3(cell)


@torch.no_grad()
def morton3_inverse(number: Int[Tensor, " n"], *, backend: Backend | None = None) -> Int64[Tensor, "n 3"]:
    """The cell of each Morton number.

    Args:
        number: 0 to 2^30 - 1.
        backend: Only the reference exists.

    Raises:
        ShapeError: `number` has the wrong shape or dtype.
    """
    Checker("morton3_inverse")("number", number, ("n",), "integer")
    return choose("occupancy", backend, number).kernels.morton3_inverse(number)


@torch.no_grad()
def pack_bits(
    values: Float[Tensor, " n_cells"],
    threshold: float | Float[Tensor, ""],
    *,
    backend: Backend | None = None,
) -> UInt8[Tensor, " n_bytes"]:
    """One bit per cell, set where its value exceeds the threshold; coarser cascades cover the finer ones.

    A cell in the central half of cascade k + 1 is set, besides by its own value, where any of the 2x2x2 cells
    of cascade k inside it is set. That is what lets a march with long steps ask a coarse cascade.

    Args:
        values: One per cell, cascade by cascade in Morton order: n_cascades * 128^3. NaN never exceeds.
        threshold: In the unit of the values.
        backend: Only the reference exists.

    Returns:
        Bit a % 8 of byte a // 8 for the cell at a = 128^3 * cascade + morton3(cell).

    Raises:
        ShapeError: `values` is not a whole number of cascades.

    Source: instant-ngp src/testbed_nerf.cu (grid_to_bitfield, bitfield_max_pool).
    """
    Checker("pack_bits")("values", values, ("n_cells",))
    if values.shape[0] == 0 or values.shape[0] % CELLS_PER_CASCADE:
        raise ShapeError(
            f"pack_bits: values: expected a positive multiple of 128^3 = {CELLS_PER_CASCADE} cells, "
            f"got {values.shape[0]}"
        )
    threshold = torch.as_tensor(threshold, dtype=values.dtype, device=values.device)
    return choose("occupancy", backend, values).kernels.pack_bits(values.contiguous(), threshold)


@torch.no_grad()
def is_occupied(
    positions_scene: Float[Tensor, "n 3"],
    bits: UInt8[Tensor, " n_bytes"],
    n_cascades: int,
    *,
    backend: Backend | None = None,
) -> Bool[Tensor, " n"]:
    """Whether each position lies in an occupied cell of the finest cascade that holds it.

    Args:
        positions_scene: Scene space; outside the last cascade, and for NaN, the answer is False.
        bits: As `pack_bits` makes them.
        n_cascades: Cascades in `bits`.
        backend: Only the reference exists.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
    """
    check = Checker("is_occupied")
    check("positions_scene", positions_scene, ("n", 3))
    check("bits", bits, (n_cascades * BYTES_PER_CASCADE,), "uint8")
    choice = choose("occupancy", backend, positions_scene, bits)
    return choice.kernels.is_occupied(positions_scene, bits, n_cascades)


def check_aabb_scale(aabb_scale: int) -> None:
    """Check the side of a scene's box.

    Raises:
        ShapeError: it is not a power of two from 1 to 128.
    """
    if not is_aabb_scale(aabb_scale):
        raise ShapeError(f"aabb_scale: expected a power of two from 1 to 128, got {aabb_scale!r}")
