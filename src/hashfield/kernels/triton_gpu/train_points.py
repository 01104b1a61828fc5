"""One training step of a grid-encoded network on GPUs, from positions to gradients, without a word to the host.

Three kernels. The grid's encodes level by level, so that one level's part of the table is what the cache holds. The
network's takes a tile through all layers, its loss and back: a point's target is at hand, so nothing is recomputed and
activations never leave the chip; a few persistent programs keep the matrices' gradients in registers. The grid's
scatter adds the features' cotangents to the table. What passes between, the features and their cotangents, is a tenth
of the table's own traffic.

Every buffer has a fixed size and the number of points lies on the device, so that a CUDA graph can hold the step. Only
the gradients are summed in an order that is not fixed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import as_type, count_of, dot_precision, launch, n_processors
from hashfield.kernels.triton_gpu.encoded_mlp import DeviceNetwork, device_network
from hashfield.kernels.triton_gpu.grid_encode import encode_into, scatter_features
from hashfield.kernels.triton_gpu.mlp import add_matrix, network, network_backward, no_gradient, unflat
from hashfield.kernels.triton_gpu.train_rays import loss_and_slope

N_STATS = 4
"""Numbers a step reports: loss, squared error, points, points."""
POINT_GRADIENT = 4.0
"""Loss scale: what the gradient of a single output's loss is multiplied by while it passes the layers. A squared error's
gradient is some units then, a relative error's some hundreds, and 1e-3 close to the end: all far from float16's ends."""


@triton.jit
def point_loss(output, wanted, huber_delta, LOSS: tl.constexpr):
    """(loss, its derivative to the output) of each output; see `hashfield.ops.train_points`."""
    d = output - wanted
    sign = tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0))
    if LOSS == "relative_l2":
        scale = 1.0 / (output * output + 0.01)
        loss, slope = d * d * scale, 2.0 * d * scale
    elif LOSS == "l1":
        loss, slope = tl.abs(d), sign
    elif LOSS == "mape":
        scale = 1.0 / (tl.abs(wanted) + 0.01)
        loss, slope = tl.abs(d) * scale, sign * scale
    else:
        loss, slope = loss_and_slope(d, huber_delta, LOSS == "huber")
    return loss, slope


@triton.jit
def _network_step(
    features, target, n_live, weights, grad_features, grad_weights, sums, huber_delta, scale, unscale,
    LOSS: tl.constexpr, WIDTHS: tl.constexpr, PADS: tl.constexpr, OFFSETS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # scale multiplies the loss while its gradient passes the layers, unscale what comes of it.
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        DTYPE: tl.constexpr = weights.dtype.element_ty
        totals = ()
        for i in tl.static_range(DEPTH):
            totals = totals + (no_gradient(PADS[i + 1], PADS[i]),)
        total, error = 0.0, 0.0
        # Hoisting out of the loop is off: the compiler would compute every matrix's addresses before it and keep
        # them in registers, which then spill.
        for tile in tl.range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0), disable_licm=True):
            rows = (tile * BLOCK + tl.arange(0, BLOCK))[:, None]
            columns = tl.arange(0, PADS[0])[None, :]
            inside = (rows < n) & (columns < WIDTHS[0])
            first = tl.load(features + rows * WIDTHS[0] + columns, inside, other=0.0)
            inputs, y = network(first, weights, WIDTHS, PADS, OFFSETS, DEPTH, "none", PRECISION)
            ends = tl.arange(0, PADS[DEPTH])[None, :]
            wanted_here = (rows < n) & (ends < WIDTHS[DEPTH])
            wanted = tl.load(target + rows * WIDTHS[DEPTH] + ends, wanted_here, other=0.0)
            loss, slope = point_loss(y, wanted, huber_delta, LOSS)
            total += tl.sum(tl.sum(tl.where(wanted_here, loss, 0.0), axis=1), axis=0)
            error += tl.sum(tl.sum(tl.where(wanted_here, (y - wanted) * (y - wanted), 0.0), axis=1), axis=0)
            g = as_type(tl.where(wanted_here, slope * scale, 0.0), DTYPE)
            totals, back = network_backward(inputs, g, weights, totals, WIDTHS, PADS, OFFSETS, DEPTH, True, PRECISION)
            back = as_type(back * unscale, grad_features.dtype.element_ty)
            tl.store(grad_features + rows * WIDTHS[0] + columns, back, inside)
        tl.store(sums + tl.program_id(0), total)
        tl.store(sums + tl.num_programs(0) + tl.program_id(0), error)
        for i in tl.static_range(DEPTH):
            gradient = totals[i] * unscale
            if PADS[i + 1] < PADS[i]:
                gradient = tl.trans(gradient)
            add_matrix(grad_weights + OFFSETS[i], gradient, WIDTHS[i + 1], WIDTHS[i], PADS[i + 1], PADS[i], WIDTHS[i])


# --- entry points ------------------------------------------------------------------------------------------


class Buffers:
    """What a step needs beside the parameters: of fixed sizes, so that a graph can hold it."""

    def __init__(self, net: DeviceNetwork, max_points: int, cotangents: torch.dtype) -> None:
        """Args:
        net: The network, for its sizes.
        max_points: Points that a step has room for.
        cotangents: Type in which the features' cotangents go to the table.
        """
        weights, width = net.weights, net.layout.n_output
        device = weights.device
        block, _ = net.tile(backward=True)
        # As many programs as fit on the card at once, by their registers.
        self.n_programs = min(triton.cdiv(max_points, block), 2 * n_processors(device))
        self.features = torch.zeros((max_points, width), dtype=weights.dtype, device=device)
        self.grad_features = torch.zeros((max_points, width), dtype=cotangents, device=device)
        self.grad_weights = torch.zeros(weights.shape, device=device)
        self.sums = torch.zeros((2, self.n_programs), device=device)
        self.stats = torch.zeros(N_STATS, device=device)


def enqueue(
    net: DeviceNetwork, positions: Tensor, target: Tensor, n_live: Tensor, buffers: Buffers, grad_table: Tensor, *,
    loss: str, huber_delta: float, unscale: float,
) -> None:  # fmt: skip
    """Launch a whole step up to its gradients; nothing is waited for.

    Args:
        net: The numbers.
        positions: [n, D], float32 or int32 in fixed point.
        target: float32 [n, C].
        n_live: int32 [1] on the device: n.
        buffers: Room; results are stats, of which points are the caller's, and grad_weights.
        grad_table: Added to.
        loss, huber_delta: As `train_points` has them.
        unscale: Gradients are those of the sum over all outputs, times POINT_GRADIENT, times this.
    """
    b, n = buffers, positions.shape[0]
    precision = "bfloat16" if net.is_rounded else "float32"
    encode_into(b.features, positions, n_live, net.table, net.layout, net.interpolation, precision)
    b.sums.zero_()
    b.grad_weights.zero_()
    block, warps = net.tile(backward=True)
    if n:
        launch(
            _network_step, (b.n_programs,), b.features, target, n_live, net.weights, b.grad_features, b.grad_weights,
            b.sums, huber_delta, POINT_GRADIENT, unscale, LOSS=loss, **net.shape,
            PRECISION=dot_precision(net.weights.dtype), BLOCK=block, num_warps=warps,
        )  # fmt: skip
    scatter_features(positions, n_live, b.grad_features, grad_table, net.layout, net.interpolation)
    torch.sum(b.sums, 1, out=b.stats[:2])
    b.stats[:2].mul_(1.0 / max(target.numel(), 1))


def make_buffers(network: Any, max_points: int) -> Buffers:
    """Buffers for one network."""
    return Buffers(device_network(network), max_points, torch.float32)


def train_points(
    network: Any, positions_unit: Tensor, target: Tensor, workspace: Any, loss: str, huber_delta: float
) -> dict[str, Any]:
    """See `hashfield.ops.train_points`; adds to workspace.grad_table. Waits for the result."""
    buffers: Buffers = workspace.buffers
    n_live = count_of(positions_unit.shape[0], positions_unit.device)
    enqueue(
        device_network(network), positions_unit.contiguous(), target.contiguous(), n_live, buffers,
        workspace.grad_table, loss=loss, huber_delta=huber_delta,
        unscale=1.0 / (POINT_GRADIENT * max(target.numel(), 1)),
    )  # fmt: skip
    total, error, *_ = buffers.stats.tolist()
    grads = [g.clone() for g in unflat(buffers.grad_weights, network.weights)]
    return {"loss": total, "squared_error": error, "grad_weights": grads, "stage_cycles": {}}
