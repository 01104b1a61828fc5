"""A grid-encoded network on CPUs: encode a chunk of points level by level, then the network block by block.

Shared by training (`train_points`). A level of a large table stays in cache only while many points read it in turn, so
chunks are long there; a small table stays anyway, and short chunks keep the features in cache.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    PerThread,
    as_array,
    flush_denormals,
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
from hashfield.kernels.numba_cpu.grid_encode import network_encoder
from hashfield.kernels.numba_cpu.grid_inputs import to_planes
from hashfield.kernels.numba_cpu.mlp import ROWS, PackedPairs, PackedWeights, product_relu, product_store, storage
from hashfield.kernels.numba_cpu.simd import peek, poke

LARGE_TABLE = 8 << 20  # bytes from which chunks are long


class Layers(NamedTuple):
    """A network's matrices as the kernels read them."""

    w: Any
    """All matrices, flat, rows padded to whole vectors; in pairs for bfloat16."""
    wt: Any
    """The matrices of `w` transposed, padded likewise."""
    w_starts: Any
    """[layer]: where each matrix begins in `w`."""
    wt_starts: Any
    """[layer]: where each begins in `wt`."""
    grad_starts: Any
    """[layer]: where each one's gradient begins."""
    act_starts: Any
    """[hidden layer]: where the activations of a block begin."""
    dims: Any
    """[layer + 1]: inputs, widths, outputs."""
    padded: Any
    """[layer + 1]: those padded to whole vectors."""


class Activations(NamedTuple):
    """What one thread works in: values of a chunk of points, and of one block of them."""

    features: Any
    """[chunk, inputs]: the encoding."""
    hidden: Any
    """All hidden layers of a block, one after another."""
    out: Any
    """[ROWS, outputs]: float32."""


@part
def network_block(features, at, n, net, hidden, out):
    """The network on n <= ROWS samples, whose features begin at `at`: hidden layers to `hidden`, one after the other,
    and the float32 outputs to out [n, padded outputs]."""
    wt, wt_starts, act_starts, dims, padded = net.wt, net.wt_starts, net.act_starts, net.dims, net.padded
    p, last = paired(features), dims.size - 2
    source, start = features, at
    for k in range(last):
        product_relu(
            source, start, padded[k], p, wt, wt_starts[k], p * padded[k + 1],
            hidden, act_starts[k], padded[k + 1], n, padded[k + 1], (dims[k] + p - 1) // p, hidden, 0,
        )  # fmt: skip
        source, start = hidden, act_starts[k]
    product_store(
        source, start, padded[last], p, wt, wt_starts[last], p * padded[last + 1],
        out, 0, padded[last + 1], n, padded[last + 1], (dims[last] + p - 1) // p, hidden, 0,
    )  # fmt: skip


@kernel
def _eval(planes, n, encoder, net, own, found, thread, threads):
    features, out, dims, padded = own.features, own.out, net.dims, net.padded
    n_outputs, out_row, row = dims[dims.size - 1], padded[dims.size - 1], padded[0]
    chunk = features.size // row
    mode = flush_denormals()
    begin_tiles()
    scratch = encoder_scratch(encoder)
    last = share(n, thread + 1, threads)
    for first in range(share(n, thread, threads), last, chunk):
        end = min(last, first + chunk)
        encode_range(encoder, planes, first, end, features, row, scratch)
        for begin in range(first, end, ROWS):
            rows = min(ROWS, end - begin)
            network_block(features, (begin - first) * row, rows, net, own.hidden, out)
            for s in range(rows):
                for c in range(n_outputs):
                    poke(found, (begin + s) * n_outputs + c, peek(out, s * out_row + c))
    end_tiles()
    restore_denormals(mode)


def pack_network(network) -> tuple[Layers, PackedWeights]:
    """A network's matrices, and the float32 packing by which their gradients are laid out."""
    packed = PackedWeights(network.weights)
    if network.precision == "bfloat16":
        pairs = PackedPairs(network.weights)
        sides = [(np.concatenate(side), np.cumsum([0, *(a.size for a in side[:-1])])) for side in (pairs.w, pairs.wt)]
    else:
        sides = [(packed.w, packed.w_starts), (packed.wt, packed.wt_starts)]
    (w, w_starts), (wt, wt_starts) = sides
    act_starts = np.cumsum(np.concatenate([[0], ROWS * packed.padded[1:-1]]))
    starts = (np.ascontiguousarray(a, np.int64) for a in (w_starts, wt_starts, packed.w_starts, act_starts))
    return Layers(w, wt, *starts, packed.dims, packed.padded), packed


def chunk_length(table: np.ndarray, n_points: int) -> int:
    """Points that a thread encodes before it asks the network, a multiple of ROWS."""
    return round_up(max(1, min(n_points, 65536 if table.nbytes > LARGE_TABLE else 2048)), ROWS)


def activations(net: Layers, chunk: int, precision: str) -> Activations:
    """Room for chunks of so many points."""
    kind, padded = storage(precision), [int(width) for width in net.padded]
    n_hidden = max(1, ROWS * sum(padded[1:-1]))  # at least one value, so that there is an array
    return Activations(
        np.zeros(chunk * padded[0], kind), np.zeros(n_hidden, kind), np.zeros(ROWS * padded[-1], np.float32)
    )


def eval_points(network, positions_unit):
    """Outputs [n, C]; see `hashfield.ops.eval_points`."""
    n, threads = positions_unit.shape[0], n_threads()
    found = torch.empty((n, network.n_outputs), dtype=torch.float32)
    if n == 0:
        return found
    net, _ = pack_network(network)
    encoder = network_encoder(network)
    chunk = chunk_length(encoder.table, -(-n // threads))
    own = PerThread(activations(net, chunk, network.precision) for _ in range(threads))
    launch(_eval, to_planes(positions_unit), n, encoder, net, own, as_array(found).reshape(-1), threads=threads)
    return found
