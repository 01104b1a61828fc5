"""Products of bfloat16 matrices on AMX tiles: the instructions, an emulated twin of them, and the product on top.

A tile is 16 rows of 64 bytes in a register. `tile_dot(c, a, b)` adds to c, 16 x 16 float32, the product of a, 16 rows
of 16 bfloat16 pairs, and b, 16 rows of pairs by 16 columns of them: 512 operand values and 8192 multiply-adds in one
instruction. Tiles have fixed numbers, so no register allocator is asked:

    0 1     sums of the rows above, left and right    4  rows above of A      6 7  columns of B, left and right
    2 3     sums of the rows below                    5  rows below

A thread must `configure` before and `release` after; a configuration may cut tiles down, which is how rows and depths
that do not fill one are neither read nor written beyond their end. It empties all tiles.

Where the path has no tiles the same names are the emulated twin: the same arithmetic on tiles in ordinary memory, slow and
for tests. It is strict where the processor would raise a signal: shapes that do not match give NaN.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from hashfield.kernels.numba_cpu.common import inline, paired, part
from hashfield.kernels.numba_cpu.simd import (
    ADD,
    F32,
    GATE,
    I8,
    I32,
    I64,
    LANES,
    RELU,
    _call,
    _element_address,
    finish,
    load,
)
from hashfield.kernels.numba_cpu.target import ARE_TILES_EMULATED, HAS_TILES

SIDE = 16  # rows of a tile, and 32-bit words of a row


def _on_stack(builder, kind):
    """Memory of the running call, aligned to a cache line. Numba's own helper would clear it first."""
    with builder.goto_entry_block():
        place = builder.alloca(kind)
    place.align = 64
    return place


def _array_at(context, builder, array_type, pointer, n):
    """An array of n elements over memory that someone else owns."""
    array = make_array(array_type)(context, builder)
    size = array_type.dtype.bitwidth // 8
    populate_array(
        array, pointer, [ir.Constant(I64, n)], [ir.Constant(I64, size)], ir.Constant(I64, size), meminfo=None
    )
    return array._getvalue()


# --- the instructions ----------------------------------------------------------------------------------------


def _on_tile(name):
    """Intrinsic of one literal tile number and a place in memory: array, index, elements from row to row."""

    @intrinsic(prefer_literal=True)
    def instruction(typingctx, tile, array, index, stride):
        if not isinstance(tile, types.IntegerLiteral):
            return None  # Numba asks again with the literal kept
        size = array.dtype.bitwidth // 8

        def codegen(context, builder, sig, args):
            address = builder.bitcast(
                _element_address(context, builder, sig.args[1], args[1], args[2]), I8.as_pointer()
            )
            bytes_apart = builder.mul(args[3], ir.Constant(I64, size))
            _call(builder, name, ir.VoidType(), [ir.Constant(I8, tile.literal_value), address, bytes_apart])
            return context.get_dummy_value()

        return types.void(tile, array, types.intp, types.intp), codegen

    return instruction


def _emit_on_tiles(name):
    def codegen(context, builder, sig, args):
        _call(builder, name, ir.VoidType(), [ir.Constant(I8, tile.literal_value) for tile in sig.args])
        return context.get_dummy_value()

    return codegen


@intrinsic(prefer_literal=True)
def _real_zero(typingctx, tile):
    is_known = isinstance(tile, types.IntegerLiteral)
    return (types.void(tile), _emit_on_tiles("llvm.x86.tilezero")) if is_known else None


@intrinsic(prefer_literal=True)
def _real_dot(typingctx, c, a, b):
    is_known = all(isinstance(tile, types.IntegerLiteral) for tile in (c, a, b))
    return (types.void(c, a, b), _emit_on_tiles("llvm.x86.tdpbf16ps")) if is_known else None


@intrinsic
def _real_release(typingctx):
    return types.void(), _emit_on_tiles("llvm.x86.tilerelease")


_real_load, _real_store = _on_tile("llvm.x86.tileloadd64"), _on_tile("llvm.x86.tilestored64")


