"""Upkeep of the occupancy grid: which cells a refresh asks, and what bfloat16 costs.

Its values against the reference: `cases.OCCUPANCY_CASES`.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hashfield.kernels.reference.occupancy_update import cell_points
from hashfield.ops.occupancy import CELLS_PER_CASCADE
from hashfield.ops.occupancy_update import refresh_cells
from hashfield.steps.occupancy import FULL_THICKNESS, HostCells, OccupancyGrid
from tests import tolerances
from tests.ops.cases import OCCUPANCY_CASES
from tests.ops.compare import relative_error
from tests.ops.fused import LAYOUTS, field

N_CELLS = CELLS_PER_CASCADE


@pytest.mark.parametrize(("name", "fewest"), [("two", 1), ("two", 2), ("inside", 1)])
def test_what_lies_too_near_to_a_camera_is_carved(name: str, fewest: int) -> None:
    case = next(c for c in OCCUPANCY_CASES if c.name == f"carve_{name}_fewest{fewest}_near")
    inputs = case.make(torch.Generator().manual_seed(3)) | {"masks": None}
    found = case.call(backend="numba", **inputs)["alive"]
    without = case.call(backend="numba", **inputs | {"near": None})["alive"]
    lost = without & ~found
    assert bool(lost.any()) and not bool((found & ~without).any())
    cells = torch.nonzero(without)[:, 0]
    centres = cell_points(cells, torch.full((len(cells), 3), 0.5, dtype=torch.float64))
    distances = (centres[:, None] - inputs["table"][None, :, [3, 7, 11]]).norm(dim=2)
    assert torch.equal(lost[cells], (distances < inputs["near"]).any(1))


def test_grid_asks_living_cells_only_and_each_at_most_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []

    def note(values, cells, noise, parameters, *, aabb_scale):
        asked.append(cells)
        values[cells] = torch.maximum(values[cells], torch.full_like(values[cells], 0.5))

    monkeypatch.setattr("hashfield.steps.occupancy.refresh_cells", note)
    alive = torch.zeros(N_CELLS, dtype=torch.bool)
    alive[100:5100] = True
    grid = OccupancyGrid.start(alive, 1)
    parameters = field(LAYOUTS["L5F2"], 32)
    grid.refresh(HostCells(parameters, np.random.default_rng(0), 1), 0.9, 10_000)
    assert len(asked) == 1 and torch.equal(asked[0], torch.arange(100, 5100))
    assert float(grid.threshold()) == FULL_THICKNESS  # the mean over the living is 0.5
    grid.refresh(HostCells(parameters, np.random.default_rng(0), 1), 0.9, 1000)
    for group in asked[1:]:
        assert len(group) == len(group.unique()) == 500 and bool(alive[group].all())
    # decayed once where not asked, and dead cells stay dead through any decay
    values = grid.values[100:5100]
    assert bool(((values - 0.45).abs() < tolerances.SAME_NUMBER).logical_or(values == 0.5).all())
    assert bool((grid.values[:100] == -math.inf).all())
    restored = OccupancyGrid.restored(1, grid.values, grid.bits)
    assert torch.equal(restored.living, grid.living)


def test_refresh_in_bfloat16_stays_close() -> None:
    parameters = replace(field(LAYOUTS["L8F4"]), precision="bfloat16")
    cells = torch.arange(0, N_CELLS, 997)
    noise = torch.rand(len(cells), 3, generator=torch.Generator().manual_seed(1))
    found = []
    for backend in ("numba", "reference"):
        values = torch.zeros(N_CELLS)
        refresh_cells(values, cells, noise, parameters, aabb_scale=1, backend=backend)
        found.append(values)
    assert relative_error(found[0], found[1]) < tolerances.BFLOAT16_FLIP
