"""The occupancy grid of a scene: where rays need samples, kept up to date while the field is trained.

When it is refreshed (`Upkeep`), which cells are asked, how values decay and what counts as occupied is one rule, for
hosts and devices. How cells are asked and bits are packed is the executor's part: `HostCells` here, `DeviceCells` in
`rays_device`.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from hashfield.geometry.spaces import CELLS_PER_CASCADE, GRID_SIZE
from hashfield.ops.occupancy import morton3_inverse
from hashfield.ops.occupancy_update import occupied_bits, refresh_cells
from hashfield.ops.render_rays import FieldParameters
from hashfield.steps.ranks import ALONE, Ranks

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
        """A grid from saved values and bits.

        Args:
            aabb_scale: Side of the training box in scene units; log2 + 1 cascades.
            values: As saved, for every cell; negative where a cell can hold nothing.
            bits: As saved: the occupied cells, uint8.
        """
        values = torch.where(values >= 0, values, -math.inf)
        return cls(aabb_scale, values, bits, torch.nonzero(values >= 0)[:, 0])

    def refresh(self, cells: "Cells", decay: float, max_cells: int) -> None:
        """Ask the field for densities and set the bits anew.

        All living cells are asked if there are at most `max_cells`; else half of that number spread over the living
        ones and half over the occupied ones, all of these if there are no more. A value is max(decay * old, new);
        cells that were not asked decay alone. A cell is occupied above `threshold`.

        Args:
            cells: Asks the field and packs the bits.
            decay: What old values are multiplied by.
            max_cells: Density queries to spend at most.
        """
        n = len(self.living)
        groups: list[Tensor | tuple[Tensor, Tensor]] = [self.living]
        if n > max_cells:
            half, is_occupied = max(1, max_cells // 2), self.values > self.threshold()
            groups = [cells.some_living(self.living, half), cells.some_occupied(is_occupied, half)]
        self.values.mul_(decay)
        for group in groups:
            cells.ask(self.values, group)
        self.bits = cells.packed(self.values, self.threshold())

    def threshold(self) -> Float[Tensor, ""]:
        """Optical thickness above which a cell counts as occupied: the mean over the living cells, but not more than
        `FULL_THICKNESS`. Where the grid lies, without waiting for it."""
        # Cascade by cascade, since torch otherwise allocates, and the system clears, all of the copies that this makes
        # anew: nine times slower. float64, since a float32 mean over millions of cells depends on how torch splits it
        # among threads.
        sums = [x.clamp(min=0.0).sum(dtype=torch.float64) for x in self.values.split(CELLS_PER_CASCADE)]
        return (torch.stack(sums).sum() / max(len(self.living), 1)).clamp(max=FULL_THICKNESS)

    def living_box(self) -> Float[Tensor, " 6"]:
        """(x0, y0, z0, x1, y1, z1) of the living cells, scene space: where rays need to be marched at all."""
        if not len(self.living):
            return torch.tensor([0.5, 0.5, 0.5] * 2, dtype=torch.float64, device=self.values.device)
        side = torch.exp2((self.living // CELLS_PER_CASCADE).double())[:, None]
        corner = morton3_inverse(self.living % CELLS_PER_CASCADE).double()
        low = (corner / GRID_SIZE - 0.5) * side + 0.5
        return torch.cat([low.amin(0), (low + side / GRID_SIZE).amax(0)])


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """When and how thoroughly a run refreshes its grid."""

    decay: float
    """What old values are multiplied by at each refresh."""
    full_sweeps: int
    """First refreshes, which ask every living cell."""
    max_cells: int
    """Cells asked by later refreshes, at most."""
    most_steps: int
    """Steps between refreshes, at most; an eighth of the steps so far, at least 4, is taken if that is less."""

    def cells_at(self, n_refreshes: int, n_living: int) -> int:
        """Cells that the next refresh asks at most, after so many refreshes of a grid with so many living cells."""
        return n_living if n_refreshes < self.full_sweeps else self.max_cells

    def next_step(self, step: int) -> int:
        """The step at which the refresh after the one at `step` is due."""
        return step + max(4, min(self.most_steps, step // 8))


class Cells(Protocol):
    """How a grid's cells are chosen, asked and packed, on a host or on a device. A chosen group is a list of cells, or
    a list and how many of it count, on the device."""

    def some_living(self, living: Tensor, n: int) -> Tensor | tuple[Tensor, Tensor]:
        """Draw n of the living cells, spread over their list."""
        ...

    def some_occupied(self, is_occupied: Bool[Tensor, " n_cells"], n: int) -> Tensor | tuple[Tensor, Tensor]:
        """Draw n of the cells that the mask holds, spread over them; all of them, each once, if there are no more."""
        ...

    def ask(self, values: Float[Tensor, " n_cells"], group: Tensor | tuple[Tensor, Tensor]) -> None:
        """Raise the values of a group of cells to what the field says at a random point of each."""
        ...

    def packed(self, values: Float[Tensor, " n_cells"], threshold: Float[Tensor, ""]) -> UInt8[Tensor, " n_bytes"]:
        """The bits of the cells above the threshold."""
        ...


class HostCells:
    """`Cells` of a host, which knows how many cells there are."""

    def __init__(
        self, field: FieldParameters, generator: np.random.Generator, aabb_scale: int, ranks: Ranks = ALONE
    ) -> None:
        """Args:
        field: Asked for density.
        generator: Draws the cells and the points within them.
        aabb_scale: Side of the box.
        ranks: Each asks its share of the cells.
        """
        self.field, self.generator, self.aabb_scale, self.ranks = field, generator, aabb_scale, ranks

    def some_living(self, living: Tensor, n: int) -> Tensor:
        """See `Cells`."""
        if len(living) <= n:
            return living
        return living[stratified(torch.from_numpy(self.generator.random(n)).to(living.device), len(living))]

    def some_occupied(self, is_occupied: Bool[Tensor, " n_cells"], n: int) -> Tensor:
        """See `Cells`."""
        return self.some_living(torch.nonzero(is_occupied)[:, 0], n)

    def ask(self, values: Float[Tensor, " n_cells"], group: Tensor | tuple[Tensor, Tensor]) -> None:
        """See `Cells`."""
        assert isinstance(group, Tensor)
        noise = torch.from_numpy(self.generator.random((len(group), 3), dtype=np.float32)).to(group.device)
        own = self.ranks.share(len(group))
        refresh_cells(values, group[own], noise[own], self.field, aabb_scale=self.aabb_scale)
        if self.ranks.n > 1:
            values[group] = self.ranks.joined_shares(values[group[own]].cpu(), len(group)).to(values.device)

    def packed(self, values: Float[Tensor, " n_cells"], threshold: Float[Tensor, ""]) -> UInt8[Tensor, " n_bytes"]:
        """See `Cells`."""
        return occupied_bits(values, float(threshold), aabb_scale=self.aabb_scale)


def stratified(uniform: Float64[Tensor, " n"], total: int | Int64[Tensor, " 1"]) -> Int64[Tensor, " n"]:
    """Draw n of the numbers 0 to total - 1, one out of each n-th of them, so that none comes twice if total >= n.

    Args:
        uniform: Random numbers in [0, 1).
        total: How many there are to choose from; on the device of `uniform` if it is a tensor.

    >>> stratified(torch.tensor([0.0, 0.99, 0.5], dtype=torch.float64), 30)
    tensor([ 0, 19, 25])
    """
    n = len(uniform)
    edges = torch.arange(n + 1, device=uniform.device) * total // n
    return edges[:-1] + (uniform * (edges[1:] - edges[:-1])).long()
