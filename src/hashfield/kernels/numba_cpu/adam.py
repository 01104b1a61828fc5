"""Adam over a flat array on CPUs: one pass, vectors, entries with a zero gradient left alone."""

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    restore_denormals,
    share,
)
from hashfield.kernels.numba_cpu.simd import (
    LANES,
    any_nonzero,
    count_bits,
    fma,
    load,
    peek,
    splat,
    sqrt,
    store,
    store_bf16,
    to_bf16,
    where,
)
from hashfield.kernels.numba_cpu.touched_rows import add_eight

BLOCK_BYTES = 32
"""Bytes of bits, each of eight rows, whose gradients are added up at a time: they stay in the nearest cache."""


@inline
def adam_vector(param, g, moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero):
    """Update LANES scalars from element i on by their gradient g; returns the new values."""
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    w = load(param, i)
    m, v = load(moment1, i), load(moment2, i)
    step = fma(splat(l2), w, g)
    m_new = fma(splat(beta1), m, (one - splat(beta1)) * step)
    v_new = fma(splat(beta2), v, (one - splat(beta2)) * step * step)
    w_new = w - splat(rate) * m_new / (sqrt(v_new) + splat(epsilon))
    if skip_zero:
        is_still = g == zero
        w_new, m_new, v_new = where(is_still, w, w_new), where(is_still, m, m_new), where(is_still, v, v_new)
    store(param, i, w_new)
    store(moment1, i, m_new)
    store(moment2, i, v_new)
    return w_new


@inline
def adam_scalar(param, g, moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero):
    """Update scalar i, one of those behind the last whole vector, as `adam_vector` does."""
    if skip_zero and g == np.float32(0.0):
        return
    step = g + l2 * param[i]
    one = np.float32(1.0)
    moment1[i] = beta1 * moment1[i] + (one - beta1) * step
    moment2[i] = beta2 * moment2[i] + (one - beta2) * step * step
    param[i] -= rate * moment1[i] / (np.sqrt(moment2[i]) + epsilon)


@kernel
def _adam(param, grad, moment1, moment2, rate, beta1, beta2, epsilon, l2, skip_zero, thread, threads):
    n_vectors = param.size // LANES
    mode = flush_denormals()
    for i in range(share(n_vectors, thread, threads) * LANES, share(n_vectors, thread + 1, threads) * LANES, LANES):
        adam_vector(param, load(grad, i), moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero)
    if thread == threads - 1:
        for i in range(n_vectors * LANES, param.size):
            adam_scalar(param, grad[i], moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero)
    restore_denormals(mode)


@kernel
def _adam_table(param, grad, moment1, moment2, param_bf16, rate, beta1, beta2, epsilon, thread, threads):
    """Adam on a table: zero gradients skipped; writes the bfloat16 copy and clears the gradient on the way."""
    n_vectors = param.size // LANES
    mode = flush_denormals()
    zero, none = splat(np.float32(0.0)), np.float32(0.0)
    first, last = share(n_vectors, thread, threads), share(n_vectors, thread + 1, threads)
    for i in range(first * LANES, last * LANES, LANES):
        g = load(grad, i)
        if not any_nonzero(g):
            continue
        w = adam_vector(param, g, moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
        store(grad, i, zero)
        store_bf16(param_bf16, i, w)
    if thread == threads - 1:
        for i in range(n_vectors * LANES, param.size):
            adam_scalar(param, grad[i], moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
            grad[i] = none
            param_bf16[i] = to_bf16(param[i])
    restore_denormals(mode)


@kernel
def _adam_rows(
    param, moment1, moment2, param_bf16, n_features, bits, values, rate, beta1, beta2, epsilon, thread, threads,
):  # fmt: skip
    """`_adam_table` with a gradient that is the sum of several arrays' touched rows: a tuple of their bits, and one of
    their values."""
    mode = flush_denormals()
    none, eight, n_bytes = np.float32(0.0), 8 * n_features, bits[0].size
    n_blocks = (n_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
    begin, end = share(n_blocks, thread, threads), share(n_blocks, thread + 1, threads)
    grad = np.empty(BLOCK_BYTES * eight, np.float32)
    come = np.zeros(len(bits), np.int64)  # where each array's values for this block begin
    for k in range(len(bits)):
        own = bits[k]
        for byte in range(begin * BLOCK_BYTES):
            come[k] += count_bits(peek(own, byte)) * n_features
    for block in range(begin, end):
        first, last = block * BLOCK_BYTES, min(n_bytes, (block + 1) * BLOCK_BYTES)
        grad[:] = none
        for k in range(len(bits)):
            own, numbers, at = bits[k], values[k], come[k]
            for byte in range(first, last):
                found = peek(own, byte)
                if found:
                    add_eight(grad, (byte - first) * eight, n_features, numbers, at, found)
                    at += count_bits(found) * n_features
            come[k] = at
        start, stop = first * eight, min(last * eight, param.size)
        vectors = (stop - start) // LANES
        for v in range(vectors):
            g, i = load(grad, v * LANES), start + v * LANES
            if any_nonzero(g):
                w = adam_vector(param, g, moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
                store_bf16(param_bf16, i, w)
        for i in range(start + vectors * LANES, stop):
            adam_scalar(param, grad[i - start], moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
            param_bf16[i] = to_bf16(param[i])
    restore_denormals(mode)


def bias_corrected(learning_rate: float, beta1: float, beta2: float, step: int) -> float:
    """The learning rate with both moments' bias at this step (1 at the first)."""
    return learning_rate * (1 - beta2**step) ** 0.5 / (1 - beta1**step)


def adam_step(
    param, grad, moment1, moment2, step: int, learning_rate: float, beta1: float, beta2: float, epsilon: float,
    l2: float, skip_zero: bool,
) -> None:  # fmt: skip
    """One step in place with one global count; see `hashfield.ops.adam`."""
    if param.numel():
        launch(
            _adam, *(as_array(x).reshape(-1) for x in (param, grad, moment1, moment2)),
            *map(np.float32, (bias_corrected(learning_rate, beta1, beta2, step), beta1, beta2, epsilon, l2)),
            skip_zero, threads=1 if param.numel() < 2**16 else None,  # waking a thread costs more than a matrix
        )  # fmt: skip


def adam_table_step(
    param, grad, moment1, moment2, param_bf16, step: int, learning_rate: float, beta1: float, beta2: float,
    epsilon: float, rows=None,
) -> None:  # fmt: skip
    """One step on a table in place; the gradient is cleared and the bfloat16 copy brought up to date."""
    words = _words(param_bf16)
    flat, first, second = (as_array(x).reshape(-1) for x in (param, moment1, moment2))
    numbers = [np.float32(x) for x in (bias_corrected(learning_rate, beta1, beta2, step), beta1, beta2, epsilon)]
    if rows is None:
        launch(_adam_table, flat, as_array(grad).reshape(-1), first, second, words, *numbers)
    else:
        bits = tuple(as_array(one.bits) for one in rows)
        values = tuple(_words(v) if v.dtype == torch.bfloat16 else as_array(v).reshape(-1) for _, v in rows)
        launch(_adam_rows, flat, first, second, words, param.shape[1], bits, values, *numbers)


def _words(tensor) -> np.ndarray:
    """The bits of bfloat16 numbers, flat."""
    return tensor.view(torch.int16).numpy().view(np.uint16).reshape(-1)
