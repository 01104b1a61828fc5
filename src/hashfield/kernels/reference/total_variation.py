"""Total variation of a grid's features in small cubes of vertices, in plain torch, which is its path everywhere."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.grid_encode import vertex_index


def total_variation(
    table: Float[Tensor, "n_entries n_features"],
    grad: Float[Tensor, "n_entries n_features"],
    layout: GridLayout,
    corners: Int64[Tensor, "n_levels n_dims"],
    sides: Sequence[int],
    weight: float,
) -> float:
    """Sum over levels of the squared differences of neighbours along each axis, within the cube, over its side.

    `weight` times its gradient is added to `grad`. Only the cubes' entries are read and written.
    """
    total = 0.0
    for level, side in enumerate(sides):
        axis = torch.arange(side + 1, device=table.device)
        vertices = corners[level] + torch.cartesian_prod(*[axis] * layout.n_dims)  # the last axis runs fastest
        index = vertex_index(vertices[:, None, :], layout, level)[:, 0] + int(layout.level_offsets[level])
        with torch.enable_grad():
            values = table.detach()[index].requires_grad_()
            cube = values.view(*[side + 1] * layout.n_dims, -1)
            loss = sum(cube.diff(dim=d).square().sum() for d in range(layout.n_dims)) / side
        assert isinstance(loss, Tensor)
        (found,) = torch.autograd.grad(loss, values)
        grad.index_add_(0, index, found, alpha=weight)
        total += float(loss.detach())
    return total
