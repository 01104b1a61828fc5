"""Gradients of fast ops that can be differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], cotangent: Tensor
) -> list[Tensor | None]:
    """Gradients of a differentiable function, themselves differentiable in its inputs and in the cotangent.

    An op with kernels calls this from its backward pass where autograd asks for a graph (`create_graph=True`); the
    function is its reference, which is computed again.

    Args:
        function: Takes the inputs.
        inputs: Tensors as `save_for_backward` returned them, so that they know where they come from.
        needed: Whether the gradient of each input is wanted.
        cotangent: Gradient of the loss with regard to the function's output.

    Returns:
        A gradient for each input that needs one, else None.
    """
    with torch.enable_grad():
        # Each under a name of its own: one input may be a function of another, and only the direct share is asked for.
        own = [
            (x if x.requires_grad else x.detach().requires_grad_()).view_as(x) if want else x
            for x, want in zip(inputs, needed, strict=True)
        ]
        wanted = [x for x, want in zip(own, needed, strict=True) if want]
        if not wanted:
            return [None] * len(own)
        found = iter(torch.autograd.grad(function(*own), wanted, cotangent, create_graph=True, materialize_grads=True))
    return [next(found) if want else None for want in needed]


def wanted_gradients(ctx: Any) -> tuple[bool, ...]:
    """For each input of an `autograd.Function`, whether this very backward pass uses its gradient.

    `ctx.needs_input_grad` says what could be asked for; a call such as `torch.autograd.grad(density, positions)` asks
    for less, and a pass over a large table that nobody reads costs as much as the rest.
    """
    # Only tensors that require a gradient have a node, in the order of the inputs.
    nodes = iter([node for node, _ in ctx.next_functions if node is not None])
    return tuple(bool(needed and _is_executed(next(nodes))) for needed in ctx.needs_input_grad)


def _is_executed(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)  # as torch's own hooks on several gradients ask
    except (AttributeError, RuntimeError):  # another version of torch; or a leaf, of which the engine does not tell
        return True
