"""How the learning rate follows the run."""

import math

from hashfield.errors import ConfigError


def learning_rate_at(fraction: float, rate: float, final_rate: float, flat_until: float) -> float:
    """`rate` until `flat_until` of the run, then half a cosine down to `final_rate`.

    A function of the fraction of the planned run, so that one recipe serves thirty seconds and thirty minutes.

    Args:
        fraction: Part of the run that is over, 0 to 1.
        rate: Adam's rate until `flat_until`.
        final_rate: Adam's rate at the end.
        flat_until: Fraction of the run at which the rate begins to fall.

    >>> [round(learning_rate_at(x, 0.02, 0.0, 0.5), 4) for x in (0.0, 0.5, 0.75, 1.0)]
    [0.02, 0.02, 0.01, 0.0]
    """
    if fraction <= flat_until:
        return rate
    left = min(1.0, (fraction - flat_until) / max(1.0 - flat_until, 1e-9))
    return final_rate + (rate - final_rate) * 0.5 * (1 + math.cos(math.pi * left))


def check_rates(rate: float, final_rate: float, flat_until: float) -> None:
    """Check the rates and the fraction that `learning_rate_at` follows.

    Args:
        rate, final_rate: Adam's rates.
        flat_until: A fraction.

    Raises:
        ConfigError: a rate is not in (0, 10), or `flat_until` is no fraction; the text calls them as configurations do.
    """
    for name, value in (("learning_rate", rate), ("final_learning_rate", final_rate)):
        if not 0 < value < 10:
            raise ConfigError(f"{name}: expected a number in (0, 10), got {value}")
    if not 0 <= flat_until <= 1:
        raise ConfigError(f"flat_until: expected a fraction, got {flat_until}")
