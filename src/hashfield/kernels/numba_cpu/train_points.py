"""One training step of a grid-encoded network on CPUs, from positions to gradients.

In the first kernel each thread takes its share of the points, chunk by chunk: encode, then block by block forward,
loss and backward while a block's activations are in the cache. What crosses to the second kernel is the gradient of the
features; there every level of the table is added to by one thread. Nothing depends on timing: same seed, same threads,
same bits.
"""

import numpy as np

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
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
    task_at,
)
from hashfield.kernels.numba_cpu.eval_points import chunk_length, hidden_room, network_block, pack_network
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import add_level, encode_range
from hashfield.kernels.numba_cpu.grid_inputs import level_table, lookup_table, to_planes
from hashfield.kernels.numba_cpu.mlp import ROWS, product_gate, product_store, put, storage, weight_gradient
from hashfield.kernels.numba_cpu.simd import FEATURES, cycles, peek, poke
from hashfield.kernels.numba_cpu.train_rays import loss_and_slope

S_LOSS, S_ERROR = range(2)  # sums that each thread reports; time stamps per stage follow them
STAGES = ("encode", "network", "table gradient")
S_STAGES = 2
LOSSES = {"l2": 0, "relative_l2": 1, "l1": 2, "mape": 3, "huber": 4}
load2, _, _, store2 = FEATURES[2]
load4, _, _, store4 = FEATURES[4]


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
def loss_block(out, out_row, target, first, n, n_outputs, kind, huber_delta, scale, sums):
    """Replace n rows of outputs by the gradient of the loss to them; the padding is zero already, as its weights are."""
    total, error = 0.0, 0.0
    for s in range(n):
        for c in range(n_outputs):
            output, wanted = peek(out, s * out_row + c), peek(target, (first + s) * n_outputs + c)
            loss, slope = point_loss(kind, output, wanted, huber_delta)
            total += loss
            error += (output - wanted) * (output - wanted)
            poke(out, s * out_row + c, slope * scale)
    sums[S_LOSS] += total
    sums[S_ERROR] += error


@part
def backward_block(features, at, n, net, acts, out, grad, other, g_features, grad_pairs, x_pairs, own):
    """Backward pass of n samples from the outputs' gradient `out`: adds to the matrices' gradients `own` and leaves
    that of the features in g_features [n, row]."""
    w, w_starts, own_starts, act_starts, dims, padded = net[0], net[2], net[4], net[5], net[6], net[7]
    p, last = paired(features), dims.size - 2
    put(out, 0, grad, 0, n * padded[last + 1])
    k = last
    while k > 0:
        h = act_starts[k - 1]
        weight_gradient(
            grad, 0, padded[k + 1], acts, h, padded[k], own, own_starts[k], dims[k + 1], n, grad_pairs, x_pairs
        )
        product_gate(
            grad, 0, padded[k + 1], p, w, w_starts[k], p * padded[k],
            other, 0, padded[k], n, padded[k], (dims[k + 1] + p - 1) // p, acts, h,
        )  # fmt: skip
        grad, other = other, grad
        k -= 1
    weight_gradient(
        grad, 0, padded[1], features, at, padded[0], own, own_starts[0], dims[1], n, grad_pairs, x_pairs
    )
    product_store(
        grad, 0, padded[1], p, w, w_starts[0], p * padded[0],
        g_features, 0, padded[0], n, padded[0], (dims[1] + p - 1) // p, own, 0,
    )  # fmt: skip


@kernel
def _train(
    planes, n_dims, n, target, table, n_features, levels, scales, smoothstep, net, kind, huber_delta, scale, work,
    own_weights, d_features, d_stride, sums, thread, threads,
):  # fmt: skip
    """Encode, evaluate and differentiate; the gradient of the features goes to d_features [level, point, feature]."""
    features, acts, out, grad, other, g_features, grad_pairs, x_pairs, index, weight = work
    features, acts, out, grad, other = features[thread], acts[thread], out[thread], grad[thread], other[thread]
    g_features, grad_pairs, x_pairs = g_features[thread], grad_pairs[thread], x_pairs[thread]
    index, weight, own, own_sums = index[thread], weight[thread], own_weights[thread], sums[thread]
    stride, n_levels = planes.size // n_dims, scales.size
    dims, padded = net[6], net[7]
    row, n_outputs, out_row = padded[0], dims[dims.size - 1], padded[dims.size - 1]
    chunk = features.size // row
    mode = flush_denormals()
    begin_tiles()
    own[:] = np.float32(0.0)
    own_sums[:] = 0.0
    last = share(n, thread + 1, threads)
    for first in range(share(n, thread, threads), last, chunk):
        end = min(last, first + chunk)
        clock0 = cycles()
        encode_range(
            planes, n_dims, stride, first, end, table, n_features, levels, scales, smoothstep, features, row, index,
            weight,
        )  # fmt: skip
        clock1 = cycles()
        for begin in range(first, end, ROWS):
            rows, at = min(ROWS, end - begin), (begin - first) * row
            network_block(features, at, rows, net, acts, out)
            loss_block(out, out_row, target, begin, rows, n_outputs, kind, huber_delta, scale, own_sums)
            backward_block(features, at, rows, net, acts, out, grad, other, g_features, grad_pairs, x_pairs, own)
            for level in range(n_levels):
                to, come = (level * d_stride + begin) * n_features, level * n_features
                if n_features == 4:
                    for s in range(rows):
                        store4(d_features, to + 4 * s, load4(g_features, s * row + come))
                elif n_features == 2:
                    for s in range(rows):
                        store2(d_features, to + 2 * s, load2(g_features, s * row + come))
                else:
                    for s in range(rows):
                        for f in range(n_features):
                            poke(d_features, to + s * n_features + f, peek(g_features, s * row + come + f))
        own_sums[S_STAGES] += clock1 - clock0
        own_sums[S_STAGES + 1] += cycles() - clock1
    end_tiles()
    restore_denormals(mode)


