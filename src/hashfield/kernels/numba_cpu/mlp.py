"""Small fully connected networks on CPUs, whole blocks of samples at a time.

Activations are sample-major, `ROWS` samples to a block, and never leave the cache: a backward call computes
the forward again. All three products of a layer are one register tile with other strides (`simd.product_tile`):

    outputs          Y[s, o] = sum_i X[s, i] W[o, i]     A = X,   B = W^T
    input gradient  dX[s, i] = sum_o dY[s, o] W[o, i]    A = dY,  B = W
    weight gradient dW[o, i] = sum_s dY[s, o] X[s, i]    A = dY read down a column, B = X

Widths are padded to whole vectors with zeros; the padding of a weight never receives a gradient that is read.
Products of bfloat16 go through AMX tiles instead where the CPU has them (`amx.tile_product`).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types

from hashfield.kernels.numba_cpu import amx
from hashfield.kernels.numba_cpu.common import (
    as_array,
    exp,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    overloaded,
    paired,
    part,
    restore_denormals,
    round_up,
    share,
    sigmoid,
)
from hashfield.kernels.numba_cpu.simd import (
    ADD,
    GATE,
    LANES,
    RELU,
    STORE,
    copy_lanes,
    load,
    load_pairs,
    peek,
    poke,
    product_tile,
    splat,
    splat_int,
    store,
    store_bf16,
    store_int,
)
from hashfield.kernels.numba_cpu.simd import where as simd_where
from hashfield.kernels.numba_cpu.target import HAS_TILES

ROWS = 96  # samples to a block: a multiple of the tile's rows, small enough for the activations to stay in L2
PAD = max(LANES, amx.SIDE if HAS_TILES else 2)  # widths are padded to this: whole vectors, and whole pairs or tiles
_DEPTH = amx.SIDE if HAS_TILES else 1  # pairs of rows of which weight gradients take a multiple
_WIDE = 4 if LANES >= 16 else 2  # vectors to a register tile: 6 x 4 of 32 registers, 6 x 2 of 16


def _column_products(mode: int, vectors: int):
    """C[:, vectors of one column tile] for any number of rows, in tiles of 6 rows and what remains."""

    @inline
    def columns(a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, depth, gate, gate_start):
        r = 0
        while r + 6 <= n_rows:
            product_tile(
                6, vectors, a, a_start + r * a_row, a_row, a_step, b, b_start, b_step,
                c, c_start + r * c_row, c_row, depth, mode, gate, gate_start + r * c_row,
            )  # fmt: skip
            r += 6
        while r + 2 <= n_rows:
            product_tile(
                2, vectors, a, a_start + r * a_row, a_row, a_step, b, b_start, b_step,
                c, c_start + r * c_row, c_row, depth, mode, gate, gate_start + r * c_row,
            )  # fmt: skip
            r += 2
        if r < n_rows:
            product_tile(
                1, vectors, a, a_start + r * a_row, a_row, a_step, b, b_start, b_step,
                c, c_start + r * c_row, c_row, depth, mode, gate, gate_start + r * c_row,
            )  # fmt: skip

    return columns


def _product(mode: int):
    wide, narrow = _column_products(mode, _WIDE), _column_products(mode, 1)

    @part
    def by_lanes(
        a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, n_columns, depth, gate, gate_start
    ):
        v = 0
        while v + _WIDE * LANES <= n_columns:
            wide(
                a, a_start, a_row, a_step, b, b_start + v * paired(b), b_step, c, c_start + v, c_row, n_rows, depth,
                gate, gate_start + v,
            )  # fmt: skip
            v += _WIDE * LANES
        while v < n_columns:
            narrow(
                a, a_start, a_row, a_step, b, b_start + v * paired(b), b_step, c, c_start + v, c_row, n_rows, depth,
                gate, gate_start + v,
            )  # fmt: skip
            v += LANES

    by_tiles = amx.tile_product(mode)

    @overloaded
    def product(
        a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, n_columns, depth, gate, gate_start
    ):
        chosen = by_tiles if HAS_TILES and a.dtype == types.uint16 else by_lanes

        def call(
            a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, n_columns, depth, gate, gate_start
        ):
            chosen(
                a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, n_columns, depth,
                gate, gate_start,
            )  # fmt: skip

        return call

    return product


product_store, product_relu, product_add, product_gate = (_product(mode) for mode in (STORE, RELU, ADD, GATE))


@overloaded
def put(source, start, target, at, count):
    """Copy `count` values, a multiple of LANES; float32 into a uint16 array is rounded to bfloat16."""

    def copied(source, start, target, at, count):
        for i in range(0, count, LANES):
            copy_lanes(source, start + i, target, at + i)

    def rounded(source, start, target, at, count):
        for i in range(0, count, LANES):
            store_bf16(target, at + i, load(source, start + i))

    return copied if source.dtype == target.dtype else rounded


@inline
def whole_pairs(n_rows):
    """Pairs that n_rows make; on tiles the next multiple of 16."""
    return (n_rows + 2 * _DEPTH - 1) // (2 * _DEPTH) * _DEPTH


@part
def interleave(source, start, width, n_rows, target):
    """Word [r, i] of target pairs rows 2r and 2r + 1 of source [n_rows, width] at column i; a row that is missing
    is zero. Makes `whole_pairs(n_rows)` rows."""
    for r in range(0, 2 * whole_pairs(n_rows), 2):
        low = start + r * width
        for i in range(0, width, LANES):
            if r + 1 < n_rows:
                store_int(target, r * width + 2 * i, load_pairs(source, low + i, low + width + i))
            elif r < n_rows:
                pair = load_pairs(source, low + i, low + i) & splat_int(0xFFFF)
                store_int(target, r * width + 2 * i, pair)
            else:
                store_int(target, r * width + 2 * i, splat_int(0))


@overloaded
def weight_gradient(
    grad, grad_start, grad_width, x, x_start, x_width, own, own_start, n_out, n_rows, grad_pairs, x_pairs
):
    """Add the sum over the rows of grad[s, o] * x[s, i] to own[o, i]. Pairs of rows are made of bfloat16 operands first."""

    def plain(grad, grad_start, grad_width, x, x_start, x_width, own, own_start, n_out, n_rows, grad_pairs, x_pairs):
        product_add(
            grad, grad_start, 1, grad_width, x, x_start, x_width,
            own, own_start, x_width, n_out, x_width, n_rows, own, 0,
        )  # fmt: skip

    def paired(grad, grad_start, grad_width, x, x_start, x_width, own, own_start, n_out, n_rows, grad_pairs, x_pairs):
        interleave(grad, grad_start, grad_width, n_rows, grad_pairs)
        interleave(x, x_start, x_width, n_rows, x_pairs)
        if HAS_TILES:
            amx.turn(grad_pairs, grad_width, whole_pairs(n_rows))
        product_add(
            grad_pairs, 0, 2, 2 * grad_width, x_pairs, 0, 2 * x_width,
            own, own_start, x_width, n_out, x_width, whole_pairs(n_rows), own, 0,
        )  # fmt: skip

    return paired if grad.dtype == types.uint16 else plain


@inline
def clear(array, start, count):
    """Set elements to zero; `count` is a multiple of LANES."""
    for i in range(start, start + count, LANES):
        store(array, i, splat(0.0))


@inline
def copy_row(source, start, target, at, width):
    """Copy `width` values, whole vectors first."""
    whole = width // LANES * LANES
    for i in range(0, whole, LANES):
        copy_lanes(source, start + i, target, at + i)
    for i in range(whole, width):
        poke(target, at + i, peek(source, start + i))


# --- any network: the op ------------------------------------------------------------------------------------


@inline
def activate(values, start, count, activation):
    """0 none, 1 relu, 2 sigmoid, 3 exp, in place; `count` is a multiple of LANES."""
    if activation == 1:
        for i in range(start, start + count, LANES):
            x = load(values, i)
            store(values, i, where_positive(x, x))
    elif activation == 2:
        for i in range(start, start + count, LANES):
            store(values, i, sigmoid(load(values, i)))
    elif activation == 3:
        for i in range(start, start + count, LANES):
            store(values, i, exp(load(values, i)))


@inline
def where_positive(condition, value):
    """The value where condition > 0, else 0."""
    return simd_where(condition > splat(0.0), value, splat(0.0))


class AnyNetwork(NamedTuple):
    """A float32 network of any depth, as `PackedWeights` lays it out."""

    dims: Any
    """[layer + 1]: inputs, widths, outputs."""
    padded: Any
    """[layer + 1]: those padded to whole vectors."""
    starts: Any
    """[layer + 2]: where a block's activations begin, layer by layer, and where they end."""
    w: Any
    w_starts: Any
    wt: Any
    wt_starts: Any
    activation: int
    """See ACTIVATIONS."""
    output_activation: int


