"""What the Triton kernels share: grid levels, table lookup and its gradient, activations, launching.

A tile is BLOCK samples, one thread each (`BLOCK = 32 * num_warps`) wherever memory is gathered or scattered: the
index and the weight of a corner are computed once per sample and level, and the F features of an entry are one
load. Tiles of features [BLOCK, columns] are then put together in registers and handed to `tl.dot`.

Everything about a grid's levels is a compile-time constant (`levels_of`), so that a dense level costs no hash, a
hashed one no modulo, and no level parameter is loaded. Every layout is therefore a compilation of its own.

Under TRITON_INTERPRET=1, which must be set before this module is imported, the same source runs on CPU tensors;
what the interpreter cannot run (inline assembly, a fused multiply-add) has a twin behind INTERPRETED.
"""

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl

from hashfield.geometry.grid_layout import GridLayout

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# Fields of a level in the flat tuple that `levels_of` makes.
N_LEVEL_FIELDS = tl.constexpr(6)
_LIMIT = tl.constexpr(2.0**31)

# How a kernel adds F features to an entry of a gradient table.
SCALAR = tl.constexpr(0)  # one atomic per feature: any card, either dtype
VECTOR_FLOAT = tl.constexpr(1)  # float32, up to four features an atomic: sm_90 and newer
HALF_PAIR = tl.constexpr(2)  # float16, two features an atomic: sm_80 and newer
HALF_VECTOR = tl.constexpr(3)  # float16, up to eight features an atomic: sm_90 and newer


# --- on the host -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def levels_of(layout: GridLayout) -> tuple[float | int, ...]:
    """The layout as kernels take it: per level scale, factors of y and z, entries, first entry, is_hashed."""
    fields: list[float | int] = []
    for level in range(layout.n_levels):
        strides = [int(s) for s in layout.strides[level]] + [0]
        fields += [
            float(layout.scales[level]), strides[1], strides[2], int(layout.entries[level]),
            int(layout.level_offsets[level]), int(layout.is_hashed[level]),
        ]  # fmt: skip
    return tuple(fields)


def capability(device: torch.device) -> int:
    """Compute capability as one number (90 for sm_90); 0 in the interpreter and on AMD cards."""
    if device.type != "cuda" or torch.version.hip:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def atomics_of(arch: int, dtype: torch.dtype, n_features: int) -> int:
    """The widest form in which a card adds F features to an entry of a gradient table.

    Args:
        arch: Compute capability, see `capability`.
        dtype: Number type of the gradient table, float32 or float16.
        n_features: F.
    """
    if n_features == 1 or arch < 80:
        return SCALAR.value
    if dtype == torch.float32:
        return VECTOR_FLOAT.value if arch >= 90 else SCALAR.value
    return HALF_VECTOR.value if arch >= 90 and n_features > 2 else HALF_PAIR.value


@functools.lru_cache(maxsize=8)
def n_processors(device: torch.device) -> int:
    """Multiprocessors of a card; 3 in the interpreter, so that a persistent program sees several tiles."""
    return 3 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def count_of(n: int, device: torch.device) -> torch.Tensor:
    """A number of samples as kernels read it: int32 [1] on the device. Filling it does not synchronise."""
    return torch.full((1,), n, dtype=torch.int32, device=device)


def dot_precision(dtype: torch.dtype) -> str:
    """`input_precision` of products of this dtype: float32 as three TF32 products (AMD: as it is)."""
    return "tf32x3" if dtype == torch.float32 and not torch.version.hip else "ieee"


def padded(n: int, least: int = 16) -> int:
    """The next power of two, at least what `tl.dot` takes."""
    return max(least, triton.next_power_of_2(n))


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 1, **constants: Any
) -> Any:
    """Launch a kernel, unless the grid is empty.

    Multiplications and additions may be fused, as on CPUs. Loops are not pipelined unless asked: what their
    iterations load, mostly matrices, is in the nearest cache, and copies of it in shared memory cost occupancy.
    """
    if min(grid) == 0:
        return None
    return kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True, **constants)


@triton.jit
def _pack(numbers, goes_on, ends, packed, n, BLOCK: tl.constexpr):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < n
    mask = mask & (tl.load(goes_on + k, mask, other=0) != 0)
    tl.store(packed + tl.load(ends + k, mask, other=1) - 1, tl.load(numbers + k, mask, other=0), mask)


