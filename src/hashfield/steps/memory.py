"""What a run on a device takes of its memory, nearly; needs no kernels, so that it can be said before."""

from hashfield.geometry.grid_layout import GridLayout
from hashfield.steps.ray_budget import most_rays

CELLS_AT_ONCE = 2**19
"""Cells of the occupancy grid that are asked together."""


def rays_memory(layout: GridLayout, n_weights: int, batch: int, n_pixels: int, n_cells: int) -> int:
    """GPU memory that a run takes, nearly: what `DeviceRaySteps` and PyTorch allocate, without the CUDA context.

    Args:
        layout: Sizes of the grid.
        n_weights: Numbers in the matrices.
        batch: Samples of a step.
        n_pixels: Pixels of all training photos together.
        n_cells: Cells of the occupancy grid.
    """
    parameters = (layout.n_parameters + n_weights) * (4 * 4 + 2)  # value, gradient, two moments; the short copy
    max_rays = most_rays(batch)
    # Per marched sample 28 bytes in three waves of four batches; per kept one 68 and its features twice.
    samples = batch * (3 * 4 * 28 + 2 * (68 + 2 * 2 * layout.n_output)) + max_rays * (32 * 4 + 160)
    refresh = min(n_cells, CELLS_AT_ONCE) * (28 + 2 * layout.n_output) + 21 * n_cells
    return parameters + samples + 4 * n_pixels + refresh


def points_memory(layout: GridLayout, n_weights: int, n_points: int, n_outputs: int, n_pool_bytes: int) -> int:
    """GPU memory that a run takes, nearly: what `DevicePointSteps` and PyTorch allocate, without the CUDA context.

    Args:
        layout: Sizes of the grid.
        n_weights: Numbers in the matrices.
        n_points: Points of a step.
        n_outputs: Outputs of the network.
        n_pool_bytes: Memory of what points are drawn from: a picture, or the points kept.
    """
    parameters = (layout.n_parameters + n_weights) * (4 * 4 + 2)  # value, gradient, two moments; the short copy
    # Features and their cotangents in half precision, position, target, random bits.
    points = n_points * (2 * 2 * layout.n_output + 4 * (layout.n_dims + n_outputs) + 8)
    return parameters + points + n_pool_bytes