@part
def forward_block(acts, net):
    """All layers of one block; layer k's input lies at acts[starts[k]:], ROWS x padded[k]."""
    starts, dims, padded, wt, wt_starts = net.starts, net.dims, net.padded, net.wt, net.wt_starts
    n_layers = dims.size - 1
    for k in range(n_layers):
        is_last = k == n_layers - 1
        if not is_last and net.activation == 1:
            product_relu(
                acts, starts[k], padded[k], 1, wt, wt_starts[k], padded[k + 1],
                acts, starts[k + 1], padded[k + 1], ROWS, padded[k + 1], dims[k], acts, 0,
            )  # fmt: skip
        else:
            product_store(
                acts, starts[k], padded[k], 1, wt, wt_starts[k], padded[k + 1],
                acts, starts[k + 1], padded[k + 1], ROWS, padded[k + 1], dims[k], acts, 0,
            )  # fmt: skip
        if is_last:
            activate(acts, starts[k + 1], ROWS * padded[k + 1], net.output_activation)


@inline
def load_block(x, begin, end, width, acts, row):
    """Copy rows begin to end of x [n, width] to the block's input, zeros elsewhere."""
    clear(acts, 0, ROWS * row)
    for s in range(begin, end):
        copy_row(x, s * width, acts, (s - begin) * row, width)


