"""Grid encoding followed by a network: densities, images, distances."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend
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
        backend: Implementation of both stages; each is chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take one of the stages.

    Gradient:
        To positions, table and every matrix; second order with backend="reference".
    """
    check_mlp("encoded_mlp", "weights", weights, layout.n_output, like=("table", table))
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
