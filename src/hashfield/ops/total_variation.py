"""Total variation of a grid's features: how much neighbouring vertices differ."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, at_least


@torch.no_grad()
def total_variation(
    table: Float[Tensor, "n_entries n_features"],
    grad: Float[Tensor, "n_entries n_features"],
    layout: GridLayout,
    *,
    corners: Int64[Tensor, "n_levels n_dims"],
    sides: Sequence[int],
    weight: float,
    backend: Backend | None = None,
) -> float:
    """The total variation of one cube of vertices per level; `weight` times its gradient is added to `grad`.

    TV = sum over levels of 1/side * sum over the cube's edges of |features(a) - features(b)|^2, where a and b are
    neighbouring vertices. In a hashed level their entries may be shared with others; that is HashNeRF's way too.

    Args:
        table: Features of all levels, `layout.n_entries` rows; not changed.
        grad: Like table; added to at the cubes' entries, nowhere else.
        layout: Sizes of the levels.
        corners: Lowest vertex of each level's cube.
        sides: Edges of each level's cube along an axis, at least 1; `cube_sides` gives HashNeRF's.
        weight: Weight of the gradient; the value returned has none.
        backend: "reference" or None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype, or a cube reaches beyond its level.

    Source: HashNeRF-pytorch loss.py (total_variation_loss), on tiny-cuda-nn's vertices.

    >>> layout = GridLayout(n_dims=2, n_levels=1, n_features_per_level=1, base_resolution=3)
    >>> table, grad = torch.arange(16.0)[:, None], torch.zeros(16, 1)  # x is fastest: steps of 1 and 3
    >>> total_variation(table, grad, layout, corners=torch.zeros(1, 2, dtype=torch.int64), sides=[1], weight=1.0)
    20.0
    """
    check = Checker("total_variation")
    shape = (layout.n_entries, layout.n_features_per_level)
    check("table", table, shape)
    check("grad", grad, shape)
    check("corners", corners, (layout.n_levels, layout.n_dims), "int64")
    at_least("total_variation", "weight", weight, 0.0)
    finest = torch.from_numpy(layout.resolutions.astype(np.int64)) - 1
    if len(sides) != layout.n_levels or min(sides) < 1:
        raise ShapeError(f"total_variation: sides: expected {layout.n_levels} counts of at least 1, got {list(sides)}")
    ends = corners.cpu() + torch.tensor(list(sides))[:, None]
    if bool((corners < 0).any()) or bool((ends > finest[:, None]).any()):
        raise ShapeError("total_variation: corners: a cube reaches beyond the vertices of its level")
    choice = choose("total_variation", backend, table, grad)
    return choice.kernels.total_variation(table, grad, layout, corners, sides, float(weight))


def cube_sides(layout: GridLayout) -> list[int]:
    """HashNeRF's cubes: a tenth of the resolution, at least 15 and at most 50 edges, or the whole of a coarser level.

    Source: HashNeRF-pytorch loss.py, whose lower bound is its base resolution less 1.
    """
    return [max(1, min(r - 1, max(15, min(50, r // 10)))) for r in layout.resolutions.tolist()]
