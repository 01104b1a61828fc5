"""Upkeep of the occupancy grid, fast against reference: refresh, bits, silhouettes, carving."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hashfield.geometry.cameras import camera_table
from hashfield.kernels.reference.occupancy_update import cell_points
from hashfield.ops.backend import Backend
from hashfield.ops.occupancy import CELLS_PER_CASCADE
from hashfield.ops.occupancy_update import carve, occupied_bits, refresh_cells, silhouettes
from hashfield.steps.occupancy import FULL_THICKNESS, HostCells, OccupancyGrid
from tests import tolerances
from tests.ops.cases import CARVING_CAMERAS
from tests.ops.compare import relative_error
from tests.ops.fused import LAYOUTS, field

N_CELLS = CELLS_PER_CASCADE


@pytest.mark.parametrize(
    ("name", "aabb_scale", "is_masked"),
    [("pinhole", 1, False), ("fisheye", 1, False), ("inside", 2, True), ("two", 1, True)],
)
def test_carving_agrees_with_reference(name: str, aabb_scale: int, is_masked: bool) -> None:
    cameras = CARVING_CAMERAS[name]
    widths = torch.tensor([c.width for c in cameras])
    heights = torch.tensor([c.height for c in cameras])
    starts = torch.cumsum(widths * heights, 0) - widths * heights
    masks = None
    if is_masked:
        masks = (torch.rand(int((widths * heights).sum()), generator=torch.Generator().manual_seed(3)) < 0.7).byte()
    found = [
        carve(camera_table(cameras), starts, widths, heights, masks, aabb_scale=aabb_scale, backend=backend)
        for backend in ("numba", "reference")
    ]
    assert 0 < int(found[1].sum()) < len(found[1])
    # A cell whose projection lies on a pixel's very edge may fall on either side.
    assert int((found[0] != found[1]).sum()) <= 2


NEAR = {"two": (1.0, 1.2), "inside": (0.3,)}
"""Distances that lie within the box, for each camera."""


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("name", "aabb_scale", "fewest"), [("two", 1, 1), ("two", 1, 2), ("inside", 2, 1)])
def test_carving_what_few_cameras_see_or_what_is_near_to_one(
    name: str, aabb_scale: int, fewest: int, is_masked: bool
) -> None:
    cameras = CARVING_CAMERAS[name]
    table, near = camera_table(cameras), torch.tensor(NEAR[name], dtype=torch.float64)
    widths, heights = torch.tensor([c.width for c in cameras]), torch.tensor([c.height for c in cameras])
    starts = torch.cumsum(widths * heights, 0) - widths * heights
    masks = None
    if is_masked:
        masks = (torch.rand(int((widths * heights).sum()), generator=torch.Generator().manual_seed(3)) < 0.7).byte()

    def carved(fewest: int, near: torch.Tensor | None, backend: Backend) -> torch.Tensor:
        return carve(
            table, starts, widths, heights, masks, aabb_scale=aabb_scale, fewest=fewest, near=near, backend=backend
        )

    found, right = (carved(fewest, near, backend) for backend in ("numba", "reference"))
    assert 0 < int(right.sum()) < len(right)
    assert int((found != right).sum()) <= 2
    without = carved(fewest, None, "numba")
    lost = without & ~found
    assert bool(lost.any()) and not bool((found & ~without).any())
    cells = torch.nonzero(without)[:, 0]
    centres = cell_points(cells, torch.full((len(cells), 3), 0.5, dtype=torch.float64))
    is_near = ((centres[:, None] - table[None, :, [3, 7, 11]]).norm(dim=2) < near).any(1)
    assert torch.equal(lost[cells], is_near)


def test_silhouettes_agree_with_reference() -> None:
    widths, heights = torch.tensor([9, 1, 17]), torch.tensor([5, 1, 30])
    starts = torch.cumsum(widths * heights, 0) - widths * heights
    pixels = torch.zeros(int((widths * heights).sum()), 4, dtype=torch.uint8)
    pixels[torch.randint(0, len(pixels), (12,), generator=torch.Generator().manual_seed(0)), 3] = 1
    for radius in (0, 1, 4, 40):
        one, other = (silhouettes(pixels, starts, widths, heights, radius, backend=b) for b in ("numba", "reference"))
        assert torch.equal(one > 0, other > 0), radius


@pytest.mark.parametrize("aabb_scale", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 2049])
def test_refresh_agrees_with_reference(aabb_scale: int, n: int) -> None:
    parameters = field(LAYOUTS["L5F2"], 32)
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(aabb_scale.bit_length() * N_CELLS, generator=generator)[:n]
    noise = torch.rand(n, 3, generator=generator)
    found = []
    for backend in ("numba", "reference"):
        values = torch.full((aabb_scale.bit_length() * N_CELLS,), 1e-3)
        refresh_cells(values, cells, noise, parameters, aabb_scale=aabb_scale, backend=backend)
        found.append(values)
    untouched = torch.ones(len(found[0]), dtype=torch.bool)
    untouched[cells] = False
    assert bool((found[0][untouched] == 1e-3).all()) and bool((found[0] >= 1e-3).all())
    assert relative_error(found[0], found[1]) < tolerances.FAST_OUTPUT


def test_bits_agree_with_reference_and_cover_finer_cells() -> None:
    values = torch.rand(3 * N_CELLS, generator=torch.Generator().manual_seed(2)) ** 8
    values[::7] = -math.inf
    one, other = (occupied_bits(values, 0.5, aabb_scale=4, backend=b) for b in ("numba", "reference"))
    assert torch.equal(one, other)


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
