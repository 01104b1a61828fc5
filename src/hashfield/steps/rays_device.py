"""Steps on rays on a device that is not waited for: what `rays_host` does, in one captured graph.

Photos, random numbers, samples, gradients and parameters lie in buffers of a fixed size, and the number of rays of the
next step is decided on the device. The occupancy grid's refresh is launched uncaptured, and never waited for either.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from hashfield.errors import CheckpointError
from hashfield.geometry.rays import PixelPool
from hashfield.geometry.spaces import n_cells_of
from hashfield.kernels.triton_gpu.camera_rays import lenses_of
from hashfield.kernels.triton_gpu.common import count_of
from hashfield.kernels.triton_gpu.field import DeviceField
from hashfield.kernels.triton_gpu.march import as_words, lattice_values
from hashfield.kernels.triton_gpu.occupancy_update import bits_device, refresh_cells_device
from hashfield.kernels.triton_gpu.train_rays import Batch, Buffers, Losses, RayBudget, enqueue
from hashfield.kernels.triton_gpu.training_rays import DrawnRays, draw_rays
from hashfield.log import logger
from hashfield.nn.config import RunPrecision
from hashfield.nn.encodings import GridEncoding
from hashfield.nn.fields import RadianceField, field_parameters
from hashfield.ops.eval_points import compute_precision
from hashfield.ops.render_rays import FieldParameters
from hashfield.steps.graphs import COMPUTE, CapturedSteps
from hashfield.steps.memory import CELLS_AT_ONCE
from hashfield.steps.occupancy import OccupancyGrid, stratified
from hashfield.steps.optimizers import DeviceOptimizer, network_groups
from hashfield.steps.protocol import StepResult
from hashfield.steps.ray_budget import FEWEST, GROWTH, SAMPLES_EXPECTED, first_rays, most_rays
from hashfield.steps.rays_host import host_generators, restored_grid
from hashfield.steps.recipes import RayRecipe
from hashfield.steps.state import (
    State,
    generator_state,
    restore_gradient,
    restore_trained,
    trained_state,
    warn_of_other_bits,
)

RAY_GRADIENT = 4.0
"""Loss scale: what the gradient of a single ray's squared error is multiplied by. A ray's gradient is at most some
units then, and 1e-4 at its faintest sample: both far from float16's ends."""


