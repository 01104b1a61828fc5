"""Grid encoding followed by a network: densities, images, distances."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend, Choice, fused_choice, requested_backend, why_not
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.ops.grid_encode import Interpolation, Precision, grid_encode
from hashfield.ops.mlp import Activation, check_mlp, mlp, too_wide


def encoded_mlp(
    positions_unit: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    weights: Sequence[Tensor],
    layout: GridLayout,
    *,
    interpolation: Interpolation = "linear",
    activation: Activation = "relu",
    output_activation: Activation = "none",
    precision: Precision = "float32",
    backend: Backend | None = None,
) -> Float[Tensor, "n n_out"]:
    """Output of a network on the grid's features of each position.

    Args:
        positions_unit: As for `grid_encode`.
        table: As for `grid_encode`.
        weights: As for `mlp`; the first matrix takes `layout.n_output` features.
        layout: Sizes of the levels.
        interpolation: How features lie between the grid's vertices.
        activation: Between the layers.
        output_activation: After the last layer.
        precision: Number type of the lookup and of the network, as the two ops describe it.
        backend: Implementation of both stages; each is chosen by device if None. Where no gradient is wanted and the
            fused `eval_points` fits, it is taken.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take one of the stages.

    Gradient:
        To positions, table and every matrix; second order with backend="reference".
    """
    check_mlp("encoded_mlp", "weights", weights, layout.n_output, like=("table", table))

    def limit(name: Backend) -> str | None:
        if layout.n_dims not in (2, 3):
            return f"{layout.n_dims} dimensions, it covers 2 and 3"
        if (activation != "relu" and len(weights) > 1) or output_activation == "relu":
            return f"activations {activation!r} and {output_activation!r}"
        return too_wide(weights)

    whole = fused_choice("encoded_mlp", backend, positions_unit, table, *weights, limit=limit)
    if whole is not None:
        check = Checker("grid_encode")  # whose arguments these are
        check("positions_unit", positions_unit, ("n", layout.n_dims))
        check("table", table, (layout.n_entries, layout.n_features_per_level))
        one_of("grid_encode", "interpolation", interpolation, ("linear", "smoothstep", "nearest"))
        one_of("mlp", "output_activation", output_activation, ("none", "sigmoid", "exp"))
        one_of("grid_encode", "precision", precision, ("float32", "bfloat16"))
        options = (layout, interpolation, output_activation, precision)
        return _EncodedMLP.apply(positions_unit, table, options, whole, *weights)  # pyright: ignore[reportReturnType]
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (positions_unit, table, *weights))
    if not wants_gradient and activation == "relu" and output_activation == "none" and len(weights) > 1:
        network = EncodedNetwork(layout, table, tuple(weights), precision=precision, interpolation=interpolation)
        tensors = (table, positions_unit, *weights)
        if (backend or requested_backend() or "numba") == "numba" and not why_not(
            "eval_points", "numba", *tensors, limit=network.limit
        ):
            return eval_points(network, positions_unit, backend="numba")
    features = grid_encode(
        positions_unit, table, layout, interpolation=interpolation, precision=precision, backend=backend
    )
    return mlp(
        features,
        weights,
        activation=activation,
        output_activation=output_activation,
        precision=precision,
        backend=backend,
    )


class _EncodedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, table: Tensor, options: tuple[Any, ...], choice: Choice, *weights: Tensor
    ) -> Tensor:
        positions, table, weights = positions.contiguous(), table.contiguous(), tuple(w.contiguous() for w in weights)
        ctx.save_for_backward(positions, table, *weights)
        ctx.options, ctx.kernels = options, choice.kernels
        return choice.kernels.encoded_mlp_forward(positions, table, list(weights), *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        positions, table, *weights = ctx.saved_tensors
        needs_positions, needs_table = ctx.needs_input_grad[:2]
        grad_table, grad_positions, grad_weights = ctx.kernels.encoded_mlp_backward(
            positions, table, weights, *ctx.options, grads[0].contiguous(), needs_table, needs_positions
        )
        return grad_positions, grad_table, None, None, *grad_weights
