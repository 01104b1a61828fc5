"""What the training loop, the checkpoint and the command line know of a task."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from hashfield.steps.protocol import StepResult


class Task(Protocol):
    """One kind of thing to learn. Implementations live in `hashfield.tasks`."""

    name: str
    """Written to checkpoints, e.g. "nerf"."""

    def warm_up(self) -> None:
        """Compile what a run needs. Changes nothing; its time does not count as training."""
        ...

    def begin(self) -> None:
        """Do what a fresh run does before its first step. Its time counts as training."""
        ...

    def step(self, step: int, fraction: float) -> StepResult:
        """Train once. `step` counts from 0; `fraction` of the planned run is what schedules follow."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs to go on (on CPUs bit for bit): tensors and JSON values."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        ...

    def fingerprint(self) -> int:
        """A number that tells this task's data from others: ranks compare it, so that all train on the same."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON values that make a checkpoint stand alone: config, spaces, cameras, names."""
        ...

    def model(self) -> Any:
        """What has been learned so far, for pictures and figures: a read-only view that shares the task's memory and
        changes nothing of the task. Ask for another one after further steps. Models of every kind are
        `hashfield.tasks.frames.HasFrames`."""
        ...
