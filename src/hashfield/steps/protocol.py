"""What tasks know of a step, whatever it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hashfield.steps.optimizers import Optimizer


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


class Steps(Protocol):
    """The steps of one run, on one device. `step` differs between rays and points, the rest is common to all."""

    optimizer: Optimizer
    """Holds the moments of what is trained."""

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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors on the host and JSON values that a resumed run needs, and that a model needs."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: something is missing, or does not fit this run.
        """
        ...
