"""Rows of a sparse array that are not zero, on CPUs: one pass over memory finds, takes and clears them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, overloaded, part, task_at
from hashfield.kernels.numba_cpu.simd import (
    EIGHT_ROWS,
    LANES,
    any_nonzero,
    count_bits,
    from_bf16,
    load,
    peek,
    poke,
    splat,
    store,
    to_bf16,
)

pack2, unpack2 = EIGHT_ROWS[2]
pack4, unpack4 = EIGHT_ROWS[4]


# --- numbers as they travel: float32, or rounded to bfloat16 in arrays of uint16


@overloaded
def put(values, at, value):
    """Write one number as it travels."""

    def short(values, at, value):
        poke(values, at, to_bf16(value))

    def plain(values, at, value):
        poke(values, at, value)

    return short if values.dtype.bitwidth == 16 else plain


@overloaded
def got(values, at):
    """One number that has travelled."""

    def short(values, at):
        return from_bf16(peek(values, at))

    def plain(values, at):
        return peek(values, at)

    return short if values.dtype.bitwidth == 16 else plain


# --- rows, up to eight at a time: those of a byte of bits


@inline
def take_each(array, at, n_features, rows, scale, values, to):
    """`take_eight`, row by row."""
    found = np.uint8(0)
    for r in range(rows):
        is_touched = False
        for f in range(n_features):
            put(values, to + f, peek(array, at + r * n_features + f) * scale)
            is_touched |= got(values, to + f) != np.float32(0.0)
        if is_touched:
            found |= np.uint8(1 << r)
            to += n_features
    return found


@inline
def add_each(array, at, n_features, values, come, bits):
    """`add_eight`, row by row."""
    left = bits
    while left:
        if left & np.uint8(1):
            for f in range(n_features):
                poke(array, at + f, peek(array, at + f) + got(values, come + f))
            come += n_features
        left = np.uint8(left >> np.uint8(1))
        at += n_features


@overloaded
def take_eight(array, at, n_features, rows, scale, values, to):
    """Write those of some rows from array[at] on that are not zero, times scale, one after another from values[to] on.

    Returns a bit for each row, lowest first. Behind the rows written, one more may be overwritten, or all eight.
    """

    def short(array, at, n_features, rows, scale, values, to):
        if rows == 8 and n_features == 4:
            return pack4(array, at, scale, values, to)
        if rows == 8 and n_features == 2:
            return pack2(array, at, scale, values, to)
        return take_each(array, at, n_features, rows, scale, values, to)

    def plain(array, at, n_features, rows, scale, values, to):
        return take_each(array, at, n_features, rows, scale, values, to)

    return short if values.dtype.bitwidth == 16 else plain


@overloaded
def add_eight(array, at, n_features, values, come, bits):
    """Add the rows that lie one after another from values[come] on to those of the eight from array[at] on whose bits
    are set."""

    def short(array, at, n_features, values, come, bits):
        if n_features == 4:
            unpack4(array, at, values, come, bits)
        elif n_features == 2:
            unpack2(array, at, values, come, bits)
        else:
            add_each(array, at, n_features, values, come, bits)

    def plain(array, at, n_features, values, come, bits):
        add_each(array, at, n_features, values, come, bits)

    return short if values.dtype.bitwidth == 16 else plain


# --- parts of an array


class Taking(NamedTuple):
    """What is taken out of an array, part by part."""

    firsts: np.ndarray
    """First row of each part."""
    n_rows: np.ndarray
    """Rows of each part; 0 where nothing is to be taken."""
    bits: np.ndarray
    """Where bits go to, uint8."""
    bits_at: np.ndarray
    """Where those of each part begin."""
    values: np.ndarray
    """Where numbers go to, float32, or uint16 for bfloat16."""
    values_at: np.ndarray
    counts: np.ndarray
    """Touched rows of each part, to be filled."""
    scale: np.float32
    """What numbers are multiplied by."""


def taking_of(room, numbers: Sequence[int], scale: float) -> Taking:
    """What `take_part` is told: see `hashfield.ops.touched_rows.take_rows`."""
    chosen, memory = set(numbers), as_array(room.memory)
    firsts = np.array([part.start for part in room.parts], np.int64)
    n_rows = np.array([part.stop - part.start if k in chosen else 0 for k, part in enumerate(room.parts)], np.int64)
    values = memory.view(np.float32 if room.wire == torch.float32 else np.uint16)
    return Taking(
        firsts, n_rows, memory, np.array(room.bits_at, np.int64), values,
        np.array(room.values_at, np.int64) // room.wire.itemsize, np.zeros(len(firsts), np.int64), np.float32(scale),
    )  # fmt: skip


@part
def take_part(array, n_features, taking, number):
    """Take the touched rows of one part out of a flat array."""
    eight = 8 * n_features
    vectors = eight // LANES  # of the eight rows of a byte; none where they are less than a vector
    zero = splat(np.float32(0.0))
    bits, values, scale = taking.bits, taking.values, taking.scale
    n, first, byte, to = taking.n_rows[number], taking.firsts[number], taking.bits_at[number], taking.values_at[number]
    for k in range((n + 7) // 8):
        at = (first + 8 * k) * n_features
        rows = min(np.int64(8), n - 8 * k)
        is_touched, found = vectors == 0 or rows < 8, np.uint8(0)
        for v in range(vectors if rows == 8 else 0):
            is_touched |= any_nonzero(load(array, at + v * LANES))
        if is_touched:
            found = np.uint8(take_eight(array, at, n_features, rows, scale, values, to))
            to += count_bits(found) * n_features
            if vectors and rows == 8:
                for v in range(vectors):
                    store(array, at + v * LANES, zero)
            else:
                for i in range(at, at + rows * n_features):
                    poke(array, i, np.float32(0.0))
        poke(bits, byte + k, found)
    taking.counts[number] = (to - taking.values_at[number]) // n_features


@kernel
def _take(array, n_features, taking, thread, threads):
    """Every part has one reader."""
    for turn in range((taking.firsts.size + threads - 1) // threads):
        number = task_at(turn, taking.firsts.size, thread, threads)
        if number < 0:
            break
        take_part(array, n_features, taking, number)


def take_rows(array, room, numbers: Sequence[int], scale: float) -> list[int]:
    """See `hashfield.ops.touched_rows`."""
    taking = taking_of(room, numbers, scale)
    launch(_take, as_array(array).reshape(-1), array.shape[1], taking, threads=1 if len(numbers) < 2 else None)
    return taking.counts[list(numbers)].tolist()
