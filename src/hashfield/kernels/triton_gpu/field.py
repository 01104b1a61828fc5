"""The radiance field on GPUs: grid, density network, spherical harmonics and colour network, fused.

For programs that keep their samples on the device. Every function takes tensors of a fixed capacity and the number
of live samples in an int32 [1] on the device: programs beyond it leave at once, nothing synchronises, and with all
outputs and scratch given nothing is allocated, so that a CUDA graph can hold the calls.

    field = DeviceField(layout, table, weights)             table and flat weights in the compute type
    field_forward(field, positions_unit, directions, n_live, log_density_out, rgb_out, features=...)
    field_density(field, positions_unit, n_live, log_density_out)
    field_backward(field, positions_unit, directions, n_live, grad_log_density, grad_rgb, grad_table, grad_weights,
                   features=..., grad_features=...)

log_density [capacity] = h_0 + density_bias and rgb [capacity, 3] = sigmoid(...) are float32. The compute type is the
weights': float16, bfloat16 or float32, with float32 sums; the table has the same or any other of them.
`field_backward` *adds* to grad_table (float32 or float16 [n_entries, F]) and grad_weights (float32, flat like the
weights); cotangents pass between layers in the compute type, so in float16 the caller scales the loss up, and
divides both gradients.

**The backward pass is three kernels.** In one, the activations of both networks and the gradients of all five
matrices need more registers than there are, and the table's scatter would run at the networks' low occupancy. So the
colour network (persistent programs, the matrices' gradients in registers) leaves the cotangent of h, the density
network likewise that of the encoded features, and the scatter adds those to the table level by level. What passes
between, some 100 bytes a sample each way, is a tenth of the table's own traffic. The encoded features are kept from
the forward pass if `features` was given there, or encoded again if not.

**The forward pass** encodes in place where the table fits the card's L2 cache; where it does not, level by level in
a kernel of its own, so that one level at a time does.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.triton_gpu.common import (
    activated,
    activation_gradient,
    as_columns,
    as_type,
    dot_precision,
    encode,
    launch,
    levels_of,
    load_positions,
    n_processors,
    padded,
    product,
    product_onto,
    spherical_harmonics_of,
    spherical_harmonics_tile,
)
from hashfield.kernels.triton_gpu.grid_encode import encode_into, position_gradients, scatter_features
from hashfield.kernels.triton_gpu.mlp import (
    add_matrix,
    layer,
    layer_backward,
    load_matrix,
    matrix_gradient,
)

N_GEOMETRY = tl.constexpr(16)  # outputs of the density network; the first is the logarithm of density
N_DIRECTION = tl.constexpr(16)  # spherical harmonics of degree 4
N_COLOR_IN = tl.constexpr(32)


@dataclass(frozen=True)
class DeviceField:
    """A radiance field's numbers as these kernels take them."""

    layout: GridLayout
    """Three dimensions."""
    table: torch.Tensor
    """[n_entries, F]; float16, bfloat16 or float32."""
    weights: torch.Tensor
    """Flat, in the compute type: density [width, L*F], [16, width]; colour [v, 32], [v, v], [3, v]; see `mlp.flat`."""
    width: int = 64
    """Hidden neurons of the density network, a multiple of 16 up to 128."""
    color_width: int = 64
    """Hidden neurons v of each hidden layer of the colour network."""
    density_bias: float = 0.0
    """Added to the log-density."""
    interpolation: str = "linear"
    """How features lie between the grid's vertices."""

    def shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of the five matrices, in the order in which they lie."""
        w, v = self.width, self.color_width
        return [(w, self.layout.n_output), (16, w), (v, 32), (v, v), (3, v)]

    @property
    def n_weights(self) -> int:
        """Numbers in `weights`."""
        return sum(a * b for a, b in self.shapes())


@triton.jit
def _density_network(
    features, weights, N_FEATURES: tl.constexpr, C: tl.constexpr, W: tl.constexpr, PW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Hidden layer (compute type) and output h (float32)."""
    hidden = layer(features, weights, W, N_FEATURES, PW, C, PRECISION)
    hidden = as_type(activated(hidden, "relu"), features.dtype)
    return hidden, layer(hidden, weights + W * N_FEATURES, N_GEOMETRY, W, N_GEOMETRY, PW, PRECISION)