@kernel
def _forward(x, n, net, out, thread, threads):
    dims, padded, starts = net.dims, net.padded, net.starts
    n_layers = dims.size - 1
    n_out = dims[n_layers]
    n_blocks = (n + ROWS - 1) // ROWS
    mode = flush_denormals()
    acts = np.empty(starts[n_layers + 1], np.float32)
    for block in range(share(n_blocks, thread, threads), share(n_blocks, thread + 1, threads)):
        begin = block * ROWS
        end = min(n, begin + ROWS)
        load_block(x, begin, end, dims[0], acts, padded[0])
        forward_block(acts, net)
        for s in range(begin, end):
            copy_row(acts, starts[n_layers] + (s - begin) * padded[n_layers], out, s * n_out, n_out)
    restore_denormals(mode)


@kernel
def _backward(x, n, net, grad_out, grad_x, grad_w, thread, threads):
    """Backward pass of the matrices. grad_w [threads, ...] holds each thread's own sums, laid out as w; grad_x may be empty."""
    dims, padded, starts, w, w_starts = net.dims, net.padded, net.starts, net.w, net.w_starts
    activation, output_activation = net.activation, net.output_activation
    n_layers = dims.size - 1
    n_out = dims[n_layers]
    n_blocks = (n + ROWS - 1) // ROWS
    mode = flush_denormals()
    acts = np.empty(starts[n_layers + 1], np.float32)
    grads = np.empty(starts[n_layers + 1], np.float32)
    own = grad_w[thread]
    for block in range(share(n_blocks, thread, threads), share(n_blocks, thread + 1, threads)):
        begin = block * ROWS
        end = min(n, begin + ROWS)
        load_block(x, begin, end, dims[0], acts, padded[0])
        forward_block(acts, net)
        top, top_row = starts[n_layers], padded[n_layers]
        clear(grads, top, ROWS * top_row)
        for s in range(begin, end):
            for o in range(n_out):
                k = top + (s - begin) * top_row + o
                g, y = grad_out[s * n_out + o], acts[k]
                if output_activation == 1:
                    g = g if y > 0 else np.float32(0.0)
                elif output_activation == 2:
                    g = g * y * (np.float32(1.0) - y)
                elif output_activation == 3:
                    g = g * y
                grads[k] = g
        for k in range(n_layers - 1, -1, -1):
            product_add(
                grads, starts[k + 1], 1, padded[k + 1], acts, starts[k], padded[k],
                own, w_starts[k], padded[k], dims[k + 1], padded[k], end - begin, acts, 0,
            )  # fmt: skip
            if k > 0 and activation == 1:
                product_gate(
                    grads, starts[k + 1], padded[k + 1], 1, w, w_starts[k], padded[k],
                    grads, starts[k], padded[k], ROWS, padded[k], dims[k + 1], acts, starts[k],
                )  # fmt: skip
            elif k > 0 or grad_x.size > 0:
                product_store(
                    grads, starts[k + 1], padded[k + 1], 1, w, w_starts[k], padded[k],
                    grads, starts[k], padded[k], ROWS, padded[k], dims[k + 1], acts, 0,
                )  # fmt: skip
        if grad_x.size > 0:
            for s in range(begin, end):
                copy_row(grads, (s - begin) * padded[0], grad_x, s * dims[0], dims[0])
    restore_denormals(mode)


