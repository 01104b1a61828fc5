"""How many rays a step takes: as many as keep about `batch` samples, whatever a ray costs at the moment.

The rule stands here for hosts, and its constants here for devices, whose kernel computes it without waiting
(`kernels/triton_gpu/train_rays.py`); `tests/steps/test_one_recipe.py` holds the two together.
"""

from typing import Final

FEWEST: Final = 16
"""Rays that every step takes at least."""
GROWTH: Final = 2
"""Most by which the number of rays grows from one step to the next."""
MOST: Final = 2**18
"""Rays that a step takes at most, whatever the batch."""
SAMPLES_EXPECTED: Final = 64
"""Kept samples that a ray is expected to have before the first step has told."""


def first_rays(batch: int) -> int:
    """Rays of a run's first step, for a batch of so many kept samples."""
    return max(FEWEST, batch // SAMPLES_EXPECTED)


def most_rays(batch: int) -> int:
    """Rays that a step takes at most, for a batch of so many kept samples: one for each sample.

    Once a ray keeps less than one sample on average, nearly all of them see nothing, and more of them teach nothing.
    """
    return min(MOST, max(1024, batch))


def next_rays(n_rays: int, n_kept: int, batch: int) -> int:
    """Rays of the next step.

    Args:
        n_rays: Rays that took part in this step.
        n_kept: Samples that they kept.
        batch: Samples that a step should keep.

    >>> next_rays(1000, 32000, 65536), next_rays(1000, 8000, 65536), next_rays(0, 0, 65536)
    (2000, 2000, 16)
    """
    wanted = n_rays * batch / max(n_kept, 1)
    return int(min(max(FEWEST, min(GROWTH * n_rays, wanted)), most_rays(batch)))
