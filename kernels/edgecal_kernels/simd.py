"""SIMD vectors as Numba values: one small intrinsic per operation, so that the kernels stay Python loops.

A Numba type wraps an LLVM vector of sixteen 32-bit lanes (or the 64 bytes that fill them). Every operation is
emitted as plain LLVM IR, which any target lowers: one register on AVX-512, two on AVX2, four on NEON. The one
exception is `dot4`, for which LLVM does not select the best instruction; `isa/` holds one short file per
instruction set with that operation.

Indices count elements of a C-contiguous array, flattened. An array may be given by its address, an integer: of float32
for `load` and `store`, of float16 for `load_half`, of bytes otherwise. Nothing is bounds-checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from . import isa
from .jit import kernel

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))
f32, f16 = ir.FloatType(), ir.HalfType()
LANES = 16


class Vector(types.Type):
    """Numba's name for an LLVM vector of `n` lanes."""

    def __init__(self, name: str, lane: ir.Type, n: int) -> None:
        self.llvm = ir.VectorType(lane, n)
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Vector) -> None:
        super().__init__(manager, numba_type, numba_type.llvm)


F32x16 = Vector("F32x16", f32, LANES)
I32x16 = Vector("I32x16", i32, LANES)
I8x64 = Vector("I8x64", i8, 64)


def _pointer(context: Any, builder: Any, place_type: Any, place: Any, index: Any, element: ir.Type, to: ir.Type) -> Any:
    """Address of element `index`, as a pointer to `to`. `place` is an array, or the address of one as an integer."""
    if isinstance(place_type, types.Integer):
        data = builder.inttoptr(place, element.as_pointer())
    else:
        data = context.make_array(place_type)(context, builder, place).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


def _load(builder: Any, pointer: Any, align: int = 1) -> Any:
    value = builder.load(pointer)
    value.align = align
    return value


def _constant(lane: ir.Type, n: int, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(lane, n), [value] * n)


def _operation(result: Any, *arguments: Any) -> Callable:
    """Decorator: a code generator `f(context, builder, signature, values)` becomes an intrinsic of fixed types.

    `arguments` are Numba types; None stands for any array.
    """

    def wrap(generate: Callable) -> Any:
        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope: dict[str, Any] = {"generate": generate, "result": result, "arguments": arguments}
        source = (
            f"def typing(context, {names}):\n"
            f"    given = ({names},)\n"
            "    return result(*[g if a is None else a for a, g in zip(arguments, given)]), generate\n"
        )
        exec(source, scope)  # intrinsic() reads the parameter names, so they must exist literally
        typing = scope["typing"]
        typing.__name__, typing.__doc__ = generate.__name__, generate.__doc__
        return intrinsic(typing)

    return wrap


# ------------------------------------------------------------------------------------------ loads and stores


@_operation(types.voidptr, types.int64)
def _address(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.inttoptr(v[0], i8.as_pointer())


@kernel
def halves(address: int) -> Any:
    """The array of float16 (as uint16) that begins at an address. Its size is not known; nothing checks it."""
    return carray(_address(address), (1,), np.uint16)


@kernel
def singles(address: int) -> Any:
    """The array of float32 that begins at an address."""
    return carray(_address(address), (1,), np.float32)


@kernel
def whole(address: int) -> Any:
    """The array of int8 that begins at an address."""
    return carray(_address(address), (1,), np.int8)


@_operation(I8x64, None, types.intp)
def load_bytes(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """64 bytes of a uint8 array."""
    return _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], i8, I8x64.llvm))


@_operation(F32x16, None, types.intp)
def load(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """16 float32, or 16 float16 (an array of uint16, for Numba has no float16 arrays) widened to float32."""
    halves = isinstance(sig.args[0], types.Array) and sig.args[0].dtype == types.uint16
    lane = f16 if halves else f32
    value = _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], lane, ir.VectorType(lane, LANES)))
    return builder.fpext(value, F32x16.llvm) if lane is f16 else value


