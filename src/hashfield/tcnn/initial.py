"""Initial values of parameters, equal bit by bit to those that tiny-cuda-nn's Python module draws."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from hashfield.geometry.pcg32 import (
    PCG32_FACTOR,
    PCG32_SUMMAND,
    pcg32_jump,
    pcg32_start,
    pcg32_uniform,
    uniform_from_state,
)

_GRID_LIMIT = np.float32(1e-4)
_GRID_BLOCK = 128  # threads of a block that draws four numbers each


class Draws:
    """One sequence of random numbers from which all parts of a module take theirs, in order."""

    def __init__(self, seed: int) -> None:
        """Args: seed: of the sequence."""
        self.state = pcg32_start(int(seed))

    def matrices(self, shapes: Sequence[tuple[int, int]], activation: str) -> Float32[np.ndarray, " n"]:
        """The values of a network's matrices, first layer first, row by row.

        Args:
            shapes: [n_out, n_in] of each, padding included.
            activation: Between the layers; sines need other limits.
        """
        parts = []
        for k, (rows, columns) in enumerate(shapes):
            limit = math.sqrt(6 / (rows + columns))
            if activation == "sine":  # Sitzmann et al. 2020, "Implicit Neural Representations"
                limit = math.sqrt(6 / columns) if k else 30 / columns
            limit32 = np.float32(limit)
            values = pcg32_uniform(self.state, rows * columns)
            self.state = pcg32_jump(self.state, rows * columns)
            parts.append(values * (2 * limit32) - limit32)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def grid(self, n: int) -> Float32[np.ndarray, " n"]:
        """Start values of n entries of a grid, uniform in +-1e-4.

        Each GPU thread draws four numbers in a row for elements that lie a stride apart: element k is draw number
        4 * (k mod stride) + floor(k / stride). Afterwards the sequence goes on n draws later.
        """
        stride = math.ceil(math.ceil(n / 4) / _GRID_BLOCK) * _GRID_BLOCK
        out = np.empty(n, np.float32)
        states = _every_fourth(self.state, min(stride, n))
        with np.errstate(over="ignore"):
            for k in range(4):
                begin, end = k * stride, min((k + 1) * stride, n)
                if begin >= end:
                    break
                values = uniform_from_state(states[: end - begin])
                # In double and rounded once: the fused multiply-add of the device.
                scaled = values.astype(np.float64) * np.float64(2 * _GRID_LIMIT) - np.float64(_GRID_LIMIT)
                out[begin:end] = scaled.astype(np.float32)
                states *= np.uint64(PCG32_FACTOR)
                states += np.uint64(PCG32_SUMMAND)
        self.state = pcg32_jump(self.state, n)
        return out


def _every_fourth(state: int, n: int) -> np.ndarray:
    """States number 0, 4, 8, ... of a sequence."""
    states = np.empty(n, np.uint64)
    known = min(n, 1)
    states[:known] = state
    while known < n:
        count = min(known, n - known)
        summand = pcg32_jump(0, 4 * known)
        factor = (pcg32_jump(1, 4 * known) - summand) % 2**64
        with np.errstate(over="ignore"):
            states[known : known + count] = states[:count] * np.uint64(factor) + np.uint64(summand)
        known += count
    return states
