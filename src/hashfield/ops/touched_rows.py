"""The rows of a sparse array that are not zero, as what is sent to another machine: which they are, and their numbers.

A training batch touches a small part of a hashed level's entries; its gradient travels as a bit for each entry, and the
numbers of those that were touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker

WIRE = (torch.float32, torch.bfloat16)
"""Types in which numbers travel."""
_ALIGNED = 64  # bytes; where a part's bits and numbers begin


class TouchedRows(NamedTuple):
    """Some rows of an array."""

    bits: UInt8[Tensor, " n_bytes"]
    """A bit for each row of the array, lowest bit first."""
    values: Tensor
    """[n_touched, n_features]: numbers of the rows whose bit is set, in order; float32 or bfloat16."""


class RowRoom:
    """Memory for the touched rows of an array's parts: for each part the bits, then the numbers.

    Every part has room for all of its rows; of memory that is not written to, the system makes none.

    >>> room = RowRoom([slice(0, 4), slice(4, 20)], 2, torch.float32)
    >>> array = torch.zeros(20, 2)
    >>> array[1, 0], array[3] = 1.0, torch.tensor([3.0, 4.0])
    >>> take_rows(array, room, [0, 1], 0.5)
    [2, 0]
    >>> room.rows(0, 2)
    TouchedRows(bits=tensor([10], dtype=torch.uint8), values=tensor([[0.5000, 0.0000],
            [1.5000, 2.0000]]))
    >>> bool(array.any())
    False
    """

    def __init__(self, parts: Sequence[slice], n_features: int, wire: torch.dtype) -> None:
        """Args:
        parts: Ranges of rows, each with start and stop; none overlaps another.
        n_features: Numbers of a row.
        wire: Type that numbers are rounded to, to the nearest: float32 or bfloat16.

        Raises:
            ShapeError: numbers do not travel as that type.
        """
        if wire not in WIRE:
            raise ShapeError(f"RowRoom: wire: expected float32 or bfloat16, got {wire}")
        self.parts, self.n_features, self.wire = list(parts), n_features, wire
        self.row_bytes = n_features * wire.itemsize
        n_rows = [part.stop - part.start for part in self.parts]
        self.bits_bytes = [-(-n // 8) for n in n_rows]
        """Bytes of each part's bits."""
        before = [_aligned(n) for n in self.bits_bytes]
        ends = list(accumulate(a + _aligned(n * self.row_bytes) for a, n in zip(before, n_rows, strict=True)))
        self.bits_at = [0, *ends[:-1]] if ends else []
        """First byte of each part's bits."""
        self.values_at = [a + b for a, b in zip(self.bits_at, before, strict=True)]
        """First byte of each part's numbers."""
        self.memory = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8)

    def message(self, part: int, n_touched: int) -> UInt8[Tensor, " n_bytes"]:
        """The bytes that tell of a part, of which so many rows are touched."""
        return self.memory[self.bits_at[part] : self.values_at[part] + n_touched * self.row_bytes]

    def message_bytes(self, part: int, n_touched: int) -> int:
        """How many these are."""
        return self.values_at[part] - self.bits_at[part] + n_touched * self.row_bytes

    def rows(self, part: int, n_touched: int) -> TouchedRows:
        """The touched rows of a part, of which there are so many."""
        bits = self.memory[self.bits_at[part] :][: self.bits_bytes[part]]
        values = self.memory[self.values_at[part] :][: n_touched * self.row_bytes]
        return TouchedRows(bits, values.view(self.wire).view(n_touched, self.n_features))


@dataclass
class Plan:
    """What is to be taken out of an array. Its parts are the levels of a table where a step's op is to take them."""

    room: RowRoom
    """Where touched rows go."""
    numbers: list[int]
    """Which of the room's parts."""
    scale: float
    """What their numbers are multiplied by."""
    counts: list[int] | None = None
    """Touched rows of each of these parts, once they are taken."""


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNED) * _ALIGNED


@torch.no_grad()
def take_rows(
    array: Float[Tensor, "n_rows n_features"], room: RowRoom, numbers: Sequence[int], scale: float,
    *, backend: Backend | None = None,
) -> list[int]:  # fmt: skip
    """Take the rows that are not zero out of parts of an array, which is zero there afterwards.

    A row all of whose numbers become zero by scaling and rounding does not count as touched.

    Args:
        array: float32, contiguous; changed in place.
        room: Where they go.
        numbers: Which of the room's parts.
        scale: What their numbers are multiplied by.
        backend: Implementation; chosen by device if None.

    Returns:
        How many rows of each of these parts were touched.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.
    """
    Checker("take_rows")("array", array, ("n_rows", room.n_features))
    if not array.is_contiguous():
        raise ShapeError("take_rows: array: expected a contiguous tensor, it is changed in place")
    if any(not 0 <= part.start <= part.stop <= len(array) for part in room.parts):
        raise ShapeError(f"take_rows: room: expected parts within {len(array)} rows, got {room.parts}")
    choice = choose("touched_rows", backend, array)
    return choice.kernels.take_rows(array, room, list(numbers), float(scale))


def check_rows(op: str, rows: Sequence[TouchedRows], shape: tuple[int, int]) -> None:
    """Raise unless these are touched rows of an array of this shape.

    Args:
        op: Named in the error.
        rows: Touched rows of several arrays.
        shape: (rows, features) of each of these.

    Raises:
        ShapeError: there are none, or some have the wrong shape or dtype.
    """
    check = Checker(op)
    if not rows:
        raise ShapeError(f"{op}: rows: expected those of at least one array")
    for k, (bits, values) in enumerate(rows):
        check(f"rows[{k}].bits", bits, (-(-shape[0] // 8),), "uint8")
        if values.dim() != 2 or values.shape[1] != shape[1] or values.dtype not in WIRE or not values.is_contiguous():
            raise ShapeError(f"{op}: rows[{k}].values: expected [n_touched, {shape[1]}] numbers, got {values.shape}")


def summed_rows(rows: Sequence[TouchedRows], shape: tuple[int, int]) -> Float[Tensor, "n_rows n_features"]:
    """The sum of several arrays, of which these are the touched rows, as they follow each other.

    Args:
        rows: Touched rows of each array.
        shape: (rows, features) of each.
    """
    total = torch.zeros(shape, device=rows[0].bits.device)
    shifts = torch.arange(8, device=total.device, dtype=torch.uint8)
    for bits, values in rows:
        is_touched = ((bits[:, None] >> shifts) & 1).bool().reshape(-1)[: shape[0]]
        total[is_touched] += values.float()
    return total