class DeviceRaySteps(CapturedSteps):
    """The steps of a run on rays; see `protocol.RaySteps`."""

    is_captured = True

    def __init__(self, field: RadianceField, recipe: RayRecipe, precision: RunPrecision, pool: PixelPool) -> None:
        """Args:
        field: What is trained, in place; on the device. One that `choice.captures_rays` accepts.
        recipe: What stays the same in every step.
        precision: Number type of lookups and networks, as asked for.
        pool: Pixels to draw rays from; on the device.
        """
        encoding = field.encoding
        assert isinstance(encoding, GridEncoding), "see choice.captures_rays"
        super().__init__(encoding.table.device, recipe.seed)
        device = self.device
        self.field, self.recipe = field, recipe
        self.asked_precision: RunPrecision = precision
        matrices = [*field.density_network.weights, *field.color_network.weights]
        self.losses = Losses(
            recipe.min_transmittance, recipe.huber_delta, RAY_GRADIENT, recipe.distortion, recipe.nearness,
            math.log(recipe.horizon), recipe.tolerance,
        )  # fmt: skip
        self.precision: str = compute_precision(precision, device)
        optimizer = self.optimizer = DeviceOptimizer(
            network_groups(encoding.table, matrices, l2=recipe.l2, parts=recipe.parts), COMPUTE[self.precision]
        )
        self.device_field = DeviceField(
            layout=encoding.layout, table=optimizer.short_table, weights=optimizer.short_flat,
            width=matrices[0].shape[0], color_width=matrices[2].shape[0], density_bias=field.config.density_bias,
        )  # fmt: skip
        n = self.max_rays = most_rays(recipe.batch)
        self.buffers = Buffers(self.device_field, 2 * recipe.batch, n)
        self.n_rays = count_of(first_rays(recipe.batch), device)
        self.chosen = torch.zeros(n, dtype=torch.int64, device=device)
        self.noise = torch.zeros(4 * n, device=device)
        drawn = self.drawn = DrawnRays.room(n, device, torch.zeros)
        self.batch = Batch(
            origin=drawn.origin, direction=drawn.direction, t_min=drawn.t_min, t_max=drawn.t_max, target=drawn.target,
            jitter=self.noise[:n], background=self.noise[n:].view(n, 3), n_rays=self.n_rays,
        )  # fmt: skip
        n_cells = n_cells_of(recipe.aabb_scale)
        self.bits = torch.zeros(n_cells // 8, dtype=torch.uint8, device=device)
        self.occupied = as_words(self.bits)
        self.box_buffer = torch.zeros(6, dtype=torch.float64, device=device)
        self.draw_from(pool)
        self.grid: OccupancyGrid | None = None
        self.next_refresh = self.n_refreshes = 0
        self._step_scale = 0.0

    @property
    def box(self) -> Float64[Tensor, " 6"] | None:
        """What rays are clipped to, in scene space; None before the run has begun."""
        return None if self.grid is None else self.box_buffer

    def values(self) -> FieldParameters:
        """The field's numbers as they are now."""
        return field_parameters(self.field, None, self.asked_precision)

    def draw_from(self, pool: PixelPool) -> None:
        """See `protocol.RaySteps`."""
        self.pool, self.lenses, self.n_pool = pool, lenses_of(pool.table), pool.n_pool
        self._forget_graphs()

    def begin(self, alive: Bool[Tensor, " n_cells"], box: Float64[Tensor, " 6"] | None = None) -> None:
        """See `protocol.RaySteps`."""
        grid = OccupancyGrid.start(alive, self.recipe.aabb_scale)
        self._set_scene(grid, grid.living_box() if box is None else box)

    def _set_scene(self, grid: OccupancyGrid, box: Tensor) -> None:
        self.box_buffer.copy_(box)
        self.grid = grid
        grid.bits = self._took(grid.bits)

    def _took(self, bits: UInt8[Tensor, " n_bytes"]) -> UInt8[Tensor, " n_bytes"]:
        """The buffer that the march reads, holding these bits."""
        if bits.data_ptr() != self.bits.data_ptr():
            self.bits.copy_(bits)
        self.occupied.coarse.copy_(as_words(self.bits).coarse)
        return self.bits

    def step(self, step: int, rate: float, step_scale: float, *, has_total_variation: bool = False) -> StepResult:
        """Refresh the occupancy grid if it is due, then launch one step; see `protocol.RaySteps`. Figures stay on the
        device."""
        assert self.grid is not None and not has_total_variation, "begin() or restore() comes first"
        if step >= self.next_refresh and step > 0:
            self._refresh(step, self.grid)
        if step_scale != self._step_scale:
            self._step_scale = step_scale
            self.buffers.lattice.copy_(torch.tensor(lattice_values(self.recipe.cone_angle, step_scale)))
        self.optimizer.begin_step(rate, self.buffers.hyper)
        self._run(self.optimizer.due_interval)
        figures = self.buffers.stats.clone()
        return StepResult(figures[0], figures[1], figures[2], figures[3])

    def _enqueue(self, due_interval: int = 1) -> None:
        r = self.recipe
        self.chosen.random_(0, self.n_pool, generator=self.generator)
        self.noise.uniform_(generator=self.generator)
        draw_rays(self.pool, self.lenses, self.chosen, self.n_rays, self.box_buffer, self.drawn)
        enqueue(
            self.device_field, self.batch, self.occupied, r.aabb_scale, r.cone_angle > 0.0, self.buffers,
            self.optimizer.grad_table, self.losses, min_weight=r.min_weight,
            budget=RayBudget(float(r.batch), float(FEWEST), float(GROWTH), float(self.max_rays)),
        )  # fmt: skip
        self.optimizer.enqueue({"matrices": self.buffers.grad_weights}, self.buffers.hyper, due_interval)

    def _refresh(self, step: int, grid: OccupancyGrid) -> None:
        upkeep = self.recipe.upkeep
        grid.refresh(DeviceCells(self), upkeep.decay, upkeep.cells_at(self.n_refreshes, len(grid.living)))
        self.n_refreshes += 1
        self.next_refresh = upkeep.next_step(step)

    def warm_up(self) -> None:
        """See `protocol.Steps`: runs the kernels of a step and of a refresh on no rays and few cells."""
        random, n_rays = self.generator.get_state(), self.n_rays.clone()
        self.n_rays.zero_()
        self.buffers.hyper.zero_()
        self.buffers.lattice.copy_(torch.tensor(lattice_values(self.recipe.cone_angle, 8.0)))
        self._enqueue(max(self.optimizer.intervals))
        values = torch.zeros(8 * len(self.bits), device=self.device)
        few = torch.arange(256, device=self.device)
        for max_cells in (256, 128):
            OccupancyGrid(self.recipe.aabb_scale, values, self.bits, few).refresh(DeviceCells(self), 0.5, max_cells)
        # A rate of zero leaves parameters as they are, but not the matrices' moments.
        self.optimizer.forget_moments()
        self.bits.zero_()
        self.n_rays.copy_(n_rays)
        self.generator.set_state(random)

    def state(self) -> State:
        """See `protocol.Steps`."""
        assert self.grid is not None
        tensors, values = trained_state(self.field, self.optimizer, self.precision)
        tensors |= {"occupancy.values": self.grid.values, "bits": self.bits, "box": self.box_buffer}
        if self.optimizer.is_waiting:  # what it is multiplied by is of the last step's rays, which were about as many
            tensors["optimizer.gradient"] = self.optimizer.grad_table * self.buffers.hyper[1]
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        values |= {
            "n_rays": int(self.n_rays), "next_refresh": self.next_refresh, "n_refreshes": self.n_refreshes,
            "device_random": self._random_state(),
            # What a host needs besides, to go on with the run.
            "samples_per_ray": float(SAMPLES_EXPECTED),
            "random": {name: generator_state(g) for name, g in host_generators(self.recipe.seed).items()},
        }  # fmt: skip
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """See `protocol.Steps`."""
        restore_trained(self.field, self.optimizer, tensors, values)
        grid, box = restored_grid(tensors, self.recipe.aabb_scale, self.device)
        try:
            n_rays = int(values["n_rays"])
            self.next_refresh = int(values["next_refresh"])
            self.n_refreshes = int(values["n_refreshes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        warn_of_other_bits(values, self.precision, follows_threads=False)
        self._set_scene(grid, box)
        self.n_rays.fill_(min(n_rays, self.max_rays))
        if self.optimizer.is_waiting:
            restore_gradient(self.optimizer.grad_table, tensors)
            self.buffers.hyper[1:2] = 1.0 / (RAY_GRADIENT * self.n_rays)
            self.optimizer.grad_table.div_(self.buffers.hyper[1])
        if "device_random" in values:
            self._restore_random(values["device_random"])
        else:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")


class DeviceCells:
    """`occupancy.Cells` of a device that is not waited for: how many cells there are stays there."""

    def __init__(self, steps: DeviceRaySteps) -> None:
        """Ask the field of these steps, with their random numbers."""
        self.steps = steps

    def some_living(self, living: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """See `occupancy.Cells`."""
        return living[stratified(self._uniform(n), len(living))], count_of(n, living.device)

    def some_occupied(self, is_occupied: Bool[Tensor, " n_cells"], n: int) -> tuple[Tensor, Tensor]:
        """See `occupancy.Cells`."""
        n_cells, device = len(is_occupied), is_occupied.device
        ends = torch.cumsum(is_occupied, 0)
        # Cells that are not occupied all write to a place of their own behind the list.
        numbers = torch.zeros(n_cells + 1, dtype=torch.int64, device=device)
        at = torch.where(is_occupied, ends - 1, n_cells)
        numbers.scatter_(0, at, torch.arange(n_cells, device=device))
        total, first = ends[-1:], torch.arange(n, device=device)
        chosen = torch.where(total <= n, torch.minimum(first, total), stratified(self._uniform(n), total))
        return numbers[chosen], total.clamp(max=n).to(torch.int32)

    def ask(self, values: Float[Tensor, " n_cells"], group: Tensor | tuple[Tensor, Tensor]) -> None:
        """See `occupancy.Cells`."""
        if isinstance(group, Tensor):
            for cells in group.split(CELLS_AT_ONCE):
                self._ask(values, cells, count_of(len(cells), self.steps.device))
        else:
            self._ask(values, *group)

    def _ask(self, values: Tensor, cells: Tensor, n_live: Tensor) -> None:
        n, device, steps = len(cells), self.steps.device, self.steps
        noise = torch.empty((n, 3), device=device).uniform_(generator=steps.generator)
        positions, log_density = torch.zeros((n, 3), device=device), torch.zeros(n, device=device)
        refresh_cells_device(
            values, cells, n_live, noise, positions, log_density, steps.device_field, steps.recipe.aabb_scale
        )

    def packed(self, values: Float[Tensor, " n_cells"], threshold: Float[Tensor, ""]) -> UInt8[Tensor, " n_bytes"]:
        """See `occupancy.Cells`."""
        bits_device(values, threshold.float().view(1), self.steps.bits, self.steps.recipe.aabb_scale)
        return self.steps._took(self.steps.bits)

    def _uniform(self, n: int) -> Float64[Tensor, " n"]:
        return torch.empty(n, dtype=torch.float64, device=self.steps.device).uniform_(generator=self.steps.generator)
