"""Fully fused networks on GPUs: a tile's activations never leave the chip; the backward pass recomputes them.

Matrices lie one after another in one flat buffer of the compute type (float16, bfloat16 or float32), as they are:
[n_out, n_in], unpadded. A tile's layers are `tl.dot` products with float32 sums; widths that are no power of two, or
below 16, are padded with zeros as the matrices are read, and a padded unit stays 0 through ReLU.

The backward pass is a few persistent programs: each keeps the gradients of all matrices in registers over all its
tiles and adds them to memory once.

The first layer's input is either given, or the grid's features of a position, encoded in place (`encoded_mlp`).
"""

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from hashfield.kernels.triton_gpu.common import (
    activated,
    activation_gradient,
    as_type,
    capability,
    count_of,
    dot_precision,
    launch,
    n_processors,
    padded,
    product,
    product_onto,
)

# --- on the device -----------------------------------------------------------------------------------------


@triton.jit
def load_matrix(
    weights, N_OUT: tl.constexpr, N_IN: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, STRIDE: tl.constexpr
):
    """A matrix [N_OUT, N_IN], whose rows lie STRIDE apart, as the tile [OUT, IN]; zeros where that is larger."""
    o, i = tl.arange(0, OUT)[:, None], tl.arange(0, IN)[None, :]
    if N_OUT == OUT and N_IN == IN:
        return tl.load(weights + o * STRIDE + i)
    return tl.load(weights + o * STRIDE + i, (o < N_OUT) & (i < N_IN), other=0.0)


@triton.jit
def layer(
    x, weights, N_OUT: tl.constexpr, N_IN: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, PRECISION: tl.constexpr
):
    """The product of x [BLOCK, IN] and a matrix [N_OUT, N_IN], transposed: [BLOCK, OUT], float32."""
    matrix = load_matrix(weights, N_OUT, N_IN, OUT, IN, N_IN)
    return product(x, tl.trans(matrix), PRECISION)


@triton.jit
def layer_backward(
    grad, weights, N_OUT: tl.constexpr, N_IN: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, PRECISION: tl.constexpr
):
    """Cotangent [BLOCK, OUT] of a layer's output times its matrix: that of its input, [BLOCK, IN], float32."""
    return product(grad, load_matrix(weights, N_OUT, N_IN, OUT, IN, N_IN), PRECISION)


@triton.jit
def no_gradient(OUT: tl.constexpr, IN: tl.constexpr):
    """The start of a network's `layer_gradient`."""
    if OUT < IN:
        total = tl.zeros([IN, OUT], tl.float32)
    else:
        total = tl.zeros([OUT, IN], tl.float32)
    return total


@triton.jit
def matrix_gradient(total, grad, x, PRECISION: tl.constexpr):
    """The sum total [OUT, IN] + grad^T x, for a layer's cotangent [BLOCK, OUT] and input [BLOCK, IN]."""
    return product_onto(total, tl.trans(grad), x, PRECISION)


@triton.jit
def layer_gradient(total, grad, x, OUT: tl.constexpr, IN: tl.constexpr, PRECISION: tl.constexpr):
    """What `matrix_gradient` gives, with the wider side first, which suits tensor cores: [IN, OUT] for layers that narrow."""
    if OUT < IN:
        total = matrix_gradient(total, x, grad, PRECISION)
    else:
        total = matrix_gradient(total, grad, x, PRECISION)
    return total


@triton.jit
def add_matrix(
    out, total, N_OUT: tl.constexpr, N_IN: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, STRIDE: tl.constexpr
):
    """Add a program's sum [OUT, IN] to the gradient of a matrix in memory, whose rows lie STRIDE apart."""
    o, i = tl.arange(0, OUT)[:, None], tl.arange(0, IN)[None, :]
    tl.atomic_add(out + o * STRIDE + i, total, (o < N_OUT) & (i < N_IN), sem="relaxed")


