"""One training step of a radiance field: rays in, loss and gradients out, fused from march to backward pass."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.rays import RayBatch
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, at_least
from hashfield.ops.render_rays import FieldParameters, MarchOptions, check_rays, densities_in_waves, small_ops
from hashfield.ops.touched_rows import Plan


class RayGradients(NamedTuple):
    """What a step's loss says about each ray that was given; zeros for rays that took no part.

    With them, what lies outside the field can be learned: exposure from the colours, poses and lenses from origins
    and directions. They are derivatives of the same number as the gradients of table and matrices.
    """

    color: Float[Tensor, "n_rays 3"]
    """The rendered colour as the loss compares it with the target, background included."""
    grad_color: Float[Tensor, "n_rays 3"]
    """Derivative of the loss with respect to that colour."""
    grad_origin: Float[Tensor, "n_rays 3"]
    """Derivative with respect to the origin, through the positions of the samples, whose distances t and lengths dt
    are held fixed."""
    grad_direction: Float[Tensor, "n_rays 3"]
    """Derivative with respect to the direction, through the same positions and through the spherical harmonics, with
    the direction's three numbers free of each other (not held to unit length)."""


@dataclass
class TrainRaysResult:
    """What one step found."""

    loss: float
    """Mean over the rays of the loss summed over channels."""
    squared_error: float
    """Mean squared error over rays and channels, for a PSNR."""
    n_rays: int
    """Rays that took part; fewer than were given where the buffers were full."""
    n_marched: int
    """Samples whose density was asked."""
    n_kept: int
    """Samples that light reached, which were coloured and trained."""
    grad_density_weights: list[Tensor]
    """Like field.density_weights."""
    grad_color_weights: list[Tensor]
    """Like field.color_weights."""
    stage_cycles: dict[str, float]
    """Processor time per stage, summed over threads, where the backend measures it."""
    ray_gradients: RayGradients | None = None
    """Colours and gradients of each ray, where they were asked for."""


class DepthLosses(NamedTuple):
    """Weights of what the loss says about where along its ray a sample lies; see `train_rays`."""

    distortion: float = 0.0
    nearness: float = 0.0
    log_horizon: float = 0.0
    tolerance: float = 0.0

    @property
    def has_any(self) -> bool:
        """Whether there is such a loss for all rays; those of known distance have one besides."""
        return self.distortion > 0.0 or self.nearness > 0.0


class TrainWorkspace:
    """Buffers of `train_rays`, kept from step to step; `grad_table` is added to and the optimiser clears it."""

    def __init__(self, field: FieldParameters, max_samples: int, backend: Backend | None = None):
        """Make room for `max_samples` kept samples a step."""
        self.max_samples = max_samples
        self.made_for = _signature(field)
        self.grad_table = torch.zeros_like(field.table, memory_format=torch.contiguous_format)
        self.backend: Backend = "reference"
        self.buffers: Any = None
        if field.is_fused:
            choice = choose("train_rays", backend, field.table, limit=field.limit)
            self.backend = choice.name
            self.buffers = choice.kernels.make_buffers(field, max_samples)
        self.samples_per_ray = 64.0
        """Kept samples a ray is expected to have; part of the state, since it sets how work is cut up."""
        self.plan: Plan | None = None
        """What is taken out of `grad_table` as soon as a level of it is made. A backend that cannot do so leaves it
        there, and `plan.counts` None."""


def _signature(field: FieldParameters) -> tuple[Any, ...]:
    """What the buffers' sizes and types depend on."""
    shapes = tuple(tuple(w.shape) for w in (field.table, *field.density_weights, *field.color_weights))
    return field.precision, shapes


