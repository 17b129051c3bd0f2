"""Integers and bits of vectors, as `simd` has arithmetic: magnitudes, comparisons, signs, and PCG64's 128-bit step."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import isa
from .simd import LANES, F32x16, I32x16, _call, _constant, _load, _operation, _pointer, i16, i32, i64

_i128 = ir.IntType(128)
_PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


@_operation(I32x16, None, types.intp)
def load_magnitudes(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """The bits of 16 float32 without their signs, from an array of uint32: non-negative, ordered as the magnitudes."""
    value = _load(builder, _pointer(context, builder, sig.args[0], v[0], v[1], i32, I32x16.llvm))
    return builder.and_(value, _constant(i32, LANES, 0x7FFFFFFF))


@_operation(I32x16, I32x16, I32x16, I32x16)
def count_above(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """counts + 1 in every lane where value > limit: (counts, value, limit)."""
    return builder.sub(v[0], builder.sext(builder.icmp_signed(">", v[1], v[2]), I32x16.llvm))


@_operation(types.int64, I32x16)
def sum_counts(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.zext(_call(builder, "llvm.vector.reduce.add.v16i32", i32, v[0]), i64)


@_operation(types.int64, I32x16, I32x16, I32x16)
def mask_between(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """A bit for every lane with 0 <= value - low <= width: (value, low, width)."""
    inside = builder.icmp_unsigned("<=", builder.sub(v[0], v[1]), v[2])
    return builder.zext(builder.bitcast(inside, i16), i64)


@_operation(I32x16, types.int32, types.int64)
def limits(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """`threshold` in the first `remaining` lanes (any integer, also a negative one), and 1 more in those after them."""
    lanes = ir.Constant(ir.VectorType(i64, LANES), list(range(LANES)))
    after = builder.icmp_signed(">=", lanes, isa.splat(builder, v[1], LANES))
    return builder.add(isa.splat(builder, v[0], LANES), builder.zext(after, I32x16.llvm))


@_operation(F32x16, F32x16, I32x16)
def trim(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """The lanes whose magnitude is at least `limit`, as bits; the others times 0."""
    bits = builder.bitcast(v[0], I32x16.llvm)
    kept = builder.icmp_signed(">=", builder.and_(bits, _constant(i32, LANES, 0x7FFFFFFF)), v[1])
    sign = builder.and_(bits, _constant(i32, LANES, 0x80000000))
    return builder.bitcast(builder.select(kept, bits, sign), F32x16.llvm)


@_operation(types.int64, types.int64)
def lowest_lane(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """The lane of the lowest bit that is set, some lane where none is."""
    zeros = builder.cttz(v[0], ir.Constant(ir.IntType(1), 0))
    return builder.and_(zeros, ir.Constant(i64, LANES - 1))


@_operation(types.int64, types.int64)
def count_bits(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    return builder.ctpop(v[0])


@_operation(I32x16, F32x16)
def signs(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """The sign bits alone."""
    return builder.and_(builder.bitcast(v[0], I32x16.llvm), _constant(i32, LANES, 0x80000000))


@_operation(F32x16, F32x16, I32x16)
def flip(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """Change the sign where a sign bit is set."""
    return builder.bitcast(builder.xor(builder.bitcast(v[0], I32x16.llvm), v[1]), F32x16.llvm)


@_operation(F32x16, F32x16)
def positive(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """1 where a lane is above 0, else 0."""
    above = builder.fcmp_ordered(">", v[0], ir.Constant(F32x16.llvm, None))
    return builder.uitofp(above, F32x16.llvm)


@_operation(types.UniTuple(types.uint64, 2), types.uint64, types.uint64, types.uint64, types.uint64)
def pcg64_step(context: Any, builder: Any, sig: Any, v: Any) -> Any:
    """The next state (high, low) of PCG64 from (high, low, increment's high, increment's low)."""

    def joined(high: Any, low: Any) -> Any:
        shifted = builder.shl(builder.zext(high, _i128), ir.Constant(_i128, 64))
        return builder.or_(shifted, builder.zext(low, _i128))

    product = builder.mul(joined(v[0], v[1]), ir.Constant(_i128, _PCG_MULTIPLIER))
    state = builder.add(product, joined(v[2], v[3]))
    high = builder.trunc(builder.lshr(state, ir.Constant(_i128, 64)), i64)
    return cgutils.pack_array(builder, [high, builder.trunc(state, i64)])
