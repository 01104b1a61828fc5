"""Steps on rays, in order: pixels -> rays -> march -> encode -> networks -> composite -> loss -> gradients -> Adam.

This is the page to read. `HostRaySteps.step` shows the order; march to gradients is one op, `ops.train_rays`. Around it
stand the occupancy grid's refresh, before the step where it is due, and the number of rays of the next step, after it.
`rays_device` does the same without ever waiting, in one captured graph.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from hashfield.errors import CheckpointError
from hashfield.geometry.rays import PixelPool, RayBatch
from hashfield.geometry.spaces import n_cells_of
from hashfield.log import logger
from hashfield.nn.config import RunPrecision
from hashfield.nn.encodings import table_of
from hashfield.nn.fields import RadianceField, field_parameters
from hashfield.ops.render_rays import FieldParameters, MarchOptions
from hashfield.ops.total_variation import cube_sides, total_variation
from hashfield.ops.train_rays import TrainRaysResult, TrainWorkspace, train_rays
from hashfield.ops.training_rays import training_rays
from hashfield.steps.depth_teacher import DepthTeacher
from hashfield.steps.gradient_mean import GradientMean, table_levels
from hashfield.steps.occupancy import HostCells, OccupancyGrid
from hashfield.steps.optimizers import HostOptimizer, network_groups
from hashfield.steps.protocol import StepResult
from hashfield.steps.ranks import current
from hashfield.steps.ray_budget import first_rays, next_rays
from hashfield.steps.recipes import RayRecipe
from hashfield.steps.refinement import Refinement
from hashfield.steps.state import (
    State,
    generator_state,
    restore_generator,
    restore_gradient,
    restore_trained,
    trained_state,
    warn_of_other_bits,
)

LONGEST_RAYS = 2**14
"""Samples for which a thread has room, however small the batch: a handful of the longest rays fit at once."""


class HostRaySteps:
    """The steps of a run on rays; see `protocol.RaySteps`."""

    is_captured = False

    def __init__(
        self, field: RadianceField, recipe: RayRecipe, precision: RunPrecision, pool: PixelPool,
        refinement: Refinement | None = None, teacher: DepthTeacher | None = None,
    ) -> None:  # fmt: skip
        """Args:
        field: What is trained, in place.
        recipe: What stays the same in every step.
        precision: Number type of lookups and networks, as asked for.
        pool: Pixels to draw rays from.
        refinement: What is learned of the photos besides, in place.
        teacher: What is known of depth; for one rank only.
        """
        self.field, self.recipe, self.pool, self.refinement = field, recipe, pool, refinement
        self.teacher = teacher
        self.asked_precision: RunPrecision = precision
        table = table_of(field.encoding)
        self.device = table.device
        self.matrices = [*field.density_network.weights, *field.color_network.weights]
        self.ranks = current()
        self.mean = GradientMean(self.ranks, table_levels(field.encoding)) if self.ranks.n > 1 else None
        refined = [] if refinement is None else refinement.groups()
        groups = [*network_groups(table, self.matrices, l2=recipe.l2, parts=recipe.parts), *refined]
        self.optimizer = HostOptimizer(groups, reduce=self.mean)
        numbers = self.values()
        self.precision: str = numbers.precision
        room = max(2 * recipe.batch // self.ranks.n, LONGEST_RAYS * torch.get_num_threads())
        self.workspace = TrainWorkspace(numbers, room)
        self.random = host_generators(recipe.seed)
        self.n_rays = first_rays(recipe.batch)
        self.next_refresh = self.n_refreshes = 0
        self.grid: OccupancyGrid | None = None
        self.box: Float64[Tensor, " 6"] | None = None
        self.live_rows: int | None = None
        self._all_pixels = 0
        """`own_pixels` of all ranks together, once it is known."""

    def values(self) -> FieldParameters:
        """The field's numbers as they are now."""
        return field_parameters(self.field, self.optimizer.table_bf16, self.asked_precision)

    def draw_from(self, pool: PixelPool) -> None:
        """See `protocol.RaySteps`."""
        self.pool = pool

    def begin(self, alive: Bool[Tensor, " n_cells"], box: Float64[Tensor, " 6"] | None = None) -> None:
        """See `protocol.RaySteps`."""
        self.grid = OccupancyGrid.start(alive, self.recipe.aabb_scale)
        self.box = self.grid.living_box() if box is None else box

    def step(self, step: int, rate: float, step_scale: float, *, has_total_variation: bool = False) -> StepResult:
        """Refresh the occupancy grid if it is due, then train on one batch of rays; see `protocol.RaySteps`."""
        recipe, grid = self.recipe, self.grid
        assert grid is not None, "begin() or restore() comes first"
        if step >= self.next_refresh and step > 0:
            self._refresh(step, grid)
        refinement = self.refinement
        if refinement is not None:
            self._let_levels_in(refinement)
        batch = self._draw(self.n_rays, step)
        is_refined = refinement is not None and refinement.is_due(step)
        if self.mean is not None:
            self._plan(self.mean, is_added_to=has_total_variation)
        options = MarchOptions(
            recipe.aabb_scale, recipe.cone_angle, step_scale, recipe.min_transmittance, recipe.min_weight
        )
        result = train_rays(
            self.values(), batch, grid.bits, options, self.workspace, huber_delta=recipe.huber_delta,
            sparsity=recipe.sparsity, distortion=recipe.distortion, nearness=recipe.nearness,
            horizon=recipe.horizon, tolerance=recipe.tolerance, ray_gradients=is_refined,
        )  # fmt: skip
        if has_total_variation and result.n_rays > 0 and math.isfinite(result.loss):
            result.loss += recipe.total_variation * self._add_total_variation(step)
        found = StepResult(result.loss, result.squared_error, result.n_rays, result.n_kept)
        if self.mean is not None:
            found = self._of_all_ranks(result, self.mean)
        if not math.isfinite(found.loss):  # the run ends here, with the parameters of the step before
            self.workspace.grad_table.zero_()
        elif found.n_rays > 0:
            gradients = {"table": [self.workspace.grad_table], "matrices": self._matrix_gradients(result)}
            if refinement is not None and result.ray_gradients is not None:
                gradients |= refinement.gradients(result.ray_gradients, batch)
            self.optimizer.step(gradients, rate)
            if refinement is not None and gradients.keys() & set(refinement.parts):
                refinement.hold(gradients.keys())
        self.n_rays = next_rays(int(found.n_rays), int(found.n_samples), recipe.batch)
        return found

    def _plan(self, mean: GradientMean, *, is_added_to: bool) -> None:
        """Have what goes to other ranks taken out of the table's gradient as soon as it is there, unless more is added.

        Args:
            mean: Makes the plan.
            is_added_to: Whether something is added to the gradient after `train_rays`.
        """
        share = self.ranks.share(self.n_rays)
        own, total = share.stop - share.start, self.n_rays
        if self.recipe.own_pixels:
            # As many rays for each rank, of which each counts for as many pixels as its rank has: so every pixel of the
            # photos counts alike, whoever has it.
            self._all_pixels = self._all_pixels or int(self.ranks.gather([self.recipe.own_pixels]).sum())
            own, total = self.recipe.own_pixels, self._all_pixels
        plan = mean.plan(self.workspace.grad_table, self.optimizer.rows_due(), own, total)
        self.workspace.plan = None if is_added_to else plan

    def _of_all_ranks(self, result: TrainRaysResult, mean: GradientMean) -> StepResult:
        """The figures of all ranks' rays together, of this rank's own."""
        n = result.n_rays
        figures = [result.loss * n, result.squared_error * n, n, result.n_kept]
        loss, error, n_rays, n_kept = mean.offer(figures, self.workspace.grad_table)
        return StepResult(loss / max(n_rays, 1), error / max(n_rays, 1), int(n_rays), int(n_kept))

    def _draw(self, n: int, step: int) -> RayBatch:
        """A batch of n rays through pixels of the pool, with the noise that they need. All ranks draw the same, and
        each keeps its share.

        Args:
            n: Rays of all ranks.
            step: Number of the step, which pixels with points are drawn by.
        """
        assert self.box is not None
        own = self.ranks.share(n)
        if self.recipe.own_pixels:  # ranks with pools of their own: what is drawn must not depend on the pool's size
            chosen = (self.random["pixels"].random(n) * self.pool.n_pool).astype(np.int64)[own]
        else:
            chosen = self.random["pixels"].integers(0, self.pool.n_pool, n)[own]
        jitter = self.random["rays"].random(n, dtype=np.float32)[own]
        background = self.random["rays"].random((n, 3), dtype=np.float32)[own]
        chosen, jitter, background = (torch.from_numpy(x).to(self.device) for x in (chosen, jitter, background))
        pool = self.pool if self.refinement is None else self.refinement.moved(self.pool)
        if self.teacher is None:
            batch = training_rays(chosen, pool, self.box, jitter=jitter, background=background)
        else:
            random = np.random.default_rng((self.recipe.seed, step, 1))  # of its own, so that others draw the same
            batch = self.teacher.batch(chosen, pool, self.box, jitter, background, random)
        return batch if self.refinement is None else self.refinement.seen(batch)

    def _let_levels_in(self, refinement: Refinement) -> None:
        """Let those levels of the grid learn whose turn has come; what gathered for them before is dropped."""
        if self.field.config.n_grid_parameters:
            layout, known = self.field.config.encoding.layout(3), self.live_rows
            rows = refinement.live_rows(layout, self.recipe.aabb_scale)
            if known is not None and rows > known:
                self.workspace.grad_table[known:rows].zero_()
            self.live_rows = self.optimizer.live_rows = rows

    def _matrix_gradients(self, result: TrainRaysResult) -> list[Tensor]:
        """A step's gradients of the field's matrices, density network first."""
        first, *others = result.grad_color_weights
        if not self.field.config.color_sees_density:
            first = first[:, 1:].contiguous()  # without the column that `field_parameters` adds
        return [*result.grad_density_weights, first, *others]

    def _add_total_variation(self, step: int) -> float:
        layout = self.field.config.encoding.layout(3)
        sides = cube_sides(layout)
        # Each step has a generator of its own for this, so that the others draw the same with and without it.
        generator = np.random.default_rng((self.recipe.seed, step))
        highest = layout.resolutions.astype(np.int64)[:, None] - np.array(sides)[:, None]
        corners = torch.from_numpy((generator.random((layout.n_levels, 3)) * highest).astype(np.int64)).to(self.device)
        return total_variation(
            table_of(self.field.encoding), self.workspace.grad_table, layout, corners=corners, sides=sides,
            weight=self.recipe.total_variation,
        )  # fmt: skip

    def _refresh(self, step: int, grid: OccupancyGrid) -> None:
        upkeep = self.recipe.upkeep
        cells = HostCells(self.values(), self.random["occupancy"], self.recipe.aabb_scale, self.ranks)
        grid.refresh(cells, upkeep.decay, upkeep.cells_at(self.n_refreshes, len(grid.living)))
        self.n_refreshes += 1
        self.next_refresh = upkeep.next_step(step)

    def warm_up(self) -> None:
        """See `protocol.Steps`."""
        field, generator, recipe = self.values(), np.random.default_rng(0), self.recipe
        living = torch.zeros(n_cells_of(recipe.aabb_scale), dtype=torch.bool, device=self.device)
        living[:1] = True
        grid = OccupancyGrid.start(living, recipe.aabb_scale)
        grid.refresh(HostCells(field, generator, recipe.aabb_scale), 0.5, 1)
        box = torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64, device=self.device)
        none = torch.zeros(2, 3, device=self.device)
        chosen = torch.zeros(2, dtype=torch.int64, device=self.device)
        batch = training_rays(chosen, self.pool, box, jitter=none[:, 0].contiguous(), background=none)
        if self.teacher is not None:
            batch = self.teacher.taught(batch, chosen, self.pool)
        workspace = TrainWorkspace(field, 1024)
        options = MarchOptions(recipe.aabb_scale, recipe.cone_angle)
        refinement = self.refinement
        if refinement is not None:
            batch = refinement.seen(batch)
        result = train_rays(field, batch, grid.bits, options, workspace)
        if refinement is not None:  # another kernel, for steps that refine
            train_rays(field, batch, grid.bits, options, workspace, ray_gradients=True)
        scratch = network_groups(torch.zeros_like(field.table), [torch.zeros_like(m) for m in self.matrices])
        gradients = {"table": [torch.zeros_like(field.table)], "matrices": self._matrix_gradients(result)}
        HostOptimizer(scratch).step(gradients, 1e-3)

    def state(self) -> State:
        """See `protocol.Steps`."""
        assert self.grid is not None and self.box is not None
        tensors, values = trained_state(self.field, self.optimizer, self.precision)
        tensors |= {"occupancy.values": self.grid.values, "bits": self.grid.bits, "box": self.box}
        if self.optimizer.is_waiting:
            tensors["optimizer.gradient"] = self.workspace.grad_table
        if self.refinement is not None:
            tensors |= self.refinement.state()
        if self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        values |= {
            "n_rays": self.n_rays, "next_refresh": self.next_refresh, "n_refreshes": self.n_refreshes,
            "samples_per_ray": self.workspace.samples_per_ray,
            "random": {name: generator_state(generator) for name, generator in self.random.items()},
        }  # fmt: skip
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """See `protocol.Steps`."""
        restore_trained(self.field, self.optimizer, tensors, values)
        if self.optimizer.is_waiting:
            restore_gradient(self.workspace.grad_table, tensors)
        if self.refinement is not None:
            self.refinement.restore(tensors)
        grid, box = restored_grid(tensors, self.recipe.aabb_scale, self.device)
        try:
            self.n_rays = int(values["n_rays"])
            self.next_refresh = int(values["next_refresh"])
            self.n_refreshes = int(values["n_refreshes"])
            self.workspace.samples_per_ray = float(values["samples_per_ray"])
            for name, generator in self.random.items():
                restore_generator(generator, values["random"][name], f"checkpoint: random.{name}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        is_moved = "device_random" in values
        if is_moved:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        warn_of_other_bits(values, self.precision, follows_threads=not is_moved)
        self.grid, self.box = grid, box


def host_generators(seed: int) -> dict[str, np.random.Generator]:
    """The random numbers of a run on a host, a generator for each concern."""
    names = ("pixels", "rays", "occupancy")
    seeds = np.random.SeedSequence(seed).spawn(len(names))
    return {name: np.random.Generator(np.random.SFC64(own)) for name, own in zip(names, seeds, strict=True)}


def restored_grid(
    tensors: Mapping[str, Tensor], aabb_scale: int, device: torch.device
) -> tuple[OccupancyGrid, Float64[Tensor, " 6"]]:
    """The occupancy grid and the box that rays are clipped to, from a run's saved tensors.

    Args:
        tensors: As `state` gave them.
        aabb_scale: Side of this run's box.
        device: Where they go.

    Raises:
        CheckpointError: one is missing or of another size.
    """
    for name in ("occupancy.values", "bits", "box"):
        if name not in tensors:
            raise CheckpointError(f"checkpoint: tensor {name!r} is missing")
    n_cells = n_cells_of(aabb_scale)
    if tensors["occupancy.values"].shape != (n_cells,) or tensors["bits"].shape != (n_cells // 8,):
        raise CheckpointError("checkpoint: the occupancy grid has another size than this scene's")
    values, bits, box = (tensors[name].to(device, copy=True) for name in ("occupancy.values", "bits", "box"))
    return OccupancyGrid.restored(aabb_scale, values, bits), box.double()
