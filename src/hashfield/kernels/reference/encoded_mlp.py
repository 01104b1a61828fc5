"""Reference of the grid-encoded network: literally the composition of the two small references."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.grid_encode import grid_encode
from hashfield.kernels.reference.mlp import mlp


def encoded_mlp(
    positions: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    weights: Sequence[Tensor],
    layout: GridLayout,
    interpolation: str = "linear",
    activation: str = "relu",
    output_activation: str = "none",
    precision: str = "float32",
) -> Float[Tensor, "n n_out"]:
    """Output of the network on the grid's features of each position."""
    features = grid_encode(positions, table, layout, interpolation, precision)
    return mlp(features, weights, activation, output_activation, precision)
