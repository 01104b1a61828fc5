"""One step of Adam on one tensor, in place."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, at_least
from hashfield.ops.touched_rows import TouchedRows, check_rows, summed_rows


@torch.no_grad()
def adam(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    moment1: Float[Tensor, "*shape"],
    moment2: Float[Tensor, "*shape"],
    counts: Int[Tensor, "*shape"] | None = None,
    *,
    step: int | None = None,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-15,
    l2: float = 0.0,
    skip_zero_gradient: bool = True,
    backend: Backend | None = None,
) -> None:
    """Take one Adam step: param, moment1, moment2 and counts are changed in place.

    g = grad + l2 * param; moment1 and moment2 become the running means of g and g^2;
    param -= learning_rate * sqrt(1 - beta2^k) / (1 - beta1^k) * moment1 / (sqrt(moment2) + epsilon).

    Args:
        param: Values to improve.
        grad: Gradient of the loss; not changed.
        moment1: Zeros before the first step.
        moment2: Zeros before the first step.
        counts: k of each scalar, zeros before the first step: tiny-cuda-nn's rule. Reference only.
        step: k of all scalars, 1 at the first step; for the rule with one global count. Exactly one of
            `counts` and `step` is given.
        learning_rate: At least 0.
        beta1: Memory of the gradient's mean, in [0, 1).
        beta2: Memory of its square's mean, in [0, 1).
        epsilon: More than 0; instant-ngp's 1e-15 lets rarely touched entries move at full speed.
        l2: Weight decay inside the gradient; for matrices, 0 for tables.
        skip_zero_gradient: Leave a scalar whose grad is exactly 0 as it is: no decay of its moments, no
            count, no step. For tables, where most entries are not touched by a batch; matrices step always.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.
        BackendError: the backend asked for cannot take the call.

    Source: tiny-cuda-nn include/tiny-cuda-nn/optimizers/adam.h; paper section 4.
    """
    check = Checker("adam")
    shape = tuple(param.shape)
    for name, tensor in (("param", param), ("grad", grad), ("moment1", moment1), ("moment2", moment2)):
        check(name, tensor, shape)
    if (counts is None) == (step is None):
        raise ShapeError("adam: expected exactly one of counts and step")
    if counts is not None:
        check("counts", counts, shape, "integer")
    for name, tensor in (("param", param), ("moment1", moment1), ("moment2", moment2)):
        # A copy made contiguous would take the update and be thrown away.
        if not tensor.is_contiguous():
            raise ShapeError(f"adam: {name}: expected a contiguous tensor, it is changed in place")
    at_least("adam", "learning_rate", learning_rate, 0.0)
    at_least("adam", "epsilon", epsilon, 0.0, strictly=True)
    at_least("adam", "l2", l2, 0.0)
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= value < 1.0:
            raise ShapeError(f"adam: {name}: expected a number in [0, 1), got {value!r}")
    if step is not None:
        at_least("adam", "step", step, 1)

    def limit(name: Backend) -> str | None:
        if name != "reference" and counts is not None:
            return "counts per scalar, it covers one global step"
        return None

    choice = choose("adam", backend, param, grad, moment1, moment2, limit=limit)
    options = (
        float(learning_rate),
        float(beta1),
        float(beta2),
        float(epsilon),
        float(l2),
        skip_zero_gradient,
    )
    if choice.is_reference:
        choice.kernels.adam_step(param, grad, moment1, moment2, counts, step or 0, *options)
    else:
        choice.kernels.adam_step(param, grad.contiguous(), moment1, moment2, step, *options)


@torch.no_grad()
def adam_table(
    param: Float[Tensor, "n_entries n_features"],
    grad: Float[Tensor, "n_entries n_features"],
    moment1: Float[Tensor, "n_entries n_features"],
    moment2: Float[Tensor, "n_entries n_features"],
    param_bf16: Tensor,
    *,
    step: int,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-15,
    rows: Sequence[TouchedRows] | None = None,
    backend: Backend | None = None,
) -> None:
    """Take one Adam step on a grid's table in place, clear its gradient and refresh its bfloat16 copy.

    This is `adam` with `skip_zero_gradient`, without L2; one pass over memory instead of three.

    Args:
        param, grad, moment1, moment2: float32, contiguous; grad is all zeros afterwards.
        param_bf16: bfloat16, of the same shape; afterwards `param` rounded.
        step: 1 at the first step.
        learning_rate, beta1, beta2, epsilon: As for `adam`.
        rows: Touched rows of several arrays, whose sum in this order is the gradient instead of `grad`, which is left
            alone; rows that none of them touched are not even read. At least one array, all of one type.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
    """
    check = Checker("adam_table")
    shape = (param.shape[0], param.shape[1])
    for name, tensor in (("param", param), ("grad", grad), ("moment1", moment1), ("moment2", moment2)):
        check(name, tensor, shape)
    if param_bf16.dtype != torch.bfloat16 or tuple(param_bf16.shape) != shape:
        raise ShapeError(f"adam_table: param_bf16: expected bfloat16 {shape}, got {param_bf16.dtype}")
    at_least("adam_table", "step", step, 1)
    choice = choose("adam", backend, param, grad, moment1, moment2)
    numbers = (step, float(learning_rate), beta1, beta2, epsilon)
    if rows is None:
        choice.kernels.adam_table_step(param, grad, moment1, moment2, param_bf16, *numbers)
        return
    check_rows("adam_table", rows, shape)
    if choice.name == "numba":
        choice.kernels.adam_table_step(param, grad, moment1, moment2, param_bf16, *numbers, rows)
    else:
        choice.kernels.adam_table_step(param, summed_rows(rows, shape), moment1, moment2, param_bf16, *numbers)
