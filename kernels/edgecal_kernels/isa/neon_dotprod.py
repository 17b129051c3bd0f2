"""NEON with the dot-product extension: sdot (signed bytes, summed by four into int32) on the four quarters of a line.

A Raspberry Pi 5 and most phones since 2018 have it (Armv8.2 asimddp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .. import neon_codes
from . import declare, filled, in_order, joined, lanes, load_fours, pick, pinned, splat, split

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 0, 8, 8, 1, 4
BIAS = 0x4B400000  # the bits of 3 * 2 ** 22, a float32 whose last bit is worth 1

_INTS, _OCTETS = ir.VectorType(ir.IntType(32), 4), ir.VectorType(ir.IntType(8), 16)


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    quarters = [_dot(builder, *parts) for parts in zip(*(split(builder, v, 4) for v in (acc, w, x)), strict=True)]
    return joined(builder, quarters)


def dot16(builder: Any, acc: Any, lines: Sequence[Any], octets: Any, bits: int) -> Any:
    """The activations of all lines are read together, and each sdot names the four that it takes (by element)."""
    x = load_fours(builder, octets, 0)
    found = []
    for q, own in enumerate(split(builder, acc, 4)):
        for n, line in enumerate(lines):
            own = _dot(builder, own, lanes(builder, line, 16 * q, 16), pick(builder, x, x, [n] * 4))
        found.append(own)
    return joined(builder, found)


def dot8(builder: Any, sums: Sequence[Any], lines: Sequence[Any], octets: Any, bits: int) -> list[Any]:
    """As `dot16`: a register holds the octets of two tokens."""
    found, xs = [], registers(builder, octets, len(sums) // 2)
    for token, acc in enumerate(sums):
        x = xs[token // 2]
        for half, line in enumerate(lines):
            acc = _dot(builder, acc, line, pick(builder, x, x, [token % 2 * 2 + half] * 4))
        found.append(acc)
    return in_order(builder, found)


def registers(builder: Any, place: Any, n: int) -> list[Any]:
    """Four with one instruction (ld1), where LLVM would take two."""
    if n % 4:
        return [load_fours(builder, place, index) for index in range(n)]
    pointer = _INTS.element.as_pointer()
    four = declare(builder, "llvm.aarch64.neon.ld1x4.v4i32.p0", ir.LiteralStructType([_INTS] * 4), [pointer])
    found = []
    for first in range(0, n, 4):
        value = builder.call(four, [builder.bitcast(builder.gep(place, [ir.IntType(32)(16 * first)]), pointer)])
        found += [builder.extract_value(value, index) for index in range(4)]
    return found


def begin_dots(builder: Any, start: Any) -> Any:
    """Read from memory, for which the pipelines of loads have time; LLVM would copy registers in those of products."""
    kind = ir.VectorType(ir.IntType(32), 16)
    place = cgutils.global_constant(builder, "bias", filled(kind, BIAS))
    place = builder.bitcast(place, ir.IntType(8).as_pointer())
    return joined(builder, registers(builder, pinned(builder, place, "r", ordered=True), 4))


def end_dots(builder: Any, sums: Any, start: Any) -> Any:
    """What they should have begun with is taken off with the bias."""
    floats = ir.VectorType(ir.FloatType(), 16)
    less = splat(builder, builder.sub(ir.IntType(32)(BIAS), start), 16)
    return builder.fsub(builder.bitcast(sums, floats), builder.bitcast(less, floats))


def dot32(builder: Any, sums: Sequence[Any], codes: Any, octets: Any, bits: int) -> list[Any]:
    """As `dot16`, line by line; where lines share one with upper bits, by quarters."""
    x = [load_fours(builder, octets, half) for half in (0, 1)]

    def dot(acc: Any, operands: Sequence[Any], half: int, first: int = 0) -> Any:
        for n, operand in enumerate(operands, first):
            acc = _dot(builder, acc, operand, pick(builder, x[half], x[half], [n] * 4))
        return acc

    if bits in (5, 6):
        return neon_codes.by_quarters(builder, sums, codes, bits, dot)
    quarters = [split(builder, acc, 4) for acc in sums]
    for line in range(bits):
        stored = registers(builder, builder.gep(codes, [ir.IntType(32)(64 * line)]), 4)
        for q, part in enumerate(stored):
            octet = builder.bitcast(part, _OCTETS)
            if bits == 8:
                own = quarters[-1 if line > 3 else 0]
                own[q] = dot(own[q], [octet], line // 4, line % 4)
                continue
            low, high = neon_codes.nibbles(builder, octet)
            quarters[0][q] = dot(quarters[0][q], [low], 0, line)
            quarters[-1][q] = dot(quarters[-1][q], [high], 1, line)
        if line % 2:
            quarters = [in_order(builder, own) for own in quarters]
    return [joined(builder, own) for own in quarters]


def splat_of(builder: Any, place: Any, n: int, token: int, lanes: int) -> Any:
    """Two or four are read together: instructions take an element of a register."""
    width = min(n, 4)
    several = builder.bitcast(place, ir.VectorType(place.type.pointee, width).as_pointer())
    values = builder.load(builder.gep(several, [ir.IntType(32)(token // width)]))
    values.align = 4
    return pick(builder, values, values, [token % width] * lanes)


def to_float(builder: Any, sums: Any) -> Any:
    """With BIAS they are bits of a float32, which only has to lose it: one subtraction, where a conversion takes one of
    two pipelines of the Cortex-A76 two cycles."""
    floats = ir.VectorType(ir.FloatType(), sums.type.count)
    return builder.fsub(builder.bitcast(sums, floats), filled(floats, 3.0 * 2**22))


def signed_square(builder: Any, small: Any) -> Any:
    """In 16 bits, which hold 127 * 127: smull, of eight at least. The addition that widens adds BIAS as well."""
    n = small.type.count
    if n < 8:
        four = splat(builder, builder.bitcast(small, ir.IntType(32)), 2)
        small = pinned(builder, builder.bitcast(four, ir.VectorType(ir.IntType(8), 8)), "w")  # or LLVM takes four again
    words, ints = (ir.VectorType(ir.IntType(bits), size) for bits, size in ((16, max(n, 8)), (32, n)))
    absolute = declare(builder, f"llvm.abs.v{words.count}i8", small.type, [small.type, ir.IntType(1)])
    positive = builder.call(absolute, [small, ir.IntType(1)(0)])
    square = builder.mul(builder.sext(small, words), builder.sext(positive, words))
    return to_float(builder, builder.add(builder.sext(lanes(builder, square, 0, n), ints), filled(ints, BIAS)))


def _dot(builder: Any, acc: Any, w: Any, x: Any) -> Any:
    sdot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", _INTS, [_INTS, _OCTETS, _OCTETS])
    return builder.call(sdot, [acc, w, builder.bitcast(x, _OCTETS)])
