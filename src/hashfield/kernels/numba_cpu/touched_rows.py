"""Rows of a sparse array that are not zero, on CPUs: one pass over memory finds, takes and clears them."""

from collections.abc import Sequence

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, overloaded, recycled, task_at
from hashfield.kernels.numba_cpu.simd import LANES, any_nonzero, from_bf16, load, peek, poke, to_bf16


@overloaded
def put(values, at, value):
    """Write a number as it travels: float32, or the upper half of one, rounded, in arrays of uint16. Returns what will
    arrive."""

    def short(values, at, value):
        half = to_bf16(value)
        poke(values, at, half)
        return from_bf16(half)

    def plain(values, at, value):
        poke(values, at, value)
        return value

    return short if values.dtype.bitwidth == 16 else plain


@inline
def is_row_touched(array, at, n_features):
    """Whether one of the numbers from `at` on is not zero."""
    for f in range(n_features):
        if peek(array, at + f) != np.float32(0.0):
            return True
    return False


@kernel
def _take(array, n_features, firsts, n_rows, bytes_before, bits, values, counts, scale, keeps, thread, threads):
    """Every part has one reader. Its values begin where the part itself begins."""
    whole = LANES // n_features if n_features <= LANES else 0  # rows of a vector
    for turn in range((firsts.size + threads - 1) // threads):
        part = task_at(turn, firsts.size, thread, threads)
        if part < 0:
            break
        first, n, byte = firsts[part], n_rows[part], bytes_before[part]
        found, row = np.int64(0), np.int64(0)
        while row < n:
            at = (first + row) * n_features
            if whole > 0 and row + whole <= n and not any_nonzero(load(array, at)):
                row += whole
                continue
            last = min(n, row + max(whole, 1))
            while row < last:
                at = (first + row) * n_features
                if is_row_touched(array, at, n_features):
                    to = byte + row // 8
                    poke(bits, to, np.uint8(peek(bits, to) | np.uint8(1 << (row % 8))))
                    for f in range(n_features):
                        sent = put(values, (first + found) * n_features + f, peek(array, at + f) * scale)
                        poke(array, at + f, sent if keeps else np.float32(0.0))
                    found += 1
                row += 1
        counts[part] = found


@overloaded
def got(values, at):
    """A number that has travelled."""

    def short(values, at):
        return from_bf16(peek(values, at))

    def plain(values, at):
        return peek(values, at)

    return short if values.dtype.bitwidth == 16 else plain


@kernel
def _add(array, n_features, firsts, n_rows, bytes_before, bits, values, values_before, thread, threads):
    """Every part has one writer."""
    for turn in range((firsts.size + threads - 1) // threads):
        part = task_at(turn, firsts.size, thread, threads)
        if part < 0:
            break
        first, byte, come = firsts[part], bytes_before[part], values_before[part] * n_features
        for k in range((n_rows[part] + 7) // 8):
            eight = peek(bits, byte + k)
            row = first + 8 * k
            while eight:
                if eight & np.uint8(1):
                    for f in range(n_features):
                        at = row * n_features + f
                        poke(array, at, peek(array, at) + got(values, come + f))
                    come += n_features
                eight = np.uint8(eight >> np.uint8(1))
                row += 1


def _places(parts: Sequence[slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """First row, rows and first byte of each part; all bytes."""
    firsts = np.array([part.start for part in parts], np.int64)
    n_rows = np.array([part.stop - part.start for part in parts], np.int64)
    n_bytes = (n_rows + 7) // 8
    return firsts, n_rows, np.cumsum(n_bytes) - n_bytes, int(n_bytes.sum())


def take_rows(array, parts: Sequence[slice], scale: float, wire: torch.dtype, keeps: bool):
    """See `hashfield.ops.touched_rows`."""
    firsts, n_rows, bytes_before, n_bytes = _places(parts)
    n_features = array.shape[1]
    bits, counts = np.zeros(n_bytes, np.uint8), np.zeros(len(parts), np.int64)
    # Room for every row; only the pages that are written to become memory.
    room = recycled("touched_rows", array.numel())
    values = room if wire == torch.float32 else room.view(np.uint16)
    launch(
        _take, as_array(array).reshape(-1), n_features, firsts, n_rows, bytes_before, bits, values, counts,
        np.float32(scale), keeps, threads=1 if len(parts) < 2 else None,
    )  # fmt: skip
    pieces = [values[a * n_features : (a + n) * n_features] for a, n in zip(firsts, counts, strict=True)]
    found = torch.from_numpy(np.concatenate(pieces) if pieces else values[:0].copy())
    found = found if wire == torch.float32 else found.view(torch.bfloat16)
    return torch.from_numpy(bits), torch.from_numpy(counts), found.view(-1, n_features)


def add_rows(array, parts: Sequence[slice], bits, counts, values) -> None:
    """See `hashfield.ops.touched_rows`."""
    firsts, n_rows, bytes_before, _ = _places(parts)
    if not len(values):
        return
    plain = values.dtype == torch.float32
    numbers = as_array(values) if plain else values.view(torch.int16).numpy().view(np.uint16)
    before = np.cumsum(counts.numpy()) - counts.numpy()
    launch(
        _add, as_array(array).reshape(-1), array.shape[1], firsts, n_rows, bytes_before, as_array(bits),
        numbers.reshape(-1), before, threads=1 if len(parts) < 2 else None,
    )  # fmt: skip
