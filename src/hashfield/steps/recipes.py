"""What stays the same in every step of a run: one recipe, which hosts and devices follow alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from hashfield.ops.train_points import PointLoss
from hashfield.steps.occupancy import Upkeep


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all steps of any run have in common."""

    l2: float = 1e-6
    """Decay of the networks' matrices."""
    parts: tuple[tuple[int, int], ...] | None = None
    """(entries, interval) of the levels of the table, as `optimizers.Group` has it; None updates all at every step."""
    seed: int = 0
    """Seed of every random choice."""


@dataclass(frozen=True, kw_only=True)
class RayRecipe(Recipe):
    """What all steps of a run on rays have in common."""

    aabb_scale: int
    """Side of the training box in scene units."""
    cone_angle: float
    """Growth of the march's step with distance."""
    batch: int
    """Samples that a step should keep; the number of rays adapts, see `ray_budget`."""
    min_transmittance: float
    """A ray ends where less light than this is left."""
    min_weight: float
    """Samples that weigh less in their pixel are neither coloured nor trained."""
    upkeep: Upkeep
    """When and how thoroughly the occupancy grid is refreshed."""
    huber_delta: float = 0.0
    """0: squared error; else the delta of instant-ngp's Huber loss."""
    sparsity: float = 0.0
    """Weight of the entropy of a ray's sample weights in the loss."""
    distortion: float = 0.0
    """Weight of the spread of a ray's sample weights over the logarithm of distance in the loss."""
    nearness: float = 0.0
    """Weight of what a ray's sample weights lack to the horizon, by the logarithm of distance, in the loss."""
    horizon: float = 1.0
    """Distance in scene units from which on nothing is near."""
    tolerance: float = 0.0
    """Relative error of known distances that is not held against a ray's sample weights."""
    total_variation: float = 0.0
    """Weight of the grid's total variation in random cubes of vertices."""
    own_pixels: int = 0
    """Pixels that this rank's rays go through over the run, where each has pixels of its own; 0: all draw from the
    same."""


@dataclass(frozen=True, kw_only=True)
class PointRecipe(Recipe):
    """What all steps of a run on points have in common."""

    n_points: int
    """Points of every step."""
    loss: PointLoss
    """What is minimised, as `train_points` has it."""
    is_fixed_point: bool = False
    """Whether positions are int32 in fixed point; else float32."""
    has_squared_error: bool = True
    """Whether the mean squared error says something: a PSNR."""


def update_parts(
    entries: Sequence[int], touches: int, wanted: float, longest: int
) -> tuple[tuple[int, int], ...] | None:
    """(entries, interval) of each level: steps between its updates, powers of two, so that a level's turn comes with
    those of coarser ones. An update walks through all of a level's memory, and gains little where a batch touches few
    of its entries.

    Args:
        entries: Entries of each level of the table; none where there is no table.
        touches: Entries of a level that one batch touches.
        wanted: Times that each entry of a level should be touched, on average, between two of the level's updates.
        longest: Steps between two updates, at most.

    >>> update_parts([1000, 2**20, 2**22], 2**18, 0.5, 8)
    ((1000, 1), (1048576, 2), (4194304, 8))
    """
    found = []
    for size in entries:
        interval = 1
        while interval < longest and interval * touches < wanted * size:
            interval *= 2
        found.append((size, interval))
    return tuple(found) or None
