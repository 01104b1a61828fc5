"""Images as functions from position to colour: the training task. It says what is learned, `hashfield.steps` how a step
runs.

Its configuration is `image_config`, what comes out of it `image_model`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashfield.data.pictures import Picture
from hashfield.nn.config import MLPConfig
from hashfield.steps.choice import point_steps
from hashfield.steps.pixel_source import PictureSource
from hashfield.steps.protocol import StepResult
from hashfield.steps.recipes import PointRecipe, update_parts
from hashfield.tasks.image_config import LONGEST_INTERVAL, ImageConfig, make_module
from hashfield.tasks.image_model import ImageModel, shape_of
from hashfield.tasks.shared import CPU, check_seed, fingerprint_of
from hashfield.train.checkpoint import config_to_dict
from hashfield.train.schedule import learning_rate_at


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
        seed: Seed of every random choice.
        device: Where to train.
        is_picture_on_device: Whether the picture is copied there, to draw pixels from; else batches are drawn on the
            host and copied: slower, for pictures that have no room.

        Raises:
            ConfigError: the seed is negative.
        """
        self.picture, self.seed, self.shape, self.device = picture, check_seed(seed), shape_of(picture), device
        self.config = config.fitted(picture.width, picture.height)
        train = self.config.train
        self.field = make_module(self.config, picture.n_channels, torch.Generator().manual_seed(seed)).to(device)
        codes = picture.pixels
        codes = torch.from_numpy(codes.view(np.int16) if codes.dtype in (np.uint16, np.float16) else codes)
        values, there = torch.from_numpy(picture.values()), device if is_picture_on_device else CPU
        source = self.source = PictureSource(
            codes.to(there), lattice_for(train.batch, picture.width, picture.height), values.to(there),
            picture.n_channels, has_alpha=self.shape.has_alpha, is_premultiplied=self.shape.is_hdr,
        )  # fmt: skip
        entries = self.config.grid().layout(2).entries.tolist() if self.config.encoding.otype == "Grid" else []
        recipe = PointRecipe(
            n_points=source.n_points, loss=train.loss, l2=train.l2, is_fixed_point=True, seed=seed,
            parts=update_parts(entries, 4 * source.n_points, train.touches_per_update, LONGEST_INTERVAL),
        )  # fmt: skip
        self.steps = point_steps(
            self.field, recipe, self.config.precision, source, draws_there=is_picture_on_device
        )  # fmt: skip

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        self.steps.warm_up()

    def begin(self) -> None:
        """Do nothing: every pixel is drawn from the first step on."""

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of pixels."""
        train = self.config.train
        rate = learning_rate_at(fraction, train.learning_rate, train.final_learning_rate, train.flat_until)
        return self.steps.step(rate)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        return self.steps.state()

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration.
        """
        self.steps.restore(tensors, values)

    def fingerprint(self) -> int:
        """A number that tells this task's data from others."""
        return fingerprint_of(self.source.pixels, self.source.values)

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
        return ImageModel(self.field, self.config, self.shape, info)


def gpu_memory(config: ImageConfig, width: int, height: int, n_channels: int, n_pixel_bytes: int) -> int:
    """Bytes of GPU memory that a run takes, nearly.

    Args:
        config: Fitted or not.
        width, height, n_channels: Size and channels of the picture.
        n_pixel_bytes: Bytes of its numbers as stored, if they lie on the GPU; else 0.
    """
    from hashfield.steps.memory import points_memory

    config = config.fitted(width, height)
    columns, rows = lattice_for(config.train.batch, width, height)
    shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(config.grid().n_output(2), n_channels)
    n_weights = sum(a * b for a, b in shapes)
    return points_memory(config.grid().layout(2), n_weights, columns * rows, n_channels, n_pixel_bytes)


def lattice_for(batch: int, width: int, height: int) -> tuple[int, int]:
    """Cells in x and y, `batch` of them or a few less, about square in pixels.

    Args:
        batch: Points of a batch, at most.
        width: The picture's, in pixels.
        height: The picture's, in pixels.

    >>> lattice_for(2**18, 4096, 4096)
    (512, 512)
    """
    columns = min(max(1, round(math.sqrt(batch * width / height))), batch)
    return columns, max(1, batch // columns)
