"""Vector values inside Numba: `<LANES x float>` and friends with operators, loads and register tiles.

Plain Numba loops come out scalar (the assembly shows no gather and no wide multiply-add), so the kernels
of this folder are written over the vector values defined here. A vector is a Numba extension type whose
LLVM representation is a generic vector; LLVM lowers it for whatever CPU is there. `LANES` is a constant of
the process (16 for AVX-512, 8 for AVX2, 4 for NEON and SSE, 1 for the scalar twin), so one kernel source
serves them all.

Every function here works only inside `@njit` code. Arrays are one-dimensional, C-contiguous; indices count
elements and are not bounds-checked.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from hashfield.kernels.numba_cpu.target import HAS_AVX512, HAS_BF16_DOT, LANES

I1, I8, I32, I64, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_ELEMENT_IR = {"f32": F32, "i32": I32, "i64": I64, "i1": I1}


class VectorType(types.Type):
    """`lanes` values of one element kind ("f32", "i32", "i64", "i1") held in a vector register."""

    def __init__(self, kind: str, lanes: int):
        self.kind, self.lanes = kind, lanes
        super().__init__(name=f"{kind}x{lanes}")

    @property
    def ir_type(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENT_IR[self.kind], self.lanes)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir_type)


f32v, i32v = (VectorType(kind, LANES) for kind in ("f32", "i32"))


def _constant(vector_type: VectorType, value) -> ir.Constant:
    return ir.Constant(vector_type.ir_type, [value] * vector_type.lanes)


def _data_pointer(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


def _element_address(context, builder, array_type, array, index):
    return builder.gep(_data_pointer(context, builder, array_type, array), [index], inbounds=False)


def _call(builder, name: str, result: ir.Type, arguments, flags=()):
    """Call an LLVM intrinsic, declaring it on first use."""
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments, fastmath=flags)


def _suffix(vector_type: VectorType) -> str:
    return f"v{vector_type.lanes}{vector_type.kind}"


# --- operators -------------------------------------------------------------------------------------------

_ARITHMETIC = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.and_: (None, "and_"),
    operator.or_: (None, "or_"),
    operator.xor: (None, "xor"),
    operator.lshift: (None, "shl"),
    operator.rshift: (None, "lshr"),  # logical: the integers are bit patterns and hashes
}
_COMPARISON = {operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.eq: "=="}


def _register_arithmetic(function, float_op, int_op):
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                if (float_op if args[0].kind == "f32" else int_op) is None:
                    return None
                return signature(args[0], *args)
            return None

    @lower_builtin(function, VectorType, VectorType)
    def _lower(context, builder, sig, args):
        return getattr(builder, float_op if sig.args[0].kind == "f32" else int_op)(*args)


def _register_comparison(function, symbol):
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(VectorType("i1", args[0].lanes), *args)
            return None

    @lower_builtin(function, VectorType, VectorType)
    def _lower(context, builder, sig, args):
        if sig.args[0].kind == "f32":
            return builder.fcmp_ordered(symbol, *args)
        return builder.icmp_signed(symbol, *args)


for _function, (_float_op, _int_op) in _ARITHMETIC.items():
    _register_arithmetic(_function, _float_op, _int_op)
for _function, _symbol in _COMPARISON.items():
    _register_comparison(_function, _symbol)


# --- making, loading, storing ------------------------------------------------------------------------------


def _splat(builder, value, vector_type: VectorType):
    undefined = ir.Constant(vector_type.ir_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, vector_type.lanes), [0] * vector_type.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def splat(typingctx, value):
    """A vector f32v of one float32."""

    def codegen(context, builder, sig, args):
        return _splat(builder, context.cast(builder, args[0], sig.args[0], types.float32), f32v)

    return f32v(value), codegen


@intrinsic
def splat_int(typingctx, value):
    """A vector i32v of one integer, taken modulo 2^32."""

    def codegen(context, builder, sig, args):
        number = args[0]
        if number.type.width > 32:
            number = builder.trunc(number, I32)
        elif number.type.width < 32:
            number = builder.zext(number, I32)
        return _splat(builder, number, i32v)

    return i32v(value), codegen


def _load(vector_type):
    def typer(typingctx, array, index):
        def codegen(context, builder, sig, args):
            address = _element_address(context, builder, sig.args[0], args[0], args[1])
            return builder.load(
                builder.bitcast(address, vector_type.ir_type.as_pointer()), align=4, typ=vector_type.ir_type
            )

        return vector_type(array, types.intp), codegen

    return typer


def _store(vector_type):
    def typer(typingctx, array, index, value):
        def codegen(context, builder, sig, args):
            address = _element_address(context, builder, sig.args[0], args[0], args[1])
            builder.store(args[2], builder.bitcast(address, vector_type.ir_type.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, vector_type), codegen

    return typer


load = intrinsic(_load(f32v))  # f32v from a float32 array at an element index
load_int = intrinsic(_load(i32v))  # i32v from an array of 32-bit integers
store = intrinsic(_store(f32v))
store_int = intrinsic(_store(i32v))


@intrinsic
def peek(typingctx, array, index):
    """Read array[index] for an index known not to be negative: Numba's own indexing spends three instructions on
    wrapping negative ones, which doubled the time of the table's inner loops."""

    def codegen(context, builder, sig, args):
        address = _element_address(context, builder, sig.args[0], args[0], args[1])
        return context.unpack_value(builder, sig.args[0].dtype, address)

    return array.dtype(array, types.intp), codegen


