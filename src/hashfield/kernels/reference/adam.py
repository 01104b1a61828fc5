"""Reference of the Adam step that leaves zero-gradient scalars alone, in plain torch."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def adam_step(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    moment1: Float[Tensor, "*shape"],
    moment2: Float[Tensor, "*shape"],
    counts: Int[Tensor, "*shape"] | None,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    l2: float,
    skip_zero: bool,
) -> None:
    """One step, in place.

    g <- grad + l2 w; m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
    w <- w - learning_rate * sqrt(1 - beta2^k) / (1 - beta1^k) * m / (sqrt(v) + epsilon).

    k is the scalar's own step count where `counts` is given, else `step`. With `skip_zero` nothing of a
    scalar changes whose grad is exactly 0.

    Source: tiny-cuda-nn optimizers/adam.h.
    """
    touched = grad != 0 if skip_zero else torch.ones_like(grad, dtype=torch.bool)
    gradient = grad + l2 * param
    m = beta1 * moment1 + (1 - beta1) * gradient
    v = beta2 * moment2 + (1 - beta2) * gradient * gradient
    if counts is None:
        rate = learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    else:
        counts += touched.to(counts.dtype)
        # Powers in float64: 1 - 0.99^1 in float32 would keep only 17 bits. An untouched count may be 0.
        k = counts.double().clamp(min=1)
        rate = (learning_rate * torch.sqrt(1 - beta2**k) / (1 - beta1**k)).to(param.dtype)
    updated = param - rate * m / (v.sqrt() + epsilon)
    param.copy_(torch.where(touched, updated, param))
    moment1.copy_(torch.where(touched, m, moment1))
    moment2.copy_(torch.where(touched, v, moment2))


def adam_table_step(
    param: Tensor, grad: Tensor, moment1: Tensor, moment2: Tensor, param_bf16: Tensor, step: int,
    learning_rate: float, beta1: float, beta2: float, epsilon: float,
) -> None:  # fmt: skip
    """`adam_step` with zero gradients skipped; then the gradient is cleared and the rounded copy refreshed."""
    adam_step(param, grad, moment1, moment2, None, step, learning_rate, beta1, beta2, epsilon, l2=0.0, skip_zero=True)
    grad.zero_()
    param_bf16.copy_(param)
