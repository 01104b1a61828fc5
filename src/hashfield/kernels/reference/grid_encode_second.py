"""Reference of the grid encoding's second derivatives: autograd through autograd."""

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.grid_encode import grid_encode


def position_gradient(
    cotangent: Float[Tensor, "n n_output"],
    positions: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    layout: GridLayout,
    interpolation: str = "linear",
    precision: str = "float32",
) -> Float[Tensor, "n n_dims"]:
    """Gradient of the encoding to positions for a cotangent of its features, differentiable in all three.

    Args:
        cotangent: Gradient of the loss with regard to the features.
        positions, table, layout, interpolation, precision: As for `grid_encode`.
    """
    with torch.enable_grad():
        x = positions if positions.requires_grad else positions.detach().requires_grad_()
        x = x.view_as(x)  # a name of its own, should the table depend on the positions
        features = grid_encode(x, table, layout, interpolation, precision)
        (gradient,) = torch.autograd.grad(features, x, cotangent, create_graph=True)
    return gradient