@triton.jit
def network(
    x, weights, WIDTHS: tl.constexpr, PADS: tl.constexpr, OFFSETS: tl.constexpr, DEPTH: tl.constexpr,
    OUTPUT_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Every layer's input (a tuple, in x's type), and the activated output (float32)."""
    inputs = (x,)
    y = layer(x, weights, WIDTHS[1], WIDTHS[0], PADS[1], PADS[0], PRECISION)
    for i in tl.static_range(1, DEPTH):
        h = as_type(activated(y, "relu"), x.dtype)
        inputs = inputs + (h,)
        y = layer(h, weights + OFFSETS[i], WIDTHS[i + 1], WIDTHS[i], PADS[i + 1], PADS[i], PRECISION)
    return inputs, activated(y, OUTPUT_ACTIVATION)


@triton.jit
def network_backward(
    inputs, grad, weights, totals, WIDTHS: tl.constexpr, PADS: tl.constexpr, OFFSETS: tl.constexpr,
    DEPTH: tl.constexpr, TO_INPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """New totals of the matrices' gradients, and the cotangent of the input (float32), for one tile.

    grad is the cotangent of the last layer's output before its activation, in the compute type. Without TO_INPUT the
    second result is not the gradient and must not be used.
    """
    reversed_totals = ()
    g = grad
    back = grad
    for i in tl.static_range(DEPTH - 1, -1, -1):
        x = inputs[i]
        reversed_totals = reversed_totals + (layer_gradient(totals[i], g, x, PADS[i + 1], PADS[i], PRECISION),)
        if i > 0 or TO_INPUT:
            back = layer_backward(g, weights + OFFSETS[i], WIDTHS[i + 1], WIDTHS[i], PADS[i + 1], PADS[i], PRECISION)
        if i > 0:
            g = as_type(activation_gradient(back, x, "relu"), x.dtype)
    ordered = ()
    for i in tl.static_range(DEPTH):
        ordered = ordered + (reversed_totals[DEPTH - 1 - i],)
    return ordered, back


@triton.jit
def _forward(
    x, n_live, weights, out, WIDTHS: tl.constexpr, PADS: tl.constexpr, OFFSETS: tl.constexpr, DEPTH: tl.constexpr,
    OUTPUT_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
        columns = tl.arange(0, PADS[0])[None, :]
        inside = (rows < n) & (columns < WIDTHS[0])
        tile = as_type(tl.load(x + rows * WIDTHS[0] + columns, inside, other=0.0), weights.dtype.element_ty)
        _, y = network(tile, weights, WIDTHS, PADS, OFFSETS, DEPTH, OUTPUT_ACTIVATION, PRECISION)
        columns = tl.arange(0, PADS[DEPTH])[None, :]
        inside = (rows < n) & (columns < WIDTHS[DEPTH])
        tl.store(out + rows * WIDTHS[DEPTH] + columns, y.to(out.dtype.element_ty), inside)


@triton.jit
def _backward(
    x, n_live, weights, grad_out, grad_x, grad_weights, WIDTHS: tl.constexpr, PADS: tl.constexpr,
    OFFSETS: tl.constexpr, DEPTH: tl.constexpr, OUTPUT_ACTIVATION: tl.constexpr, TO_INPUT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        totals = ()
        for i in tl.static_range(DEPTH):
            totals = totals + (no_gradient(PADS[i + 1], PADS[i]),)
        # Hoisting out of the loop is off: the compiler would compute every matrix's addresses before it and keep
        # them in registers, which then spill.
        for tile in tl.range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0), disable_licm=True):
            rows = (tile * BLOCK + tl.arange(0, BLOCK))[:, None]
            columns = tl.arange(0, PADS[0])[None, :]
            inside = (rows < n) & (columns < WIDTHS[0])
            first = tl.load(x + rows * WIDTHS[0] + columns, inside, other=0.0).to(tl.float32)
            first = as_type(first, weights.dtype.element_ty)
            inputs, y = network(first, weights, WIDTHS, PADS, OFFSETS, DEPTH, OUTPUT_ACTIVATION, PRECISION)
            ends = tl.arange(0, PADS[DEPTH])[None, :]
            g = tl.load(grad_out + rows * WIDTHS[DEPTH] + ends, (rows < n) & (ends < WIDTHS[DEPTH]), other=0.0)
            g = as_type(activation_gradient(g.to(tl.float32), y, OUTPUT_ACTIVATION), first.dtype)
            totals, back = network_backward(
                inputs, g, weights, totals, WIDTHS, PADS, OFFSETS, DEPTH, TO_INPUT, PRECISION
            )
            if TO_INPUT:
                tl.store(grad_x + rows * WIDTHS[0] + columns, back.to(grad_x.dtype.element_ty), inside)
        for i in tl.static_range(DEPTH):
            total = totals[i]
            if PADS[i + 1] < PADS[i]:
                total = tl.trans(total)
            add_matrix(grad_weights + OFFSETS[i], total, WIDTHS[i + 1], WIDTHS[i], PADS[i + 1], PADS[i], WIDTHS[i])


# --- entry points ------------------------------------------------------------------------------------------


def shape_of(weights: Sequence[torch.Tensor]) -> dict[str, object]:
    """A network's sizes as the kernels take them: widths of the layers, padded widths, first number of each matrix."""
    widths = (weights[0].shape[1], *(w.shape[0] for w in weights))
    offsets = tuple(itertools.accumulate((w.numel() for w in weights[:-1]), initial=0))
    return {"WIDTHS": widths, "PADS": tuple(map(padded, widths)), "OFFSETS": offsets, "DEPTH": len(weights)}


