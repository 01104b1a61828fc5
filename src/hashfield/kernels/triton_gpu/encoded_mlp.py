"""Grid encoding and network in one kernel on GPUs: densities, images, distances.

Forward, the features of a tile go from registers straight into the first product. Backward, they are encoded once
more into scratch (2 or 4 bytes a feature, against some 40 bytes of table sectors each), the network's kernel leaves
their cotangents, and the grid's kernels take those to table and positions.

`DeviceNetwork` is the same for programs that keep their points on the device: `eval_points`, `train_points`.
"""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class DeviceNetwork:
    """The numbers of a network behind a grid as these kernels take them."""

    layout: GridLayout
    """Two or three dimensions."""
    table: torch.Tensor
    """[n_entries, F]; float16, bfloat16 or float32."""
    weights: torch.Tensor
    """Flat, in the compute type; see `mlp.flat`."""
    shape: dict[str, Any]
    """Sizes of the matrices; see `mlp.shape_of`."""
    interpolation: str = "linear"
    """How features lie between the grid's vertices."""
    is_rounded: bool = False
    """Whether lookups round a float32 table to bfloat16."""

    @property
    def n_outputs(self) -> int:
        """C, numbers that the network answers with."""
        return self.shape["WIDTHS"][-1]

    def tile(self, *, backward: bool) -> tuple[int, int]:
        """(samples of a tile, warps)."""
        arch = capability(self.table.device)
        return tile_of(self.shape["PADS"], self.weights.dtype, arch, backward=backward)


def device_network(network: Any) -> DeviceNetwork:
    """An EncodedNetwork as these kernels take it: the matrices flat and in the compute type."""
    dtype = compute_type(network.precision)
    table = network.table if network.table_bf16 is None else network.table_bf16
    if dtype == torch.float16:
        table = network.table.to(dtype) if network.table_fp16 is None else network.table_fp16
    rounds = dtype == torch.bfloat16 and table.dtype == torch.float32
    return DeviceNetwork(
        network.layout, table.contiguous(), flat(network.weights, dtype), shape_of(network.weights),
        network.interpolation, rounds,
    )  # fmt: skip


def evaluate(
    network: DeviceNetwork, positions: torch.Tensor, n_live: torch.Tensor, out: torch.Tensor,
    output_activation: str = "none",
) -> None:  # fmt: skip
    """Write the outputs at the first n_live positions [capacity, D], float32 or int32 in fixed point, to out
    [capacity, C]; contiguous both."""
    layout = network.layout
    block, warps = network.tile(backward=False)
    launch(
        _forward, (triton.cdiv(positions.shape[0], block),), positions, n_live, network.table, network.weights, out,
        LEVELS=levels_of(layout), L=layout.n_levels, LOG2_L=log2_levels(layout), D=layout.n_dims,
        F=layout.n_features_per_level, INTERPOLATION=network.interpolation, ROUND=network.is_rounded, **network.shape,
        OUTPUT_ACTIVATION=output_activation, PRECISION=dot_precision(network.weights.dtype), BLOCK=block,
        num_warps=warps,
    )  # fmt: skip


def encoded_mlp_forward(
    positions: torch.Tensor, table: torch.Tensor, weights: list[torch.Tensor], layout: GridLayout, interpolation: str,
    output_activation: str, precision: str,
) -> torch.Tensor:  # fmt: skip
    """Outputs [n, n_out]; see `hashfield.ops.encoded_mlp`."""
    n, dtype, shape = positions.shape[0], compute_type(precision), shape_of(weights)
    network = DeviceNetwork(layout, table, flat(weights, dtype), shape, interpolation, precision == "bfloat16")
    out = torch.empty((n, network.n_outputs), dtype=torch.float32, device=positions.device)
    evaluate(network, positions, count_of(n, positions.device), out, output_activation)
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
