"""Reference of the colour network: literally the composition of the small references."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.kernels.reference.mlp import mlp
from hashfield.kernels.reference.spherical_harmonics import spherical_harmonics


def color_mlp(
    features: Float[Tensor, "n n_features"],
    directions: Float[Tensor, "n 3"],
    weights: Sequence[Tensor],
    degree: int = 4,
    precision: str = "float32",
) -> Float[Tensor, "n n_channels"]:
    """Colour in (0,1): sigmoid of the network on [features | spherical harmonics of the direction]."""
    x = torch.cat([features, spherical_harmonics(directions, degree)], 1)
    return mlp(x, weights, "relu", "sigmoid", precision)
