"""A grid read at one corner of each cell, drawn at random: the gradient of stochastic interpolation."""

from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.stochastic_grid import corner_encode as reference
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.grid_encode import Interpolation


def corner_encode(
    positions_unit: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    draws: Float[Tensor, "n n_levels"],
    layout: GridLayout,
    *,
    interpolation: Interpolation = "linear",
) -> Float[Tensor, "n n_output"]:
    """Features of one corner per point and level: along each axis the upper one where the draw is below its weight.

    In the mean over draws these are not the interpolated features, since all axes share a draw, as in tiny-cuda-nn.
    Plain torch on every device.

    Args:
        positions_unit: As for `grid_encode`.
        table: As for `grid_encode`.
        draws: Uniform in [0, 1), one for each point and level.
        layout: Sizes of the levels.
        interpolation: Decides the weights; "nearest" takes the lower corner always.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.

    Gradient:
        To the table alone.
    """
    check = Checker("corner_encode")
    check("positions_unit", positions_unit, ("n", layout.n_dims))
    check("table", table, (layout.n_entries, layout.n_features_per_level))
    check("draws", draws, ("n", layout.n_levels))
    one_of("corner_encode", "interpolation", interpolation, ("linear", "smoothstep", "nearest"))
    return reference(positions_unit, table, draws, layout, interpolation)
