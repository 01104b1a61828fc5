"""The learning rate follows the fraction of the run."""

import itertools
import math

import pytest

from hashfield.train.schedule import learning_rate_at


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, 0.02),
        (0.4, 0.02),  # flat until here
        (0.55, 0.001 + 0.019 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way down half a cosine
        (0.7, 0.0105),  # half of it: the mean of both rates
        (1.0, 0.001),
        (1.7, 0.001),  # a run that goes on beyond its plan
    ],
)
def test_the_learning_rate_is_flat_and_then_half_a_cosine(fraction: float, expected: float) -> None:
    assert learning_rate_at(fraction, 0.02, 0.001, 0.4) == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_never_jumps_and_may_stay_flat_to_the_end() -> None:
    rates = [learning_rate_at(k / 1000, 0.02, 0.001, 0.3) for k in range(1001)]
    falls = [a - b for a, b in itertools.pairwise(rates)]
    assert min(falls) >= 0 and max(falls) < 0.019 * math.pi / 2 / 700 * 1.001  # the cosine's steepest slope
    assert rates[300] == 0.02 and rates[301] < 0.02
    assert learning_rate_at(1.0, 0.02, 0.001, 1.0) == 0.02
    assert learning_rate_at(0.5, 0.02, 0.001, 0.0) == pytest.approx(0.0105)
