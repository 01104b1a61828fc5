"""Rows of a sparse array that are not zero, on CPUs: one pass over memory finds, takes and clears them."""

from collections.abc import Sequence

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, overloaded, recycled, task_at
from hashfield.kernels.numba_cpu.simd import (
    FEATURES,
    LANES,
    any_nonzero,
    from_bf16,
    load,
    peek,
    poke,
    store_bf16,
    to_bf16,
)

load2, load2_bf16, splat2, store2 = FEATURES[2]
load4, load4_bf16, splat4, store4 = FEATURES[4]


# --- numbers as they travel: float32, or rounded to bfloat16 in arrays of uint16


def _putting(store_plain):
    """The function that writes rows or numbers as they travel."""

    def put(values, at, row):
        def short(values, at, row):
            store_bf16(values, at, row)

        def plain(values, at, row):
            store_plain(values, at, row)

        return short if values.dtype.bitwidth == 16 else plain

    return overloaded(put)


def _getting(load_plain, load_short):
    """The function that reads what has travelled."""

    def got(values, at):
        def short(values, at):
            return load_short(values, at)

        def plain(values, at):
            return load_plain(values, at)

        return short if values.dtype.bitwidth == 16 else plain

    return overloaded(got)


put2, put4 = _putting(store2), _putting(store4)
got2, got4 = _getting(load2, load2_bf16), _getting(load4, load4_bf16)


@overloaded
def put1(values, at, value):
    """Write one number as it travels."""

    def short(values, at, value):
        poke(values, at, to_bf16(value))

    def plain(values, at, value):
        poke(values, at, value)

    return short if values.dtype.bitwidth == 16 else plain


@overloaded
def got1(values, at):
    """One number that has travelled."""

    def short(values, at):
        return from_bf16(peek(values, at))

    def plain(values, at):
        return peek(values, at)

    return short if values.dtype.bitwidth == 16 else plain


# --- rows


@inline
def take_row(array, at, n_features, values, to, scale, keeps):
    """Take a row, if it is not zero; whether it was taken."""
    if n_features == 4:
        four = load4(array, at)
        if not any_nonzero(four):
            return False
        put4(values, to, four * splat4(scale))
        store4(array, at, got4(values, to) if keeps else splat4(np.float32(0.0)))
        return True
    if n_features == 2:
        two = load2(array, at)
        if not any_nonzero(two):
            return False
        put2(values, to, two * splat2(scale))
        store2(array, at, got2(values, to) if keeps else splat2(np.float32(0.0)))
        return True
    is_touched = False
    for f in range(n_features):
        is_touched |= peek(array, at + f) != np.float32(0.0)
    if is_touched:
        for f in range(n_features):
            put1(values, to + f, peek(array, at + f) * scale)
            poke(array, at + f, got1(values, to + f) if keeps else np.float32(0.0))
    return is_touched


@inline
def add_row(array, at, n_features, values, come):
    """Add a row that has travelled."""
    if n_features == 4:
        store4(array, at, load4(array, at) + got4(values, come))
    elif n_features == 2:
        store2(array, at, load2(array, at) + got2(values, come))
    else:
        for f in range(n_features):
            poke(array, at + f, peek(array, at + f) + got1(values, come + f))


@kernel
def _take(array, n_features, firsts, n_rows, bytes_before, bits, values, counts, scale, keeps, thread, threads):
    """Every part has one reader. Its values begin where the part itself begins."""
    eight = 8 * n_features
    vectors = eight // LANES  # of the eight rows of a byte; none where they are less than a vector
    for turn in range((firsts.size + threads - 1) // threads):
        part = task_at(turn, firsts.size, thread, threads)
        if part < 0:
            break
        first, n, byte = firsts[part], n_rows[part], bytes_before[part]
        to = first * n_features
        for k in range((n + 7) // 8):
            at = (first + 8 * k) * n_features
            rows = min(np.int64(8), n - 8 * k)
            is_touched = vectors == 0 or rows < 8
            for v in range(vectors if rows == 8 else 0):
                is_touched |= any_nonzero(load(array, at + v * LANES))
            if is_touched:
                found = np.uint8(0)
                for r in range(rows):
                    if take_row(array, at + r * n_features, n_features, values, to, scale, keeps):
                        found |= np.uint8(1 << r)
                        to += n_features
                poke(bits, byte + k, found)
        counts[part] = to // n_features - first


@kernel
def _add(array, n_features, firsts, n_rows, bytes_before, bits, values, values_before, thread, threads):
    """Every part has one writer."""
    for turn in range((firsts.size + threads - 1) // threads):
        part = task_at(turn, firsts.size, thread, threads)
        if part < 0:
            break
        first, byte, come = firsts[part], bytes_before[part], values_before[part] * n_features
        for k in range((n_rows[part] + 7) // 8):
            left = peek(bits, byte + k)
            at = (first + 8 * k) * n_features
            while left:
                if left & np.uint8(1):
                    add_row(array, at, n_features, values, come)
                    come += n_features
                left = np.uint8(left >> np.uint8(1))
                at += n_features


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
