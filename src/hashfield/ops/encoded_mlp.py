"""Grid encoding followed by a network: densities, images, distances."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend, requested_backend, why_not
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.ops.grid_encode import Interpolation, Precision, grid_encode
from hashfield.ops.mlp import Activation, check_mlp, mlp


def encoded_mlp(
    positions_unit: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    weights: Sequence[Tensor],
    layout: GridLayout,
    *,
    interpolation: Interpolation = "linear",
    activation: Activation = "relu",
    output_activation: Activation = "none",
    precision: Precision = "float32",
    backend: Backend | None = None,
) -> Float[Tensor, "n n_out"]:
    """Output of a network on the grid's features of each position.

    Args:
        positions_unit: As for `grid_encode`.
        table: As for `grid_encode`.
        weights: As for `mlp`; the first matrix takes `layout.n_output` features.
        layout: Sizes of the levels.
        interpolation: Of the grid.
        activation: Between the layers.
        output_activation: After the last layer.
        precision: Of the lookup and of the network, as the two ops describe it.
        backend: Implementation of both stages; each is chosen by device if None. Where no gradient is wanted and the
            fused `eval_points` fits, it is taken.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take one of the stages.

    Gradient:
        To positions, table and every matrix; second order with backend="reference".
    """
    check_mlp("encoded_mlp", "weights", weights, layout.n_output, like=("table", table))
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (positions_unit, table, *weights))
    if not wants_gradient and activation == "relu" and output_activation == "none" and len(weights) > 1:
        network = EncodedNetwork(layout, table, tuple(weights), precision=precision, interpolation=interpolation)
        tensors = (table, positions_unit, *weights)
        if (backend or requested_backend() or "numba") == "numba" and not why_not(
            "eval_points", "numba", *tensors, limit=network.limit
        ):
            return eval_points(network, positions_unit, backend="numba")
    features = grid_encode(
        positions_unit, table, layout, interpolation=interpolation, precision=precision, backend=backend
    )
    return mlp(
        features,
        weights,
        activation=activation,
        output_activation=output_activation,
        precision=precision,
        backend=backend,
    )