def pack(numbers: torch.Tensor, goes_on: torch.Tensor, packed: torch.Tensor, count: torch.Tensor) -> None:
    """The numbers that go on, one after another in `packed`, and how many in `count`, without waiting.

    Args:
        numbers: int32 [n].
        goes_on: int32 [n], 0 or 1.
        packed: int32 [n], other memory; what lies behind the count is not written.
        count: int32 [1] in memory of its own, as all that kernels get: its address is a multiple of 16.
    """
    n = numbers.shape[0]
    ends = torch.cumsum(goes_on, 0, dtype=torch.int32)
    launch(_pack, (triton.cdiv(n, 1024),), numbers, goes_on, ends, packed, n, BLOCK=1024)
    count.copy_(ends[-1:])


# --- on the device: positions and cells --------------------------------------------------------------------


@triton.jit
def fused_multiply_add(a, b, c):
    """The sum a*b + c, rounded once: cells and fractions must be those of every other backend."""
    if INTERPRETED:
        # The bounds keep numpy from warning of an overflow; beyond 2^31 nothing reads the value.
        return tl.minimum(tl.maximum(a.to(tl.float64) * b + c, -3e38), 3e38).to(tl.float32)
    return tl.fma(a, tl.full(a.shape, b, tl.float32), tl.full(a.shape, c, tl.float32))


@triton.jit
def load_positions(positions, rows, inside, D: tl.constexpr):
    """Coordinates x, y, z of BLOCK samples from positions [n, D]; z is 0 in 2-D, all are 0 outside the batch."""
    x = tl.load(positions + rows * D, inside, other=0)
    y = tl.load(positions + rows * D + 1, inside, other=0)
    if D == 3:
        z = tl.load(positions + rows * D + 2, inside, other=0)
    else:
        z = tl.zeros_like(x)
    return x, y, z


@triton.constexpr_function
def fixed_shift(scale):
    """S for which scale = factor / 2^(S - 32) with a whole factor: all 24 bits of a scale from 1 on."""
    return 32 + min(23, max(0, 23 - math.floor(math.log2(max(scale, 1.0)))))


@triton.constexpr_function
def fixed_factor(scale):
    """The factor that belongs to `fixed_shift`."""
    return round(scale * 2.0 ** (fixed_shift(scale) - 32))


@triton.jit
def _cell_and_fraction_fixed(x, FACTOR: tl.constexpr, SHIFT: tl.constexpr):
    """`cell_and_fraction` of a position k / 2^32 in fixed point, in whole numbers: the fraction is good to 2^-23 of a cell on
    every level."""
    k = x.to(tl.uint32, bitcast=True).to(tl.uint64)
    q = k * tl.full(x.shape, FACTOR, tl.uint64) + tl.full(x.shape, 1 << (SHIFT - 1), tl.uint64)
    fraction = ((q >> (SHIFT - 24)) & 0xFFFFFF).to(tl.int32).to(tl.float32) * (1.0 / (1 << 24))
    return (q >> SHIFT).to(tl.uint32), fraction, tl.full(x.shape, 1, tl.int1)


@triton.jit
def cell_and_fraction(x, SCALE: tl.constexpr):
    """Integer cell (uint32), fraction and validity of q = SCALE*x + 0.5 along one axis.

    A position that is not finite, or whose cell does not fit 32 bits, is given cell 0 and fraction 0. Positions of
    type int32 are in fixed point, see `geometry.fixed_point`.
    """
    if x.dtype == tl.int32:
        cell, fraction, valid = _cell_and_fraction_fixed(x, fixed_factor(SCALE), fixed_shift(SCALE))
    else:
        q = fused_multiply_add(x, SCALE, 0.5)
        valid = tl.abs(q) < _LIMIT
        q = tl.where(valid, q, 0.0)
        whole = tl.floor(q)
        cell, fraction = whole.to(tl.int32).to(tl.uint32, bitcast=True), q - whole
    return cell, fraction, valid


@triton.jit
def eased(f, SMOOTHSTEP: tl.constexpr):
    """The interpolation weight of the upper corner: f, or f^2 (3 - 2f)."""
    if SMOOTHSTEP:
        return f * f * (3.0 - 2.0 * f)
    return f


@triton.jit
def slope(f, valid, SCALE: tl.constexpr, SMOOTHSTEP: tl.constexpr):
    """Derivative of `eased` to the position: SCALE, or SCALE * 6 f (1 - f); 0 where the position is replaced."""
    if SMOOTHSTEP:
        return tl.where(valid, SCALE * 6.0 * f * (1.0 - f), 0.0)
    return tl.where(valid, SCALE, 0.0)