@torch.no_grad()
def train_rays(
    field: FieldParameters,
    batch: RayBatch,
    bits: UInt8[Tensor, " n_bytes"],
    options: MarchOptions,
    workspace: TrainWorkspace,
    *,
    huber_delta: float = 0.0,
    sparsity: float = 0.0,
    distortion: float = 0.0,
    nearness: float = 0.0,
    horizon: float = 1.0,
    tolerance: float = 0.0,
    ray_gradients: bool = False,
) -> TrainRaysResult:
    """Loss of a batch of rays and its gradients; the table's gradient is added to workspace.grad_table.

    Along each ray the samples are taken at occupied lattice points until less than options.min_transmittance of
    the light is left; the background shows behind rays that were not cut. The loss compares the composited colour
    with target.rgb * alpha + background * (1 - alpha), all in the photos' own (sRGB) space.

    Where the workspace is full, rays take no part, and neither do rays of weight 0, which are not even marched: `loss`
    and `squared_error` are sums over the rays that took part, each times its weight, divided by their number. Gradients
    are of that sum divided by the number of rays given.

    Args:
        field: What is trained; not changed.
        batch: Rays in scene space with t_min and t_max within the box, what they should see, and how much each counts.
        bits: Occupied cells, as `pack_bits` makes them.
        options: Where and how finely rays are sampled.
        workspace: Made for this field; also fixes the backend.
        huber_delta: 0 for squared error; else instant-ngp's Huber loss (its 0.1), 1/5 of the usual one.
        sparsity: Weight in the loss of the entropy -sum w log w of a ray's sample weights and of the light that is
            left behind them: HashNeRF's sparsity loss, which prefers one surface to a fog. Samples that are not
            trained (options.min_weight) have no part in it.
        distortion: Weight in the loss of sum over pairs (i, j) of a ray's samples w_i w_j |log t_i - log t_j|, t being
            distances in scene units, at least the finest step: mip-NeRF 360's distortion loss, which draws a ray's
            weight together in depth. The same samples have part in it; t is held fixed.
        nearness: Weight in the loss of sum over a ray's samples of w_i max(0, log(horizon / t_i)): of two places that
            explain the photos alike, the farther one is taken. The same samples have part in it.
        horizon: Distance in scene units from which on nothing is near, more than 0.
        tolerance: Where the batch knows distances of rays, batch.trust is the weight in the loss of sum over a ray's
            samples of w_i max(0, |log(t_i / batch.distance)| - tolerance): what it takes to move the ray's weights to
            where something is known to be. So this is the relative error that is not held against them. The same
            samples have part in it.
        ray_gradients: Whether to return the colours and gradients of each ray as well, which costs time.

    A field that is not fused is the same function of its numbers, composed of the small ops with autograd's gradients.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.

    Source: instant-ngp src/testbed_nerf.cu (compute_loss_kernel_train_nerf); paper appendix E. Sparsity:
    HashNeRF-pytorch run_nerf.py, where it is summed over rays and the squared error is a mean over rays and channels:
    its weight 1e-10 at 1,024 rays is 3e-7 here. Distortion: mip-NeRF 360, equation 15, over the samples' places and
    with the logarithm of distance, in which the march's steps are even, for its contracted distance. Known distances:
    DS-NeRF (Deng et al. 2022) section 3 has the idea, with the cross entropy of a normal distribution for its loss;
    here it is the earth mover's distance between a ray's weights and a point mass. That is linear in the weights: fog
    is pulled at with a bounded force however far off it is, a sharp surface at the known place costs nothing, and a
    wrong measurement can be outvoted by the colours.
    """
    field.check("train_rays")
    rays = batch.rays
    check_rays("train_rays", rays, bits, options, batch.jitter)
    if workspace.made_for != _signature(field):
        raise ShapeError("train_rays: workspace: was made for a field of other sizes or another precision")
    check = Checker("train_rays")
    check("batch.target", batch.target, (rays.n_rays, 4))
    check("batch.background", batch.background, (rays.n_rays, 3))
    if batch.weight is not None:
        check("batch.weight", batch.weight, (rays.n_rays,))
    _check_known_distances(check, batch)
    at_least("train_rays", "tolerance", tolerance, 0.0)
    at_least("train_rays", "sparsity", sparsity, 0.0)
    at_least("train_rays", "distortion", distortion, 0.0)
    at_least("train_rays", "nearness", nearness, 0.0)
    if not 0.0 < horizon < math.inf:
        raise ShapeError(f"train_rays: horizon: expected a finite distance above 0, got {horizon}")
    depth = DepthLosses(float(distortion), float(nearness), math.log(horizon), float(tolerance))
    if batch.weight is not None and not bool((torch.isfinite(batch.weight) & (batch.weight >= 0)).all()):
        raise ShapeError("train_rays: batch.weight: expected finite numbers of at least 0")
    asked = (float(huber_delta), float(sparsity), depth, ray_gradients)
    if field.is_fused:

        def limit(name: Backend) -> str | None:
            return "a sparsity loss" if name == "triton" and sparsity > 0.0 else field.limit(name)

        choice = choose("train_rays", workspace.backend, field.table, rays.origin, batch.target, limit=limit)
        found = choice.kernels.train_rays(field, batch, bits, options, workspace, *asked)
    else:
        kernels = choose("train_rays", "reference", field.table).kernels
        found = kernels.composed_step(
            field, batch, bits, options, workspace, *asked, functions_of=small_ops, densities=densities_in_waves
        )
    gradients = found.pop("ray_gradients")
    return TrainRaysResult(**found, ray_gradients=None if gradients is None else RayGradients(*gradients))


def _check_known_distances(check: Checker, batch: RayBatch) -> None:
    """Raise unless distances come with their trust, and both are numbers that mean something."""
    if batch.distance is None and batch.trust is None:
        return
    if batch.distance is None or batch.trust is None:
        raise ShapeError("train_rays: batch.distance and batch.trust: expected both or none of them")
    check("batch.distance", batch.distance, (batch.n_rays,))
    check("batch.trust", batch.trust, (batch.n_rays,))
    if not bool((torch.isfinite(batch.distance) & (batch.distance > 0)).all()):
        raise ShapeError("train_rays: batch.distance: expected finite numbers above 0")
    if not bool((torch.isfinite(batch.trust) & (batch.trust >= 0)).all()):
        raise ShapeError("train_rays: batch.trust: expected finite numbers of at least 0")
