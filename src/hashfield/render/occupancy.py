"""The occupancy grid of a scene: where rays need samples, kept up to date while the field is trained."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from hashfield.ops.occupancy import morton3_inverse
from hashfield.ops.occupancy_update import occupied_bits, refresh_cells
from hashfield.ops.render_rays import FieldParameters

CELLS_PER_CASCADE = 128**3
FULL_THICKNESS = 0.01
"""Optical thickness of one finest step above which a cell always counts as occupied (density 5.9 per scene unit).
Source: instant-ngp's NERF_MIN_OPTICAL_THICKNESS; paper appendix E.2."""


@dataclass
class OccupancyGrid:
    """Optical thickness of the cells of nested cubes, and the bits that rays are marched by.

    Cells that can never hold anything ("dead": carved away, or seen by no camera) have the value -inf and are never
    asked again.
    """

    aabb_scale: int
    """Side of the box; log2 + 1 cascades of 128^3 cells."""
    values: Float[Tensor, " n_cells"]
    """Cascade by cascade in Morton order."""
    bits: UInt8[Tensor, " n_bytes"]
    """Occupied cells."""
    living: Int64[Tensor, " n_living"]
    """Numbers of the cells that are not dead."""

    @classmethod
    def start(cls, alive: Bool[Tensor, " n_cells"], aabb_scale: int) -> "OccupancyGrid":
        """A grid in which every living cell is occupied until the first refresh, which forgets that."""
        bits = occupied_bits(alive.float(), 0.5, aabb_scale=aabb_scale)
        return cls(aabb_scale, torch.where(alive, 0.0, -math.inf), bits, torch.nonzero(alive)[:, 0])

    @classmethod
    def restored(cls, aabb_scale: int, values: Tensor, bits: Tensor) -> "OccupancyGrid":
        """A grid from saved values and bits."""
        values = torch.where(values >= 0, values, -math.inf)
        return cls(aabb_scale, values, bits, torch.nonzero(values >= 0)[:, 0])

    def refresh(self, field: FieldParameters, generator: np.random.Generator, decay: float, max_cells: int) -> None:
        """Ask the field for densities and set the bits anew.

        All living cells are asked if there are at most `max_cells`; else half of that number uniformly and half
        among the occupied ones. A value is max(decay * old, new); cells that were not asked decay alone. A cell
        is occupied above min(0.01, mean over the living cells).

        Args:
            field: Asked for density.
            generator: Of the points within cells and of the choice of cells.
            decay: Of old values.
            max_cells: Density queries to spend at most.
        """
        n = len(self.living)
        groups = [self.living]
        if n > max_cells:
            occupied = torch.nonzero(self.values > self.threshold())[:, 0]
            groups = [_spread(cells, max(1, max_cells // 2), generator) for cells in (self.living, occupied)]
        self.values.mul_(decay)
        for cells in groups:
            noise = torch.from_numpy(generator.random((len(cells), 3), dtype=np.float32)).to(cells.device)
            refresh_cells(self.values, cells, noise, field, aabb_scale=self.aabb_scale)
        self.bits = occupied_bits(self.values, self.threshold(), aabb_scale=self.aabb_scale)

    def threshold(self) -> float:
        """Optical thickness above which a cell counts as occupied."""
        # float64, since a float32 mean over millions of cells depends on how torch splits it among threads
        mean = float(self.values.clamp(min=0.0).sum(dtype=torch.float64)) / max(len(self.living), 1)
        return min(FULL_THICKNESS, mean)

    def living_box(self) -> Float[Tensor, " 6"]:
        """(x0, y0, z0, x1, y1, z1) of the living cells, scene space: where rays need to be marched at all."""
        if not len(self.living):
            return torch.tensor([0.5, 0.5, 0.5] * 2, dtype=torch.float64, device=self.values.device)
        side = torch.exp2((self.living // CELLS_PER_CASCADE).double())[:, None]
        corner = morton3_inverse(self.living % CELLS_PER_CASCADE).double()
        low = (corner / 128 - 0.5) * side + 0.5
        return torch.cat([low.amin(0), (low + side / 128).amax(0)])


def _spread(cells: Tensor, n: int, generator: np.random.Generator) -> Tensor:
    """n of the cells, one out of each n-th of the list, so that none comes twice; all if there are no more."""
    if len(cells) <= n:
        return cells
    edges = np.arange(n + 1) * len(cells) // n
    at = edges[:-1] + (generator.random(n) * np.diff(edges)).astype(np.int64)
    return cells[torch.from_numpy(at).to(cells.device)]