@triton.jit
def corner_index(px, py, pz, C: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, D: tl.constexpr):
    """Entry, within its level, of corner C (bit d of C is its side in dimension d) of cells (px, py, pz): int32."""
    STRIDE_Y: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS + 1]
    STRIDE_Z: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS + 2]
    SIZE: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS + 3]
    HASHED: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS + 5]
    one = tl.full(px.shape, 1, tl.uint32)
    x = px
    if C & 1:
        x = px + one
    y = py * tl.full(px.shape, STRIDE_Y, tl.uint32)
    if C & 2:
        y += tl.full(px.shape, STRIDE_Y, tl.uint32)
    index = x ^ y if HASHED else x + y
    if D == 3:
        z = pz * tl.full(px.shape, STRIDE_Z, tl.uint32)
        if C & 4:
            z += tl.full(px.shape, STRIDE_Z, tl.uint32)
        index = index ^ z if HASHED else index + z
    if HASHED:
        index = index & tl.full(px.shape, SIZE - 1, tl.uint32)
    else:
        index = index % tl.full(px.shape, SIZE, tl.uint32)
    return index.to(tl.int32, bitcast=True)


@triton.jit
def corner_weight(fx, fy, fz, C: tl.constexpr, D: tl.constexpr):
    """Product over the dimensions of the eased fraction, or of 1 minus it, by the bits of C."""
    weight = fx if C & 1 else 1.0 - fx
    weight *= fy if C & 2 else 1.0 - fy
    if D == 3:
        weight *= fz if C & 4 else 1.0 - fz
    return weight


# --- on the device: lookup ---------------------------------------------------------------------------------


@triton.jit
def entry_offsets(index, F: tl.constexpr):
    """Where the F features of entries [BLOCK] lie within their level: [BLOCK, F], contiguous along F."""
    return (index * F)[:, None] + tl.arange(0, F)[None, :]


@triton.jit
def level_start(table, LEVEL: tl.constexpr, LEVELS: tl.constexpr, F: tl.constexpr):
    """Pointer to a level's first feature; offsets within a level fit 32 bits, those of a table may not."""
    FIRST: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS + 4]
    return table + FIRST * F


