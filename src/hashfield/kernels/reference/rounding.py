"""Rounding to a shorter float whose gradient passes unchanged (straight-through)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _StandIn(torch.autograd.Function):
    # Not `x.to(bfloat16).to(x.dtype)`: autograd would round the gradient as well.
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def round_to_bfloat16(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x` rounded to the nearest bfloat16 (ties to even), in x's own dtype; the gradient passes unchanged."""
    return stand_in(x, x.detach().to(torch.bfloat16))


def stand_in(x: Float[Tensor, "..."], rounded: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values of `rounded` in x's dtype, with the gradient going to x as if nothing was rounded."""
    return _StandIn.apply(x, rounded)  # pyright: ignore[reportReturnType]
