"""A grid read at one corner of each cell, in plain torch."""

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.grid_encode import cell_and_fraction, vertex_index


def corner_encode(
    positions: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    draws: Float[Tensor, "n n_levels"],
    layout: GridLayout,
    interpolation: str = "linear",
) -> Float[Tensor, "n n_output"]:
    """Features of the corner whose side along each axis is the upper one where the draw is below the axis' weight.

    Args:
        positions, table, layout, interpolation: As for `grid_encode`.
        draws: One number in [0, 1) per point and level.
    """
    features = []
    for level, values in enumerate(table.split(layout.entries.tolist())):
        cell, fraction = cell_and_fraction(positions, float(layout.scales[level]))
        if interpolation == "smoothstep":
            fraction = fraction * fraction * (3 - 2 * fraction)
        elif interpolation == "nearest":
            fraction = torch.zeros_like(fraction)
        corner = cell + (draws[:, level, None] < fraction)
        features.append(torch.nn.functional.embedding(vertex_index(corner[:, None, :], layout, level)[:, 0], values))
    return torch.cat(features, 1)
