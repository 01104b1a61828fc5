"""One training step of a grid-encoded network: points in, loss and gradients out, fused."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, at_least, one_of
from hashfield.ops.eval_points import UNFUSED_POINTS, EncodedNetwork, Positions, check_positions

PointLoss = Literal["l2", "relative_l2", "l1", "mape", "huber"]
LOSSES: tuple[PointLoss, ...] = ("l2", "relative_l2", "l1", "mape", "huber")


@dataclass
class TrainPointsResult:
    """What one step found."""

    loss: float
    """Mean over points and outputs."""
    squared_error: float
    """Mean over points and outputs of the squared difference, for a PSNR."""
    grad_weights: list[Tensor]
    """Like network.weights."""
    stage_cycles: dict[str, float]
    """Processor time per stage, summed over threads, where the backend measures it."""


class PointsWorkspace:
    """Buffers of `train_points`, kept from step to step; `grad_table` is added to and the optimiser clears it."""

    def __init__(self, network: EncodedNetwork, max_points: int, backend: Backend | None = None):
        """Make room for batches of up to `max_points`.

        Raises:
            ShapeError: the network's shapes do not fit each other.
            BackendError: the backend asked for cannot train it.
        """
        network.check("PointsWorkspace")
        at_least("PointsWorkspace", "max_points", max_points, 1)
        self.max_points = max_points
        self.made_for = _signature(network)
        self.grad_table = torch.zeros_like(network.table, memory_format=torch.contiguous_format)
        self.backend: Backend = "reference"
        self.buffers: Any = None
        if network.is_fused:
            choice = choose("train_points", backend, network.table, limit=network.limit)
            self.backend = choice.name
            self.buffers = choice.kernels.make_buffers(network, max_points)


def _signature(network: EncodedNetwork) -> tuple[Any, ...]:
    """What the buffers' sizes and types depend on."""
    return network.precision, tuple(tuple(w.shape) for w in (network.table, *network.weights))


@torch.no_grad()
def train_points(
    network: EncodedNetwork,
    positions_unit: Positions,
    target: Float[Tensor, "n n_outputs"],
    workspace: PointsWorkspace,
    *,
    loss: PointLoss = "l2",
    huber_delta: float = 0.1,
) -> TrainPointsResult:
    """Loss of a batch of points and its gradients; the table's gradient is added to workspace.grad_table.

    With d = output - target, the loss of one output is
        l2            d^2                                    images
        relative_l2   d^2 / (output^2 + 0.01)                high dynamic range; noisy targets keep their mean
        l1            |d|
        mape          |d| / (|target| + 0.01)                signed distances
        huber         instant-ngp's: a fifth of Huber's, d^2 / (2 delta) or, beyond delta, |d| - delta / 2
    Denominators are not differentiated. The loss is the mean over points and outputs.

    Args:
        network: What is trained; not changed.
        positions_unit: As for `eval_points`.
        target: What the network should answer.
        workspace: Made for this network, with room for the batch; also fixes the backend.
        loss: Which of the above.
        huber_delta: Where the Huber loss turns straight.

    Raises:
        ShapeError: an argument has the wrong shape or dtype, or the batch is larger than the workspace.

    Source: tiny-cuda-nn include/tiny-cuda-nn/losses/*.h for the losses and their means.
    """
    network.check("train_points")
    check_positions("train_points", network, positions_unit)
    one_of("train_points", "loss", loss, LOSSES)
    at_least("train_points", "huber_delta", huber_delta, 0.0, strictly=True)
    n = positions_unit.shape[0]
    check = Checker("train_points")
    check("table", network.table, ("n_entries", "n_features"))
    check("target", target, (n, network.n_outputs))
    if workspace.made_for != _signature(network):
        raise ShapeError("train_points: workspace: was made for a network of other sizes or another precision")
    if n > workspace.max_points:
        raise ShapeError(f"train_points: positions_unit: expected at most {workspace.max_points} points, got {n}")
    if not network.is_fused:
        return _train_unfused(network, positions_unit, target, loss, float(huber_delta))
    choice = choose(
        "train_points", workspace.backend, network.table, positions_unit, target, limit=network.limit
    )
    found = choice.kernels.train_points(network, positions_unit, target, workspace, loss, float(huber_delta))
    return TrainPointsResult(**found)


@torch.enable_grad()
def _train_unfused(
    network: EncodedNetwork, positions_unit: Positions, target: Tensor, loss: PointLoss, huber_delta: float
) -> TrainPointsResult:
    """A step by the small ops, part by part; its gradients are autograd's."""
    kernels = choose("train_points", "reference", network.table).kernels
    leaves = [w.detach().requires_grad_() for w in network.weights]
    leaf = replace(network, weights=tuple(leaves))
    grads, total, error = [torch.zeros_like(w) for w in leaves], 0.0, 0.0
    count = max(target.numel(), 1)
    for positions, wanted in zip(positions_unit.split(UNFUSED_POINTS), target.split(UNFUSED_POINTS), strict=True):
        output = leaf.unfused(positions)
        part = kernels.point_loss(output, wanted, loss, huber_delta).sum() / count
        for grad, found in zip(grads, torch.autograd.grad(part, leaves), strict=True):
            grad += found
        total += float(part.detach())
        error += float((output - wanted).detach().square().sum()) / count
    return TrainPointsResult(total, error, grads, {})
