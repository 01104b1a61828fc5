"""Rounding to a shorter float whose gradient passes unchanged (straight-through)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _RoundToBfloat16(torch.autograd.Function):
    # Not `x.to(bfloat16).to(x.dtype)`: autograd would round the gradient as well.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def round_to_bfloat16(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x` rounded to the nearest bfloat16 (ties to even), in x's own dtype; the gradient passes unchanged."""
    return _RoundToBfloat16.apply(x)  # pyright: ignore[reportReturnType]
