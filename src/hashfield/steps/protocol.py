"""What tasks know of a step, whatever it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Bool, Float64
from torch import Tensor

from hashfield.geometry.rays import PixelPool
from hashfield.ops.eval_points import EncodedNetwork
from hashfield.ops.render_rays import FieldParameters
from hashfield.steps.occupancy import OccupancyGrid
from hashfield.steps.optimizers import Optimizer
from hashfield.steps.state import State


@dataclass(frozen=True)
class StepResult:
    """What one training step reports. All four are numbers, or all tensors on a device, which is not waited for until
    the loop reports: then they are read."""

    loss: float | Tensor
    """What is minimised."""
    squared_error: float | Tensor
    """Mean squared error of the batch, for a PSNR; NaN where the task has none."""
    n_rays: int | Tensor
    """Rays, pixels or points of the batch."""
    n_samples: int | Tensor
    """Points the networks were trained on."""


Batch = tuple[Tensor, Tensor]
"""Positions in unit space [n, n_dims] and what the network should say there [n, n_outputs]."""


class Steps(Protocol):
    """The steps of one run, on one device: what rays and points have in common."""

    @property
    def optimizer(self) -> Optimizer:
        """Holds the moments of what is trained."""
        ...

    @property
    def precision(self) -> str:
        """Number type of the networks in this run, known without building a table."""
        ...

    @property
    def is_captured(self) -> bool:
        """Whether steps run on a device that is never waited for."""
        ...

    def warm_up(self) -> None:
        """Compile every kernel of a step by calling it on next to nothing. Changes nothing."""
        ...

    def state(self) -> State:
        """Tensors on the host and JSON values that a resumed run needs, and that a model needs."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: something is missing, or does not fit this run.
        """
        ...


class RaySteps(Steps, Protocol):
    """Steps on rays. Before the first one comes `begin` or `restore`."""

    @property
    def grid(self) -> OccupancyGrid | None:
        """Which cells rays are marched through; None before the run has begun."""
        ...

    @property
    def box(self) -> Float64[Tensor, " 6"] | None:
        """(x0, y0, z0, x1, y1, z1) in scene space, to which rays are clipped; None before the run has begun."""
        ...

    def values(self) -> FieldParameters:
        """The field's numbers as they are now."""
        ...

    def draw_from(self, pool: PixelPool) -> None:
        """Draw rays from these pixels from now on."""
        ...

    def begin(self, alive: Bool[Tensor, " n_cells"], box: Float64[Tensor, " 6"] | None = None) -> None:
        """Start a fresh run.

        Args:
            alive: Cells that can hold anything.
            box: As the property; None: that of the living cells.
        """
        ...

    def step(self, step: int, rate: float, step_scale: float, *, has_total_variation: bool = False) -> StepResult:
        """Refresh the occupancy grid if it is due, then train on one batch of rays.

        Args:
            step: Counts from 0.
            rate: The schedule's learning rate.
            step_scale: Length of the march's step, in units of the finest.
            has_total_variation: Whether the grid's total variation is part of the loss now; on hosts only.
        """
        ...


class PointSteps(Steps, Protocol):
    """Steps on points."""

    def values(self) -> EncodedNetwork:
        """The network's numbers as they are now."""
        ...

    def step(self, rate: float, batch: Batch | None = None) -> StepResult:
        """Train once.

        Args:
            rate: The schedule's learning rate.
            batch: Where the steps have no source of their own; on any device.
        """
        ...
