"""Training a radiance field on a GPU without waiting for it: rays drawn, marched, trained on and counted there.

Everything a step needs lies in buffers of a fixed size: the photos, random numbers, samples, gradients, parameters.
Numbers that change from step to step (learning rate, step of the march, rays a step) are read from memory. So a step
is captured once in a CUDA graph and then costs the host one launch. Under Triton's interpreter the same code runs
uncaptured, on CPU tensors: that is how it is tested. `points_on_device` is the same for images and distances.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from hashfield.errors import CheckpointError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import PixelPool
from hashfield.kernels.triton_gpu.adam import adam_device, bias_corrected
from hashfield.kernels.triton_gpu.camera_rays import lenses_of
from hashfield.kernels.triton_gpu.common import count_of
from hashfield.kernels.triton_gpu.field import DeviceField
from hashfield.kernels.triton_gpu.march import as_words, lattice_values
from hashfield.kernels.triton_gpu.occupancy_update import bits_device, refresh_cells_device
from hashfield.kernels.triton_gpu.train_rays import Batch, Buffers, enqueue
from hashfield.kernels.triton_gpu.training_rays import draw_rays
from hashfield.train.optim import restore_moments, table_parts

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RAY_GRADIENT = 4.0
"""Loss scale: what the gradient of a single ray's squared error is multiplied by. A ray's gradient is at most some
units then, and 1e-4 at its faintest sample: both far from float16's ends."""
AHEAD = 4
"""Steps that may wait on the device. Enough that it never idles, few enough that the clock tells the truth."""
CELLS_AT_ONCE = 2**19
"""Cells of the occupancy grid that are asked together."""


@dataclass(frozen=True, kw_only=True)
class AdamOptions:
    """Constants of the optimiser."""

    l2: float
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-15


@dataclass(frozen=True, kw_only=True)
class Recipe(AdamOptions):
    """What stays the same in every step of a run."""

    aabb_scale: int
    cone_angle: float
    min_transmittance: float
    min_weight: float
    huber_delta: float
    batch_samples: int
    """Samples that a step should keep; the number of rays adapts."""


def n_bytes_of(layout: GridLayout, n_weights: int, batch_samples: int, n_pixels: int, n_cells: int) -> int:
    """GPU memory that a run takes, nearly: what `DeviceTraining` and PyTorch allocate, without the CUDA context.

    Args:
        layout: Of the grid.
        n_weights: Numbers in the matrices.
        batch_samples: Samples of a step.
        n_pixels: Of all training photos together.
        n_cells: Of the occupancy grid.
    """
    parameters = (layout.n_parameters + n_weights) * (4 * 4 + 2)  # value, gradient, two moments; the short copy
    max_rays = most_rays(batch_samples)
    # Per marched sample 28 bytes in three waves of four batches; per kept one 68 and its features twice.
    samples = batch_samples * (3 * 4 * 28 + 2 * (68 + 2 * 2 * layout.n_output)) + max_rays * (32 * 4 + 160)
    refresh = min(n_cells, CELLS_AT_ONCE) * (28 + 2 * layout.n_output) + 21 * n_cells
    return parameters + samples + 4 * n_pixels + refresh


def most_rays(batch_samples: int) -> int:
    """Rays that a step has room for."""
    return min(2**18, max(1024, batch_samples))