@triton.jit
def _color_network(h, harmonics, weights, V: tl.constexpr, PV: tl.constexpr, PRECISION: tl.constexpr):
    """Both hidden layers (compute type) and the colour [BLOCK, 16] (float32), of which 3 columns count."""
    # [h | harmonics] times the first matrix, as two products: the tiles come in different register layouts.
    from_h = load_matrix(weights, V, N_GEOMETRY, PV, N_GEOMETRY, N_COLOR_IN)
    from_direction = load_matrix(weights + N_GEOMETRY, V, N_DIRECTION, PV, N_DIRECTION, N_COLOR_IN)
    first = product(h, tl.trans(from_h), PRECISION)
    first = product_onto(first, harmonics, tl.trans(from_direction), PRECISION)
    first = as_type(activated(first, "relu"), h.dtype)
    weights += V * N_COLOR_IN
    second = as_type(activated(layer(first, weights, V, V, PV, PV, PRECISION), "relu"), h.dtype)
    return first, second, activated(layer(second, weights + V * V, 3, V, 16, PV, PRECISION), "sigmoid")


@triton.jit
def _harmonics(directions, rows, inside, DTYPE: tl.constexpr):
    x, y, z = load_positions(directions, rows, inside, 3)
    return as_type(as_columns(spherical_harmonics_of(x, y, z, 4), 16, 4), DTYPE)


@triton.jit
def _load_features(features, rows, inside, N_FEATURES: tl.constexpr, C: tl.constexpr):
    columns = tl.arange(0, C)[None, :]
    return tl.load(features + rows[:, None] * N_FEATURES + columns, inside[:, None] & (columns < N_FEATURES), other=0.0)


@triton.jit
def _store_features(out, values, rows, inside, N_FEATURES: tl.constexpr, C: tl.constexpr):
    columns = tl.arange(0, C)[None, :]
    at = out + rows[:, None] * N_FEATURES + columns
    tl.store(at, values.to(out.dtype.element_ty), inside[:, None] & (columns < N_FEATURES))


