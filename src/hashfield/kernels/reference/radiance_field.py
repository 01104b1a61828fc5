"""Reference of the radiance field: literally the composition of its two networks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.color_mlp import color_mlp
from hashfield.kernels.reference.encoded_mlp import encoded_mlp


def radiance_field(
    positions: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    table: Float[Tensor, "n_entries n_features"],
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    layout: GridLayout,
    density_bias: float = 0.0,
    degree: int = 4,
    interpolation: str = "linear",
    precision: str = "float32",
    density_activation: str = "exp",
) -> tuple[Float[Tensor, "n n_channels"], Float[Tensor, " n"]]:
    """Colour and density of each point: density = exp(h_0 + density_bias) or max(0, ...), colour from all of h.

    h is the density network's output; its first component is the log-density and feeds the colour network
    like the others.

    Source: instant-ngp nerf_network.h; the bias is ours.
    """
    h = encoded_mlp(positions, table, density_weights, layout, interpolation, "relu", "none", precision)
    raw = h[:, 0] + density_bias
    density = torch.relu(raw) if density_activation == "relu" else torch.exp(raw)
    return color_mlp(h, directions, color_weights, degree, precision), density
