"""Positions in fixed point: 32 bits for [0, 1), the same step everywhere.

float32 has 24 bits, and the product with a level's resolution keeps no more: at 2^17 vertices per axis a position is
off by a hundredth of a cell, more than an image of 2^17 pixels a side can bear. Fixed point needs no more memory.
"""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from hashfield.errors import ShapeError

STEPS = 2**32
"""Steps of a fixed-point number in a unit of length."""


def to_fixed_point(positions_unit: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Fixed-point numbers round(x * 2^32): the bits of unsigned 32-bit numbers, in an int32 tensor, since torch
    supports unsigned ones poorly.

    Args:
        positions_unit: In [0, 1]; what lies outside is moved to the nearer end, and 1 becomes 1 - 2^-32. float64, or
            float32 if that is precise enough for what it stands for.

    Raises:
        ShapeError: not a float.

    >>> to_fixed_point(torch.tensor([0.0, 0.25, 0.75, 1.0])).tolist()
    [0, 1073741824, -1073741824, -1]
    """
    if not positions_unit.is_floating_point():
        raise ShapeError(f"to_fixed_point: positions_unit: expected float32 or float64, got {positions_unit.dtype}")
    steps = (positions_unit.double() * STEPS).round().clamp(0, STEPS - 1)
    return steps.long().to(torch.int32)  # keeps the low 32 bits


def from_fixed_point(fixed: Int32[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The float64 positions that `to_fixed_point` made, exactly.

    >>> from_fixed_point(torch.tensor([-1073741824], dtype=torch.int32)).tolist()
    [0.75]
    """
    return (fixed.long() & (STEPS - 1)).double() / STEPS