def _configuration(builder, n_rows, n_pairs):
    """The 64 bytes of a configuration as 8 numbers: palette 1; at 16 the bytes to a row of tiles 0 to 7, 16 bits each;
    at 48 their rows, 8 bits each."""

    def byte_field(value, factor):
        return builder.mul(value, ir.Constant(I64, factor))

    quads = [ir.Constant(I64, 0)] * 8
    quads[0] = ir.Constant(I64, 1)
    quads[2] = ir.Constant(I64, 0x0040_0040_0040_0040)
    quads[3] = builder.or_(byte_field(n_pairs, 0x0004_0004), ir.Constant(I64, 0x0040_0040_0000_0000))
    quads[6] = builder.or_(byte_field(n_rows, 0x0000_0101_0101_0101), byte_field(n_pairs, 0x0101_0000_0000_0000))
    return quads


@intrinsic
def _real_configure(typingctx, rows, pairs):
    def codegen(context, builder, sig, args):
        slot = _on_stack(builder, ir.ArrayType(I64, 8))
        for k, quad in enumerate(_configuration(builder, *args)):
            builder.store(quad, builder.gep(slot, [ir.Constant(I32, 0), ir.Constant(I32, k)]))
        _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), [builder.bitcast(slot, I8.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


# --- the emulated twin ---------------------------------------------------------------------------------------
# Every thread between `configure` and `release` owns one slot of a table in static memory, found by the thread's
# number: eight tiles of 16 x 16 words, then each tile's rows and words to a row.

_SLOTS, _TILE = 64, SIDE * SIDE
_ROWS, _WORDS, _SLOT = 8 * _TILE, 8 * _TILE + 8, 8 * _TILE + 16


def _static_array(dtype, n, name):
    @intrinsic
    def memory(typingctx):
        array_type = types.Array(dtype, 1, "C")

        def codegen(context, builder, sig, args):
            kind, module = ir.ArrayType(ir.IntType(dtype.bitwidth), n), builder.module
            place = module.globals.get(name)
            if place is None:
                place = ir.GlobalVariable(module, kind, name)
                place.linkage, place.initializer = "linkonce_odr", ir.Constant(kind, None)
            element = context.get_value_type(dtype)
            return _array_at(context, builder, array_type, builder.bitcast(place, element.as_pointer()), n)

        return array_type(), codegen

    return memory


_owners = _static_array(types.int64, _SLOTS, "hashfield.tiles.owners")
_words = _static_array(types.uint32, (_SLOTS + 1) * _SLOT, "hashfield.tiles.words")


@intrinsic
def _thread_number(typingctx):
    def codegen(context, builder, sig, args):
        return _call(builder, "pthread_self", I64, [])

    return types.int64(), codegen


@intrinsic
def _claim(typingctx, array, index, value):
    """Whether array[index] was 0 and is now value."""

    def codegen(context, builder, sig, args):
        address = _element_address(context, builder, sig.args[0], args[0], args[1])
        found = builder.cmpxchg(address, ir.Constant(I64, 0), args[2], "acq_rel", "monotonic")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.intp, types.int64), codegen


@intrinsic
def _get_word(typingctx, array, index, column):
    """The 32-bit word number `column` from array[index] on."""
    per_word = 32 // array.dtype.bitwidth

    def codegen(context, builder, sig, args):
        index = builder.add(args[1], builder.mul(args[2], ir.Constant(I64, per_word)))
        address = _element_address(context, builder, sig.args[0], args[0], index)
        return builder.load(builder.bitcast(address, I32.as_pointer()), align=2, typ=I32)

    return types.uint32(array, types.intp, types.intp), codegen


@intrinsic
def _put_word(typingctx, array, index, column, word):
    per_word = 32 // array.dtype.bitwidth

    def codegen(context, builder, sig, args):
        index = builder.add(args[1], builder.mul(args[2], ir.Constant(I64, per_word)))
        address = _element_address(context, builder, sig.args[0], args[0], index)
        builder.store(args[3], builder.bitcast(address, I32.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.uint32), codegen


@intrinsic
def _as_float(typingctx, word):
    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), codegen


@intrinsic
def _as_word(typingctx, number):
    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], I32)

    return types.uint32(types.float32), codegen