@triton.jit
def _forward(
    positions, directions, n_live, table, features, weights, log_density, rgb, density_bias, LEVELS: tl.constexpr,
    L: tl.constexpr, LOG2_L: tl.constexpr, F: tl.constexpr, INTERPOLATION: tl.constexpr, W: tl.constexpr,
    PW: tl.constexpr, V: tl.constexpr, PV: tl.constexpr, ENCODE: tl.constexpr, KEEP: tl.constexpr,
    COLOR: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # ENCODE: features are looked up here, and kept if KEEP; else they are read.
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        N_FEATURES: tl.constexpr = L * F
        C: tl.constexpr = F << LOG2_L
        DTYPE: tl.constexpr = weights.dtype.element_ty
        rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n
        if ENCODE:
            x, y, z = load_positions(positions, rows, inside, 3)
            encoded = encode(table, x, y, z, LEVELS, L, LOG2_L, 3, F, INTERPOLATION, False, DTYPE)
            if KEEP:
                _store_features(features, encoded, rows, inside, N_FEATURES, C)
        else:
            encoded = _load_features(features, rows, inside, N_FEATURES, C).to(DTYPE)
        _, h = _density_network(encoded, weights, N_FEATURES, C, W, PW, PRECISION)
        columns = tl.arange(0, 16)[None, :]
        tl.store(log_density + rows, tl.sum(tl.where(columns == 0, h, 0.0), axis=1) + density_bias, inside)
        if COLOR:
            harmonics = _harmonics(directions, rows, inside, DTYPE)
            weights += W * N_FEATURES + N_GEOMETRY * W
            _, _, color = _color_network(as_type(h, DTYPE), harmonics, weights, V, PV, PRECISION)
            tl.store(rgb + rows[:, None] * 3 + columns, color, inside[:, None] & (columns < 3))


@triton.jit
def _color_backward(
    directions, n_live, features, weights, grad_log_density, grad_rgb, grad_h, grad_weights, grad_harmonics,
    N_FEATURES: tl.constexpr, C: tl.constexpr, ROW: tl.constexpr, W: tl.constexpr, PW: tl.constexpr, V: tl.constexpr,
    PV: tl.constexpr, HARMONICS: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Leaves the cotangent of h in the first 16 columns of grad_h [capacity, ROW], and where HARMONICS, that of the
    # direction's spherical harmonics in grad_harmonics [capacity, 16].
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        DTYPE: tl.constexpr = weights.dtype.element_ty
        FIRST: tl.constexpr = W * N_FEATURES + N_GEOMETRY * W
        SECOND: tl.constexpr = FIRST + V * N_COLOR_IN
        OUT: tl.constexpr = SECOND + V * V
        # Sums are kept with the wider side first, as tensor cores like them: that of 16 rows is transposed.
        sum_h = tl.zeros([PV, N_GEOMETRY], tl.float32)
        sum_direction = tl.zeros([PV, N_DIRECTION], tl.float32)
        sum_second = tl.zeros([PV, PV], tl.float32)
        sum_out = tl.zeros([PV, 16], tl.float32)
        # Hoisting out of the loop is off: the compiler would compute every matrix's addresses before it and keep
        # them in registers, which then spill.
        for tile in tl.range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0), disable_licm=True):
            rows = tile * BLOCK + tl.arange(0, BLOCK)
            inside = rows < n
            columns = tl.arange(0, 16)[None, :]
            encoded = _load_features(features, rows, inside, N_FEATURES, C).to(DTYPE)
            _, h = _density_network(encoded, weights, N_FEATURES, C, W, PW, PRECISION)
            h = as_type(h, DTYPE)
            harmonics = spherical_harmonics_tile(directions, rows, inside, DTYPE)
            first, second, color = _color_network(h, harmonics, weights + FIRST, V, PV, PRECISION)
            g = tl.load(grad_rgb + rows[:, None] * 3 + columns, inside[:, None] & (columns < 3), other=0.0)
            g = as_type(activation_gradient(g, color, "sigmoid"), DTYPE)
            sum_out = matrix_gradient(sum_out, second, g, PRECISION)
            g = layer_backward(g, weights + OUT, 3, V, 16, PV, PRECISION)
            g = as_type(activation_gradient(g, second, "relu"), DTYPE)
            sum_second = matrix_gradient(sum_second, g, first, PRECISION)
            g = layer_backward(g, weights + SECOND, V, V, PV, PV, PRECISION)
            g = as_type(activation_gradient(g, first, "relu"), DTYPE)
            sum_h = matrix_gradient(sum_h, g, h, PRECISION)
            sum_direction = matrix_gradient(sum_direction, g, harmonics, PRECISION)
            if HARMONICS:
                matrix = load_matrix(weights + FIRST + N_GEOMETRY, V, N_DIRECTION, PV, N_DIRECTION, N_COLOR_IN)
                to = grad_harmonics + rows[:, None] * N_DIRECTION + columns
                tl.store(to, product(g, matrix, PRECISION), inside[:, None])
            from_h = load_matrix(weights + FIRST, V, N_GEOMETRY, PV, N_GEOMETRY, N_COLOR_IN)
            g = product(g, from_h, PRECISION)
            direct = tl.load(grad_log_density + rows, inside, other=0.0)
            g += tl.where(columns == 0, direct[:, None], 0.0)
            tl.store(grad_h + rows[:, None] * ROW + columns, as_type(g, grad_h.dtype.element_ty), inside[:, None])
        add_matrix(grad_weights + FIRST, sum_h, V, N_GEOMETRY, PV, N_GEOMETRY, N_COLOR_IN)
        add_matrix(grad_weights + FIRST + N_GEOMETRY, sum_direction, V, N_DIRECTION, PV, N_DIRECTION, N_COLOR_IN)
        add_matrix(grad_weights + SECOND, sum_second, V, V, PV, PV, V)
        add_matrix(grad_weights + OUT, tl.trans(sum_out), 3, V, 16, PV, V)


