"""Reference of a training step on points: the composition of the small references; its gradients are autograd's."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hashfield.kernels.reference.eval_points import eval_points
from hashfield.kernels.reference.train_rays import huber


def make_buffers(network: Any, max_points: int) -> None:
    """The reference keeps no buffers."""


def point_loss(output: Tensor, target: Tensor, loss: str, huber_delta: float) -> Tensor:
    """The loss of each output, see `hashfield.ops.train_points`."""
    d = output - target
    if loss == "l2":
        return d.square()
    if loss == "relative_l2":
        return d.square() / (output.detach().square() + 0.01)
    if loss == "l1":
        return d.abs()
    if loss == "mape":
        return d.abs() / (target.abs() + 0.01)
    return huber(d, huber_delta)


@torch.enable_grad()
def train_points(
    network: Any, positions_unit: Tensor, target: Tensor, workspace: Any, loss: str, huber_delta: float
) -> dict[str, Any]:
    """See `hashfield.ops.train_points`."""
    source = network.table if network.table_bf16 is None else network.table_bf16.to(network.table.dtype)
    table = source.detach().clone().requires_grad_()
    weights = tuple(w.detach().clone().requires_grad_() for w in network.weights)
    leaf = replace(network, table=table, table_bf16=None, weights=weights)
    output = eval_points(leaf, positions_unit)
    count = max(output.numel(), 1)
    total = point_loss(output, target, loss, huber_delta).sum() / count
    grads = torch.autograd.grad(total, (table, *weights), allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, (table, *weights), strict=True)]
    workspace.grad_table += grads[0]
    return {
        "loss": float(total.detach()), "squared_error": float((output - target).detach().square().sum() / count),
        "grad_weights": grads[1:], "stage_cycles": {},
    }  # fmt: skip