class PackedWeights:
    """A network's weights padded to whole vectors, as they are (`w`) and transposed (`wt`), flat, with where each
    begins. Made when first asked for: a bfloat16 network needs only their layout."""

    def __init__(self, weights: Sequence[torch.Tensor]):
        self._arrays = [as_array(w) for w in weights]
        self.shapes = [a.shape for a in self._arrays]
        self.dims = np.array([self.shapes[0][1], *[rows for rows, _ in self.shapes]], np.int64)
        self.padded = np.array([round_up(int(d), PAD) for d in self.dims], np.int64)
        sizes = self.dims[1:] * self.padded[:-1]
        self.n_values = int(sizes.sum())
        self.w_starts = np.cumsum(sizes) - sizes
        sizes = self.dims[:-1] * self.padded[1:]
        self.wt_starts = np.cumsum(sizes) - sizes
        self.starts = np.concatenate([[0], np.cumsum(ROWS * self.padded)]).astype(np.int64)

    @cached_property
    def w(self) -> np.ndarray:
        """Layer by layer [out, padded in]."""
        return self._pack(self._arrays)

    @cached_property
    def wt(self) -> np.ndarray:
        """Layer by layer [in, padded out]."""
        return self._pack([a.T for a in self._arrays])

    @staticmethod
    def _pack(matrices) -> np.ndarray:
        blocks = []
        for m in matrices:
            block = np.zeros((m.shape[0], round_up(m.shape[1], PAD)), np.float32)
            block[:, : m.shape[1]] = m
            blocks.append(block.reshape(-1))
        return np.concatenate(blocks)

    def unpack(self, flat: np.ndarray) -> list[torch.Tensor]:
        """Weights laid out as `w` back as tensors [out, in]."""
        out = []
        for (rows, columns), start in zip(self.shapes, self.w_starts, strict=True):
            row = round_up(columns, PAD)
            block = flat[start : start + rows * row].reshape(rows, row)[:, :columns]
            out.append(torch.from_numpy(np.ascontiguousarray(block)))
        return out


ACTIVATIONS = {"none": 0, "relu": 1, "sigmoid": 2, "exp": 3}


def _network(packed: PackedWeights, activation: str, output_activation: str, with_w: bool) -> AnyNetwork:
    w = packed.w if with_w else np.empty(0, np.float32)
    return AnyNetwork(
        packed.dims, packed.padded, packed.starts, w, packed.w_starts, packed.wt, packed.wt_starts,
        ACTIVATIONS[activation], ACTIVATIONS[output_activation],
    )  # fmt: skip


