"""Adam on GPUs: one streaming pass over parameter, gradient and moments; blocks without a gradient are left alone.

What changes from step to step (the rate with both bias corrections, the scale of the gradient) is read from memory,
so that a captured graph needs no new capture.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import INTERPRETED, launch


def bias_corrected(learning_rate: float, beta1: float, beta2: float, step: int) -> float:
    """The learning rate with both moments' bias at this step (1 at the first)."""
    return learning_rate * (1 - beta2**step) ** 0.5 / (1 - beta1**step)


@triton.jit
def _adam(
    param, grad, moment1, moment2, short, hyper, n, beta1, beta2, epsilon, l2,
    SKIP_ZERO: tl.constexpr, CLEAR: tl.constexpr, HAS_SHORT: tl.constexpr, GUARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step on BLOCK scalars.

    SKIP_ZERO leaves scalars with a zero gradient alone; CLEAR zeroes the gradient afterwards; HAS_SHORT also writes the
    parameter in the type of `short`; GUARD takes a gradient that is not finite for zero.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    raw = tl.load(grad + at, mask=mask, other=0.0)
    g = raw.to(tl.float32)
    if (tl.max((g != 0.0).to(tl.int32), axis=0) > 0) | (not SKIP_ZERO):
        rate, scale = tl.load(hyper), tl.load(hyper + 1)
        g = g * scale
        if GUARD:
            g = tl.where(tl.abs(g) < float("inf"), g, 0.0)  # false for NaN too
        w = tl.load(param + at, mask=mask, other=0.0)
        m, v = tl.load(moment1 + at, mask=mask, other=0.0), tl.load(moment2 + at, mask=mask, other=0.0)
        slope = g + l2 * w
        m_new = beta1 * m + (1.0 - beta1) * slope
        v_new = beta2 * v + (1.0 - beta2) * slope * slope
        w_new = w - rate * m_new / (tl.sqrt(v_new) + epsilon)
        if SKIP_ZERO:
            still = g == 0.0
            w_new, m_new, v_new = tl.where(still, w, w_new), tl.where(still, m, m_new), tl.where(still, v, v_new)
        tl.store(param + at, w_new, mask=mask)
        tl.store(moment1 + at, m_new, mask=mask)
        tl.store(moment2 + at, v_new, mask=mask)
        if CLEAR:
            tl.store(grad + at, tl.zeros_like(raw), mask=mask)
        if HAS_SHORT:
            tl.store(short + at, w_new.to(short.dtype.element_ty), mask=mask)


def adam_device(
    param: Tensor, grad: Tensor, moment1: Tensor, moment2: Tensor, short: Tensor | None, hyper: Tensor, *,
    beta1: float, beta2: float, epsilon: float, l2: float, skip_zero: bool, clear: bool, guard: bool,
) -> None:  # fmt: skip
    """One step in place, its rate and the gradient's scale read from `hyper` [2] on the device; all contiguous."""
    n = param.numel()
    # A block of 1024 is four vectors of four for each of 64 threads in flight at once.
    block, warps = (65536, 1) if INTERPRETED.value else (1024, 4)
    launch(
        _adam, (triton.cdiv(n, block),), param, grad, moment1, moment2, param if short is None else short, hyper, n,
        beta1, beta2, epsilon, l2, SKIP_ZERO=skip_zero, CLEAR=clear, HAS_SHORT=short is not None, GUARD=guard,
        BLOCK=block, num_warps=warps,
    )  # fmt: skip


def _hyper(param: Tensor, learning_rate: float, beta1: float, beta2: float, step: int) -> Tensor:
    return torch.tensor([bias_corrected(learning_rate, beta1, beta2, step), 1.0], device=param.device)


def adam_step(
    param: Tensor, grad: Tensor, moment1: Tensor, moment2: Tensor, step: int, learning_rate: float, beta1: float,
    beta2: float, epsilon: float, l2: float, skip_zero: bool,
) -> None:  # fmt: skip
    """One step in place with one global count; see `hashfield.ops.adam`."""
    adam_device(
        param, grad, moment1, moment2, None, _hyper(param, learning_rate, beta1, beta2, step),
        beta1=beta1, beta2=beta2, epsilon=epsilon, l2=l2, skip_zero=skip_zero, clear=False, guard=False,
    )  # fmt: skip


def adam_table_step(
    param: Tensor, grad: Tensor, moment1: Tensor, moment2: Tensor, param_bf16: Tensor, step: int,
    learning_rate: float, beta1: float, beta2: float, epsilon: float,
) -> None:  # fmt: skip
    """One step on a table in place; the gradient is cleared and the rounded copy brought up to date."""
    adam_device(
        param, grad, moment1, moment2, param_bf16, _hyper(param, learning_rate, beta1, beta2, step),
        beta1=beta1, beta2=beta2, epsilon=epsilon, l2=0.0, skip_zero=True, clear=True, guard=False,
    )  # fmt: skip
