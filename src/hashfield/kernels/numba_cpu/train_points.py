"""One training step of a grid-encoded network on CPUs, from positions to gradients.

In the first kernel each thread takes its share of the points, chunk by chunk: encode, then block by block forward,
loss and backward while a block's activations are in the cache. What crosses to the second kernel is the gradient of the
features; there every level of the table is added to by one thread. Nothing depends on timing: same seed, same threads,
same bits.
"""

from typing import Any, NamedTuple

import numpy as np

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    PerThread,
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    paired,
    part,
    restore_denormals,
    round_up,
    share,
)
from hashfield.kernels.numba_cpu.encoders import encode_range, encoder_scratch
from hashfield.kernels.numba_cpu.eval_points import (
    Activations,
    activations,
    chunk_length,
    network_block,
    pack_network,
)
from hashfield.kernels.numba_cpu.gradients import Gradients, by_level
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import network_encoder
from hashfield.kernels.numba_cpu.grid_inputs import lookup_table, to_planes
from hashfield.kernels.numba_cpu.mlp import ROWS, product_gate, product_store, put, storage, weight_gradient
from hashfield.kernels.numba_cpu.ray_loss import loss_and_slope
from hashfield.kernels.numba_cpu.simd import cycles, peek, poke

S_LOSS, S_ERROR = range(2)  # sums that each thread reports; time stamps per stage follow them
STAGES = ("encode", "network", "table gradient")
S_STAGES = 2
LOSSES = {"l2": 0, "relative_l2": 1, "l1": 2, "mape": 3, "huber": 4}


class Loss(NamedTuple):
    """Which loss, and its numbers."""

    kind: int
    """See LOSSES."""
    huber_delta: np.float32
    scale: np.float32
    """Factor of the gradients: one over the number of outputs of all points."""


class Backward(NamedTuple):
    """Memory of the backward pass of one block."""

    grad: Any
    """[ROWS, widest]: gradient to a layer's outputs."""
    other: Any
    """[ROWS, widest]: to its inputs, which are the outputs of the layer before."""
    g_features: Any
    """[ROWS, inputs]"""
    grad_pairs: Any
    """See `mlp.weight_gradient`."""
    x_pairs: Any


class Own(NamedTuple):
    """What one thread works in, and what it leaves behind."""

    activations: Activations
    backward: Backward
    weights: Any
    """Gradients of the matrices, as they are packed."""
    sums: Any
    """See S_LOSS."""


@inline
def point_loss(kind, output, wanted, huber_delta):
    """(loss, its derivative to the output) of one output; see `hashfield.ops.train_points`."""
    d, small, zero = output - wanted, np.float32(0.01), np.float32(0.0)
    if kind == 0:
        return d * d, np.float32(2.0) * d
    if kind == 4:
        return loss_and_slope(d, huber_delta)
    size, sign = abs(d), np.float32(d > zero) - np.float32(d < zero)
    if kind == 1:
        scale = np.float32(1.0) / (output * output + small)
        return d * d * scale, np.float32(2.0) * d * scale
    if kind == 2:
        return size, sign
    scale = np.float32(1.0) / (abs(wanted) + small)
    return size * scale, sign * scale


@part
def loss_block(out, out_row, target, first, n, n_outputs, loss, sums):
    """Replace n rows of outputs by the gradient of the loss to them; the padding is zero already, as its weights are."""
    total, error = 0.0, 0.0
    for s in range(n):
        for c in range(n_outputs):
            output, wanted = peek(out, s * out_row + c), peek(target, (first + s) * n_outputs + c)
            value, slope = point_loss(loss.kind, output, wanted, loss.huber_delta)
            total += value
            error += (output - wanted) * (output - wanted)
            poke(out, s * out_row + c, slope * loss.scale)
    sums[S_LOSS] += total
    sums[S_ERROR] += error


@part
def backward_block(features, at, n, net, hidden, out, backward, own):
    """Backward pass of n samples from the outputs' gradient `out`: adds to the matrices' gradients `own` and leaves
    that of the features in backward.g_features [n, row]."""
    w, w_starts, own_starts, act_starts = net.w, net.w_starts, net.grad_starts, net.act_starts
    dims, padded, grad, other = net.dims, net.padded, backward.grad, backward.other
    grad_pairs, x_pairs = backward.grad_pairs, backward.x_pairs
    p, last = paired(features), dims.size - 2
    put(out, 0, grad, 0, n * padded[last + 1])
    k = last
    while k > 0:
        h = act_starts[k - 1]
        weight_gradient(
            grad, 0, padded[k + 1], hidden, h, padded[k], own, own_starts[k], dims[k + 1], n, grad_pairs, x_pairs
        )
        product_gate(
            grad, 0, padded[k + 1], p, w, w_starts[k], p * padded[k],
            other, 0, padded[k], n, padded[k], (dims[k + 1] + p - 1) // p, hidden, h,
        )  # fmt: skip
        grad, other = other, grad
        k -= 1
    weight_gradient(
        grad, 0, padded[1], features, at, padded[0], own, own_starts[0], dims[1], n, grad_pairs, x_pairs
    )
    product_store(
        grad, 0, padded[1], p, w, w_starts[0], p * padded[0],
        backward.g_features, 0, padded[0], n, padded[0], (dims[1] + p - 1) // p, own, 0,
    )  # fmt: skip