@intrinsic
def poke(typingctx, array, index, value):
    """Write array[index] = value for an index known not to be negative; see `peek`."""

    def codegen(context, builder, sig, args):
        address = _element_address(context, builder, sig.args[0], args[0], args[1])
        context.pack_value(builder, sig.args[0].dtype, args[2], address)
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), codegen


# --- arithmetic --------------------------------------------------------------------------------------------


def _unary(name):
    def typer(typingctx, a):
        def codegen(context, builder, sig, args):
            return _call(builder, f"llvm.{name}.{_suffix(a)}", a.ir_type, args)

        return a(a), codegen

    return typer


def _binary(name):
    def typer(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return _call(builder, f"llvm.{name}.{_suffix(a)}", a.ir_type, args)

        return a(a, b), codegen

    return typer


floor = intrinsic(_unary("floor"))
sqrt = intrinsic(_unary("sqrt"))
absolute = intrinsic(_unary("fabs"))
minimum = intrinsic(_binary("minnum"))
maximum = intrinsic(_binary("maxnum"))
unsigned_minimum = intrinsic(_binary("umin"))


@intrinsic
def fma(typingctx, a, b, c):
    """The sum a*b + c, rounded once."""

    def codegen(context, builder, sig, args):
        return _call(builder, f"llvm.fma.{_suffix(a)}", a.ir_type, args)

    return a(a, b, c), codegen


@intrinsic
def where(typingctx, mask, a, b):
    """Lane-wise a where the mask is set, else b."""

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return a(mask, a, b), codegen


@intrinsic
def to_int_fast(typingctx, a):
    """Truncation to 32-bit integers for values known to lie within their range."""

    def codegen(context, builder, sig, args):
        return builder.fptosi(args[0], ir.VectorType(I32, a.lanes))

    return VectorType("i32", a.lanes)(a), codegen


@intrinsic
def to_float(typingctx, a):
    """The float32 values of integers that are not negative."""

    def codegen(context, builder, sig, args):
        return builder.sitofp(args[0], ir.VectorType(F32, a.lanes))

    return VectorType("f32", a.lanes)(a), codegen


@intrinsic
def bits_to_float(typingctx, a):
    """The float32 values whose bit patterns these are."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.VectorType(F32, a.lanes))

    return VectorType("f32", a.lanes)(a), codegen


@intrinsic
def reduce_add(typingctx, a):
    """Sum of the lanes (pairwise order, fixed)."""

    def codegen(context, builder, sig, args):
        name = f"llvm.vector.reduce.fadd.{_suffix(a)}"
        return _call(builder, name, F32, [ir.Constant(F32, -0.0), args[0]], flags=("reassoc",))

    return types.float32(a), codegen


# --- feature vectors -------------------------------------------------------------------------------------------
# The F features of a table entry as one short vector, whatever LANES is.


def _feature_functions(n: int):
    """(load, load_bf16, splat, store) for vectors of n features."""
    vector = VectorType("f32", n)

    @intrinsic
    def load_features(typingctx, array, index):
        def codegen(context, builder, sig, args):
            address = _element_address(context, builder, sig.args[0], args[0], args[1])
            pointer = builder.bitcast(address, vector.ir_type.as_pointer())
            return builder.load(pointer, align=4, typ=vector.ir_type)

        return vector(array, types.intp), codegen

    @intrinsic
    def load_features_bf16(typingctx, array, index):
        def codegen(context, builder, sig, args):
            halves = ir.VectorType(ir.IntType(16), n)
            address = _element_address(context, builder, sig.args[0], args[0], args[1])
            packed = builder.load(builder.bitcast(address, halves.as_pointer()), align=2, typ=halves)
            wide = builder.zext(packed, ir.VectorType(I32, n))
            shifted = builder.shl(wide, ir.Constant(ir.VectorType(I32, n), [16] * n))
            return builder.bitcast(shifted, vector.ir_type)

        return vector(array, types.intp), codegen

    @intrinsic
    def splat_features(typingctx, value):
        def codegen(context, builder, sig, args):
            return _splat(builder, context.cast(builder, args[0], sig.args[0], types.float32), vector)

        return vector(value), codegen

    @intrinsic
    def store_features(typingctx, array, index, value):
        def codegen(context, builder, sig, args):
            address = _element_address(context, builder, sig.args[0], args[0], args[1])
            builder.store(args[2], builder.bitcast(address, vector.ir_type.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), codegen

    return load_features, load_features_bf16, splat_features, store_features


FEATURES = {n: _feature_functions(n) for n in (1, 2, 4, 8)}


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line that holds array[index], to be written soon."""

    def codegen(context, builder, sig, args):
        address = builder.bitcast(_element_address(context, builder, sig.args[0], args[0], args[1]), ir.PointerType())
        arguments = [address, ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)]
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


