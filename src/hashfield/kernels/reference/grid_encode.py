"""Reference of the multiresolution grid encoding, in plain torch.

L levels of growing resolution share one table; each level interpolates the features at the 2^D corners of the
cell a position falls into. Symbols: q position in cells, p cell, f fraction, c corner (bit d of its number is
its side in dimension d).
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.pcg32 import PCG32_FACTOR, PCG32_SUMMAND, pcg32_output, pcg32_start, signed
from hashfield.kernels.reference.rounding import round_to_bfloat16, stand_in

_UINT32 = 0xFFFFFFFF


def grid_encode(
    positions: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    layout: GridLayout,
    interpolation: str = "linear",
    precision: str = "float32",
    table_bf16: Tensor | None = None,
) -> Float[Tensor, "n n_output"]:
    """Features of each position, level-major: for each level the weighted sum over its cell's corners.

    y_l = sum over corners c of prod over d of (c_d ? f_d : 1 - f_d) * table[index(p + c)], with
    q = scale_l * x + 0.5, p = floor(q), f = q - p.

    Args:
        positions: In [0,1]^D; outside, indices wrap in 32 bits. A coordinate whose q is not finite or reaches
            2^31 counts as q = 0, without a gradient.
        table: Level-major.
        layout: Sizes and strides.
        interpolation: "linear", "smoothstep" (f replaced by f^2 (3 - 2f)) or "nearest".
        precision: "bfloat16" rounds table values to nearest even for the lookup; sums stay in the table's
            dtype and the gradient passes the rounding unchanged.
        table_bf16: The rounded table, where the caller has it.

    Source: tiny-cuda-nn include/tiny-cuda-nn/encodings/grid.h; paper section 3 and appendix A.
    """
    levels = table.split(layout.entries.tolist())
    rounded = None if table_bf16 is None else table_bf16.split(layout.entries.tolist())
    features = []
    for level, values in enumerate(levels):
        cell, fraction = cell_and_fraction(positions, float(layout.scales[level]))
        if interpolation == "nearest":
            corners, weights = cell[:, None, :], torch.ones_like(fraction[:, :1])
        else:
            if interpolation == "smoothstep":
                fraction = fraction * fraction * (3 - 2 * fraction)
            corners, weights = _corners(cell, fraction)
        index = vertex_index(corners, layout, level)
        gathered = torch.nn.functional.embedding(index, values)
        if rounded is not None:
            gathered = stand_in(gathered, torch.nn.functional.embedding(index, rounded[level]))
        elif precision == "bfloat16":
            gathered = round_to_bfloat16(gathered)
        features.append((weights[:, :, None] * gathered).sum(1))  # [n, n_features]
    return torch.cat(features, 1)


def cell_and_fraction(
    positions: Float[Tensor, "n n_dims"], scale: float
) -> tuple[Int64[Tensor, "n n_dims"], Float[Tensor, "n n_dims"]]:
    """The cell of each position on a level, and the position inside it in [0, 1)."""
    # A float32 product is exact in float64, so this is the single rounding of a fused multiply-add.
    q = (positions.double() * scale + 0.5).to(positions.dtype)
    # Comparisons with NaN are false, so this also catches it. `where` cuts the gradient there.
    q = torch.where(q.detach().abs() < 2.0**31, q, torch.zeros_like(q))
    cell = q.detach().floor()
    return cell.long(), q - cell


def vertex_index(
    vertex: Int64[Tensor, "n n_corners n_dims"], layout: GridLayout, level: int
) -> Int64[Tensor, "n n_corners"]:
    """Entry of each vertex within its level: linear in dense and tiled levels, else the spatial hash."""
    if layout.is_hashed[level] and layout.hash == "Rng":
        return _random_hash(vertex & _UINT32) % int(layout.entries[level])
    if layout.is_hashed[level] and layout.hash == "BaseConvert":
        index = torch.zeros_like(vertex[..., 0])
        for d in range(layout.n_dims):
            index = ((index + vertex[..., d]) * 2531011) & _UINT32
        return index % int(layout.entries[level])
    strides = torch.from_numpy(layout.strides[level].astype("int64")).to(vertex.device)
    # int64 products wrap modulo 2^64, which leaves the low 32 bits those of uint32 arithmetic.
    products = ((vertex & _UINT32) * strides) & _UINT32
    if layout.is_hashed[level]:
        index = products[..., 0]
        for d in range(1, layout.n_dims):
            index = index ^ products[..., d]
    else:
        index = products.sum(-1) & _UINT32
    return index % int(layout.entries[level])


def _random_hash(vertex: Int64[Tensor, "n n_corners n_dims"]) -> Int64[Tensor, "n n_corners"]:
    # The number that PCG32 of seed 1337 gives after so many steps as the packed coordinates say. A step is
    # state -> a * state + c modulo 2^64; many are made at once by squaring, bit by bit of their number.
    bits = 64 // vertex.shape[-1]
    steps = torch.zeros_like(vertex[..., 0])
    for d in range(vertex.shape[-1]):
        steps = steps ^ (vertex[..., d] << (d * bits))
    factor, summand, state = PCG32_FACTOR, PCG32_SUMMAND, pcg32_start(1337)
    total_factor, total_summand = torch.ones_like(steps), torch.zeros_like(steps)
    for _ in range(64):
        odd = (steps & 1).bool()
        total_summand = torch.where(odd, total_summand * signed(factor) + signed(summand), total_summand)
        total_factor = torch.where(odd, total_factor * signed(factor), total_factor)
        summand = (factor + 1) * summand % 2**64
        factor = factor * factor % 2**64
        steps = (steps >> 1) & 0x7FFFFFFFFFFFFFFF  # the shift of unsigned numbers
    return pcg32_output(total_factor * signed(state) + total_summand)


def _corners(cell: Tensor, fraction: Tensor) -> tuple[Any, Any]:
    n_dims = cell.shape[1]
    number = torch.arange(2**n_dims, device=cell.device)
    sides = (number[:, None] >> torch.arange(n_dims, device=cell.device)) & 1  # [n_corners, n_dims]
    weights = torch.where(sides.bool(), fraction[:, None, :], 1 - fraction[:, None, :])
    # Products one by one: torch.prod's second derivative divides, which fails at a zero weight.
    return cell[:, None, :] + sides, math.prod(weights.unbind(-1))