@kernel
def _train(planes, n, target, encoder, net, loss, own, d_features, thread, threads):
    """Encode, evaluate and differentiate; the gradient of the features goes to d_features [level, point, feature]."""
    features, hidden, out = own.activations.features, own.activations.hidden, own.activations.out
    dims, padded, sums = net.dims, net.padded, own.sums
    row, n_outputs, out_row = padded[0], dims[dims.size - 1], padded[dims.size - 1]
    chunk = features.size // row
    mode = flush_denormals()
    begin_tiles()
    scratch = encoder_scratch(encoder)
    own.weights[:] = np.float32(0.0)
    sums[:] = 0.0
    last = share(n, thread + 1, threads)
    for first in range(share(n, thread, threads), last, chunk):
        end = min(last, first + chunk)
        clock0 = cycles()
        encode_range(encoder, planes, first, end, features, row, scratch)
        clock1 = cycles()
        for begin in range(first, end, ROWS):
            rows, at = min(ROWS, end - begin), (begin - first) * row
            network_block(features, at, rows, net, hidden, out)
            loss_block(out, out_row, target, begin, rows, n_outputs, loss, sums)
            backward_block(features, at, rows, net, hidden, out, own.backward, own.weights)
            by_level(own.backward.g_features, row, rows, encoder, d_features, begin)
        sums[S_STAGES] += clock1 - clock0
        sums[S_STAGES + 1] += cycles() - clock1
    end_tiles()
    restore_denormals(mode)


class Buffers:
    """Buffers of the training kernels, kept from step to step so that no step pays for fresh pages."""

    def __init__(self, network, max_points: int, threads: int):
        """Make room for batches of up to `max_points`."""
        self.threads = threads
        net, packed = pack_network(network)
        widest, longest = int(net.padded[1:].max()), int(net.padded.max())
        chunk = chunk_length(lookup_table(network), -(-max_points // threads))
        kind = storage(network.precision)
        capacity = round_up(max_points, BLOCK)
        self.gradients = Gradients(threads, packed.n_values, network.layout.n_output, 1, capacity)
        self.sums = np.zeros((threads, S_STAGES + len(STAGES)))

        def backward() -> Backward:
            return Backward(
                np.zeros(ROWS * widest, kind), np.zeros(ROWS * widest, kind),
                np.zeros(ROWS * int(net.padded[0]), np.float32), np.zeros(ROWS * widest, np.uint16),
                np.zeros(ROWS * longest, np.uint16),
            )  # fmt: skip

        self.own = PerThread(
            Own(activations(net, chunk, network.precision), backward(), weights, sums)
            for weights, sums in zip(self.gradients.weights, self.sums, strict=True)
        )


def make_buffers(network, max_points: int) -> Buffers:
    """Buffers for one network and the present number of threads."""
    return Buffers(network, max_points, n_threads())


def train_points(network, positions_unit, target, workspace, loss: str, huber_delta: float) -> dict:
    """See `hashfield.ops.train_points`; adds to workspace.grad_table."""
    buffers: Buffers = workspace.buffers
    n, gradients = positions_unit.shape[0], buffers.gradients
    net, packed = pack_network(network)
    encoder, planes = network_encoder(network), to_planes(positions_unit)
    n_values = max(n * network.n_outputs, 1)
    launch(
        _train, planes, n, as_array(target.contiguous()).reshape(-1), encoder, net,
        Loss(LOSSES[loss], np.float32(huber_delta), np.float32(1.0 / n_values)), buffers.own, gradients.features[0],
        threads=buffers.threads,
    )  # fmt: skip
    gradients.counts[0] = n
    gradients.add_to_table(encoder, planes[None], workspace.grad_table, buffers.sums)
    sums = buffers.sums.sum(axis=0)
    return {
        "loss": float(sums[S_LOSS] / n_values), "squared_error": float(sums[S_ERROR] / n_values),
        "grad_weights": packed.unpack(gradients.weights.sum(axis=0)),
        "stage_cycles": dict(zip(STAGES, map(float, sums[S_STAGES:]), strict=True)),
    }  # fmt: skip