@kernel
def _add_table_gradient(
    planes, n_dims, n, d_features, d_stride, grad, n_features, levels, scales, smoothstep, index, weight, parts, sums,
    thread, threads,
):  # fmt: skip
    """Add every point's feature gradient to the table's; each level (or part of one) has one writer."""
    stride, n_levels = planes.size // n_dims, scales.size
    mode = flush_denormals()
    clock = cycles()
    n_tasks = n_levels * parts
    for turn in range((n_tasks + threads - 1) // threads):
        task = task_at(turn, n_tasks, thread, threads)
        if task < 0:
            break
        level, piece = task % n_levels, task // n_levels
        size = levels[level, 1]
        low, high = share(size, piece, parts), share(size, piece + 1, parts)
        if parts == 1:
            high = -1  # the whole level: nothing to compare
        add_level(
            planes, n_dims, stride, 0, n, grad, n_features, levels, scales, smoothstep, level, low, high,
            d_features, level * d_stride * n_features, n_features, index[thread], weight[thread],
        )  # fmt: skip
    sums[thread, S_STAGES + 2] += cycles() - clock
    restore_denormals(mode)


class Buffers:
    """Buffers of the training kernels, kept from step to step so that no step pays for fresh pages."""

    def __init__(self, network, max_points: int, threads: int):
        self.threads = threads
        net, packed = pack_network(network.weights, network.precision)
        padded, kind = [int(width) for width in net[7]], storage(network.precision)
        chunk = chunk_length(lookup_table(network), -(-max_points // threads))
        widest, slots = max(padded[1:]), (2 * BLOCK) << network.layout.n_dims

        def floats(*shape):
            return np.zeros((threads, *shape), np.float32)

        def stored(*shape):
            return np.zeros((threads, *shape), kind)

        self.work = (
            stored(chunk * padded[0]), stored(hidden_room(net)), floats(ROWS * padded[-1]), stored(ROWS * widest),
            stored(ROWS * widest), floats(ROWS * padded[0]), np.zeros((threads, ROWS * widest), np.uint16),
            np.zeros((threads, ROWS * max(padded)), np.uint16), np.zeros((threads, slots), np.uint32), floats(slots),
        )  # fmt: skip
        self.own = floats(packed.n_values)
        self.d_stride = round_up(max_points, BLOCK)
        self.d_features = np.zeros(network.layout.n_output * self.d_stride, np.float32)
        self.sums = np.zeros((threads, S_STAGES + len(STAGES)))


def make_buffers(network, max_points: int) -> Buffers:
    """Buffers for one network and the present number of threads."""
    return Buffers(network, max_points, n_threads())


def train_points(network, positions_unit, target, workspace, loss: str, huber_delta: float) -> dict:
    """See `hashfield.ops.train_points`; adds to workspace.grad_table."""
    buffers: Buffers = workspace.buffers
    layout, threads, n = network.layout, buffers.threads, positions_unit.shape[0]
    net, packed = pack_network(network.weights, network.precision)
    planes, levels = to_planes(as_array(positions_unit)), level_table(layout)
    smoothstep, n_values = network.interpolation == "smoothstep", max(n * network.n_outputs, 1)
    index, weight = buffers.work[-2:]
    launch(
        _train, planes, layout.n_dims, n, as_array(target.contiguous()).reshape(-1), lookup_table(network),
        layout.n_features_per_level, levels, layout.scales, smoothstep, net, LOSSES[loss], np.float32(huber_delta),
        np.float32(1.0 / n_values), buffers.work, buffers.own, buffers.d_features, buffers.d_stride, buffers.sums,
        threads=threads,
    )  # fmt: skip
    launch(
        _add_table_gradient, planes, layout.n_dims, n, buffers.d_features, buffers.d_stride,
        as_array(workspace.grad_table).reshape(-1), layout.n_features_per_level, levels, layout.scales, smoothstep,
        index, weight, -(-threads // layout.n_levels), buffers.sums,
        threads=threads,
    )  # fmt: skip
    sums = buffers.sums.sum(axis=0)
    return {
        "loss": float(sums[S_LOSS] / n_values), "squared_error": float(sums[S_ERROR] / n_values),
        "grad_weights": packed.unpack(buffers.own.sum(axis=0)),
        "stage_cycles": dict(zip(STAGES, map(float, sums[S_STAGES:]), strict=True)),
    }  # fmt: skip
