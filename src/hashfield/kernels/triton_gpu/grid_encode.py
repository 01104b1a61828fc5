"""Multiresolution grid encoding on GPUs: forward, backward to the table, backward to positions.

Programs are ordered level-major: all tiles of one level, then the next, so that one level's part of the table is
what the L2 cache holds. A level's branch is a specialisation of its own inside one kernel. The table's gradient is
scattered with the widest atomics the card has (`common.atomics_of`): the order of additions is not fixed.
"""

import torch
import triton
import triton.language as tl

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.triton_gpu.common import (
    N_LEVEL_FIELDS,
    add_features,
    as_type,
    atomics_of,
    capability,
    cell_and_fraction,
    corner_index,
    corner_weight,
    count_of,
    eased,
    encode_level,
    entry_offsets,
    launch,
    level_start,
    levels_of,
    load_positions,
    rounded_to_bfloat16,
    slope,
)

BLOCK = 128  # samples of a tile, one thread each


@triton.jit
def _forward(
    positions, n_live, table, out, LEVELS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    INTERPOLATION: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n
        x, y, z = load_positions(positions, rows, inside, D)
        for level in tl.static_range(L):
            if tl.program_id(1) == level:
                features = encode_level(table, x, y, z, level, LEVELS, D, F, INTERPOLATION, ROUND)
                at = (rows * (L * F) + level * F)[:, None] + tl.arange(0, F)[None, :]
                tl.store(out + at, as_type(features, out.dtype.element_ty), inside[:, None])


@triton.jit
def scatter_level(
    grad_table, x, y, z, inside, cotangent, LEVEL: tl.constexpr, LEVELS: tl.constexpr, D: tl.constexpr,
    F: tl.constexpr, INTERPOLATION: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Add the corners' shares of a cotangent [BLOCK, F] (float32) to one level of the table's gradient."""
    SCALE: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS]
    start = level_start(grad_table, LEVEL, LEVELS, F)
    px, fx, _ = cell_and_fraction(x, SCALE)
    py, fy, _ = cell_and_fraction(y, SCALE)
    pz, fz = py, fy
    if D == 3:
        pz, fz, _ = cell_and_fraction(z, SCALE)
    SMOOTHSTEP: tl.constexpr = INTERPOLATION == "smoothstep"
    fx, fy, fz = eased(fx, SMOOTHSTEP), eased(fy, SMOOTHSTEP), eased(fz, SMOOTHSTEP)
    if INTERPOLATION == "nearest":
        add_features(start, corner_index(px, py, pz, 0, LEVEL, LEVELS, D), cotangent, inside, F, FORM)
    else:
        for c in tl.static_range(1 << D):
            index = corner_index(px, py, pz, c, LEVEL, LEVELS, D)
            share = corner_weight(fx, fy, fz, c, D)[:, None] * cotangent
            add_features(start, index, share, inside, F, FORM)


@triton.jit
def scatter(
    positions, n_live, grad_features, grad_table, LEVELS: tl.constexpr, L: tl.constexpr, ROW: tl.constexpr,
    D: tl.constexpr, F: tl.constexpr, INTERPOLATION: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to the table's gradient; grad_features [n, ROW] holds level-major cotangents. Grid: tiles, levels."""
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n
        x, y, z = load_positions(positions, rows, inside, D)
        for level in tl.static_range(L):
            if tl.program_id(1) == level:
                at = (rows * ROW + level * F)[:, None] + tl.arange(0, F)[None, :]
                cotangent = tl.load(grad_features + at, inside[:, None], other=0.0).to(tl.float32)
                scatter_level(
                    grad_table, x, y, z, inside, cotangent, level, LEVELS, D, F, INTERPOLATION, FORM
                )


@triton.jit
def _along(low, high, other1, other2, D: tl.constexpr):
    """Differences along one axis, weighted over the corners of the others: low and high are tuples of dots."""
    g1 = 1.0 - other1
    slopes = g1 * (high[0] - low[0]) + other1 * (high[1] - low[1])
    if D == 3:
        second = g1 * (high[2] - low[2]) + other1 * (high[3] - low[3])
        slopes = (1.0 - other2) * slopes + other2 * second
    return slopes


@triton.jit
def _level_slopes(
    table, x, y, z, cotangent, LEVEL: tl.constexpr, LEVELS: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    INTERPOLATION: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """One level's share of the gradient to x, y and z.

    Along axis d it is scale * S'(f_d) * sum over the other axes' corners of weights * (right - left) . cotangent.
    """
    SCALE: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS]
    SMOOTHSTEP: tl.constexpr = INTERPOLATION == "smoothstep"
    start = level_start(table, LEVEL, LEVELS, F)
    px, fx, valid_x = cell_and_fraction(x, SCALE)
    py, fy, valid_y = cell_and_fraction(y, SCALE)
    pz, fz, valid_z = py, fy, valid_y
    if D == 3:
        pz, fz, valid_z = cell_and_fraction(z, SCALE)
    sx, sy = slope(fx, valid_x, SCALE, SMOOTHSTEP), slope(fy, valid_y, SCALE, SMOOTHSTEP)
    sz = slope(fz, valid_z, SCALE, SMOOTHSTEP)
    fx, fy, fz = eased(fx, SMOOTHSTEP), eased(fy, SMOOTHSTEP), eased(fz, SMOOTHSTEP)
    d = ()
    for c in tl.static_range(1 << D):
        index = corner_index(px, py, pz, c, LEVEL, LEVELS, D)
        value = tl.load(start + entry_offsets(index, F)).to(tl.float32)
        if ROUND:
            value = rounded_to_bfloat16(value)
        d = d + (tl.sum(value * cotangent, axis=1),)
    if D == 2:
        gx = sx * _along((d[0], d[2]), (d[1], d[3]), fy, fy, 2)
        gy = sy * _along((d[0], d[1]), (d[2], d[3]), fx, fx, 2)
        gz = gx
    else:
        gx = sx * _along((d[0], d[2], d[4], d[6]), (d[1], d[3], d[5], d[7]), fy, fz, 3)
        gy = sy * _along((d[0], d[1], d[4], d[5]), (d[2], d[3], d[6], d[7]), fx, fz, 3)
        gz = sz * _along((d[0], d[1], d[2], d[3]), (d[4], d[5], d[6], d[7]), fx, fy, 3)
    return gx, gy, gz


@triton.jit
def _backward_positions(
    positions, n_live, table, grad_features, grad_positions, LEVELS: tl.constexpr, L: tl.constexpr, ROW: tl.constexpr,
    D: tl.constexpr, F: tl.constexpr, INTERPOLATION: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n
        x, y, z = load_positions(positions, rows, inside, D)
        gx, gy, gz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        # Registers: 37 to 53 before sm_89, up to 176 from there on. LLVM then pairs the arithmetic of several levels,
        # and so does it ahead of their loads; nothing spills, and more loads are in flight.
        for level in tl.static_range(L):
            at = (rows * ROW + level * F)[:, None] + tl.arange(0, F)[None, :]
            cotangent = tl.load(grad_features + at, inside[:, None], other=0.0).to(tl.float32)
            dx, dy, dz = _level_slopes(table, x, y, z, cotangent, level, LEVELS, D, F, INTERPOLATION, ROUND)
            gx += dx
            gy += dy
            gz += dz
        tl.store(grad_positions + rows * D, gx, inside)
        tl.store(grad_positions + rows * D + 1, gy, inside)
        if D == 3:
            tl.store(grad_positions + rows * D + 2, gz, inside)


# --- entry points ------------------------------------------------------------------------------------------


def scatter_features(
    positions: torch.Tensor, n_live: torch.Tensor, grad_features: torch.Tensor, grad_table: torch.Tensor,
    layout: GridLayout, interpolation: str,
) -> None:  # fmt: skip
    """Add the table's gradient to `grad_table` (float32 or float16) for cotangents of the encoded features.

    Args:
        positions: [capacity, D], of which the first n_live count.
        n_live: int32 [1] on the device.
        grad_features: [capacity, at least L*F], level-major.
        grad_table: [n_entries, F].
        layout: Sizes of the levels.
        interpolation: How features lie between the grid's vertices.
    """
    capacity = positions.shape[0]
    form = atomics_of(capability(positions.device), grad_table.dtype, layout.n_features_per_level)
    launch(
        scatter, (triton.cdiv(capacity, BLOCK), layout.n_levels), positions, n_live, grad_features, grad_table,
        LEVELS=levels_of(layout), L=layout.n_levels, ROW=grad_features.shape[1], D=layout.n_dims,
        F=layout.n_features_per_level, INTERPOLATION=interpolation, FORM=form, BLOCK=BLOCK,
    )  # fmt: skip


def position_gradients(
    positions: torch.Tensor, n_live: torch.Tensor, table: torch.Tensor, grad_features: torch.Tensor,
    out: torch.Tensor, layout: GridLayout, interpolation: str, precision: str = "float32",
) -> None:  # fmt: skip
    """Write the gradients of positions to `out`, for cotangents of the encoded features.

    Args:
        positions: [capacity, D], of which the first n_live count.
        n_live: int32 [1] on the device.
        table: [n_entries, F].
        grad_features: [capacity, at least L*F], level-major.
        out: float32 [capacity, D].
        layout: Sizes of the levels.
        interpolation: How features lie between the grid's vertices; not "nearest", which has no slope.
        precision: "bfloat16" rounds the table's entries as the lookup does.
    """
    launch(
        _backward_positions, (triton.cdiv(positions.shape[0], BLOCK),), positions, n_live, table, grad_features, out,
        LEVELS=levels_of(layout), L=layout.n_levels, ROW=grad_features.shape[1], D=layout.n_dims,
        F=layout.n_features_per_level, INTERPOLATION=interpolation, ROUND=precision == "bfloat16", BLOCK=BLOCK,
    )  # fmt: skip


def encode_into(
    out: torch.Tensor, positions: torch.Tensor, n_live: torch.Tensor, table: torch.Tensor, layout: GridLayout,
    interpolation: str, precision: str = "float32",
) -> None:  # fmt: skip
    """Write the features of the first n_live positions [capacity, D] to out [capacity, L*F], in its type."""
    launch(
        _forward, (triton.cdiv(positions.shape[0], BLOCK), layout.n_levels), positions, n_live, table, out,
        LEVELS=levels_of(layout), L=layout.n_levels, D=layout.n_dims, F=layout.n_features_per_level,
        INTERPOLATION=interpolation, ROUND=precision == "bfloat16", BLOCK=BLOCK,
    )  # fmt: skip


def grid_encode_forward(
    positions: torch.Tensor, table: torch.Tensor, layout: GridLayout, interpolation: str, precision: str
) -> torch.Tensor:
    """Features [n, L*F] of positions [n, D]; see `hashfield.ops.grid_encode`."""
    n = positions.shape[0]
    out = torch.empty((n, layout.n_output), dtype=torch.float32, device=positions.device)
    encode_into(out, positions, count_of(n, positions.device), table, layout, interpolation, precision)
    return out


def grid_encode_backward(
    positions: torch.Tensor, table: torch.Tensor, layout: GridLayout, interpolation: str, precision: str,
    grad_output: torch.Tensor, needs_table: bool, needs_positions: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """Gradients to the table and the positions for the cotangent [n, L*F]."""
    n_live = count_of(positions.shape[0], positions.device)
    grad_table = grad_positions = None
    if needs_table:
        grad_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
        scatter_features(positions, n_live, grad_output, grad_table, layout, interpolation)
    if needs_positions:
        grad_positions = torch.zeros_like(positions)
        if interpolation != "nearest":
            position_gradients(
                positions, n_live, table, grad_output, grad_positions, layout, interpolation, precision
            )
    return grad_table, grad_positions