# --- register tiles ----------------------------------------------------------------------------------------

STORE, RELU, ADD, GATE = 0, 1, 2, 3  # what a product does with its sums; see product_tile


def _tile_loop(builder, n_rows, n_vectors, depth, step):
    """Emit `for k in range(depth)` around `step(k, sums) -> sums`, all sums in registers; returns the final sums.

    A depth of zero gives zeros.
    """
    vector, zero = f32v.ir_type, ir.Constant(I64, 0)
    before = builder.block
    loop, done = builder.append_basic_block("tile.loop"), builder.append_basic_block("tile.done")
    builder.cbranch(builder.icmp_signed(">", depth, zero), loop, done)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    k.add_incoming(zero, before)
    sums = [[builder.phi(vector) for _ in range(n_vectors)] for _ in range(n_rows)]
    new = step(k, sums)
    k_next = builder.add(k, ir.Constant(I64, 1))
    k.add_incoming(k_next, loop)
    for r in range(n_rows):
        for v in range(n_vectors):
            sums[r][v].add_incoming(_constant(f32v, 0.0), before)
            sums[r][v].add_incoming(new[r][v], loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, done)
    builder.position_at_end(done)
    final = [[builder.phi(vector) for _ in range(n_vectors)] for _ in range(n_rows)]
    for r in range(n_rows):
        for v in range(n_vectors):
            final[r][v].add_incoming(_constant(f32v, 0.0), before)
            final[r][v].add_incoming(new[r][v], loop)
    return final


