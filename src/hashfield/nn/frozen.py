"""A module as it is now, for looking only."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def frozen_view(module: _Module) -> _Module:
    """A module whose parameters are those of `module`, in the same memory, but ask for no gradient.

    What trains `module` goes on undisturbed, and the view shows every change of its numbers. Moving the view to another
    device leaves `module` where it is.
    """
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in module.parameters()
    }
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, shared)


def with_buffers(module: _Module, **buffers: Tensor) -> _Module:
    """A module like `module`, which stays as it is, with some of its buffers replaced and all else shared.

    Args:
        module: What is copied, itself only: parts and parameters are the same objects.
        buffers: New tensors, by the names of buffers that `module` has.
    """
    other = copy.copy(module)
    other._buffers = {**module._buffers, **buffers}
    return other
