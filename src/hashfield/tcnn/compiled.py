"""The modules inside `torch.compile`: one opaque op each way, so that no graph breaks.

Compiled graphs have first derivatives only; for second ones call the module outside of them.
"""

import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_modules: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(module: Any) -> int:
    """A number under which compiled code finds a module."""
    number = next(_numbers)
    _modules[number] = module
    return number


def call(module: Any, rows: Tensor) -> Tensor:
    """Outputs [n, n_output_dims] of a module for rows [n, n_input_dims]."""
    return _forward(rows, module.params, module.number, module.n_output_dims)


@torch.library.custom_op("hashfield::tcnn", mutates_args=())
def _forward(x: Tensor, params: Tensor, number: int, n_output: int) -> Tensor:
    with torch.no_grad():
        out = _modules[number].evaluate(x, params)
    return out.clone() if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() else out


@_forward.register_fake
def _(x: Tensor, params: Tensor, number: int, n_output: int) -> Tensor:
    return x.new_empty((x.shape[0], n_output), dtype=_modules[number].dtype)


@torch.library.custom_op("hashfield::tcnn_backward", mutates_args=())
def _backward(
    x: Tensor, params: Tensor, grad: Tensor, number: int, needs_x: bool, needs_params: bool
) -> tuple[Tensor, Tensor]:
    def differentiate() -> list[Tensor]:
        own = x.detach().requires_grad_(needs_x), params.detach().requires_grad_(needs_params)
        out = _modules[number].evaluate(*own)
        wanted = [each for each in own if each.requires_grad]
        if not out.requires_grad:
            return [torch.zeros_like(each) for each in wanted]
        return list(torch.autograd.grad(out, wanted, grad, materialize_grads=True))

    # Inside of an op autograd is switched off for the thread that runs it; for another one it is on.
    with ThreadPoolExecutor(1) as other:
        grads = iter(other.submit(differentiate).result())
    return (next(grads) if needs_x else x.new_empty(0)), (next(grads) if needs_params else params.new_empty(0))


@_backward.register_fake
def _(x: Tensor, params: Tensor, grad: Tensor, number: int, needs_x: bool, needs_params: bool) -> tuple[Tensor, Tensor]:
    return (torch.empty_like(x) if needs_x else x.new_empty(0)), (
        torch.empty_like(params) if needs_params else params.new_empty(0)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.number = inputs[2]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, params = ctx.saved_tensors
    needs_x, needs_params = ctx.needs_input_grad[:2]
    needs_x = needs_x and x.dtype.is_floating_point
    to_x, to_params = _backward(x, params, grad, ctx.number, needs_x, needs_params)
    return (to_x if needs_x else None), (to_params if needs_params else None), None, None


_forward.register_autograd(_gradients, setup_context=_keep)
