"""Images as functions from position to colour: the training task. Reads top to bottom.

One step: pixels, one of each cell of a lattice -> encode -> network -> loss -> gradients -> Adam.
Its configuration is `image_config`, what comes out of it `image_model`.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hashfield.data.pictures import Picture
from hashfield.errors import CheckpointError
from hashfield.log import logger
from hashfield.nn.config import MLPConfig
from hashfield.nn.encodings import table_of
from hashfield.ops.backend import runs_on_triton
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.ops.pixel_batch import pixel_batch
from hashfield.ops.train_points import PointsWorkspace, train_points
from hashfield.tasks.shared import (
    CPU,
    check_seed,
    restore_trained,
    trained_state,
    warn_of_other_bits,
)
from hashfield.train.checkpoint import (
    config_to_dict,
    generator_state,
    restore_generator,
)
from hashfield.train.optim import TableOptimizer, learning_rate_at
from hashfield.train.task import StepResult

if TYPE_CHECKING:  # needs triton
    from hashfield.train.on_device import DeviceOptimizer
    from hashfield.train.points_on_device import PointsTraining
from hashfield.tasks.image_config import ImageConfig, make_module
from hashfield.tasks.image_model import ImageModel, network_parameters, shape_of


class ImageTask:
    """Training of one picture; see `hashfield.train.task.Task`."""

    name = "image"

    def __init__(
        self,
        config: ImageConfig,
        picture: Picture,
        *,
        seed: int = 0,
        device: torch.device = CPU,
        is_picture_on_device: bool = True,
    ) -> None:
        """Args:
        config: What to train and how; what it leaves open is fitted to the picture.
        picture: Stays open as long as the task.
        seed: Of every random choice.
        device: Where to train.
        is_picture_on_device: Whether the picture is copied there, to draw pixels from; else batches are drawn on the
            host and copied: slower, for pictures that have no room.

        Raises:
            ConfigError: the seed is negative.
        """
        self.picture, self.seed, self.shape, self.device = picture, check_seed(seed), shape_of(picture), device
        self.config = config.fitted(picture.width, picture.height)
        init = torch.Generator().manual_seed(seed)
        self.field = make_module(self.config, picture.n_channels, init).to(device)
        self.layout = self.config.grid().layout(2)
        self.matrices = list(self.field.network.weights)
        self.lattice = lattice_for(self.config.train.batch, picture.width, picture.height)
        pixels = picture.pixels
        codes = pixels.view(np.int16) if pixels.dtype in (np.uint16, np.float16) else pixels
        self.pixels, self.values = torch.from_numpy(codes), torch.from_numpy(picture.values())
        if is_picture_on_device:
            self.pixels, self.values = self.pixels.to(device), self.values.to(device)
        self.random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
        self.on_device: PointsTraining | None = None
        """The training that is never waited for, on GPUs."""
        self.workspace: PointsWorkspace | None = None
        self.optimizer: TableOptimizer | DeviceOptimizer
        entries = self.layout.entries.tolist() if self.config.encoding.otype == "Grid" else []
        self.intervals = update_intervals(
            entries, 4 * self.lattice[0] * self.lattice[1], self.config.train.touches_per_update
        )
        parts = list(zip(entries, self.intervals, strict=True)) or None
        network = network_parameters(self.field, None, self.config)
        if runs_on_triton(device) and network.is_fused and network.limit("triton") is None:
            self.on_device = self._device_training(network, parts, is_picture_on_device)
            self.optimizer = self.on_device.optimizer
            return
        self.optimizer = TableOptimizer(
            table_of(self.field.encoding), self.matrices, l2=self.config.train.l2,
            parts=parts,
        )  # fmt: skip
        self.workspace = PointsWorkspace(self.parameters(), self.lattice[0] * self.lattice[1])

    def _device_training(
        self, network: EncodedNetwork, parts: list[tuple[int, int]] | None, draws_there: bool
    ) -> "PointsTraining":
        from hashfield.train.on_device import COMPUTE, AdamOptions, DeviceOptimizer
        from hashfield.train.points_on_device import PixelSource, PointsTraining

        optimizer = DeviceOptimizer(
            table_of(self.field.encoding), self.matrices, COMPUTE[network.precision],
            AdamOptions(l2=self.config.train.l2), parts,
        )  # fmt: skip
        source = PixelSource(self.pixels, self.lattice, self.values, self.shape.has_alpha, self.shape.is_hdr)
        return PointsTraining(
            network.layout, network.interpolation, optimizer, self.lattice[0] * self.lattice[1],
            self.config.train.loss, self.seed, is_fixed_point=True, source=source if draws_there else None,
        )  # fmt: skip

    def parameters(self) -> EncodedNetwork:
        """The module's numbers as they are now."""
        table_bf16 = self.optimizer.table_bf16 if isinstance(self.optimizer, TableOptimizer) else None
        return network_parameters(self.field, table_bf16, self.config)

    def draw(self, lattice: tuple[int, int], random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Positions and values of a batch, where the picture lies."""
        bits = torch.from_numpy(random.integers(0, 2**32, lattice[0] * lattice[1], dtype=np.int64))
        return pixel_batch(
            self.pixels, bits.to(self.pixels.device), lattice, self.values, self.shape.n_channels,
            has_alpha=self.shape.has_alpha, is_premultiplied=self.shape.is_hdr,
        )  # fmt: skip

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        network = self.parameters()
        if self.on_device is not None:
            self.on_device.warm_up()
            eval_points(network, torch.zeros((4, 2), dtype=torch.int32, device=self.device))
            if self.on_device.source is None:
                self.draw((2, 2), np.random.default_rng(0))
            return
        positions, target = (x.to(self.device) for x in self.draw((2, 2), np.random.default_rng(0)))
        grads = train_points(network, positions, target, PointsWorkspace(network, 4), loss=self.config.train.loss)
        scratch = TableOptimizer(torch.zeros_like(network.table), [torch.zeros_like(m) for m in self.matrices])
        scratch.step(torch.zeros_like(network.table), grads.grad_weights, 1e-3)
        eval_points(network, positions)

    def begin(self) -> None:
        """Nothing: every pixel is drawn from the first step on."""

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of pixels."""
        config = self.config.train
        rate = learning_rate_at(fraction, config.learning_rate, config.final_learning_rate, config.flat_until)
        if self.on_device is not None:
            batch = None if self.on_device.source is not None else self.draw(self.lattice, self.random)
            figures = self.on_device.step(rate, batch)
            return StepResult(figures[0], figures[1], figures[2], figures[3])
        assert self.workspace is not None and isinstance(self.optimizer, TableOptimizer)
        positions, target = (x.to(self.device) for x in self.draw(self.lattice, self.random))
        found = train_points(self.parameters(), positions, target, self.workspace, loss=config.loss)
        if not math.isfinite(found.loss):
            self.workspace.grad_table.zero_()
        else:
            self.optimizer.step(self.workspace.grad_table, found.grad_weights, rate)
        return StepResult(found.loss, found.squared_error, len(target), len(target))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        tensors, values = trained_state(self.field, self.optimizer, self.parameters().precision)
        if max(self.intervals, default=1) > 1:  # of the levels that wait for their update
            if self.on_device is not None:
                tensors["optimizer.gradient"] = self.on_device.pending_gradient()
            elif self.workspace is not None:
                tensors["optimizer.gradient"] = self.workspace.grad_table
        if self.on_device is not None or self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        values["random"] = generator_state(self.random)
        if self.on_device is not None:
            values["device_random"] = self.on_device.random_state()
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration.
        """
        restore_trained(self.field, self.optimizer, tensors, values)
        try:
            if max(self.intervals, default=1) > 1:
                if self.on_device is not None:
                    self.on_device.restore_gradient(tensors["optimizer.gradient"])
                elif self.workspace is not None:
                    self.workspace.grad_table.copy_(tensors["optimizer.gradient"])
            restore_generator(self.random, values["random"], "checkpoint: random")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        is_moved = (self.on_device is not None) != ("device_random" in values)
        if is_moved:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        elif self.on_device is not None:
            self.on_device.restore_random(values["device_random"])
        follows_threads = self.on_device is None and not is_moved
        warn_of_other_bits(values, self.parameters().precision, follows_threads=follows_threads)

    def describe(self) -> dict[str, Any]:
        """What makes the checkpoint stand alone."""
        return {
            "config": config_to_dict(self.config),
            "image": config_to_dict(self.shape),
            "seed": self.seed,
            "scene": {"name": self.picture.name, "path": str(self.picture.path)},
        }

    def model(self) -> ImageModel:
        """The image as it is now, for evaluation and rendering. Shares memory with the task."""
        info = {"scene": {"name": self.picture.name, "path": str(self.picture.path)}}
        model = ImageModel(self.field, self.config, self.shape, info)
        self.field.requires_grad_(True)
        return model


def gpu_memory(config: ImageConfig, width: int, height: int, n_channels: int, n_pixel_bytes: int) -> int:
    """Bytes of GPU memory that a run takes, nearly.

    Args:
        config: Fitted or not.
        width, height, n_channels: Of the picture.
        n_pixel_bytes: Of its numbers as stored, if they lie on the GPU; else 0.
    """
    from hashfield.train.points_on_device import n_bytes_of

    config = config.fitted(width, height)
    columns, rows = lattice_for(config.train.batch, width, height)
    shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(config.grid().n_output(2), n_channels)
    n_weights = sum(a * b for a, b in shapes)
    return n_bytes_of(config.grid().layout(2), n_weights, columns * rows, n_channels, n_pixel_bytes)


LONGEST_INTERVAL = 8
"""Steps between two updates of a level, at most."""


def update_intervals(entries: list[int], touches: int, wanted: float) -> list[int]:
    """Steps between the updates of each level: powers of two, so that a level's turn comes with those of coarser ones.

    >>> update_intervals([1000, 2**20, 2**22], 2**18, 0.5)
    [1, 2, 8]
    """
    found = []
    for size in entries:
        interval = 1
        while interval < LONGEST_INTERVAL and interval * touches < wanted * size:
            interval *= 2
        found.append(interval)
    return found


def lattice_for(batch: int, width: int, height: int) -> tuple[int, int]:
    """Cells in x and y, `batch` of them or a few less, about square in pixels.

    >>> lattice_for(2**18, 4096, 4096)
    (512, 512)
    """
    columns = min(max(1, round(math.sqrt(batch * width / height))), batch)
    return columns, max(1, batch // columns)