def flat(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Matrices as one buffer of the compute type."""
    return torch.cat([w.detach().reshape(-1) for w in weights]).to(dtype)


def unflat(buffer: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a flat buffer in the matrices' shapes."""
    parts = buffer.split([w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


def tile_of(pads: Sequence[int], dtype: torch.dtype, arch: int, *, backward: bool) -> tuple[int, int]:
    """(samples of a tile, warps) for a network: what registers allow.

    Chosen from the resources that the cross-compiled kernels need (tests/ops/triton_budget.json). Before sm_90, and
    again on sm_120, the tensor cores take their operands from registers.
    """
    if dtype == torch.float32:
        return (16, 4) if backward else (64 if max(pads) <= 64 else 32, 4)
    if max(pads) > 64:
        return (16, 8) if backward else (64, 4)
    return (64 if 90 <= arch < 120 else 32, 4) if backward else (128, 4)


def compute_type(precision: str) -> torch.dtype:
    """The type matrices and layer inputs are rounded to."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def mlp_forward(
    x: torch.Tensor, weights: list[torch.Tensor], activation: str, output_activation: str, precision: str = "float32"
) -> torch.Tensor:
    """Outputs [n, n_out]; see `hashfield.ops.mlp`."""
    n, shape, dtype = x.shape[0], shape_of(weights), compute_type(precision)
    out = torch.empty((n, weights[-1].shape[0]), dtype=torch.float32, device=x.device)
    block, warps = tile_of(shape["PADS"], dtype, capability(x.device), backward=False)
    launch(
        _forward, (triton.cdiv(n, block),), x, count_of(n, x.device), flat(weights, dtype), out, **shape,
        OUTPUT_ACTIVATION=output_activation, PRECISION=dot_precision(dtype), BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out


def network_gradients(
    x: torch.Tensor, n_live: torch.Tensor, weights: list[torch.Tensor], output_activation: str,
    grad_output: torch.Tensor, grad_x: torch.Tensor | None, dtype: torch.dtype,
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients to every matrix for the cotangent [n, n_out]; that of x goes to grad_x where it is given."""
    shape, buffer = shape_of(weights), flat(weights, dtype)
    grad_weights = torch.zeros(buffer.shape, dtype=torch.float32, device=x.device)
    block, warps = tile_of(shape["PADS"], dtype, capability(x.device), backward=True)
    programs = min(triton.cdiv(x.shape[0], block), 2 * n_processors(x.device))
    launch(
        _backward, (programs,), x, n_live, buffer, grad_output, x if grad_x is None else grad_x, grad_weights, **shape,
        OUTPUT_ACTIVATION=output_activation, TO_INPUT=grad_x is not None, PRECISION=dot_precision(dtype),
        BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return unflat(grad_weights, weights)


def mlp_backward(
    x: torch.Tensor, weights: list[torch.Tensor], activation: str, output_activation: str, grad_output: torch.Tensor,
    needs_x: bool, precision: str = "float32",
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:  # fmt: skip
    """Gradients to x (or None) and to every matrix for the cotangent [n, n_out]."""
    grad_x = torch.empty_like(x) if needs_x else None
    n_live = count_of(x.shape[0], x.device)
    dtype = compute_type(precision)
    return grad_x, network_gradients(x, n_live, weights, output_activation, grad_output, grad_x, dtype)