@_operation(types.float32, None, types.intp)
def load_one(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """One float32."""
    return builder.load(_pointer(context, builder, sig.args[0], v[0], v[1], f32, f32))


@_operation(types.float32, None, types.intp)
def load_one_half(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """One float16 widened to float32, as `load_half`."""
    return builder.fpext(builder.load(_pointer(context, builder, sig.args[0], v[0], v[1], f16, f16)), f32)


@_operation(F32x16, None, types.intp)
def load_half(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """16 float16 widened to float32, from an array of uint16 or an address."""
    pointer = _pointer(context, builder, sig.args[0], v[0], v[1], f16, ir.VectorType(f16, LANES))
    return builder.fpext(_load(builder, pointer), F32x16.llvm)


@_operation(F32x16, None, types.intp)
def load_half_fours(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """4 float16 widened to float32, each in four neighbouring lanes."""
    four = _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], f16, ir.VectorType(f16, 4)))
    wide = builder.fpext(four, ir.VectorType(f32, 4))
    return isa.pick(builder, wide, wide, [lane // 4 for lane in range(LANES)])


@_operation(F32x16, None, types.intp)
def load_cached(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """16 elements of an array of float32, float16 (as uint16) or int8, as float32."""
    lane = {types.float32: f32, types.uint16: f16, types.int8: i8}[sig.args[0].dtype]
    value = _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], lane, ir.VectorType(lane, LANES)))
    if lane is i8:
        return emit_int8(builder, value)
    return value if lane is f32 else builder.fpext(value, F32x16.llvm)


@_operation(F32x16, None, types.intp)
def load_int8(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """16 int8 widened to float32."""
    value = _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], i8, ir.VectorType(i8, LANES)))
    return emit_int8(builder, value)


def emit_int8(builder: Any, small: Any) -> Any:
    """int8 as float32."""
    ints, floats = (ir.VectorType(of, small.type.count) for of in (i32, f32))
    return builder.sitofp(builder.sext(small, ints), floats)


@_operation(F32x16, None, types.intp)
def load_signed_square(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """16 int8 s of an array or at an address as s abs(s): the scales of int4 before those of the rows."""
    value = _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], i8, ir.VectorType(i8, LANES)))
    return isa.signed_square(builder, value)


