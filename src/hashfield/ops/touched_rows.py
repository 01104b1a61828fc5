"""The rows of a sparse array that are not zero, as what is sent to another machine: which they are, and their numbers.

A training batch touches a small part of a hashed level's entries; its gradient travels as a bit for each entry, and the
numbers of those that were touched.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker

WIRE = (torch.float32, torch.bfloat16)
"""Types in which numbers travel."""


class TouchedRows(NamedTuple):
    """Some rows of an array, part by part."""

    bits: UInt8[Tensor, " n_bytes"]
    """A bit for each row of the parts, lowest bit first; each part begins a byte."""
    counts: Int64[Tensor, " n_parts"]
    """Rows of each part that were touched."""
    values: Tensor
    """[sum of counts, n_features]: their numbers, in order."""


def bitmap_bytes(parts: Sequence[slice]) -> int:
    """Bytes of the bits of these parts.

    >>> bitmap_bytes([slice(0, 8), slice(8, 17)])
    3
    """
    return sum(-(-(part.stop - part.start) // 8) for part in parts)


@torch.no_grad()
def take_rows(
    array: Float[Tensor, "n_rows n_features"], parts: Sequence[slice], scale: float, wire: torch.dtype,
    *, keeps: bool = False, backend: Backend | None = None,
) -> TouchedRows:  # fmt: skip
    """Take the rows that are not zero out of parts of an array, which is zero there afterwards.

    Args:
        array: float32, contiguous; changed in place.
        parts: Ranges of rows, each with start and stop; none overlaps another.
        scale: What their numbers are multiplied by.
        wire: Type that they are rounded to, to the nearest: float32 or bfloat16.
        keeps: Leave them in the array, scaled and rounded, instead of zeros.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.

    >>> array = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    >>> take_rows(array, [slice(0, 4)], 0.5, torch.float32)
    TouchedRows(bits=tensor([10], dtype=torch.uint8), counts=tensor([2]), values=tensor([[0.5000, 0.0000],
            [1.5000, 2.0000]]))
    >>> bool(array.any())
    False
    """
    _check("take_rows", array, parts)
    if wire not in WIRE:
        raise ShapeError(f"take_rows: wire: expected float32 or bfloat16, got {wire}")
    choice = choose("touched_rows", backend, array)
    return TouchedRows(*choice.kernels.take_rows(array, parts, float(scale), wire, keeps))


@torch.no_grad()
def add_rows(
    array: Float[Tensor, "n_rows n_features"], parts: Sequence[slice], rows: TouchedRows,
    *, backend: Backend | None = None,
) -> None:  # fmt: skip
    """Add what `take_rows` gave to the same rows of an array of the same shape.

    Args:
        array: float32, contiguous; changed in place.
        parts: As `take_rows` was given them.
        rows: What to add.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.
    """
    _check("add_rows", array, parts)
    check = Checker("add_rows")
    check("rows.bits", rows.bits, (bitmap_bytes(parts),), "uint8")
    check("rows.counts", rows.counts, (len(parts),), "int64")
    expected = (int(rows.counts.sum()), array.shape[1])
    if tuple(rows.values.shape) != expected or rows.values.dtype not in WIRE:
        raise ShapeError(f"add_rows: rows.values: expected {expected} numbers, got {tuple(rows.values.shape)}")
    choice = choose("touched_rows", backend, array)
    choice.kernels.add_rows(array, parts, *rows)


def _check(op: str, array: Tensor, parts: Sequence[slice]) -> None:
    Checker(op)("array", array, ("n_rows", "n_features"))
    if not array.is_contiguous():
        raise ShapeError(f"{op}: array: expected a contiguous tensor, it is changed in place")
    if any(not 0 <= part.start <= part.stop <= len(array) for part in parts):
        raise ShapeError(f"{op}: parts: expected ranges within {len(array)} rows, got {list(parts)}")