@triton.jit
def rounded_to_bfloat16(x):
    """The float32 value x rounded to the nearest bfloat16, ties to even."""
    if INTERPRETED:  # whose conversion cuts
        bits = x.to(tl.uint32, bitcast=True)
        up = ((bits >> 16) & 1) + 0x7FFF
        x = ((bits + up) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        x = x.to(tl.bfloat16).to(tl.float32)
    return x


@triton.jit
def as_type(x, DTYPE: tl.constexpr):
    """The float32 value x in the compute type, rounded to nearest."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        x = rounded_to_bfloat16(x)
    return x.to(DTYPE)


@triton.jit
def encode_level(
    table, x, y, z, LEVEL: tl.constexpr, LEVELS: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    INTERPOLATION: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Features [BLOCK, F] (float32) of one level.

    INTERPOLATION is "linear", "smoothstep" or "nearest". ROUND rounds what is looked up to bfloat16.
    """
    SCALE: tl.constexpr = LEVELS[LEVEL * N_LEVEL_FIELDS]
    start = level_start(table, LEVEL, LEVELS, F)
    px, fx, _ = cell_and_fraction(x, SCALE)
    py, fy, _ = cell_and_fraction(y, SCALE)
    pz, fz = py, fy
    if D == 3:
        pz, fz, _ = cell_and_fraction(z, SCALE)
    SMOOTHSTEP: tl.constexpr = INTERPOLATION == "smoothstep"
    fx, fy, fz = eased(fx, SMOOTHSTEP), eased(fy, SMOOTHSTEP), eased(fz, SMOOTHSTEP)
    features = tl.zeros([x.shape[0], F], tl.float32)
    N_CORNERS: tl.constexpr = 1 if INTERPOLATION == "nearest" else 1 << D
    for c in tl.static_range(N_CORNERS):
        index = corner_index(px, py, pz, c, LEVEL, LEVELS, D)
        value = tl.load(start + entry_offsets(index, F)).to(tl.float32)
        if ROUND:
            value = rounded_to_bfloat16(value)
        if INTERPOLATION == "nearest":
            features += value
        else:
            features += corner_weight(fx, fy, fz, c, D)[:, None] * value
    return features


@triton.jit
def beside(a, b):
    """Two tiles [BLOCK, n] side by side: [BLOCK, 2n], within each thread's registers."""
    pair = tl.permute(tl.join(a, b), (0, 2, 1))
    return tl.reshape(pair, (a.shape[0], a.shape[1] * 2))


@triton.jit
def side_by_side(parts, N: tl.constexpr, LOG2_N: tl.constexpr):
    """N = 2^LOG2_N tiles [BLOCK, n] side by side: [BLOCK, N*n]."""
    for s in tl.static_range(LOG2_N):
        merged = ()
        for i in tl.static_range(N >> (s + 1)):
            merged = merged + (beside(parts[2 * i], parts[2 * i + 1]),)
        parts = merged
    return parts[0]


@triton.jit
def encode(
    table, x, y, z, LEVELS: tl.constexpr, L: tl.constexpr, LOG2_L: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    INTERPOLATION: tl.constexpr, ROUND: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Features [BLOCK, 2^LOG2_L * F] of DTYPE, level-major; columns beyond L*F are 0."""
    parts = ()
    for level in tl.static_range(1 << LOG2_L):
        if level < L:
            part = as_type(encode_level(table, x, y, z, level, LEVELS, D, F, INTERPOLATION, ROUND), DTYPE)
        else:
            part = tl.zeros([x.shape[0], F], DTYPE)
        parts = parts + (part,)
    return side_by_side(parts, 1 << LOG2_L, LOG2_L)


# --- on the device: gradients of the table -----------------------------------------------------------------


@triton.jit
def _red(address, inside, v0, v1, v2, v3, ASM: tl.constexpr, N: tl.constexpr):
    """One reduction of N float32 values per sample, by inline assembly: $1 address, $2 predicate, $3... values."""
    if N == 2:
        tl.inline_asm_elementwise(ASM, "=r,l,r,f,f", [address, inside, v0, v1], tl.int32, is_pure=False, pack=1)
    else:
        tl.inline_asm_elementwise(
            ASM, "=r,l,r,f,f,f,f", [address, inside, v0, v1, v2, v3], tl.int32, is_pure=False, pack=1
        )


_ADD_FLOAT2 = tl.constexpr(
    "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p red.relaxed.gpu.global.add.v2.f32 [$1], {$3, $4}; mov.u32 $0, 0; }"
)
_ADD_FLOAT4 = tl.constexpr(
    "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p red.relaxed.gpu.global.add.v4.f32 [$1], {$3, $4, $5, $6};"
    " mov.u32 $0, 0; }"
)
_ADD_HALF2 = tl.constexpr(
    "{ .reg .pred p; .reg .b32 h; setp.ne.s32 p, $2, 0; cvt.rn.f16x2.f32 h, $4, $3;"
    " @p red.relaxed.gpu.global.add.noftz.f16x2 [$1], h; mov.u32 $0, 0; }"
)
_ADD_HALF4 = tl.constexpr(
    "{ .reg .pred p; .reg .b32 h, k; setp.ne.s32 p, $2, 0; cvt.rn.f16x2.f32 h, $4, $3; cvt.rn.f16x2.f32 k, $6, $5;"
    " @p red.relaxed.gpu.global.add.noftz.v2.f16x2 [$1], {h, k}; mov.u32 $0, 0; }"
)


@triton.jit
def _add_four(pointer, values, inside, FORM: tl.constexpr):
    """Add values [BLOCK, 4] to the memory at pointer [BLOCK]."""
    even, odd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
    v0, v2 = tl.split(even)
    v1, v3 = tl.split(odd)
    if FORM == HALF_PAIR:
        _red(pointer.to(tl.int64), inside, v0, v1, v0, v1, _ADD_HALF2, 2)
        _red((pointer + 2).to(tl.int64), inside, v2, v3, v2, v3, _ADD_HALF2, 2)
    elif FORM == HALF_VECTOR:
        _red(pointer.to(tl.int64), inside, v0, v1, v2, v3, _ADD_HALF4, 4)
    else:
        _red(pointer.to(tl.int64), inside, v0, v1, v2, v3, _ADD_FLOAT4, 4)


@triton.jit
def add_features(start, index, values, inside, F: tl.constexpr, FORM: tl.constexpr):
    """Add values [BLOCK, F] (float32) to the entries `index` of a gradient table's level; order is not fixed.

    FORM says how, see `atomics_of`; float16 tables round every summand.
    """
    if FORM == SCALAR:
        at = start + entry_offsets(index, F)
        mask = tl.broadcast_to(inside[:, None], values.shape)
        tl.atomic_add(at, values.to(start.dtype.element_ty), mask, sem="relaxed")
    else:
        predicate = inside.to(tl.int32)
        pointer = start + index * F
        if F == 2:
            v0, v1 = tl.split(values)
            if FORM == VECTOR_FLOAT:
                _red(pointer.to(tl.int64), predicate, v0, v1, v0, v1, _ADD_FLOAT2, 2)
            else:
                _red(pointer.to(tl.int64), predicate, v0, v1, v0, v1, _ADD_HALF2, 2)
        elif F == 4:
            _add_four(pointer, values, predicate, FORM)
        else:
            low, high = tl.split(tl.permute(tl.reshape(values, (values.shape[0], 2, 4)), (0, 2, 1)))
            _add_four(pointer, low, predicate, FORM)
            _add_four(pointer + 4, high, predicate, FORM)


# --- on the device: networks -------------------------------------------------------------------------------


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """The product a [m, k] times b [k, n], of one type, with float32 sums."""
    if INTERPRETED:  # whose products know no bfloat16; those of two halves are exact in float32
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def product_onto(total, a, b, PRECISION: tl.constexpr):
    """The float32 sum total [m, n] + a times b."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """ "none", "relu", "sigmoid" or "exp" of x."""
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    if ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    if ACTIVATION == "exp":
        return tl.exp(x)
    return x


@triton.jit
def activation_gradient(grad, y, ACTIVATION: tl.constexpr):
    """Cotangent of the activation's input, from that of its output and the output y itself."""
    if ACTIVATION == "relu":
        return tl.where(y.to(tl.float32) > 0.0, grad, 0.0)
    if ACTIVATION == "sigmoid":
        return grad * y * (1.0 - y)
    if ACTIVATION == "exp":
        return grad * y
    return grad


@triton.jit
def spherical_harmonics_of(x, y, z, DEGREE: tl.constexpr):
    """The first DEGREE^2 real spherical harmonics of BLOCK directions, and zeros up to 16: a tuple of 16 vectors.

    Source: as kernels/reference/spherical_harmonics.py.
    """
    xx, yy, zz = x * x, y * y, z * z
    zero = tl.zeros_like(x)
    s0 = zero + 0.28209479177387814
    s1, s2, s3, s4, s5, s6, s7, s8 = zero, zero, zero, zero, zero, zero, zero, zero
    s9, s10, s11, s12, s13, s14, s15 = zero, zero, zero, zero, zero, zero, zero
    if DEGREE > 1:
        s1, s2, s3 = -0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x
    if DEGREE > 2:
        s4, s5, s7 = 1.0925484305920792 * x * y, -1.0925484305920792 * y * z, -1.0925484305920792 * x * z
        s6, s8 = 0.94617469575755997 * zz - 0.31539156525251999, 0.54627421529603959 * (xx - yy)
    if DEGREE > 3:
        s9, s15 = 0.59004358992664352 * y * (yy - 3.0 * xx), 0.59004358992664352 * x * (3.0 * yy - xx)
        s10, s14 = 2.8906114426405538 * x * y * z, 1.4453057213202769 * z * (xx - yy)
        s11, s13 = 0.45704579946446572 * y * (1.0 - 5.0 * zz), 0.45704579946446572 * x * (1.0 - 5.0 * zz)
        s12 = 0.3731763325901154 * z * (5.0 * zz - 3.0)
    return (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15)


@triton.jit
def spherical_harmonics_tile(directions, rows, inside, DTYPE: tl.constexpr):
    """The 16 harmonics of degree 4 as a tile [BLOCK, 16], every column computed where it is used.

    For kernels with more threads than samples, where `as_columns` would move columns between threads.
    """
    column = tl.arange(0, 16)[None, :]
    at = directions + rows[:, None] * 3 + tl.zeros([1, 16], tl.int32)
    x = tl.load(at, inside[:, None], other=0.0)
    y = tl.load(at + 1, inside[:, None], other=0.0)
    z = tl.load(at + 2, inside[:, None], other=0.0)
    values = spherical_harmonics_of(x, y, z, 4)
    tile = values[0]
    for i in tl.static_range(1, 16):
        tile = tl.where(column == i, values[i], tile)
    return as_type(tile, DTYPE)


@triton.jit
def as_columns(values, N: tl.constexpr, LOG2_N: tl.constexpr):
    """A tuple of N = 2^LOG2_N vectors [BLOCK] as a tile [BLOCK, N]."""
    columns = ()
    for i in tl.static_range(N):
        columns = columns + (values[i][:, None],)
    return side_by_side(columns, N, LOG2_N)
