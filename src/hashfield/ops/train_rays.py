"""One training step of a radiance field: rays in, loss and gradients out, fused from march to backward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.rays import Rays
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker
from hashfield.ops.render_rays import FieldParameters, MarchOptions, check_rays


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


class TrainWorkspace:
    """Buffers of `train_rays`, kept from step to step; `grad_table` is added to and the optimiser clears it."""

    def __init__(self, field: FieldParameters, max_samples: int, backend: Backend | None = None):
        """Make room for `max_samples` kept samples a step."""
        choice = choose("train_rays", backend, field.table, limit=field.limit)
        self.backend: Backend = choice.name
        self.max_samples = max_samples
        self.made_for = _signature(field)
        self.grad_table = torch.zeros_like(field.table, memory_format=torch.contiguous_format)
        self.buffers: Any = choice.kernels.make_buffers(field, max_samples)
        self.samples_per_ray = 64.0
        """Kept samples a ray is expected to have; part of the state, since it sets how work is cut up."""


def _signature(field: FieldParameters) -> tuple[Any, ...]:
    """What the buffers' sizes and types depend on."""
    shapes = tuple(tuple(w.shape) for w in (field.table, *field.density_weights, *field.color_weights))
    return field.precision, shapes


@torch.no_grad()
def train_rays(
    field: FieldParameters,
    rays: Rays,
    target: Float[Tensor, "n_rays 4"],
    background: Float[Tensor, "n_rays 3"],
    bits: UInt8[Tensor, " n_bytes"],
    options: MarchOptions,
    workspace: TrainWorkspace,
    *,
    jitter: Float[Tensor, " n_rays"],
    huber_delta: float = 0.0,
) -> TrainRaysResult:
    """Loss of a batch of rays and its gradients; the table's gradient is added to workspace.grad_table.

    Along each ray the samples are taken at occupied lattice points until less than options.min_transmittance of
    the light is left; the background shows behind rays that were not cut. The loss compares the composited colour
    with target.rgb * alpha + background * (1 - alpha), all in the photos' own (sRGB) space.

    Where the workspace is full, rays take no part: `loss` is the mean over the rays that did, while gradients are
    of the sum over them divided by the number of rays given.

    Args:
        field: What is trained; not changed.
        rays: Scene space, t_min and t_max within the box.
        target: Straight alpha, 0 to 1.
        background: Colour behind each ray, 0 to 1; random ones teach empty space to be empty.
        bits: Occupied cells, as `pack_bits` makes them.
        options: Sampling.
        workspace: Made for this field; also fixes the backend.
        jitter: Fraction of a step by which each ray's lattice is shifted.
        huber_delta: 0 for squared error; else instant-ngp's Huber loss (its 0.1), 1/5 of the usual one.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.

    Source: instant-ngp src/testbed_nerf.cu (compute_loss_kernel_train_nerf); paper appendix E.
    """
    field.check("train_rays")
    jitter = check_rays("train_rays", rays, bits, options, jitter)
    if workspace.made_for != _signature(field):
        raise ShapeError("train_rays: workspace: was made for a field of other sizes or another precision")
    check = Checker("train_rays")
    check("target", target, (rays.n_rays, 4))
    check("background", background, (rays.n_rays, 3))
    choice = choose("train_rays", workspace.backend, field.table, rays.origin, target, limit=field.limit)
    found = choice.kernels.train_rays(
        field, rays, target, background, bits, options, workspace, jitter, float(huber_delta)
    )
    return TrainRaysResult(**found)
