"""Reference of the occupancy grid's upkeep, in plain torch."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hashfield.geometry.cameras import project
from hashfield.geometry.spaces import n_cells_of
from hashfield.kernels.reference.occupancy import CELLS_PER_CASCADE, GRID_SIZE, morton3_inverse, pack_bits
from hashfield.kernels.reference.render_rays import POINTS_AT_ONCE, small_references


def cell_points(cells: Tensor, offset: Tensor) -> Tensor:
    """Scene positions of points within cells; offset in [0, 1]^3."""
    side = torch.exp2((cells // CELLS_PER_CASCADE).to(offset.dtype))[:, None]
    return _points(morton3_inverse(cells % CELLS_PER_CASCADE).to(offset.dtype), side, offset)


def _points(corner: Tensor, side: Tensor, offset: Tensor) -> Tensor:
    return ((corner + offset) / GRID_SIZE - 0.5) * side + 0.5


@cache
def _corners_of_a_cascade() -> Tensor:
    """The cells of one cascade [n, 3], uint8."""
    return morton3_inverse(torch.arange(CELLS_PER_CASCADE)).to(torch.uint8)


def refresh_cells(values: Tensor, cells: Tensor, noise: Tensor, field: Any, aabb_scale: int) -> None:
    """Set values[c] = max(values[c], density at a point of c times sqrt(3)/1024)."""
    refresh_with(small_references(field).density, values, cells, noise, aabb_scale)


def refresh_with(
    density: Callable[[Tensor], Tensor], values: Tensor, cells: Tensor, noise: Tensor, aabb_scale: int
) -> None:
    """`refresh_cells` for any function of positions in unit space.

    Args:
        density: Density per scene unit at positions [n, 3] in unit space.
        values, cells, noise, aabb_scale: See `hashfield.ops.occupancy_update.refresh_cells`.
    """
    for few, offset in zip(cells.split(POINTS_AT_ONCE), noise.split(POINTS_AT_ONCE), strict=True):
        position = (cell_points(few, offset) - 0.5) / aabb_scale + 0.5
        values[few] = torch.maximum(values[few], density(position) * (math.sqrt(3) / 1024))


def occupied_bits(values: Tensor, threshold: float, aabb_scale: int) -> Tensor:
    """See `pack_bits`."""
    return pack_bits(values, torch.tensor(threshold, dtype=values.dtype))


def silhouettes(pixels: Tensor, starts: Tensor, widths: Tensor, heights: Tensor, radius: int) -> Tensor:
    """Dilation by a square, image by image."""
    out = torch.empty(pixels.shape[0], dtype=torch.uint8, device=pixels.device)
    for start, w, h in zip(starts.tolist(), widths.tolist(), heights.tolist(), strict=True):
        alpha = (pixels[start : start + w * h, 3] > 0).view(1, 1, h, w).float()
        grown = torch.nn.functional.max_pool2d(alpha, 2 * radius + 1, stride=1, padding=radius)
        out[start : start + w * h] = grown.view(-1).to(torch.uint8)
    return out


def carve(
    table: Tensor, starts: Tensor, widths: Tensor, heights: Tensor, masks: Tensor | None, aabb_scale: int, fewest: int,
    near: Tensor,
) -> Tensor:  # fmt: skip
    """Camera by camera over all cells."""
    device = starts.device
    cells = torch.arange(n_cells_of(aabb_scale), device=device)
    n_cascades = len(cells) // CELLS_PER_CASCADE
    corner = _corners_of_a_cascade().to(device, torch.float64).repeat(n_cascades, 1)
    side = torch.exp2(torch.arange(n_cascades, dtype=torch.float64, device=device))
    side = side.repeat_interleave(CELLS_PER_CASCADE)[:, None]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)] * 3)
    centre = torch.full((3,), 0.5, dtype=torch.float64, device=device)
    offsets = [centre] + ([] if masks is not None else list(corners))
    n_seen = torch.zeros(len(cells), dtype=torch.int64, device=device)
    outside = torch.zeros(len(cells), dtype=torch.bool, device=device)
    for k in range(len(table)):
        if float(near[k]) > 0:
            way = _points(corner, side, centre) - table[k, [3, 7, 11]].to(device)
            outside |= way.norm(dim=1) < float(near[k])
    for k in range(len(table)):
        seen = torch.zeros_like(outside)
        # A cell that holds nothing is done with, and without silhouettes one that was seen often enough.
        asked = cells[~outside if masks is not None else ~outside & (n_seen < fewest)]
        for offset in offsets:
            rest = asked[~seen[asked]]
            points = _points(corner[rest], side[rest], offset)
            pixel, valid = project(table[k : k + 1], torch.zeros_like(rest), points)
            w, h = int(widths[k]), int(heights[k])
            inside = valid & (pixel >= 0).all(1) & (pixel[:, 0] < w) & (pixel[:, 1] < h)
            seen[rest[inside]] = True
            if masks is not None:
                x, y = (torch.where(inside, pixel[:, a], 0.0).long() for a in range(2))
                outside[rest] = inside & (masks[int(starts[k]) + y * w + x] == 0)
        n_seen += seen
    return (n_seen >= fewest) & ~outside
