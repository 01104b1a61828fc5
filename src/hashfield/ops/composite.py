"""Colour, opacity and depth of rays from the colours and densities of their samples."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hashfield.errors import ShapeError
from hashfield.geometry.rays import RaySamples
from hashfield.ops.backend import Backend, Choice, choose
from hashfield.ops.checks import Checker


class CompositeResult(NamedTuple):
    """What a batch of rays shows."""

    color: Float[Tensor, "n_rays 3"]
    """Background included, in the space of the samples' colours."""
    opacity: Float[Tensor, " n_rays"]
    """Sum of the weights, 0 to 1."""
    depth: Float[Tensor, " n_rays"]
    """Sum of weight * t, not divided by the opacity; scene units along the ray."""
    weight: Float[Tensor, " n_samples"]
    """Share of each sample in its ray: transmittance before it times its alpha."""


def composite(
    color: Float[Tensor, "n_samples 3"],
    density: Float[Tensor, " n_samples"],
    samples: RaySamples,
    background: Float[Tensor, "n_rays 3"] | Float[Tensor, " 3"],
    *,
    min_transmittance: float = 0.0,
    backend: Backend | None = None,
) -> CompositeResult:
    """Colour, opacity and depth of each ray, and the weight of each sample.

    alpha_i = 1 - exp(-density_i dt_i); T_i = product of 1 - alpha_j over the samples before i; w_i = T_i
    alpha_i. colour = sum w_i color_i + T_end * background; opacity = sum w_i; depth = sum w_i t_i.

    Args:
        color: Colour of each sample.
        density: Density of each sample, at least 0, per scene unit.
        samples: Where they lie.
        background: Behind each ray, or one for all.
        min_transmittance: Samples with T_i below it are cut: weight 0, and a ray that lost any gets no
            background. Nothing is renormalised. 1e-4 is instant-ngp's choice; 0 cuts nothing.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range, or the offsets do not fit the samples.
        BackendError: the backend asked for cannot take the call.

    Gradient:
        To color, density and background, from every output; second order with backend="reference". None to t
        and dt. Where a ray is cut is a constant.

    Source: instant-ngp src/testbed_nerf.cu (compute_loss_kernel_train_nerf).

    >>> samples = RaySamples(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0, 1]))
    >>> density = torch.log(torch.tensor([2.0])) / 0.5  # half of the light passes
    >>> shown = composite(torch.ones(1, 3), density, samples, torch.zeros(3), backend="reference")
    >>> shown.color, shown.opacity, shown.depth
    (tensor([[0.5000, 0.5000, 0.5000]]), tensor([0.5000]), tensor([0.5000]))
    """
    check = Checker("composite")
    check("color", color, ("n_samples", 3))
    check("density", density, ("n_samples",))
    check("samples.t", samples.t, ("n_samples",))
    check("samples.dt", samples.dt, ("n_samples",))
    check("samples.ray_offsets", samples.ray_offsets, ("n_rays + 1",), "int64")
    offsets = samples.ray_offsets
    if offsets.shape[0] == 0 or int(offsets[-1]) != color.shape[0] or int(offsets[0]) != 0:
        raise ShapeError(
            f"composite: samples.ray_offsets: expected 0 first and n_samples={color.shape[0]} last, "
            f"got {offsets[:: max(offsets.shape[0] - 1, 1)].tolist()}"
        )
    if isinstance(background, Tensor) and background.ndim == 1:
        check("background", background, (3,))
        background = background.expand(samples.n_rays, 3)
    check("background", background, (samples.n_rays, 3))
    if not 0.0 <= min_transmittance <= 1.0:
        raise ShapeError(f"composite: min_transmittance: expected 0 to 1, got {min_transmittance!r}")

    t, dt = samples.t.detach(), samples.dt.detach()
    choice = choose("composite", backend, color, density, t, dt, offsets, background)
    if choice.is_reference:
        return CompositeResult(
            *choice.kernels.composite(color, density, t, dt, offsets, background, float(min_transmittance))
        )
    results = _Composite.apply(color, density, background, t, dt, offsets, float(min_transmittance), choice)
    return CompositeResult(*results)  # pyright: ignore[reportReturnType]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        color: Tensor,
        density: Tensor,
        background: Tensor,
        t: Tensor,
        dt: Tensor,
        ray_offsets: Tensor,
        min_transmittance: float,
        choice: Choice,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = tuple(x.contiguous() for x in (color, density, t, dt, ray_offsets, background))
        ctx.save_for_backward(*inputs)
        ctx.min_transmittance, ctx.kernels = min_transmittance, choice.kernels
        return choice.kernels.composite_forward(*inputs, min_transmittance)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_color, grad_density, grad_background = ctx.kernels.composite_backward(
            *ctx.saved_tensors, ctx.min_transmittance, *(g.contiguous() for g in grads)
        )
        return grad_color, grad_density, grad_background, None, None, None, None, None