class DeviceOptimizer:
    """Adam for a grid's table and its networks' matrices, on the device; the twin of `TableOptimizer`.

    The matrices become views of one flat array, so that one kernel steps all of them.
    """

    def __init__(
        self, table: Tensor, matrices: Sequence[Tensor], compute: torch.dtype, options: AdamOptions,
        parts: Sequence[tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        """Args:
        table: Changed in place by `step`.
        matrices: The same; their memory moves into the flat array.
        compute: Type of the copies that kernels read.
        options: Constants of the optimiser.
        parts: As `TableOptimizer` has them; intervals are powers of two.
        """
        self.table, self.matrices, self.options = table.detach(), list(matrices), options
        self.parts = table_parts(parts, len(table))
        self.intervals = sorted({1, *(interval for _, interval in self.parts)})
        self.flat = torch.cat([m.detach().reshape(-1) for m in matrices])
        sizes = [m.numel() for m in matrices]
        for matrix, part in zip(matrices, self.flat.split(sizes), strict=True):
            matrix.data = part.view(matrix.shape)
        self.short_table, self.short_flat = self.table.to(compute), self.flat.to(compute)
        self.is_short = compute != torch.float32
        if not self.is_short:  # the parameters themselves
            self.short_table, self.short_flat = self.table, self.flat
        self.grad_table = torch.zeros_like(self.table)
        self.n_steps = 0
        self._moments = {name: torch.zeros_like(x) for name, x in (
            ("table1", self.table), ("table2", self.table), ("flat1", self.flat), ("flat2", self.flat)
        )}  # fmt: skip
        self.moments = {"0.moment1": self._moments["table1"], "0.moment2": self._moments["table2"]}
        for moment in ("1", "2"):
            for k, (matrix, part) in enumerate(
                zip(matrices, self._moments[f"flat{moment}"].split(sizes), strict=True), start=1
            ):
                self.moments[f"{k}.moment{moment}"] = part.view(matrix.shape)

    def rate(self, learning_rate: float) -> float:
        """The bias-corrected rate of the next step, which is counted."""
        self.n_steps += 1
        return self.rate_of(learning_rate, 1)

    def rate_of(self, learning_rate: float, interval: int) -> float:
        """The same for the parts with an interval, of the step counted last, which is their turn."""
        return bias_corrected(learning_rate, self.options.beta1, self.options.beta2, self.n_steps // interval)

    @property
    def turn(self) -> int:
        """The longest interval whose turn the step counted last is."""
        return max(interval for interval in self.intervals if self.n_steps % interval == 0)

    def enqueue(
        self, grad_flat: Tensor, hyper: Tensor, waiting: Mapping[int, Tensor] | None = None, turn: int = 1
    ) -> None:
        """One step: the table's gradient is cleared and the short copies brought up to date, where it is their turn.

        Args:
            grad_flat: Of the matrices.
            hyper: [2] on the device: the rate, and what gradients are multiplied by.
            waiting: The same by interval, for the parts that are not updated at every step.
            turn: The longest interval that has its turn.
        """
        m, r = self._moments, self.options
        shared = {"beta1": r.beta1, "beta2": r.beta2, "epsilon": r.epsilon, "guard": True}
        for rows, interval in self.parts:
            if interval <= turn:
                adam_device(
                    self.table[rows], self.grad_table[rows], m["table1"][rows], m["table2"][rows],
                    self.short_table[rows] if self.is_short else None,
                    hyper if waiting is None or interval == 1 else waiting[interval],
                    l2=0.0, skip_zero=True, clear=True, **shared,
                )  # fmt: skip
        adam_device(
            self.flat, grad_flat, m["flat1"], m["flat2"], self.short_flat if self.is_short else None, hyper,
            l2=r.l2, skip_zero=False, clear=False, **shared,
        )  # fmt: skip

    def refresh_copies(self) -> None:
        """Bring the short copies up to date with the parameters."""
        if self.is_short:
            self.short_table.copy_(self.table)
            self.short_flat.copy_(self.flat)

    def state(self) -> dict[str, Tensor]:
        """The moments by name; `n_steps` is saved by the task."""
        return dict(self.moments)

    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take back the moments; the table and the matrices must have been restored before."""
        restore_moments(self.moments, tensors)
        self.n_steps = n_steps
        self.refresh_copies()


class DeviceSteps(ABC):
    """The steps of a run whose every buffer lies on a device: captured in a CUDA graph and replayed, with random
    numbers of their own."""

    def __init__(self, device: torch.device, seed: int) -> None:
        """Args:
        device: Of the buffers.
        seed: Of every random choice.
        """
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._is_warm = False
        self._events: list[torch.cuda.Event] = []

    @abstractmethod
    def _enqueue(self, turn: int = 1) -> None:
        """Launch one step."""

    def run(self, turn: int = 1) -> None:
        """Launch one step, by its graph from the second one on; waits only where `AHEAD` steps are under way.

        Args:
            turn: What else than numbers in memory tells steps apart: each has a graph of its own.
        """
        if self.device.type != "cuda":
            self._enqueue(turn)
            return
        self._wait_for_room()
        if not self._is_warm:  # whatever is compiled or set up at a first call happens uncaptured
            self._is_warm = True
            self._enqueue(turn)
        else:
            if turn not in self._graphs:
                self._graphs[turn] = self._captured(turn)
            self._graphs[turn].replay()
        self._events[-1].record()

    def _wait_for_room(self) -> None:
        if len(self._events) < AHEAD:
            self._events.append(torch.cuda.Event())
            return
        oldest = self._events.pop(0)
        oldest.synchronize()
        self._events.append(oldest)

    def _captured(self, turn: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self._enqueue(turn)
        return graph

    def random_state(self) -> list[int]:
        """State of the random numbers as JSON values."""
        return self.generator.get_state().tolist()

    def restore_random(self, state: Any) -> None:
        """Put the random numbers into a saved state.

        Raises:
            CheckpointError: the state is not one of this device's generator.
        """
        try:
            self.generator.set_state(torch.tensor(state, dtype=torch.uint8))
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: device_random: not a generator's state: {error}") from error


class DeviceTraining(DeviceSteps):
    """Buffers, random numbers and the captured step of one run."""

    def __init__(
        self, layout: GridLayout, density_bias: float, optimizer: DeviceOptimizer, recipe: Recipe, seed: int
    ) -> None:
        """Args:
        layout: Of the grid.
        density_bias: Added to the log-density.
        optimizer: Holds the parameters.
        recipe: What stays the same in every step.
        seed: Of every random choice.
        """
        super().__init__(optimizer.table.device, seed)
        self.optimizer, self.recipe, device = optimizer, recipe, self.device
        density, color = optimizer.matrices[0], optimizer.matrices[2]
        self.field = DeviceField(
            layout=layout, table=optimizer.short_table, weights=optimizer.short_flat, width=density.shape[0],
            color_width=color.shape[0], density_bias=density_bias,
        )  # fmt: skip
        n = self.max_rays = most_rays(recipe.batch_samples)
        self.buffers = Buffers(self.field, 2 * recipe.batch_samples, n)
        self.n_rays = count_of(max(16, recipe.batch_samples // 64), device)
        self.chosen = torch.zeros(n, dtype=torch.int64, device=device)
        self.noise = torch.zeros(4 * n, device=device)
        shapes = ((n, 3), (n, 3), (n,), (n,), (n, 4))
        drawn = [torch.zeros(shape, device=device) for shape in shapes]
        self.drawn = (*drawn, torch.zeros(n, dtype=torch.int64, device=device))
        self.batch = Batch(
            origin=drawn[0], direction=drawn[1], t_min=drawn[2], t_max=drawn[3], target=drawn[4], jitter=self.noise[:n],
            background=self.noise[n:].view(n, 3), n_rays=self.n_rays,
        )  # fmt: skip
        n_bytes = recipe.aabb_scale.bit_length() * 128**3 // 8
        self.bits = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
        self.words, self.coarse = as_words(self.bits)
        self.box = torch.zeros(6, dtype=torch.float64, device=device)
        self.pool: PixelPool | None = None
        self.lenses: dict[str, bool] = {}
        self.n_pool = 0
        self._step_scale = 0.0

    def set_pool(self, pool: PixelPool) -> None:
        """Choose the pixels to draw from: a pool on the device, every tensor contiguous."""
        self.pool, self.lenses = pool, lenses_of(pool.table)
        self.n_pool = pool.n_pool
        self._graphs.clear()

    def set_scene(self, bits: UInt8[Tensor, " n_bytes"], box: Float64[Tensor, " 6"]) -> None:
        """Occupied cells and the box rays are clipped to."""
        self.box.copy_(box)
        self.set_bits(bits)

    def set_bits(self, bits: UInt8[Tensor, " n_bytes"]) -> None:
        """Occupied cells, of which a copy is kept."""
        if bits.data_ptr() != self.bits.data_ptr():
            self.bits.copy_(bits)
        self.coarse.copy_((self.words.view(-1, 64) != 0).any(1))

    def warm_up(self) -> None:
        """Compile every kernel of a step and of a refresh, by running them on no rays and few cells."""
        random = self.generator.get_state()
        n_rays = self.n_rays.clone()
        self.n_rays.zero_()
        self.buffers.hyper.zero_()
        self.buffers.lattice.copy_(torch.tensor(lattice_values(self.recipe.cone_angle, 8.0)))
        self._enqueue()
        values = torch.zeros(8 * len(self.bits), device=self.device)
        for max_cells in (256, 128):
            self.refresh(values, torch.arange(256, device=self.device), 0.5, max_cells)
        # A rate of zero leaves parameters as they are, but not the matrices' moments.
        for moment in self.optimizer.moments.values():
            moment.zero_()
        self.bits.zero_()
        self.n_rays.copy_(n_rays)
        self.generator.set_state(random)

    def step(self, learning_rate: float, step_scale: float) -> Float[Tensor, " n_stats"]:
        """Launch one step; its figures (see `train_rays.N_STATS`), on the device.

        Args:
            learning_rate: Of the optimiser.
            step_scale: Length of the march's step.
        """
        if step_scale != self._step_scale:
            self._step_scale = step_scale
            self.buffers.lattice.copy_(torch.tensor(lattice_values(self.recipe.cone_angle, step_scale)))
        self.buffers.hyper[:1].fill_(self.optimizer.rate(learning_rate))
        self.run()
        return self.buffers.stats.clone()

    def _enqueue(self, turn: int = 1) -> None:
        r = self.recipe
        assert self.pool is not None, "set_pool() comes first"
        self.chosen.random_(0, self.n_pool, generator=self.generator)
        self.noise.uniform_(generator=self.generator)
        draw_rays(self.pool, self.lenses, self.chosen, self.n_rays, self.box, self.drawn)
        enqueue(
            self.field, self.batch, self.words, self.coarse, r.aabb_scale, r.cone_angle > 0.0, self.buffers,
            self.optimizer.grad_table, min_transmittance=r.min_transmittance, min_weight=r.min_weight,
            huber_delta=r.huber_delta, loss_scale=RAY_GRADIENT, target_samples=r.batch_samples, fewest_rays=16,
            growth=2.0, most_rays=self.max_rays,
        )  # fmt: skip
        self.optimizer.enqueue(self.buffers.grad_weights, self.buffers.hyper)

    # --- occupancy

    def refresh(self, values: Float[Tensor, " n_cells"], living: Tensor, decay: float, max_cells: int) -> None:
        """`OccupancyGrid.refresh` without waiting; changes `values` and the bits.

        Cells are chosen as there, except that of few occupied ones some are asked twice rather than all once.

        Args:
            values: Of the grid.
            living: Numbers of the cells that are not dead.
            decay: Of old values.
            max_cells: Density queries to spend at most.
        """
        n = len(living)
        if n <= max_cells:
            values.mul_(decay)
            for cells in living.split(CELLS_AT_ONCE):
                self._ask(values, cells, count_of(len(cells), self.device))
        else:
            half = max(1, max_cells // 2)
            occupied = values > self._threshold(values, n)
            ends = torch.cumsum(occupied, 0)
            # Cells that are not occupied all write to a place of their own behind the list.
            found = torch.zeros(len(values) + 1, dtype=torch.int64, device=self.device)
            at = torch.where(occupied, ends - 1, len(values))
            found.scatter_(0, at, torch.arange(len(values), device=self.device))
            values.mul_(decay)
            self._ask(values, living[self._spread(half, torch.full_like(ends[-1:], n))], count_of(half, self.device))
            n_live = torch.where(ends[-1:] > 0, half, 0).to(torch.int32)
            self._ask(values, found[self._spread(half, ends[-1:])], n_live)
        bits_device(values, self._threshold(values, n), self.bits, self.recipe.aabb_scale)
        self.set_bits(self.bits)

    def _ask(self, values: Tensor, cells: Tensor, n_live: Tensor) -> None:
        n = len(cells)
        noise = torch.empty((n, 3), device=self.device).uniform_(generator=self.generator)
        positions, log_density = torch.zeros((n, 3), device=self.device), torch.zeros(n, device=self.device)
        refresh_cells_device(
            values, cells, n_live, noise, positions, log_density, self.field, self.recipe.aabb_scale
        )  # fmt: skip

    def _spread(self, n: int, total: Tensor) -> Tensor:
        """n of `total` (int64 [1], on the device) numbers, one out of each n-th of them."""
        at = torch.empty(n, dtype=torch.float64, device=self.device).uniform_(generator=self.generator)
        at = (at + torch.arange(n, device=self.device)) * (total.double() / n)
        return torch.minimum(at.long(), (total - 1).clamp(min=0))

    def _threshold(self, values: Tensor, n_living: int) -> Float[Tensor, " 1"]:
        mean = values.clamp(min=0.0).sum(dtype=torch.float64) / max(n_living, 1)
        return mean.clamp(max=0.01).float().view(1)
