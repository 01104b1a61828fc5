"""Steps on points on a device that is not waited for: what `points_host` does, in one captured graph.

Points are drawn within the step where the picture lies on the device; else each step is given its batch, which is
copied into the step's buffers.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashfield.errors import CheckpointError
from hashfield.kernels.triton_gpu.common import count_of
from hashfield.kernels.triton_gpu.encoded_mlp import DeviceNetwork
from hashfield.kernels.triton_gpu.mlp import shape_of
from hashfield.kernels.triton_gpu.pixel_batch import draw_pixels
from hashfield.kernels.triton_gpu.train_points import POINT_GRADIENT, Buffers, enqueue
from hashfield.log import logger
from hashfield.nn.config import RunPrecision
from hashfield.nn.encodings import table_of
from hashfield.nn.networks import NetworkWithEncoding, encoded_network
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.steps.graphs import COMPUTE, CapturedSteps
from hashfield.steps.optimizers import DeviceOptimizer, network_groups
from hashfield.steps.pixel_source import PictureSource
from hashfield.steps.protocol import Batch, StepResult
from hashfield.steps.recipes import PointRecipe
from hashfield.steps.state import (
    State,
    generator_state,
    restore_generator,
    restore_trained,
    trained_state,
    warn_of_other_bits,
)


class DevicePointSteps(CapturedSteps):
    """The steps of a run on points; see `protocol.PointSteps`."""

    is_captured = True

    def __init__(
        self, field: NetworkWithEncoding, recipe: PointRecipe, precision: RunPrecision,
        source: PictureSource | None = None, draws_there: bool = False,
    ) -> None:  # fmt: skip
        """Args:
        field: What is trained, in place; on the device.
        recipe: What stays the same in every step.
        precision: Number type of lookups and network, as asked for.
        source: Where batches come from; None where each step is given its own.
        draws_there: Whether the source lies on the device, so that the captured step draws from it.
        """
        table, matrices = table_of(field.encoding), list(field.network.weights)
        super().__init__(table.device, recipe.seed)
        self.field, self.recipe, self.source = field, recipe, source
        self.asked_precision: RunPrecision = precision
        network = encoded_network(field, None, precision)
        self.precision: str = network.precision
        optimizer = self.optimizer = DeviceOptimizer(
            network_groups(table, matrices, l2=recipe.l2, parts=recipe.parts), COMPUTE[network.precision]
        )
        self.draws_there = draws_there and source is not None
        self.random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(recipe.seed)))
        layout, n = network.layout, recipe.n_points
        self.network = DeviceNetwork(
            layout, optimizer.short_table, optimizer.short_flat, shape_of(matrices), network.interpolation
        )
        n_outputs = self.network.n_outputs
        self.buffers = Buffers(self.network, n, optimizer.short_flat.dtype)
        self.buffers.stats[2:] = n
        kind = torch.int32 if recipe.is_fixed_point else torch.float32
        self.positions = torch.zeros((n, layout.n_dims), dtype=kind, device=self.device)
        self.target = torch.zeros((n, n_outputs), device=self.device)
        self.chosen = torch.zeros(n if self.draws_there else 0, dtype=torch.int64, device=self.device)
        self.n_live = count_of(n, self.device)
        self.gradient_scale = 1.0 / (POINT_GRADIENT * n * n_outputs)
        """What the gradients that the optimiser is handed must be multiplied by."""
        self.hyper = optimizer.hyper[0]
        self.hyper[1] = self.gradient_scale

    def values(self) -> EncodedNetwork:
        """The network's numbers as they are now."""
        return encoded_network(self.field, None, self.asked_precision)

    def warm_up(self) -> None:
        """See `protocol.Steps`: runs the kernels of a step on no points, and those of inference on a few."""
        random = self.generator.get_state()
        self.n_live.zero_()
        self.hyper.zero_()
        self._enqueue(max(self.optimizer.intervals))
        # A rate of zero leaves parameters as they are, but not the matrices' moments.
        self.optimizer.forget_moments()
        self.hyper[1] = self.gradient_scale
        self.n_live.fill_(len(self.positions))
        self.generator.set_state(random)
        few = torch.zeros((4, self.positions.shape[1]), dtype=self.positions.dtype, device=self.device)
        eval_points(self.values(), few)
        if self.source is not None and not self.draws_there:
            self.source.few().draw(np.random.default_rng(0))

    def step(self, rate: float, batch: Batch | None = None) -> StepResult:
        """Launch one step, whose figures stay on the device; see `protocol.PointSteps`."""
        if not self.draws_there:
            if batch is None:
                assert self.source is not None, "steps without a source are given their batches"
                batch = self.source.draw(self.random)
            self.positions.copy_(batch[0])
            self.target.copy_(batch[1])
        self.optimizer.begin_step(rate, self.hyper)
        self._run(self.optimizer.due_interval)
        figures = self.buffers.stats.clone()
        squared_error = figures[1] if self.recipe.has_squared_error else torch.full_like(figures[1], math.nan)
        return StepResult(figures[0], squared_error, figures[2], figures[3])

    def _enqueue(self, due_interval: int = 1) -> None:
        source = self.source
        if source is not None and self.draws_there:
            self.chosen.random_(0, 2**32, generator=self.generator)
            draw_pixels(
                source.pixels, self.chosen, source.lattice, source.values, self.positions, self.target,
                has_alpha=source.has_alpha, is_premultiplied=source.is_premultiplied,
            )  # fmt: skip
        enqueue(
            self.network, self.positions, self.target, self.n_live, self.buffers, self.optimizer.grad_table,
            loss=self.recipe.loss, huber_delta=0.1, unscale=1.0,
        )  # fmt: skip
        self.optimizer.enqueue({"matrices": self.buffers.grad_weights}, self.hyper, due_interval)

    def state(self) -> State:
        """See `protocol.Steps`."""
        tensors, values = trained_state(self.field, self.optimizer, self.precision)
        if self.optimizer.is_waiting:
            tensors["optimizer.gradient"] = self.optimizer.grad_table * self.gradient_scale
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        if self.source is not None:
            values |= {"random": generator_state(self.random), "device_random": self._random_state()}
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """See `protocol.Steps`."""
        restore_trained(self.field, self.optimizer, tensors, values)
        try:
            if self.optimizer.is_waiting:
                self.optimizer.grad_table.copy_(tensors["optimizer.gradient"]).mul_(1.0 / self.gradient_scale)
            if self.source is not None:
                restore_generator(self.random, values["random"], "checkpoint: random")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        if "device_random" in values:
            self._restore_random(values["device_random"])
        elif self.source is not None:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        warn_of_other_bits(values, self.precision, follows_threads=False)