@triton.jit
def _density_backward(
    n_live, features, weights, grad_h, grad_features, grad_weights, N_FEATURES: tl.constexpr, C: tl.constexpr,
    ROW: tl.constexpr, W: tl.constexpr, PW: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # grad_h and grad_features [capacity, ROW] are one buffer: a tile's rows are read before they are overwritten.
    n = tl.load(n_live)
    if tl.program_id(0) * BLOCK < n:
        DTYPE: tl.constexpr = weights.dtype.element_ty
        OUT: tl.constexpr = W * N_FEATURES
        sum_first = tl.zeros([PW, C], tl.float32)
        sum_out = tl.zeros([PW, N_GEOMETRY], tl.float32)
        for tile in tl.range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0), disable_licm=True):
            rows = tile * BLOCK + tl.arange(0, BLOCK)
            inside = rows < n
            columns = tl.arange(0, 16)[None, :]
            encoded = _load_features(features, rows, inside, N_FEATURES, C).to(DTYPE)
            hidden = layer(encoded, weights, W, N_FEATURES, PW, C, PRECISION)
            hidden = as_type(activated(hidden, "relu"), DTYPE)
            g = tl.load(grad_h + rows[:, None] * ROW + columns, inside[:, None], other=0.0).to(DTYPE)
            sum_out = matrix_gradient(sum_out, hidden, g, PRECISION)
            g = layer_backward(g, weights + OUT, N_GEOMETRY, W, N_GEOMETRY, PW, PRECISION)
            g = as_type(activation_gradient(g, hidden, "relu"), DTYPE)
            sum_first = matrix_gradient(sum_first, g, encoded, PRECISION)
            g = layer_backward(g, weights, W, N_FEATURES, PW, C, PRECISION)
            at = tl.arange(0, C)[None, :]
            g = as_type(g, grad_features.dtype.element_ty)
            tl.store(grad_features + rows[:, None] * ROW + at, g, inside[:, None] & (at < N_FEATURES))
        add_matrix(grad_weights, sum_first, W, N_FEATURES, PW, C, N_FEATURES)
        add_matrix(grad_weights + OUT, tl.trans(sum_out), N_GEOMETRY, W, N_GEOMETRY, PW, W)


# --- entry points ------------------------------------------------------------------------------------------

FORWARD_TILE = {torch.float16: (128, 4), torch.bfloat16: (128, 4), torch.float32: (64, 4)}
"""(samples, warps) of a tile, by compute type, for networks up to 64 wide: chosen from the resources that the
cross-compiled kernels need, tests/ops/triton_budget.json."""
BACKWARD_TILE = {torch.float16: (64, 4), torch.bfloat16: (64, 4), torch.float32: (16, 4)}
WIDE_FORWARD_TILE, WIDE_BACKWARD_TILE = (64, 4), (16, 8)
"""(samples, warps) of a tile for wider networks."""


def _tile(field: DeviceField, *, backward: bool) -> tuple[int, int]:
    if max(field.width, field.color_width) > 64:
        return WIDE_BACKWARD_TILE if backward else WIDE_FORWARD_TILE
    return (BACKWARD_TILE if backward else FORWARD_TILE)[field.weights.dtype]


def forward_constants(field: DeviceField, *, encode: bool, keep: bool, color: bool) -> dict[str, object]:
    """The compile-time constants of the forward kernel."""
    layout = field.layout
    return {
        "LEVELS": levels_of(layout), "L": layout.n_levels, "LOG2_L": log2_levels(layout),
        "F": layout.n_features_per_level, "INTERPOLATION": field.interpolation, "ENCODE": encode, "KEEP": keep,
        "COLOR": color, "BLOCK": _tile(field, backward=False)[0], "W": field.width, "PW": padded(field.width),
        "V": field.color_width, "PV": padded(field.color_width), "PRECISION": dot_precision(field.weights.dtype),
    }  # fmt: skip


