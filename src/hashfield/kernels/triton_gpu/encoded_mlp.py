"""Grid encoding and network in one kernel on GPUs: densities, images, distances.

Forward, the features of a tile go from registers straight into the first product. Backward, they are encoded once
more into scratch (2 or 4 bytes a feature, against some 40 bytes of table sectors each), the network's kernel leaves
their cotangents, and the grid's kernels take those to table and positions.
"""

import torch
import triton
import triton.language as tl

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.triton_gpu.common import (
    capability,
    count_of,
    dot_precision,
    encode,
    launch,
    levels_of,
    load_positions,
)
from hashfield.kernels.triton_gpu.field import log2_levels
from hashfield.kernels.triton_gpu.grid_encode import encode_into, grid_encode_backward
from hashfield.kernels.triton_gpu.mlp import compute_type, flat, network, network_gradients, shape_of, tile_of


@triton.jit
def _forward(
    positions, n_live, table, weights, out, LEVELS: tl.constexpr, L: tl.constexpr, LOG2_L: tl.constexpr,
    D: tl.constexpr, F: tl.constexpr, INTERPOLATION: tl.constexpr, ROUND: tl.constexpr, WIDTHS: tl.constexpr,
    PADS: tl.constexpr, OFFSETS: tl.constexpr, DEPTH: tl.constexpr, OUTPUT_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n
        x, y, z = load_positions(positions, rows, inside, D)
        DTYPE: tl.constexpr = weights.dtype.element_ty
        features = encode(table, x, y, z, LEVELS, L, LOG2_L, D, F, INTERPOLATION, ROUND, DTYPE)
        _, result = network(features, weights, WIDTHS, PADS, OFFSETS, DEPTH, OUTPUT_ACTIVATION, PRECISION)
        columns = tl.arange(0, PADS[DEPTH])[None, :]
        at = out + rows[:, None] * WIDTHS[DEPTH] + columns
        tl.store(at, result.to(out.dtype.element_ty), inside[:, None] & (columns < WIDTHS[DEPTH]))


def encoded_mlp_forward(
    positions: torch.Tensor, table: torch.Tensor, weights: list[torch.Tensor], layout: GridLayout, interpolation: str,
    output_activation: str, precision: str,
) -> torch.Tensor:  # fmt: skip
    """Outputs [n, n_out]; see `hashfield.ops.encoded_mlp`."""
    n, dtype = positions.shape[0], compute_type(precision)
    shape = shape_of(weights)
    out = torch.empty((n, weights[-1].shape[0]), dtype=torch.float32, device=positions.device)
    block, warps = tile_of(shape["PADS"], dtype, capability(positions.device), backward=False)
    launch(
        _forward, (triton.cdiv(n, block),), positions, count_of(n, positions.device), table, flat(weights, dtype), out,
        LEVELS=levels_of(layout), L=layout.n_levels, LOG2_L=log2_levels(layout), D=layout.n_dims,
        F=layout.n_features_per_level, INTERPOLATION=interpolation, ROUND=precision == "bfloat16", **shape,
        OUTPUT_ACTIVATION=output_activation, PRECISION=dot_precision(dtype), BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out


def encoded_mlp_backward(
    positions: torch.Tensor, table: torch.Tensor, weights: list[torch.Tensor], layout: GridLayout, interpolation: str,
    output_activation: str, precision: str, grad_output: torch.Tensor, needs_table: bool, needs_positions: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, list[torch.Tensor]]:  # fmt: skip
    """Gradients to the table, the positions and every matrix for the cotangent [n, n_out]."""
    n, dtype, device = positions.shape[0], compute_type(precision), positions.device
    n_live = count_of(n, device)
    features = torch.empty((n, layout.n_output), dtype=dtype, device=device)
    encode_into(features, positions, n_live, table, layout, interpolation, precision)
    needs_features = needs_table or needs_positions
    # Cotangents leave the network in float32: here nobody scales a loss.
    grad_features = torch.empty((n, layout.n_output), dtype=torch.float32, device=device) if needs_features else None
    grad_weights = network_gradients(features, n_live, weights, output_activation, grad_output, grad_features, dtype)
    grad_table = grad_positions = None
    if grad_features is not None:
        grad_table, grad_positions = grid_encode_backward(
            positions, table, layout, interpolation, precision, grad_features, needs_table, needs_positions
        )
    return grad_table, grad_positions, grad_weights
