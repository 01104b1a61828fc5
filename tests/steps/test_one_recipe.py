"""Hosts and devices follow one recipe: Adam over groups, how many rays a step takes, how the occupancy grid is kept.

Each comparison is a function that raises where the two part; planted drifts show that it does. The device's side runs
in Triton's interpreter, or on a card.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield.data.demo_scene import make_demo_scene
from hashfield.ops.backend import Backend, use_backend
from hashfield.steps import optimizers, ray_budget
from hashfield.steps.occupancy import HostCells, OccupancyGrid, Upkeep
from hashfield.steps.optimizers import AdamOptions, DeviceOptimizer, Group, HostOptimizer, network_groups
from hashfield.steps.recipes import RayRecipe
from hashfield.tasks.nerf import NerfTask
from tests.conftest import backend_params
from tests.tasks.test_nerf_on_triton import toy

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
on_triton = pytest.mark.parametrize("backend", backend_params("train_rays", ("triton",)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# --- Adam


def parameter_groups(device: torch.device) -> list[Group]:
    """A table whose parts take turns, two matrices, and a group with a rate and a decay of its own."""
    g = torch.Generator().manual_seed(0)
    table, a, b, gains = (torch.randn(shape, generator=g).to(device) for shape in ((96, 2), (4, 6), (3, 4), (7, 3)))
    groups = network_groups(table, [a, b], l2=1e-3, parts=[(32, 1), (64, 2)])
    return [*groups, Group(name="exposure", tensors=[gains], rate=0.25, l2=1e-2)]


def compare_adam(host_options: AdamOptions | None = None) -> None:
    """The same gradients lead both optimisers to the same parameters, copies and moments."""
    seen: dict[str, list[Any]] = {"host": [], "device": []}
    of_host, of_device = parameter_groups(torch.device("cpu")), parameter_groups(DEVICE)
    host = HostOptimizer(
        of_host, adam=host_options, reduce=lambda gradients, due: seen["host"].append((*gradients, *due))
    )
    device = DeviceOptimizer(
        of_device, torch.bfloat16, reduce=lambda gradients, due: seen["device"].append((*gradients, *due))
    )
    pending, g = torch.zeros(96, 2), torch.Generator().manual_seed(1)
    for k in range(5):
        table, a, b, gains = (torch.randn(shape, generator=g) for shape in ((96, 2), (4, 6), (3, 4), (7, 3)))
        table[::3] = 0.0  # entries that no sample touched
        pending += table
        device.grad_table += table.to(DEVICE)
        rate = 0.01 * 0.9**k
        host.step({"table": [pending], "matrices": [a, b], "exposure": [gains]}, rate)
        device.begin_step(rate, device.hyper[0])
        device.hyper[0, 1] = 1.0
        flat = {"matrices": torch.cat([a.flatten(), b.flatten()]), "exposure": gains.flatten()}
        device.enqueue({name: x.to(DEVICE) for name, x in flat.items()}, device.hyper[0], device.due_interval)
    names, parts = ("table", "matrices", "exposure"), (slice(0, 32), slice(32, 96))
    # The table's second part is due in every second step.
    assert seen["host"] == seen["device"] == [(*names, *parts[: 1 + k % 2]) for k in range(5)]
    for mine, theirs in zip(of_host, of_device, strict=True):
        for x, y in zip(mine.tensors, theirs.tensors, strict=True):
            torch.testing.assert_close(x, y.cpu(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(host.table_bf16, device.short_table.cpu(), rtol=1e-2, atol=1e-6)
    assert host.moments.keys() == device.moments.keys()
    for name, moment in host.moments.items():
        torch.testing.assert_close(moment, device.moments[name].cpu(), rtol=1e-5, atol=1e-6)


@on_triton
def test_adam_is_one(backend: Backend) -> None:
    with use_backend(backend):
        compare_adam()


@on_triton
@pytest.mark.parametrize("drift", [{"beta1": 0.8}, {"beta2": 0.999}, {"epsilon": 1e-2}])
def test_a_drift_of_adam_is_found(backend: Backend, drift: dict[str, float]) -> None:
    with use_backend(backend), pytest.raises(AssertionError):
        compare_adam(AdamOptions(**drift))


# --- rays of the next step


def compare_budget() -> None:
    """Steps on a device choose the rays of the next one as `next_rays` does."""
    scene, config = make_demo_scene(size=16, n_train=2, n_test=1)[0], toy()
    few = replace(config.train, batch=256)
    task = NerfTask(replace(config, train=few), scene, seed=1, device=DEVICE)
    steps: Any = task.steps
    assert steps.is_captured
    task.begin()
    assert int(steps.n_rays) == ray_budget.first_rays(256)
    for start, is_empty in ((16, False), (200, False), (1024, False), (20, True), (1000, True)):
        steps.n_rays.fill_(start)
        if is_empty:  # nothing is kept: growth alone holds it back, and the room
            steps.bits.zero_()
            steps.occupied.coarse.zero_()
        result = task.step(0, 0.5)
        expected = ray_budget.next_rays(int(result.n_rays), int(result.n_samples), 256)
        assert abs(int(steps.n_rays) - expected) <= 1  # float32 there
    assert steps.max_rays == ray_budget.most_rays(256)


@on_triton
def test_the_ray_budget_is_one(backend: Backend) -> None:
    with use_backend(backend):
        compare_budget()


@on_triton
@pytest.mark.parametrize(
    "drift",
    [
        lambda n_rays, n_kept, batch: min(3 * n_rays, n_rays * batch // max(n_kept, 1)),
        lambda n_rays, n_kept, batch: max(32, min(2 * n_rays, n_rays * batch // max(n_kept, 1))) + 32,
    ],
)
def test_a_drift_of_the_ray_budget_is_found(
    backend: Backend, drift: Callable[[int, int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_budget, "next_rays", drift)
    with use_backend(backend), pytest.raises(AssertionError):
        compare_budget()


# --- the occupancy grid


class NotedCells:
    """Cells whose answers are a function of their number, and which note who was asked."""

    def __init__(self, cells: Any) -> None:
        self.cells, self.asked = cells, []
        self.some_living, self.some_occupied = cells.some_living, cells.some_occupied

    def ask(self, values: Tensor, group: Tensor | tuple[Tensor, Tensor]) -> None:
        """Note the cells and raise their values."""
        cells = group if isinstance(group, Tensor) else group[0][: int(group[1])]
        self.asked.append(cells.cpu())
        values[cells] = torch.maximum(values[cells], 0.02 * torch.frac(cells * 0.618034).float())

    def packed(self, values: Tensor, threshold: Tensor) -> Tensor:
        """As the executor packs them."""
        return self.cells.packed(values, threshold)


class NotRandom:
    """A generator of equal strata: every number is a half."""

    def random(self, n: int) -> np.ndarray:
        """n halves."""
        return np.full(n, 0.5)


def compare_upkeep(monkeypatch: pytest.MonkeyPatch, change: Callable[[OccupancyGrid], None] | None = None) -> None:
    """Both executors ask the same cells, and end with the same values and bits."""
    from hashfield.steps.rays_device import DeviceCells

    scene = make_demo_scene(size=16, n_train=2, n_test=1)[0]
    task = NerfTask(toy(), scene, seed=1, device=DEVICE)
    steps: Any = task.steps
    monkeypatch.setattr(DeviceCells, "_uniform", lambda self, n: torch.full((n,), 0.5, dtype=torch.float64).to(DEVICE))
    alive = torch.zeros(task.spaces.n_cells, dtype=torch.bool)
    alive[1000:9000:2] = True
    on_host = OccupancyGrid.start(alive, task.spaces.aabb_scale)
    there = OccupancyGrid.start(alive.to(DEVICE), task.spaces.aabb_scale)
    mine = NotedCells(HostCells(None, NotRandom(), task.spaces.aabb_scale))  # type: ignore[arg-type]
    theirs = NotedCells(DeviceCells(steps))
    for max_cells in (4000, 4000, 1000, 600):  # all living ones; then more occupied cells than asked; then some
        on_host.refresh(mine, 0.5, max_cells)
        there.refresh(theirs, 0.5, max_cells)
    for grid in (on_host, there):  # few occupied: all of them, each once
        grid.values[1000:8980] *= 1e-4
        grid.refresh(mine if grid is on_host else theirs, 0.5, 600)
    if change is not None:
        change(on_host)
    assert len(mine.asked) == len(theirs.asked)
    for one, other in zip(mine.asked, theirs.asked, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(on_host.values, there.values.cpu())
    assert torch.equal(on_host.bits, there.bits.cpu())
    assert float(on_host.threshold()) == pytest.approx(float(there.threshold()), rel=1e-12)
    assert 0 < len(mine.asked[-1]) < 300 and len(mine.asked[-1].unique()) == len(mine.asked[-1])


@on_triton
def test_upkeep_of_the_grid_is_one(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend(backend):
        compare_upkeep(monkeypatch)


@on_triton
@pytest.mark.parametrize("drift", ["decay", "strata"])
def test_a_drift_of_upkeep_is_found(backend: Backend, drift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = None
    if drift == "decay":
        change = lambda grid: grid.values.mul_(0.99)  # noqa: E731
    else:
        random = NotRandom.random
        monkeypatch.setattr(NotRandom, "random", lambda self, n: 0.5 * random(self, n))
    with use_backend(backend), pytest.raises(AssertionError):
        compare_upkeep(monkeypatch, change)


# --- what no device is needed for


def test_when_a_grid_is_refreshed() -> None:
    upkeep = Upkeep(decay=0.9, full_sweeps=2, max_cells=100, most_steps=32)
    assert [upkeep.next_step(step) for step in (1, 64, 1000)] == [5, 72, 1032]
    assert [upkeep.cells_at(n, 5000) for n in (0, 1, 2)] == [5000, 5000, 100]


def test_rays_of_the_next_step() -> None:
    assert ray_budget.first_rays(2**16) == 1024 and ray_budget.first_rays(256) == 16
    assert ray_budget.most_rays(2**15) == 2**15 and ray_budget.most_rays(2**20) == 2**18
    assert ray_budget.next_rays(1000, 100_000, 65_536) == 655
    assert ray_budget.next_rays(1000, 1, 65_536) == 2000
    assert ray_budget.next_rays(65_536, 1000, 65_536) == 65_536


def test_a_recipe_has_one_set_of_constants() -> None:
    """Both optimisers take Adam's constants from one record, and a recipe holds none of its own."""
    assert AdamOptions() == AdamOptions(beta1=0.9, beta2=0.99, epsilon=1e-15)
    table, matrix = torch.zeros(4, 2), torch.zeros(2, 2)
    assert HostOptimizer(network_groups(table, [matrix])).adam == AdamOptions()
    assert DeviceOptimizer(network_groups(table, [matrix]), torch.float32).adam == AdamOptions()
    assert not {"beta1", "beta2", "epsilon"} & set(RayRecipe.__dataclass_fields__)
    assert optimizers.moment_names(network_groups(table, [matrix, matrix])) == [["0"], ["1", "2"]]
