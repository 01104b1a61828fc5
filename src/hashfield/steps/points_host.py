"""Steps on points: encode -> network -> loss -> gradients -> Adam. `points_device` does the same in one graph."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashfield.errors import CheckpointError
from hashfield.log import logger
from hashfield.nn.config import RunPrecision
from hashfield.nn.encodings import table_of
from hashfield.nn.networks import NetworkWithEncoding, encoded_network
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.ops.train_points import PointsWorkspace, TrainPointsResult, train_points
from hashfield.steps.gradient_mean import GradientMean, table_levels
from hashfield.steps.optimizers import HostOptimizer, network_groups
from hashfield.steps.pixel_source import PictureSource
from hashfield.steps.protocol import Batch, StepResult
from hashfield.steps.ranks import current
from hashfield.steps.recipes import PointRecipe
from hashfield.steps.state import (
    State,
    generator_state,
    restore_generator,
    restore_trained,
    trained_state,
    warn_of_other_bits,
)


class HostPointSteps:
    """The steps of a run on points; see `protocol.PointSteps`."""

    is_captured = False

    def __init__(
        self, field: NetworkWithEncoding, recipe: PointRecipe, precision: RunPrecision,
        source: PictureSource | None = None,
    ) -> None:  # fmt: skip
        """Args:
        field: What is trained, in place.
        recipe: What stays the same in every step.
        precision: Number type of lookups and network, as asked for.
        source: Where batches come from; None where each step is given its own.
        """
        self.field, self.recipe, self.source = field, recipe, source
        self.asked_precision: RunPrecision = precision
        table, matrices = table_of(field.encoding), list(field.network.weights)
        self.device = table.device
        self.ranks = current()
        self.mean = GradientMean(self.ranks, table_levels(field.encoding)) if self.ranks.n > 1 else None
        groups = network_groups(table, matrices, l2=recipe.l2, parts=recipe.parts)
        self.optimizer = HostOptimizer(groups, reduce=self.mean)
        self.random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(recipe.seed)))
        network = self.values()
        self.precision: str = network.precision
        self.workspace = PointsWorkspace(network, recipe.n_points)

    def values(self) -> EncodedNetwork:
        """The network's numbers as they are now."""
        return encoded_network(self.field, self.optimizer.table_bf16, self.asked_precision)

    def warm_up(self) -> None:
        """See `protocol.Steps`: runs the kernels of a step and of inference on a few points."""
        network, recipe = self.values(), self.recipe
        positions, target = self._few(network)
        found = train_points(network, positions, target, PointsWorkspace(network, len(target)), loss=recipe.loss)
        scratch = network_groups(torch.zeros_like(network.table), [torch.zeros_like(w) for w in network.weights])
        gradients = {"table": [torch.zeros_like(network.table)], "matrices": found.grad_weights}
        HostOptimizer(scratch).step(gradients, 1e-3)
        eval_points(network, positions)

    def _few(self, network: EncodedNetwork) -> Batch:
        if self.source is not None:
            return self._here(self.source.few().draw(np.random.default_rng(0)))
        kind = torch.int32 if self.recipe.is_fixed_point else torch.float32
        positions = torch.zeros((4, network.layout.n_dims), dtype=kind, device=self.device)
        return positions, torch.zeros((4, network.n_outputs), device=self.device)

    def step(self, rate: float, batch: Batch | None = None) -> StepResult:
        """Train once; see `protocol.PointSteps`."""
        if batch is None:
            assert self.source is not None, "steps without a source are given their batches"
            batch = self._here(self.source.draw(self.random, self.ranks))
        positions, target = batch
        found = train_points(self.values(), positions, target, self.workspace, loss=self.recipe.loss)
        loss, squared_error, n = found.loss, found.squared_error, len(target)
        if self.mean is not None:
            loss, squared_error, n = self._of_all_ranks(found, n, self.mean)
        if math.isfinite(loss):
            gradients = {"table": [self.workspace.grad_table], "matrices": found.grad_weights}
            self.optimizer.step(gradients, rate)
        else:  # the run ends here, with the parameters of the step before
            self.workspace.grad_table.zero_()
        return StepResult(loss, squared_error if self.recipe.has_squared_error else math.nan, n, n)

    def _of_all_ranks(self, found: TrainPointsResult, n: int, mean: GradientMean) -> tuple[float, float, int]:
        """(loss, squared error, points) of all ranks' points together, of this rank's own n."""
        total = self.recipe.n_points
        gradient = self.workspace.grad_table
        mean.plan(gradient, self.optimizer.rows_due(), n, total)
        loss, squared_error, n_points = mean.offer([found.loss * n, found.squared_error * n, n], gradient)
        return loss / n_points, squared_error / n_points, int(n_points)

    def _here(self, batch: Batch) -> Batch:
        return batch[0].to(self.device), batch[1].to(self.device)

    def state(self) -> State:
        """See `protocol.Steps`."""
        tensors, values = trained_state(self.field, self.optimizer, self.precision)
        if self.optimizer.is_waiting:
            tensors["optimizer.gradient"] = self.workspace.grad_table
        if self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        if self.source is not None:
            values["random"] = generator_state(self.random)
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """See `protocol.Steps`."""
        restore_trained(self.field, self.optimizer, tensors, values)
        try:
            if self.optimizer.is_waiting:
                self.workspace.grad_table.copy_(tensors["optimizer.gradient"])
            if self.source is not None:
                restore_generator(self.random, values["random"], "checkpoint: random")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        is_moved = "device_random" in values
        if is_moved:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        warn_of_other_bits(values, self.precision, follows_threads=not is_moved)
