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
    fma,
    load,
    splat,
    sqrt,
    store,
    store_bf16,
    to_bf16,
    where,
)


@inline
def adam_vector(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero):
    """Update LANES scalars from element i on; returns the new values."""
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    w, g = load(param, i), load(grad, i)
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
def adam_scalar(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero):
    """Update scalar i, one of those behind the last whole vector, as `adam_vector` does."""
    g = grad[i]
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
        adam_vector(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero)
    if thread == threads - 1:
        for i in range(n_vectors * LANES, param.size):
            adam_scalar(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, l2, skip_zero)
    restore_denormals(mode)


@kernel
def _adam_table(param, grad, moment1, moment2, param_bf16, rate, beta1, beta2, epsilon, thread, threads):
    """Adam on a table: zero gradients skipped; writes the bfloat16 copy and clears the gradient on the way."""
    n_vectors = param.size // LANES
    mode = flush_denormals()
    zero, none = splat(np.float32(0.0)), np.float32(0.0)
    first, last = share(n_vectors, thread, threads), share(n_vectors, thread + 1, threads)
    for i in range(first * LANES, last * LANES, LANES):
        if not any_nonzero(load(grad, i)):
            continue
        w = adam_vector(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
        store(grad, i, zero)
        store_bf16(param_bf16, i, w)
    if thread == threads - 1:
        for i in range(n_vectors * LANES, param.size):
            adam_scalar(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
            grad[i] = none
            param_bf16[i] = to_bf16(param[i])
    restore_denormals(mode)


@kernel
def _adam_touched(
    param, grad, moment1, moment2, param_bf16, touched, n_features, rate, beta1, beta2, epsilon, thread, threads,
):  # fmt: skip
    """`_adam_table` on the rows whose bits are set, eight rows at a time."""
    mode = flush_denormals()
    zero, none = splat(np.float32(0.0)), np.float32(0.0)
    eight = 8 * n_features
    for byte in range(share(touched.size, thread, threads), share(touched.size, thread + 1, threads)):
        if touched[byte] == 0:
            continue
        first, last = byte * eight, min((byte + 1) * eight, param.size)
        vectors = (last - first) // LANES * LANES
        for i in range(first, first + vectors, LANES):
            if any_nonzero(load(grad, i)):
                w = adam_vector(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
                store(grad, i, zero)
                store_bf16(param_bf16, i, w)
        for i in range(first + vectors, last):
            adam_scalar(param, grad, moment1, moment2, i, rate, beta1, beta2, epsilon, none, True)
            grad[i] = none
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
    epsilon: float, touched=None,
) -> None:  # fmt: skip
    """One step on a table in place; the gradient is cleared and the bfloat16 copy brought up to date."""
    words = param_bf16.view(torch.int16).numpy().view(np.uint16).reshape(-1)
    arrays = [as_array(x).reshape(-1) for x in (param, grad, moment1, moment2)]
    numbers = [np.float32(x) for x in (bias_corrected(learning_rate, beta1, beta2, step), beta1, beta2, epsilon)]
    if touched is None:
        launch(_adam_table, *arrays, words, *numbers)
    else:
        launch(_adam_touched, *arrays, words, as_array(touched), param.shape[1], *numbers)
