"""What the configurations of all kinds of tasks have in common: the learning rate, and the checks of their fields."""

import math
from dataclasses import dataclass
from typing import get_args

from hashfield.errors import ConfigError
from hashfield.nn.config import EncodingConfig, RunPrecision


@dataclass(frozen=True)
class RateConfig:
    """How fast a run learns. Each kind's training configuration inherits from this and sets defaults of its own."""

    learning_rate: float = 1e-2
    """Adam's rate until `flat_until` of the run."""
    final_learning_rate: float = 1e-4
    """Adam's rate at the end of the run, which is reached by half a cosine."""
    flat_until: float = 0.3
    """Fraction of the run with the full learning rate."""
    l2: float = 1e-6
    """Weight of the L2 penalty on the matrices of the networks."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "final_learning_rate"):
            if not 0 < getattr(self, name) < 10:
                raise ConfigError(f"{name}: expected a number in (0, 10), got {getattr(self, name)}")
        if not 0 <= self.flat_until <= 1:
            raise ConfigError(f"flat_until: expected a fraction, got {self.flat_until}")
        if not 0 <= self.l2 < math.inf:
            raise ConfigError(f"l2: expected a finite number of at least 0, got {self.l2}")


def check_batch(batch: int) -> None:
    """Check the number of samples, pixels or points in a step.

    Raises:
        ConfigError: it is not 256 to 2^24.
    """
    if not 256 <= batch <= 2**24:
        raise ConfigError(f"batch: expected 256 to {2**24}, got {batch}")


def check_precision(precision: str) -> None:
    """Check the number type that a run asks for.

    Raises:
        ConfigError: it is no `RunPrecision`.
    """
    *names, last = get_args(RunPrecision)
    if precision not in (*names, last):
        raise ConfigError(f"precision: expected {', '.join(names)} or {last}, got {precision!r}")


def check_n_neurons(n_neurons: int) -> None:
    """Check the width of the hidden layers.

    Raises:
        ConfigError: it is not a multiple of 16 up to 256, which is what the kernels take.
    """
    if n_neurons % 16 or not 16 <= n_neurons <= 256:
        raise ConfigError(f"n_neurons: expected a multiple of 16 up to 256, got {n_neurons}")


def check_n_layers(name: str, n_layers: int, least: int, most: int) -> None:
    """Check the number of a network's hidden layers.

    Args:
        name: Field of the configuration, for the text of the error.
        n_layers: What it says.
        least: Fewest hidden layers.
        most: Most hidden layers.

    Raises:
        ConfigError: there are fewer or more.
    """
    if not least <= n_layers <= most:
        raise ConfigError(f"{name}: expected {least} to {most}, got {n_layers}")


def check_per_level_scale(encoding: EncodingConfig) -> None:
    """Check that the growth of the levels is left to the task, which computes it from its finest resolution.

    Raises:
        ConfigError: `per_level_scale` was set.
    """
    if encoding.per_level_scale != EncodingConfig().per_level_scale:
        raise ConfigError("encoding.per_level_scale: follows from finest_resolution; set that instead")