def _finish(builder, mode, value, c_data, index, gate_data, at, is_rounded):
    """Emit what a product does with a vector of sums that belongs at C[index]; modes as in `product_tile`."""
    zero, halves = _constant(f32v, 0.0), ir.VectorType(ir.IntType(16), LANES)

    def vector_at(data, index, kind):
        return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

    if mode == 1:
        value = _call(builder, f"llvm.maxnum.{_suffix(f32v)}", f32v.ir_type, [value, zero])
    elif mode == 2:
        value = builder.fadd(value, builder.load(vector_at(c_data, index, f32v.ir_type), align=4, typ=f32v.ir_type))
    elif mode == 3:
        if is_rounded:  # a bfloat16 is above zero exactly if its bits are, as a signed number
            bits = builder.load(vector_at(gate_data, at, halves), align=2, typ=halves)
            is_on = builder.icmp_signed(">", bits, ir.Constant(halves, [0] * LANES))
        else:
            number = builder.load(vector_at(gate_data, at, f32v.ir_type), align=4, typ=f32v.ir_type)
            is_on = builder.fcmp_ordered(">", number, zero)
        value = builder.select(is_on, value, zero)
    if is_rounded:
        builder.store(_to_bf16(builder, value), vector_at(c_data, index, halves), align=2)
    else:
        builder.store(value, vector_at(c_data, index, f32v.ir_type), align=4)


@intrinsic(prefer_literal=True)
def finish(typingctx, mode, value, c, index, gate, at):
    """Store a vector of a product's sums at C[index], as `mode` says (a literal; see `product_tile`)."""
    if not isinstance(mode, types.IntegerLiteral):
        return None  # Numba asks again with the literal kept
    is_rounded = c.dtype == types.uint16

    def codegen(context, builder, sig, args):
        c_data, gate_data = (_data_pointer(context, builder, sig.args[k], args[k]) for k in (2, 4))
        _finish(builder, mode.literal_value, args[1], c_data, args[3], gate_data, args[5], is_rounded)
        return context.get_dummy_value()

    return types.void(mode, value, c, types.intp, gate, types.intp), codegen


