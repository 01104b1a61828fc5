"""A grid-encoded network on CPUs: encode a chunk of points level by level, then the network block by block.

Shared by training (`train_points`). A level of a large table stays in cache only while many points read it in turn, so
chunks are long there; a small table stays anyway, and short chunks keep the features in cache.
"""

import numpy as np
import torch

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    kernel,
    launch,
    paired,
    part,
    restore_denormals,
    round_up,
    share,
)
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import encode_range
from hashfield.kernels.numba_cpu.grid_inputs import level_table, lookup_table, to_planes
from hashfield.kernels.numba_cpu.mlp import ROWS, PackedPairs, PackedWeights, product_relu, product_store, storage
from hashfield.kernels.numba_cpu.simd import peek, poke

LARGE_TABLE = 8 << 20  # bytes from which chunks are long


@part
def network_block(features, at, n, net, acts, out):
    """The network on n <= ROWS samples, whose features begin at `at`: hidden layers to acts, one after the other, and
    the float32 outputs to out [n, padded outputs]."""
    wt, wt_starts, act_starts, dims, padded = net[1], net[3], net[5], net[6], net[7]
    p, last = paired(features), dims.size - 2
    source, start = features, at
    for k in range(last):
        product_relu(
            source, start, padded[k], p, wt, wt_starts[k], p * padded[k + 1],
            acts, act_starts[k], padded[k + 1], n, padded[k + 1], (dims[k] + p - 1) // p, acts, 0,
        )  # fmt: skip
        source, start = acts, act_starts[k]
    product_store(
        source, start, padded[last], p, wt, wt_starts[last], p * padded[last + 1],
        out, 0, padded[last + 1], n, padded[last + 1], (dims[last] + p - 1) // p, acts, 0,
    )  # fmt: skip


@kernel
def _eval(
    planes, n_dims, n, table, n_features, levels, scales, smoothstep, net, features, acts, out, found, index, weight,
    thread, threads,
):  # fmt: skip
    stride = planes.size // n_dims
    dims, padded = net[6], net[7]
    n_outputs, out_row, row = dims[dims.size - 1], padded[dims.size - 1], padded[0]
    own_features, own_acts, own_out = features[thread], acts[thread], out[thread]
    chunk = own_features.size // row
    mode = flush_denormals()
    begin_tiles()
    last = share(n, thread + 1, threads)
    for first in range(share(n, thread, threads), last, chunk):
        end = min(last, first + chunk)
        encode_range(
            planes, n_dims, stride, first, end, table, n_features, levels, scales, smoothstep, own_features, row,
            index[thread], weight[thread],
        )  # fmt: skip
        for begin in range(first, end, ROWS):
            rows = min(ROWS, end - begin)
            network_block(own_features, (begin - first) * row, rows, net, own_acts, own_out)
            for s in range(rows):
                for c in range(n_outputs):
                    poke(found, (begin + s) * n_outputs + c, peek(own_out, s * out_row + c))
    end_tiles()
    restore_denormals(mode)


def pack_network(weights, precision: str) -> tuple[tuple, PackedWeights]:
    """The matrices as the kernels read them, and the float32 packing by which their gradients are laid out.

    The tuple: matrices, transposed matrices (flat; in pairs for bfloat16), where each begins, where each one's gradient
    begins, where each hidden layer's activations begin, widths of all layers, and those padded.
    """
    packed = PackedWeights(weights)
    if precision == "bfloat16":
        pairs = PackedPairs(weights)
        sides = [(np.concatenate(side), np.cumsum([0, *(a.size for a in side[:-1])])) for side in (pairs.w, pairs.wt)]
    else:
        sides = [(packed.w, packed.w_starts), (packed.wt, packed.wt_starts)]
    (w, w_starts), (wt, wt_starts) = sides
    act_starts = np.cumsum(np.concatenate([[0], ROWS * packed.padded[1:-1]]))
    starts = (np.ascontiguousarray(a, np.int64) for a in (w_starts, wt_starts, packed.w_starts, act_starts))
    return (w, wt, *starts, packed.dims, packed.padded), packed


def chunk_length(table: np.ndarray, n_points: int) -> int:
    """Points that a thread encodes before it asks the network, a multiple of ROWS."""
    return round_up(max(1, min(n_points, 65536 if table.nbytes > LARGE_TABLE else 2048)), ROWS)


def hidden_room(net: tuple) -> int:
    """Values that one block's hidden layers take; at least one, so that there is an array."""
    return max(1, int(ROWS * net[7][1:-1].sum()))


def eval_points(network, positions_unit):
    """Outputs [n, C]; see `hashfield.ops.eval_points`."""
    n, layout, threads = positions_unit.shape[0], network.layout, torch.get_num_threads()
    found = torch.empty((n, network.n_outputs), dtype=torch.float32)
    if n == 0:
        return found
    net, _ = pack_network(network.weights, network.precision)
    table, kind = lookup_table(network), storage(network.precision)
    chunk, row, slots = chunk_length(table, -(-n // threads)), int(net[7][0]), (2 * BLOCK) << layout.n_dims
    launch(
        _eval, to_planes(as_array(positions_unit)), layout.n_dims, n, table, layout.n_features_per_level,
        level_table(layout), layout.scales, network.interpolation == "smoothstep", net,
        np.zeros((threads, chunk * row), kind), np.zeros((threads, hidden_room(net)), kind),
        np.zeros((threads, ROWS * int(net[7][-1])), np.float32), as_array(found).reshape(-1),
        np.zeros((threads, slots), np.uint32), np.zeros((threads, slots), np.float32),
        threads=threads,
    )  # fmt: skip
    return found