def log2_levels(layout: GridLayout) -> int:
    """The logarithm of the number of levels a tile of features holds: at least 16 columns, a power of two."""
    levels = padded(layout.n_levels, 1)
    return max(levels, 16 // layout.n_features_per_level).bit_length() - 1


@functools.lru_cache(maxsize=8)
def _cache_bytes(device: torch.device) -> int:
    return 0 if device.type != "cuda" else torch.cuda.get_device_properties(device).L2_cache_size


def _encodes_in_place(field: DeviceField) -> bool:
    return field.table.numel() * field.table.element_size() <= _cache_bytes(field.table.device)


def field_forward(
    field: DeviceField, positions_unit: torch.Tensor, directions: torch.Tensor | None, n_live: torch.Tensor,
    log_density_out: torch.Tensor, rgb_out: torch.Tensor | None, *, features: torch.Tensor | None = None,
    encode_in_place: bool | None = None,
) -> None:  # fmt: skip
    """Log-density and colour of the first n_live samples.

    Args:
        field: The numbers.
        positions_unit: float32 [capacity, 3], contiguous.
        directions: float32 [capacity, 3], unit length; None for densities alone.
        n_live: int32 [1] on the device.
        log_density_out: float32 [capacity].
        rgb_out: float32 [capacity, 3]; None for densities alone.
        features: [capacity, L*F] in the compute type, filled with the encoded features for `field_backward`.
        encode_in_place: Look features up in the networks' kernel, or in one of their own; None chooses by the
            size of the card's L2 cache.
    """
    capacity, dtype = positions_unit.shape[0], field.weights.dtype
    in_place = _encodes_in_place(field) if encode_in_place is None else encode_in_place
    keep = in_place and features is not None
    if not in_place:
        if features is None:
            features = positions_unit.new_empty((capacity, field.layout.n_output), dtype=dtype)
        encode_into(features, positions_unit, n_live, field.table, field.layout, field.interpolation)
    block, warps = _tile(field, backward=False)
    color = rgb_out is not None
    launch(
        _forward, (triton.cdiv(capacity, block),), positions_unit, directions if color else positions_unit, n_live,
        field.table, features if features is not None else log_density_out, field.weights, log_density_out,
        rgb_out if color else log_density_out, field.density_bias, num_warps=warps,
        **forward_constants(field, encode=in_place, keep=keep, color=color),
    )  # fmt: skip


def field_density(
    field: DeviceField, positions_unit: torch.Tensor, n_live: torch.Tensor, log_density_out: torch.Tensor, *,
    features: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Log-density alone of the first n_live samples.

    Arguments as for `field_forward`; `features` is scratch, used where the table does not fit the L2 cache.
    """
    features = None if _encodes_in_place(field) else features
    field_forward(field, positions_unit, None, n_live, log_density_out, None, features=features)


def field_backward(
    field: DeviceField, positions_unit: torch.Tensor, directions: torch.Tensor, n_live: torch.Tensor,
    grad_log_density: torch.Tensor, grad_rgb: torch.Tensor, grad_table: torch.Tensor, grad_weights: torch.Tensor, *,
    features: torch.Tensor | None = None, grad_features: torch.Tensor | None = None,
    grad_positions: torch.Tensor | None = None, grad_harmonics: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Add the gradients of table and weights for the first n_live samples; where asked, write those of their inputs.

    Args:
        field: The numbers.
        positions_unit: As for `field_forward`.
        directions: As for `field_forward`.
        n_live: As for `field_forward`.
        grad_log_density: float32 [capacity], cotangent of the log-density.
        grad_rgb: float32 [capacity, 3], cotangent of the colour.
        grad_table: float32 or float16 [n_entries, F].
        grad_weights: float32, flat like `field.weights`.
        features: What `field_forward` kept for these samples; encoded again if None.
        grad_features: Scratch [capacity, scratch_width(layout)] in the compute type (or float32).
        grad_positions: float32 [capacity, 3], where given filled with the gradients of positions_unit.
        grad_harmonics: float32 [capacity, 16], where given filled with those of the directions' spherical harmonics.
    """
    capacity, dtype, layout = positions_unit.shape[0], field.weights.dtype, field.layout
    device = positions_unit.device
    if features is None:
        features = torch.empty((capacity, layout.n_output), dtype=dtype, device=device)
        encode_into(features, positions_unit, n_live, field.table, layout, field.interpolation)
    if grad_features is None:
        grad_features = torch.empty((capacity, scratch_width(layout)), dtype=dtype, device=device)
    constants: dict[str, object] = {
        "N_FEATURES": layout.n_output, "C": layout.n_features_per_level << log2_levels(layout),
        "ROW": grad_features.shape[1], "W": field.width, "PW": padded(field.width), "PRECISION": dot_precision(dtype),
    }  # fmt: skip
    block, warps = _tile(field, backward=True)
    launch(
        _color_backward, (_programs(capacity, block, 2, device),), directions, n_live, features, field.weights,
        grad_log_density, grad_rgb, grad_features, grad_weights,
        grad_weights if grad_harmonics is None else grad_harmonics, **constants, V=field.color_width,
        PV=padded(field.color_width), HARMONICS=grad_harmonics is not None, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    launch(
        _density_backward, (_programs(capacity, block, 4, device),), n_live, features, field.weights, grad_features,
        grad_features, grad_weights, **constants, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    scatter_features(positions_unit, n_live, grad_features, grad_table, layout, field.interpolation)
    if grad_positions is not None:
        position_gradients(
            positions_unit, n_live, field.table, grad_features, grad_positions, layout, field.interpolation
        )


def scratch_width(layout: GridLayout) -> int:
    """Columns of `field_backward`'s scratch."""
    return max(layout.n_output, N_GEOMETRY.value)


def _programs(capacity: int, block: int, per_processor: int, device: torch.device) -> int:
    # As many as fit on the card at once, by their registers.
    return min(triton.cdiv(capacity, block), per_processor * n_processors(device))
