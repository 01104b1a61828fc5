"""Small fully connected network without biases."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.kernels.reference.mlp import mlp as reference
from hashfield.ops.backend import Backend, Choice, choose
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.grid_encode import Precision
from hashfield.ops.second_order import differentiable_gradients, wanted_gradients

Activation = Literal[
    "none", "relu", "sigmoid", "exp", "leaky_relu", "silu", "sine", "squareplus", "softplus", "tanh"
]  # fmt: skip
_ACTIVATIONS = get_args(Activation)
_FAST_OUTPUTS = ("none", "sigmoid", "exp")


def mlp(
    x: Float[Tensor, "n n_in"],
    weights: Sequence[Tensor],
    *,
    activation: Activation = "relu",
    output_activation: Activation = "none",
    precision: Precision = "float32",
    backend: Backend | None = None,
) -> Float[Tensor, "n n_out"]:
    """Output of a network without biases: matrices with an activation between them and one at the end.

    Args:
        x: Input features.
        weights: Matrices [n_out, n_in], first layer first; at least one.
        activation: Between the layers. The fast backends cover "relu". "squareplus" and "softplus" have
            tiny-cuda-nn's sharpness of 10, "leaky_relu" a slope of 0.01.
        output_activation: After the last layer. The fast backends cover "none", "sigmoid" and "exp".
        precision: "bfloat16" rounds every matrix and every layer's input to the nearest bfloat16; sums and
            the output keep x's dtype.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype, or two matrices do not fit each other.
        BackendError: the backend asked for cannot take the call.

    Gradient:
        To x and every matrix, of any order; from the second on the reference computes it. Rounding passes
        gradients unchanged.

    Source: tiny-cuda-nn src/network.cu.

    >>> mlp(torch.tensor([[1.0, -2.0]]), [torch.eye(2), torch.ones(1, 2)], backend="reference")
    tensor([[1.]])
    """
    check_mlp("mlp", "weights", weights, x.shape[1] if x.ndim == 2 else None, like=("x", x))
    one_of("mlp", "activation", activation, _ACTIVATIONS)
    one_of("mlp", "output_activation", output_activation, _ACTIVATIONS)
    one_of("mlp", "precision", precision, ("float32", "bfloat16"))

    def limit(name: Backend) -> str | None:
        if name == "reference":
            return None
        if precision != "float32" and name == "numba":
            return f"precision {precision!r}, it covers 'float32'"
        if activation != "relu" and len(weights) > 1:
            return f"activation {activation!r}, it covers 'relu'"
        if output_activation not in _FAST_OUTPUTS:
            return f"output_activation {output_activation!r}"
        return too_wide(weights) if name == "triton" else None

    choice = choose("mlp", backend, x, *weights, limit=limit)
    if choice.is_reference:
        return choice.kernels.mlp(x, weights, activation, output_activation, precision)
    options = (activation, output_activation, precision if choice.name == "triton" else None)
    return _MLP.apply(x.contiguous(), options, choice, *(w.contiguous() for w in weights))  # pyright: ignore[reportReturnType]


def too_wide(weights: Sequence[Tensor]) -> str | None:
    """Why a network does not fit on a GPU's chip, or None: hidden layers up to 128, ends up to 256."""
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    if max(widths[1:-1], default=0) > 128:
        return f"a hidden layer has {max(widths[1:-1])} neurons, it takes 128"
    if max(widths[0], widths[-1]) > 256:
        return f"{widths[0]} inputs and {widths[-1]} outputs, it takes 256"
    return None


def check_mlp(op: str, name: str, weights: Sequence[Tensor], n_in: int | None, like: tuple[str, Tensor]) -> None:
    """Check that matrices fit each other and the input they get.

    Args:
        op: Name that begins every message.
        name: Name of the argument.
        weights: Matrices [n_out, n_in], first layer first.
        n_in: Width of the input, None if that is for `like` to tell.
        like: Name and value of the tensor whose dtype and device they must share.

    Raises:
        ShapeError: they do not.
    """
    if len(weights) == 0:
        raise ShapeError(f"{op}: {name}: expected at least one matrix, got none")
    check = Checker(op)
    check(*like, tuple(f"axis {i}" for i in range(like[1].ndim)) if n_in is not None else ("n", "n_in"))
    for i, weight in enumerate(weights):
        check(f"{name}[{i}]", weight, (f"n_out of {name}[{i}]", "n_in" if n_in is None else n_in))
        n_in = weight.shape[0]


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, options: tuple[str, str, str | None], choice: Choice, *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *weights)
        # Only some backends know a precision.
        ctx.precision = () if options[2] is None else (options[2],)
        ctx.options, ctx.kernels = options[:2], choice.kernels
        return choice.kernels.mlp_forward(x, list(weights), *ctx.options, *ctx.precision)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            needed = (wanted_gradients(ctx)[0], *wanted_gradients(ctx)[3:])
            grad_x, *grad_weights = differentiable_gradients(
                lambda x, *w: reference(x, w, *ctx.options, *ctx.precision), (x, *weights), needed, grads[0]
            )
            return grad_x, None, None, *grad_weights
        grad_x, grad_weights = ctx.kernels.mlp_backward(
            x, weights, *ctx.options, grads[0].contiguous(), wanted_gradients(ctx)[0], *ctx.precision
        )
        return grad_x, None, None, *grad_weights