@intrinsic(prefer_literal=True)
def product_tile(
    typingctx, rows, vectors, a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, depth, mode, gate,
    gate_start,
):  # fmt: skip
    """C[r, v] = sum over k < depth of A[r, k] * B[k, v] for `rows` x `vectors`*LANES values held in registers.

    A is read one scalar at a time at a_start + r*a_row + k*a_step, B by vectors at b_start + k*b_step, C lies
    at c_start + r*c_row. The three products of a layer (outputs, input gradient, weight gradient) are this
    one with other strides, because each is "a scalar of A times a row vector of B".

    Where a and b are uint16 arrays they hold bfloat16, and what is one scalar above is a *pair*: two neighbours
    that are both multiplied and both added (`dot_pairs`), so `depth` counts pairs; steps count halves.

    `rows`, `vectors`, `mode` are literals. Modes: 0 store; 1 store max(0, .) (ReLU); 2 add to C;
    3 store where gate > 0, else 0 (ReLU's derivative; `gate` has C's row length and begins at gate_start).
    C and the gate are float32 or, for modes 1 and 3, rounded to bfloat16 where they are uint16 arrays.
    """
    if not all(isinstance(x, types.IntegerLiteral) for x in (rows, vectors, mode)):
        return None  # Numba asks again with the literals kept
    n_rows, n_vectors, n_mode = (x.literal_value for x in (rows, vectors, mode))
    is_paired, is_rounded = a.dtype == types.uint16, c.dtype == types.uint16

    def codegen(context, builder, sig, args):
        def pointer(k):
            return _data_pointer(context, builder, sig.args[k], args[k])

        a_data, b_data, c_data, gate_data = pointer(2), pointer(6), pointer(9), pointer(14)
        a_first, a_row_, a_step_, b_first, b_step_, c_first, c_row_, depth_ = (
            args[k] for k in (3, 4, 5, 7, 8, 10, 11, 12)
        )
        vector = f32v.ir_type
        element, b_vector = (I32, i32v.ir_type) if is_paired else (F32, vector)
        width = 2 * LANES if is_paired else LANES  # array elements to a vector of B

        def load_at(data, index, kind, align):
            return builder.load(builder.bitcast(builder.gep(data, [index]), kind.as_pointer()), align=align, typ=kind)

        def c_index(r, v):
            row = builder.add(c_first, builder.mul(c_row_, ir.Constant(I64, r)))
            return builder.add(row, ir.Constant(I64, v * LANES))

        a_starts = [builder.add(a_first, builder.mul(a_row_, ir.Constant(I64, r))) for r in range(n_rows)]

        def step(k, sums):
            b_index = builder.add(b_first, builder.mul(k, b_step_))
            b_values = [
                load_at(b_data, builder.add(b_index, ir.Constant(I64, v * width)), b_vector, 4)
                for v in range(n_vectors)
            ]
            a_offset, new = builder.mul(k, a_step_), []
            for r in range(n_rows):
                scalar = load_at(a_data, builder.add(a_starts[r], a_offset), element, 2 if is_paired else 4)
                a_value = _splat(builder, scalar, i32v if is_paired else f32v)
                if is_paired:
                    new.append([_dot_pairs(builder, sums[r][v], a_value, b_values[v]) for v in range(n_vectors)])
                else:
                    name = f"llvm.fma.{_suffix(f32v)}"
                    new.append(
                        [_call(builder, name, vector, [a_value, b_values[v], sums[r][v]]) for v in range(n_vectors)]
                    )
            return new

        sums = _tile_loop(builder, n_rows, n_vectors, depth_, step)
        for r in range(n_rows):
            for v in range(n_vectors):
                index = c_index(r, v)
                at = builder.add(builder.sub(index, c_first), args[15])
                _finish(builder, n_mode, sums[r][v], c_data, index, gate_data, at, is_rounded)
        return context.get_dummy_value()

    n = types.intp
    return types.void(rows, vectors, a, n, n, n, b, n, n, c, n, n, n, mode, gate, n), codegen


# --- bfloat16 ----------------------------------------------------------------------------------------------


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def _round_bf16(builder, bits, constant):
    """The upper halves of float32 bit patterns, rounded to nearest even. NaN is not expected here."""
    lowest = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    return builder.lshr(builder.add(bits, builder.add(lowest, constant(0x7FFF))), constant(16))


def _to_bf16(builder, value):
    """The halves of a float32 vector rounded to bfloat16, nearest even."""
    n = value.type.count
    halves = ir.VectorType(ir.IntType(16), n)
    if HAS_BF16_DOT and n in (4, 8, 16):  # one instruction
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(_BFloat(), n)), halves)
    wide = ir.VectorType(I32, n)
    bits = builder.bitcast(value, wide)
    return builder.trunc(_round_bf16(builder, bits, lambda c: ir.Constant(wide, [c] * n)), halves)


def _dot_pairs(builder, total, a, b):
    """The sum total + a.low*b.low + a.high*b.high for vectors of bfloat16 pairs, each pair one 32-bit word."""
    n = a.type.count
    if HAS_BF16_DOT and n == 16:
        pairs = ir.VectorType(_BFloat(), 2 * n)
        arguments = [total, builder.bitcast(a, pairs), builder.bitcast(b, pairs)]
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, arguments)

    def halves(words):
        shift, mask = ir.Constant(words.type, [16] * n), ir.Constant(words.type, [0xFFFF0000] * n)
        return (builder.bitcast(x, total.type) for x in (builder.shl(words, shift), builder.and_(words, mask)))

    (a_low, a_high), (b_low, b_high) = halves(a), halves(b)
    name = f"llvm.fma.v{n}f32"
    return _call(builder, name, total.type, [a_low, b_low, _call(builder, name, total.type, [a_high, b_high, total])])