@intrinsic
def _keep_apart(typingctx):
    """Forbid LLVM to inline the function this is called in: compiling twenty copies of a tile's loops takes minutes."""

    def codegen(context, builder, sig, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@part
def _slot():
    """Where this thread's tiles begin: without a configuration in a spare slot, whose tiles have no rows."""
    _keep_apart()
    owners, me = _owners(), _thread_number()
    for k in range(_SLOTS):
        if owners[k] == me:
            return k * _SLOT
    return _SLOTS * _SLOT


@intrinsic
def _write_configuration(typingctx, array, rows, pairs):
    def codegen(context, builder, sig, args):
        for k, quad in enumerate(_configuration(builder, *args[1:])):
            builder.store(quad, _element_address(context, builder, sig.args[0], args[0], ir.Constant(I64, k)))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@part
def _emulated_configure(rows, pairs):
    _keep_apart()
    owners, words, me = _owners(), _words(), _thread_number()
    at = -1
    for k in range(_SLOTS):
        if owners[k] == me:
            at = k * _SLOT
    k = 0
    while at < 0:
        if _claim(owners, k, me):
            at = k * _SLOT
        k = (k + 1) % _SLOTS
    for i in range(at, at + _ROWS):
        words[i] = 0
    quads = np.empty(8, np.int64)
    _write_configuration(quads, rows, pairs)
    data = quads.view(np.uint8)
    for tile in range(8):
        words[at + _ROWS + tile] = data[48 + tile]
        words[at + _WORDS + tile] = (data[16 + 2 * tile] + 256 * data[17 + 2 * tile]) // 4


@part
def _emulated_release():
    _keep_apart()
    owners, words, at = _owners(), _words(), _slot()
    for i in range(at + _ROWS, at + _SLOT):
        words[i] = 0
    if at < _SLOTS * _SLOT:
        owners[at // _SLOT] = 0


@part
def _emulated_zero(tile):
    _keep_apart()
    words, at = _words(), _slot()
    for i in range(at + tile * _TILE, at + (tile + 1) * _TILE):
        words[i] = 0


@part
def _emulated_load(tile, array, index, stride):
    _keep_apart()
    words, at = _words(), _slot()
    first = at + tile * _TILE
    for r in range(SIDE):
        for i in range(SIDE):
            if r < np.int64(words[at + _ROWS + tile]) and i < np.int64(words[at + _WORDS + tile]):
                words[first + r * SIDE + i] = _get_word(array, index + r * stride, i)
            else:
                words[first + r * SIDE + i] = 0


@part
def _emulated_store(tile, array, index, stride):
    _keep_apart()
    words, at = _words(), _slot()
    first = at + tile * _TILE
    for r in range(np.int64(words[at + _ROWS + tile])):
        for i in range(np.int64(words[at + _WORDS + tile])):
            _put_word(array, index + r * stride, i, words[first + r * SIDE + i])


@part
def _emulated_dot(c, a, b):
    """Intel's order: the sums of the low and of the high halves are kept apart, from zero, and then added to c. A
    product of two bfloat16 is exact in float32, so that it does not matter whether multiply and add are fused."""
    _keep_apart()
    words, at = _words(), _slot()
    rows, pairs = np.int64(words[at + _ROWS + c]), np.int64(words[at + _ROWS + b])
    columns = np.int64(words[at + _WORDS + c])
    is_sound = words[at + _ROWS + a] == rows and words[at + _WORDS + a] == pairs and words[at + _WORDS + b] == columns
    for r in range(rows):
        for i in range(columns):
            low = high = np.float32(0.0)
            for k in range(pairs):
                x, y = words[at + a * _TILE + r * SIDE + k], words[at + b * _TILE + k * SIDE + i]
                low += _as_float(x << 16) * _as_float(y << 16)
                high += _as_float(x & 0xFFFF0000) * _as_float(y & 0xFFFF0000)
            to = at + c * _TILE + r * SIDE + i
            words[to] = _as_word(_as_float(words[to]) + (low + high) if is_sound else np.float32(np.nan))


if HAS_TILES and not ARE_TILES_EMULATED:
    configure, release = _real_configure, _real_release
    tile_zero, tile_load, tile_store, tile_dot = _real_zero, _real_load, _real_store, _real_dot
else:
    # Numba would compile the twin again for every literal number of a tile: they are hidden from it.
    release = _emulated_release

    @inline
    def configure(rows, pairs):
        _emulated_configure(np.int64(rows), np.int64(pairs))

    @inline
    def tile_zero(tile):
        _emulated_zero(np.int64(tile))

    @inline
    def tile_load(tile, array, index, stride):
        _emulated_load(np.int64(tile), array, index, stride)

    @inline
    def tile_store(tile, array, index, stride):
        _emulated_store(np.int64(tile), array, index, stride)

    @inline
    def tile_dot(c, a, b):
        _emulated_dot(np.int64(c), np.int64(a), np.int64(b))


@inline
def begin_tiles():
    """At a kernel's entry, on every thread; nothing on paths without tiles."""
    if HAS_TILES:
        configure(SIDE, SIDE)


@inline
def end_tiles():
    """At a kernel's exit. A thread that keeps tiles makes every switch to another one dearer."""
    if HAS_TILES:
        release()


# --- products ------------------------------------------------------------------------------------------------


@intrinsic
def _place_for_sums(typingctx, c):
    """Where the sums of a block are first stored: C itself if it is float32, else 32 x 32 values on the stack."""
    array_type = types.Array(types.float32, 1, "C")

    def codegen(context, builder, sig, args):
        if c.dtype == types.float32:
            place = make_array(c)(context, builder, args[0]).data
        else:
            place = builder.bitcast(_on_stack(builder, ir.ArrayType(F32, 4 * _TILE)), F32.as_pointer())
        return _array_at(context, builder, array_type, place, 4 * _TILE)  # its length is not looked at

    return array_type(c), codegen


def _block(mode, is_tall, is_wide):
    """One block of C, two tiles high (or one) and two across (or one)."""

    @inline
    def block(
        n_rows, steps, a, at_a, a_stride, a_down, a_next, b, at_b, b_stride, b_next, sums, c, at_c, c_row, gate, at_gate
    ):
        if mode == ADD:
            tile_load(0, c, at_c, c_row)
            if is_wide:
                tile_load(1, c, at_c + SIDE, c_row)
            if is_tall:
                tile_load(2, c, at_c + SIDE * c_row, c_row)
                if is_wide:
                    tile_load(3, c, at_c + SIDE * c_row + SIDE, c_row)
        else:
            tile_zero(0)
            tile_zero(1)
            tile_zero(2)
            tile_zero(3)
        for _ in range(steps):
            tile_load(4, a, at_a, a_stride)
            tile_load(6, b, at_b, b_stride)
            tile_dot(0, 4, 6)
            if is_wide:
                tile_load(7, b, at_b + 2 * SIDE, b_stride)
                tile_dot(1, 4, 7)
            if is_tall:
                tile_load(5, a, at_a + a_down, a_stride)
                tile_dot(2, 5, 6)
                if is_wide:
                    tile_dot(3, 5, 7)
            at_a += a_next
            at_b += b_next
        is_own = paired(c) == 1  # float32: that is C
        at, row = (at_c, c_row) if is_own else (0, 2 * SIDE)
        tile_store(0, sums, at, row)
        if is_wide:
            tile_store(1, sums, at + SIDE, row)
        if is_tall:
            tile_store(2, sums, at + SIDE * row, row)
            if is_wide:
                tile_store(3, sums, at + SIDE * row + SIDE, row)
        if mode == RELU or mode == GATE or not is_own:
            for r in range(n_rows):
                for v in range(0, 2 * SIDE if is_wide else SIDE, LANES):
                    value = load(sums, at + r * row + v)
                    finish(mode, value, c, at_c + r * c_row + v, gate, at_gate + r * c_row + v)

    return block


def _strip(mode, is_tall):
    """C's columns, a multiple of 16, for one or two tiles of rows."""
    wide, narrow = _block(mode, is_tall, True), _block(mode, is_tall, False)

    @inline
    def strip(
        n_rows, n_columns, steps, a, at_a, a_stride, a_down, a_next, b, at_b, b_stride, b_next, sums, c, at_c, c_row, gate,
        at_gate,
    ):  # fmt: skip
        v = 0
        while v + 2 * SIDE <= n_columns:
            wide(
                n_rows, steps, a, at_a, a_stride, a_down, a_next, b, at_b + 2 * v, b_stride, b_next, sums, c, at_c + v, c_row,
                gate, at_gate + v,
            )  # fmt: skip
            v += 2 * SIDE
        if v < n_columns:
            narrow(
                n_rows, steps, a, at_a, a_stride, a_down, a_next, b, at_b + 2 * v, b_stride, b_next, sums, c, at_c + v, c_row,
                gate, at_gate + v,
            )  # fmt: skip

    return strip


def tile_product(mode):
    """The product of a mode (see `simd.product_tile`) for any number of rows, columns a multiple of 16.

    A and B are uint16 arrays of bfloat16, B in pairs; C and the gate are float32 or, if it is not to be added to,
    rounded to bfloat16. A's rows lie as they are (a_step 2), or A is read down the columns of an array of pairs
    (a_row 2), which then must have been through `turn` and be a multiple of 16 pairs deep.

    The depth is cut into equal tiles of at most 16 pairs: nothing needs padding, but depths like 19 pairs are slow.
    """
    double, single = _strip(mode, True), _strip(mode, False)

    @part
    def product(
        a, a_start, a_row, a_step, b, b_start, b_step, c, c_start, c_row, n_rows, n_columns, depth, gate, gate_start
    ):
        sums = _place_for_sums(c)
        pairs, steps = SIDE, depth // SIDE
        if depth % SIDE:
            pairs = min(SIDE, depth)
            while depth % pairs:
                pairs -= 1
            steps = depth // pairs
        stride = a_row if a_step == 2 else a_step
        if pairs < SIDE:
            configure(SIDE, pairs)
        r = 0
        while r + 2 * SIDE <= n_rows:
            double(
                2 * SIDE, n_columns, steps, a, a_start + r * a_row, stride, SIDE * a_row, pairs * a_step,
                b, b_start, b_step, pairs * b_step, sums, c, c_start + r * c_row, c_row, gate, gate_start + r * c_row,
            )  # fmt: skip
            r += 2 * SIDE
        while r < n_rows:
            rows = min(SIDE, n_rows - r)
            if rows < SIDE:
                configure(rows, pairs)
            single(
                rows, n_columns, steps, a, a_start + r * a_row, stride, 0, pairs * a_step,
                b, b_start, b_step, pairs * b_step, sums, c, c_start + r * c_row, c_row, gate, gate_start + r * c_row,
            )  # fmt: skip
            r += rows
        if pairs < SIDE or n_rows % SIDE:
            configure(SIDE, SIDE)

    return product


@intrinsic
def _turn_block(typingctx, array, index, stride):
    """Transpose 16 x 16 words in place; index and stride, from row to row, count halves."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(I32, SIDE)
        places = []
        for r in range(SIDE):
            at = builder.add(args[1], builder.mul(args[2], ir.Constant(I64, r)))
            address = _element_address(context, builder, sig.args[0], args[0], at)
            places.append(builder.bitcast(address, vector.as_pointer()))
        rows = [builder.load(place, align=4, typ=vector) for place in places]

        def pick(a, b, lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, SIDE), lanes))

        for s in (8, 4, 2, 1):  # exchange the off-diagonal quarters of blocks of 2s x 2s
            for i in (i for i in range(SIDE) if not i & s):
                a, b = rows[i], rows[i + s]
                rows[i] = pick(a, b, [SIDE + j - s if j & s else j for j in range(SIDE)])
                rows[i + s] = pick(a, b, [SIDE + j if j & s else j + s for j in range(SIDE)])
        for place, row in zip(places, rows):
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@part
def turn(pairs, width, depth):
    """Transpose, in place, the blocks of 16 x 16 words of pairs [depth, width], both multiples of 16: each is then a
    tile of the transposed matrix."""
    for k in range(0, depth, SIDE):
        for i in range(0, width, SIDE):
            _turn_block(pairs, 2 * (k * width + i), 2 * width)