def mlp_forward(x, weights, activation: str, output_activation: str) -> torch.Tensor:
    """Outputs [n, n_out]; see `hashfield.ops.mlp`."""
    packed = PackedWeights(weights)
    n = x.shape[0]
    out = torch.empty((n, int(packed.dims[-1])), dtype=torch.float32)
    if n:
        net = _network(packed, activation, output_activation, with_w=False)
        launch(_forward, as_array(x).reshape(-1), n, net, as_array(out).reshape(-1))
    return out


def mlp_backward(
    x, weights, activation: str, output_activation: str, grad_out, needs_x: bool
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Gradients to x (or None) and to every weight for the cotangent [n, n_out]."""
    packed = PackedWeights(weights)
    n, threads = x.shape[0], n_threads()
    grad_x = torch.empty_like(x) if needs_x else torch.empty(0)
    grad_w = np.zeros((threads, packed.n_values), np.float32)
    if n:
        net = _network(packed, activation, output_activation, with_w=True)
        launch(
            _backward, as_array(x).reshape(-1), n, net, as_array(grad_out).reshape(-1), as_array(grad_x).reshape(-1),
            grad_w, threads=threads,
        )  # fmt: skip
    return (grad_x if needs_x else None), packed.unpack(grad_w.sum(axis=0))


class PackedPairs:
    """A network's weights rounded to bfloat16 in pairs: `w` along outputs, for input gradients, `wt` along inputs,
    for outputs. Both are lists of flat uint16 arrays, padded to whole vectors of words."""

    def __init__(self, weights: Sequence[torch.Tensor]):
        self.w, self.wt = [], []
        for weight in weights:
            n_out, n_in = weight.shape
            padded = np.zeros((round_up(n_out, PAD), round_up(n_in, PAD)), np.uint16)
            padded[:n_out, :n_in] = weight.detach().to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
            self.w.append(self._paired(padded[: round_up(n_out, 2)]))
            self.wt.append(self._paired(padded.T))

    @staticmethod
    def _paired(matrix: np.ndarray) -> np.ndarray:
        rows, columns = matrix.shape
        return np.ascontiguousarray(matrix.reshape(rows // 2, 2, columns).transpose(0, 2, 1)).reshape(-1)


class DensityNetwork(NamedTuple):
    """Two matrices as the kernels read them: flat, rows padded to whole vectors; in pairs for bfloat16."""

    w1: Any
    w2: Any
    w1t: Any
    """The matrix w1 transposed."""
    w2t: Any
    width: int
    """Neurons of the hidden layer."""
    n_in: int
    """Inputs."""
    row: int
    """Inputs, padded: values from one sample's features to the next one's."""


class ColorNetwork(NamedTuple):
    """Three matrices, as in `DensityNetwork`."""

    w1: Any
    w2: Any
    w3: Any
    w1t: Any
    w2t: Any
    w3t: Any
    width: int
    """Neurons of each of the two hidden layers."""
    out_row: int
    """Outputs, padded."""


def pack_networks(field) -> tuple[DensityNetwork, ColorNetwork, PackedWeights, PackedWeights]:
    """A field's networks as the kernels read them, and the float32 packings by which gradients are laid out."""
    d, c = PackedWeights(field.density_weights), PackedWeights(field.color_weights)

    def arrays(p: PackedWeights, weights) -> list[np.ndarray]:
        if field.precision == "bfloat16":
            pairs = PackedPairs(weights)
            return [*pairs.w, *pairs.wt]
        return [*np.split(p.w, p.w_starts[1:]), *np.split(p.wt, p.wt_starts[1:])]

    density = DensityNetwork(*arrays(d, field.density_weights), int(d.dims[1]), int(d.dims[0]), int(d.padded[0]))
    color = ColorNetwork(*arrays(c, field.color_weights), int(c.dims[1]), int(c.padded[-1]))
    return density, color, d, c


def storage(precision: str) -> type:
    """Element type of the networks' activations."""
    return np.uint16 if precision == "bfloat16" else np.float32