@_operation(types.void, None, types.intp)
def prefetch(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Prefetch the cache line that holds this byte; an address that is not mapped does no harm."""
    pointer = _pointer(context, builder, sig.args[0], v[0], v[1], i8, i8)
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, i32(0), i32(3), i32(1))  # to read, close, data
    return context.get_dummy_value()


@_operation(types.void, None, types.intp)
def prefetch_once(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """`prefetch` for what is read only once: it need not evict anything else from the second-level cache."""
    pointer = _pointer(context, builder, sig.args[0], v[0], v[1], i8, i8)
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, i32(0), i32(0), i32(1))  # to read, not kept, data
    return context.get_dummy_value()


@_operation(types.void, None, types.intp, F32x16)
def store(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Write 16 float32."""
    instruction = builder.store(v[2], _pointer(context, builder, sig.args[0], v[0], v[1], f32, F32x16.llvm))
    instruction.align = 1
    return context.get_dummy_value()


@_operation(types.void, None, types.intp, F32x16)
def store_sums_of_four(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Write 4 float32: (a + b) + (c + d) of each four neighbouring lanes."""
    value = v[2]
    while value.type.count > 4:
        n = value.type.count
        even, odd = (isa.pick(builder, value, value, range(start, n, 2)) for start in (0, 1))
        value = builder.fadd(even, odd)
    instruction = builder.store(value, _pointer(context, builder, sig.args[0], v[0], v[1], f32, value.type))
    instruction.align = 1
    return context.get_dummy_value()


def _emit_store_one(lane: ir.Type) -> Callable:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], v[0], v[1], lane, lane)
        if lane is i8:
            value = builder.fptosi(v[2], lane)
        elif lane is f16:
            value = builder.fptrunc(v[2], f16)
        else:
            value = v[2]
        builder.store(value, pointer)
        return context.get_dummy_value()

    return generate


# One float32 as it is, rounded to float16 (ties to even), or, whole-numbered in [-128, 127], as int8
store_one = _operation(types.void, None, types.intp, types.float32)(_emit_store_one(f32))
store_one_half = _operation(types.void, None, types.intp, types.float32)(_emit_store_one(f16))
store_one_int8 = _operation(types.void, None, types.intp, types.float32)(_emit_store_one(i8))


@_operation(types.void, None, types.intp, F32x16)
def store_half(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Round 16 float32 to float16, ties to even, into an array of uint16."""
    halves = builder.fptrunc(v[2], ir.VectorType(f16, LANES))
    store = builder.store(halves, _pointer(context, builder, sig.args[0], v[0], v[1], f16, halves.type))
    store.align = 1
    return context.get_dummy_value()


@_operation(types.void, None, types.intp, F32x16)
def store_int8(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Write 16 whole-numbered float32 in [-128, 127] as int8."""
    narrow = builder.trunc(builder.fptosi(v[2], I32x16.llvm), ir.VectorType(i8, LANES))
    instruction = builder.store(narrow, _pointer(context, builder, sig.args[0], v[0], v[1], i8, narrow.type))
    instruction.align = 1
    return context.get_dummy_value()


# --------------------------------------------------------------------------------------------------- bytes


@_operation(I8x64, I8x64)
def as_operand(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Signed weight bytes as `dot4` wants them: plus INT8_OFFSET, which the caller takes off with the sum of x."""
    return isa.as_operand(builder, v[0])


@_operation(I32x16, I32x16, I8x64, None, types.intp)
def dot4_int8(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """acc[lane] += the four products of w's bytes in that lane and the four int8 at x[index]."""
    four = _load(builder, _pointer(context, builder, sig.args[2], v[2], v[3], i8, i32))
    return isa.active().dot4(builder, v[0], v[1], isa.splat(builder, four, LANES), True)


def _emit_dot32(bits: int) -> Callable:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        """The step at an address times the 32 int8 at x[index], added to one sum or to one for each half."""
        sums = [builder.extract_value(v[0], i) for i in range(len(sig.args[0]))]
        codes = builder.inttoptr(v[1], i8.as_pointer())
        octets = _pointer(context, builder, sig.args[2], v[2], v[3], i8, i8)
        return cgutils.pack_array(builder, isa.dot32(builder, sums, codes, octets, bits))

    return generate


def _dot32(bits: int, halves: bool) -> Any:
    sums = types.UniTuple(I32x16, 2 if halves else 1)
    return _operation(sums, sums, types.int64, None, types.intp)(_emit_dot32(bits))


# By the bits of a code, and by whether halves of a step have sums of their own
DOT32 = {(bits, halves): _dot32(bits, halves) for bits in (4, 5, 6, 8) for halves in (False, True)}


def _emit_unpack(bits: int) -> Callable:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        """Write the eight lines of operands of the step at an address to another."""
        codes, to = (builder.inttoptr(address, i8.as_pointer()) for address in v)
        lines = [isa.load_bytes(builder, codes, 64 * line, 64) for line in range(bits)]
        for line, operand in enumerate(isa.operands(builder, lines)):
            place = builder.bitcast(builder.gep(to, [i32(64 * line)]), I8x64.llvm.as_pointer())
            builder.store(operand, place).align = 1
        return context.get_dummy_value()

    return generate


UNPACK = {bits: _operation(types.void, types.int64, types.int64)(_emit_unpack(bits)) for bits in (4, 5, 6, 8)}


@_operation(I32x16, I32x16, I8x64, None, types.intp)
def dot16_int8(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """A line of four rows and sixteen columns, as it is stored: acc[4 r + j] += row r, columns 4 j ... 4 j + 3 times
    the int8 at x[index + 4 j]."""
    fours = _load(builder, _pointer(context, builder, sig.args[2], v[2], v[3], i8, ir.VectorType(i32, 4)))
    x, line = isa.pick(builder, fours, fours, list(range(4)) * 4), v[1]
    if isa.active().INT8_OFFSET:  # here x is what the instruction takes unsigned
        offset = _constant(i8, 64, -isa.active().INT8_OFFSET)
        x, line = builder.bitcast(line, I32x16.llvm), builder.xor(builder.bitcast(x, I8x64.llvm), offset)
    return isa.active().dot4(builder, v[0], line, x, True)


@_operation(I32x16, I8x64, I8x64)
def begin_fours(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Sums that begin with what `dot16_int8` of two lines has too much, for `end_dots`."""
    start = isa.begin_dots(builder, i32(0))
    if isa.active().INT8_OFFSET == 0:
        return start
    dot4, offset, surplus = isa.active().dot4, _constant(i8, 64, -isa.active().INT8_OFFSET), _constant(i32, LANES, 0)
    for line in v:
        surplus = dot4(builder, surplus, offset, builder.bitcast(line, I32x16.llvm), True)
    return builder.sub(start, surplus)


# ---------------------------------------------------------------------------------------------- arithmetic


def _splat(builder: Any, value: Any) -> Any:
    return isa.splat(builder, value, LANES)


@_operation(I32x16, types.int32)
def splat_int(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return _splat(builder, v[0])


@_operation(F32x16, types.float32)
def splat(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return _splat(builder, v[0])


@_operation(I32x16, types.int32)
def begin_dots(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Sums of dot products that begin with a number, for `end_dots`."""
    return isa.begin_dots(builder, v[0])


@_operation(F32x16, I32x16, types.int32)
def end_dots(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Such sums as floats; the number once more."""
    return isa.end_dots(builder, v[0], v[1])


@_operation(F32x16, F32x16, F32x16)
def add(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.fadd(v[0], v[1])


@_operation(F32x16, F32x16, F32x16)
def sub(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.fsub(v[0], v[1])


@_operation(F32x16, F32x16, F32x16)
def mul(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.fmul(v[0], v[1])


@_operation(F32x16, F32x16, F32x16)
def div(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.fdiv(v[0], v[1])


def _call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    return builder.call(isa.declare(builder, name, result, [value.type for value in values]), values)


@_operation(F32x16, F32x16, F32x16, F32x16)
def fma(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """a * b + c, rounded once."""
    return _call(builder, "llvm.fma.v16f32", F32x16.llvm, *v)


@_operation(F32x16, F32x16, F32x16)
def maximum(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return _call(builder, "llvm.maxnum.v16f32", F32x16.llvm, *v)


@_operation(F32x16, F32x16)
def round_even(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Nearest whole number, ties to even, as numpy.rint."""
    return _call(builder, "llvm.rint.v16f32", F32x16.llvm, v[0])


@_operation(F32x16, F32x16)
def power_of_two(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """2 ** v for whole-numbered v in [-127, 127], through the exponent bits (2 ** -127 becomes 0)."""
    exponent = builder.add(builder.fptosi(v[0], I32x16.llvm), _constant(i32, LANES, 127))
    return builder.bitcast(builder.shl(exponent, _constant(i32, LANES, 23)), F32x16.llvm)


@_operation(types.float32, F32x16)
def sum_lanes(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Sum of the lanes as a fixed tree: halves folded onto each other, so every target adds in one order."""
    value, width = v[0], LANES
    while width > 1:
        width //= 2
        low = isa.lanes(builder, value, 0, width)
        value = builder.fadd(low, isa.lanes(builder, value, width, width))
    return builder.extract_element(value, i32(0))


@_operation(types.float32, F32x16)
def max_lanes(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return _call(builder, "llvm.vector.reduce.fmax.v16f32", f32, v[0])


@_operation(types.float32, F32x16)
def first_lane(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.extract_element(v[0], i32(0))
