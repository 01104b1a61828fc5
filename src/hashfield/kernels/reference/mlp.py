"""Reference of the small fully connected network, in plain torch."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.kernels.reference.rounding import round_to_bfloat16

_SHARPNESS = 10.0  # of squareplus and softplus, as in tiny-cuda-nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "leaky_relu": torch.nn.functional.leaky_relu,  # 0.01 below 0
    "silu": torch.nn.functional.silu,
    "sine": torch.sin,
    "squareplus": lambda x: (x + torch.sqrt(x * x + 4 / _SHARPNESS**2)) / 2,
    "softplus": lambda x: torch.logaddexp(x * _SHARPNESS, torch.zeros((), dtype=x.dtype, device=x.device)) / _SHARPNESS,
    "tanh": torch.tanh,
}


def mlp(
    x: Float[Tensor, "n n_in"],
    weights: Sequence[Tensor],
    activation: str = "relu",
    output_activation: str = "none",
    precision: str = "float32",
) -> Float[Tensor, "n n_out"]:
    """Output of a network without biases: matrices with an activation between them and one at the end.

    Args:
        x: Input.
        weights: Matrices [n_out, n_in], first layer first.
        activation: Between the layers.
        output_activation: After the last.
        precision: "bfloat16" rounds every matrix and every layer's input to nearest even; products are summed
            in x's dtype, the last output is not rounded, and gradients pass the rounding unchanged.

    Source: tiny-cuda-nn src/network.cu.
    """
    for i, weight in enumerate(weights):
        if precision == "bfloat16":
            x, weight = round_to_bfloat16(x), round_to_bfloat16(weight)
        x = torch.nn.functional.linear(x, weight)
        x = ACTIVATIONS[activation if i + 1 < len(weights) else output_activation](x)
    return x
