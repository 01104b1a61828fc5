"""Reference of a grid-encoded network asked at points: the composition of the two small references."""

from typing import Any

import torch
from torch import Tensor

from hashfield.geometry.fixed_point import from_fixed_point
from hashfield.kernels.reference.grid_encode import grid_encode
from hashfield.kernels.reference.mlp import mlp


def eval_points(network: Any, positions_unit: Tensor) -> Tensor:
    """See `hashfield.ops.eval_points`. Positions in fixed point are located in float64."""
    table = network.table if network.table_bf16 is None else network.table_bf16.to(network.table.dtype)
    if positions_unit.dtype == torch.int32:
        positions_unit = from_fixed_point(positions_unit)
    features = grid_encode(positions_unit, table, network.layout, network.interpolation, network.precision)
    return mlp(features.to(table.dtype), network.weights, precision=network.precision)