@intrinsic
def copy_lanes(typingctx, source, start, target, at):
    """Copy LANES elements between arrays of one dtype."""
    n_bits = source.dtype.bitwidth

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.IntType(n_bits), LANES)

        def address(k):
            pointer = _element_address(context, builder, sig.args[k], args[k], args[k + 1])
            return builder.bitcast(pointer, vector.as_pointer())

        builder.store(builder.load(address(0), align=n_bits // 8, typ=vector), address(2), align=n_bits // 8)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), codegen


@intrinsic
def load_pairs(typingctx, array, first, second):
    """A vector i32v whose lanes pair the bfloat16 at first + lane (low) with that at second + lane (high)."""

    def codegen(context, builder, sig, args):
        halves = ir.VectorType(ir.IntType(16), LANES)

        def widened(index):
            address = _element_address(context, builder, sig.args[0], args[0], index)
            packed = builder.load(builder.bitcast(address, halves.as_pointer()), align=2, typ=halves)
            return builder.zext(packed, i32v.ir_type)

        high = builder.shl(widened(args[2]), ir.Constant(i32v.ir_type, [16] * LANES))
        return builder.or_(widened(args[1]), high)

    return i32v(array, types.intp, types.intp), codegen


@intrinsic
def store_bf16(typingctx, array, index, value):
    """Store a float32 vector, rounded to bfloat16, into a uint16 array."""

    def codegen(context, builder, sig, args):
        halves = ir.VectorType(ir.IntType(16), value.lanes)
        address = _element_address(context, builder, sig.args[0], args[0], args[1])
        builder.store(_to_bf16(builder, args[2]), builder.bitcast(address, halves.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def to_bf16(typingctx, value):
    """One float32 rounded to the uint16 of a bfloat16."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], I32)
        return builder.trunc(_round_bf16(builder, bits, lambda c: ir.Constant(I32, c)), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def from_bf16(typingctx, value):
    """The float32 that the uint16 of a bfloat16 stands for."""

    def codegen(context, builder, sig, args):
        wide = builder.shl(builder.zext(args[0], I32), ir.Constant(I32, 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def any_nonzero(typingctx, a):
    """Whether any lane of a float32 vector is other than zero."""

    def codegen(context, builder, sig, args):
        nonzero = builder.fcmp_unordered("!=", args[0], _constant(a, 0.0))
        name = f"llvm.vector.reduce.or.v{a.lanes}i1"
        return _call(builder, name, I1, [nonzero])

    return types.boolean(a), codegen


# --- rows of a sparse array ------------------------------------------------------------------------------------


def _eight_rows(n: int):
    """(pack, unpack) for eight rows of n float32 that travel as bfloat16, a machine word to a row."""
    floats, halves = ir.VectorType(F32, 8 * n), ir.VectorType(ir.IntType(16), 8 * n)
    words, mask = ir.VectorType(ir.IntType(16 * n), 8), ir.VectorType(I1, 8)
    width = min(16, 8 * n)  # numbers that are rounded by one instruction, where there is one

    def rounded(builder, value):
        undefined, pieces = ir.Constant(floats, ir.Undefined), []
        for first in range(0, 8 * n, width):
            lanes = ir.Constant(ir.VectorType(I32, width), list(range(first, first + width)))
            pieces.append(_to_bf16(builder, builder.shuffle_vector(value, undefined, lanes)))
        if len(pieces) == 1:
            return pieces[0]
        return builder.shuffle_vector(*pieces, ir.Constant(ir.VectorType(I32, 8 * n), list(range(8 * n))))

    @intrinsic
    def pack(typingctx, array, at, scale, values, to):
        """Write those of the eight rows from array[at] on that are not zero, times scale, one after another from
        values[to] on; returns a bit for each, lowest first. What lies behind them, up to eight rows, is overwritten."""

        def codegen(context, builder, sig, args):
            source = _element_address(context, builder, sig.args[0], args[0], args[1])
            value = builder.load(builder.bitcast(source, floats.as_pointer()), align=4, typ=floats)
            factor = _splat(
                builder, context.cast(builder, args[2], sig.args[2], types.float32), VectorType("f32", 8 * n)
            )
            found = rounded(builder, builder.fmul(value, factor))
            magnitude = builder.and_(found, ir.Constant(halves, [0x7FFF] * (8 * n)))  # -0 is zero
            is_touched = builder.icmp_unsigned("!=", builder.bitcast(magnitude, words), ir.Constant(words, [0] * 8))
            found = builder.bitcast(found, words)
            target = builder.bitcast(
                _element_address(context, builder, sig.args[3], args[3], args[4]), words.as_pointer()
            )
            if HAS_AVX512:  # the instruction that writes to memory is slow on Zen 4, the one in registers is not
                name = f"llvm.x86.avx512.mask.compress.v8i{16 * n}"
                found = _call(builder, name, words, [found, ir.Constant(words, [0] * 8), is_touched])
                builder.store(found, target, align=2)
            else:
                _call(builder, f"llvm.masked.compressstore.v8i{16 * n}", ir.VoidType(), [found, target, is_touched])
            return builder.bitcast(is_touched, I8)

        return types.uint8(array, types.intp, scale, values, types.intp), codegen

    @intrinsic
    def unpack(typingctx, array, at, values, come, bits):
        """Add what `pack` wrote to the eight rows from array[at] on; no more of values is read than was written."""

        def codegen(context, builder, sig, args):
            source = builder.bitcast(
                _element_address(context, builder, sig.args[2], args[2], args[3]), words.as_pointer()
            )
            chosen, zeros = builder.bitcast(args[4], mask), ir.Constant(words, [0] * 8)
            if HAS_AVX512:  # as above: as many as there are, then spread out
                n_bits = _call(builder, "llvm.ctpop.i8", I8, [args[4]])
                first = builder.shl(ir.Constant(ir.IntType(16), 1), builder.zext(n_bits, ir.IntType(16)))
                first = builder.trunc(builder.sub(first, ir.Constant(ir.IntType(16), 1)), I8)
                arguments = [source, ir.Constant(I32, 2), builder.bitcast(first, mask), zeros]
                found = _call(builder, f"llvm.masked.load.v8i{16 * n}.p0", words, arguments)
                found = _call(builder, f"llvm.x86.avx512.mask.expand.v8i{16 * n}", words, [found, zeros, chosen])
            else:
                found = _call(builder, f"llvm.masked.expandload.v8i{16 * n}", words, [source, chosen, zeros])
            wide = builder.zext(builder.bitcast(found, halves), ir.VectorType(I32, 8 * n))
            shifted = builder.shl(wide, ir.Constant(ir.VectorType(I32, 8 * n), [16] * (8 * n)))
            target = builder.bitcast(
                _element_address(context, builder, sig.args[0], args[0], args[1]), floats.as_pointer()
            )
            before = builder.load(target, align=4, typ=floats)
            builder.store(builder.fadd(before, builder.bitcast(shifted, floats)), target, align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, values, types.intp, types.uint8), codegen

    return pack, unpack


EIGHT_ROWS = {n: _eight_rows(n) for n in (2, 4)}


@intrinsic
def count_bits(typingctx, bits):
    """How many bits of a byte are set."""

    def codegen(context, builder, sig, args):
        return builder.zext(_call(builder, "llvm.ctpop.i8", I8, args), I64)

    return types.int64(types.uint8), codegen


@intrinsic
def cycles(typingctx):
    """The processor's time stamp counter, for the split of a step by stage; 0 where there is none."""

    def codegen(context, builder, sig, args):
        return _call(builder, "llvm.readcyclecounter", I64, [])

    return types.int64(), codegen
