"""The random numbers of tiny-cuda-nn: PCG32, whose sequence can be entered at any place.

Initial values, a hash and stochastic interpolation are defined by it, so its numbers are reproduced bit by bit. State
and sums are 64-bit and wrap around; torch's int64 wraps in the same way.

Source: O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number
Generation", 2014 (XSH-RR).
"""

import numpy as np
from jaxtyping import Float32, Int64, UInt64
from torch import Tensor

PCG32_FACTOR = 0x5851F42D4C957F2D
PCG32_SUMMAND = 3
"""What is added at each step. It belongs to the sequence number 1, which tiny-cuda-nn takes: 2 * 1 + 1."""
_MASK = 2**64 - 1


def pcg32_start(seed: int) -> int:
    """The state from which the first number of a seed is drawn."""
    return ((PCG32_SUMMAND + seed) * PCG32_FACTOR + PCG32_SUMMAND) & _MASK


def pcg32_jump(state: int, n_steps: int) -> int:
    """The state n_steps draws later; negative numbers go back."""
    factor, summand, total_factor, total_summand = PCG32_FACTOR, PCG32_SUMMAND, 1, 0
    n_steps &= _MASK
    while n_steps:
        if n_steps & 1:
            total_factor, total_summand = total_factor * factor & _MASK, (total_summand * factor + summand) & _MASK
        summand, factor = (factor + 1) * summand & _MASK, factor * factor & _MASK
        n_steps >>= 1
    return (total_factor * state + total_summand) & _MASK


def pcg32_uniform(state: int, n: int) -> Float32[np.ndarray, " n"]:
    """The next n numbers from a state on, as floats in [0, 1)."""
    states = np.empty(n, np.uint64)
    # The sequence is made by doubling: the second half is the first one, moved on by its length.
    known = min(n, 1)
    states[:known] = state
    while known < n:
        count = min(known, n - known)
        factor, summand = _jump_constants(known)
        with np.errstate(over="ignore"):
            np.multiply(states[:count], np.uint64(factor), out=states[known : known + count])
            states[known : known + count] += np.uint64(summand)
        known += count
    return uniform_from_state(states)


def uniform_from_state(states: UInt64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The float in [0, 1) that is drawn from each state: 23 bits of the number become the fraction."""
    shifted = (((states >> np.uint64(18)) ^ states) >> np.uint64(27)).astype(np.uint32)
    turn = (states >> np.uint64(59)).astype(np.uint32)
    bits = (shifted >> turn) | (shifted << ((np.uint32(32) - turn) & np.uint32(31)))
    return ((bits >> np.uint32(9)) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1.0)


def pcg32_output(state: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The 32-bit number that is drawn from each state, given as int64 that stands for uint64."""
    shifted = (((_shift_right(state, 18) ^ state) >> 27) & 0xFFFFFFFF).long()
    turn = _shift_right(state, 59)
    return ((shifted >> turn) | (shifted << ((32 - turn) & 31))) & 0xFFFFFFFF


def signed(number: int) -> int:
    """The int64 with the same bits as an unsigned number."""
    return number - 2**64 if number >= 2**63 else number


def _jump_constants(n_steps: int) -> tuple[int, int]:
    # state -> factor * state + summand is linear, so two states tell both.
    summand = pcg32_jump(0, n_steps)
    return (pcg32_jump(1, n_steps) - summand) & _MASK, summand


def _shift_right(state: Tensor, count: int) -> Tensor:
    return (state >> count) & (2 ** (64 - count) - 1)
