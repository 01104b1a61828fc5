"""Spherical harmonics of view directions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.kernels.reference.spherical_harmonics import spherical_harmonics as reference
from hashfield.ops.backend import Backend, Choice, choose
from hashfield.ops.checks import Checker
from hashfield.ops.second_order import differentiable_gradients, wanted_gradients


def spherical_harmonics(
    directions: Float[Tensor, "n 3"], *, degree: int = 4, backend: Backend | None = None
) -> Float[Tensor, "n n_coefficients"]:
    """The first degree^2 real spherical harmonics of each direction.

    Args:
        directions: Unit length, components in [-1, 1]; not normalised here. (tiny-cuda-nn takes (d + 1) / 2.)
        degree: 1 to 8. From 5 on plain torch runs.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype, or the degree is out of range.
        BackendError: the backend asked for cannot take the call.

    Gradient:
        To directions, as of the polynomials written out in the reference, of any order.

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/spherical_harmonics.h.

    >>> spherical_harmonics(torch.tensor([[0.0, 0.0, 1.0]]), degree=2, backend="reference")
    tensor([[0.2821, -0.0000, 0.4886, -0.0000]])
    """
    Checker("spherical_harmonics")("directions", directions, ("n", 3))
    if degree not in range(1, 9):
        raise ShapeError(f"spherical_harmonics: degree: expected an integer from 1 to 8, got {degree!r}")

    def limit(name: Backend) -> str | None:
        return f"degree {degree}, it covers 1 to 4" if name != "reference" and degree > 4 else None

    choice = choose("spherical_harmonics", backend, directions, limit=limit)
    if choice.is_reference:
        return choice.kernels.spherical_harmonics(directions, degree)
    return _SphericalHarmonics.apply(directions.contiguous(), degree, choice)  # pyright: ignore[reportReturnType]


class _SphericalHarmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, directions: Tensor, degree: int, choice: Choice) -> Tensor:
        ctx.save_for_backward(directions)
        ctx.degree, ctx.kernels = degree, choice.kernels
        return choice.kernels.spherical_harmonics_forward(directions, degree)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (directions,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            gradients = differentiable_gradients(
                lambda d: reference(d, ctx.degree), (directions,), (wanted_gradients(ctx)[0],), grads[0]
            )
            return gradients[0], None, None
        grad = ctx.kernels.spherical_harmonics_backward(directions, ctx.degree, grads[0].contiguous())
        return grad, None, None
