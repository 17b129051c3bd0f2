"""NEON with the dot-product extension: sdot (signed bytes, summed by four into int32) on the four quarters of a line.

A Raspberry Pi 5 and most phones since 2018 have it (Armv8.2 asimddp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from . import declare, joined, lanes, load_fours, pick, split

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 0, 8, 8, 1, 4


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
    found = []
    for token, acc in enumerate(sums):
        if token % 2 == 0:
            x = load_fours(builder, octets, token // 2)
        for half, line in enumerate(lines):
            acc = _dot(builder, acc, line, pick(builder, x, x, [token % 2 * 2 + half] * 4))
        found.append(acc)
    return found


def splat_of(builder: Any, place: Any, n: int, token: int, lanes: int) -> Any:
    """Two or four are read together: instructions take an element of a register."""
    width = min(n, 4)
    several = builder.bitcast(place, ir.VectorType(place.type.pointee, width).as_pointer())
    values = builder.load(builder.gep(several, [ir.IntType(32)(token // width)]))
    values.align = 4
    return pick(builder, values, values, [token % width] * lanes)


def signed_square(builder: Any, small: Any) -> Any:
    """In 16 bits, which hold 127 * 127: smull."""
    n = small.type.count
    words, floats = (ir.VectorType(of, n) for of in (ir.IntType(16), ir.FloatType()))
    absolute = declare(builder, f"llvm.abs.v{n}i8", small.type, [small.type, ir.IntType(1)])
    positive = builder.call(absolute, [small, ir.IntType(1)(0)])
    return builder.sitofp(builder.mul(builder.sext(small, words), builder.sext(positive, words)), floats)


def _dot(builder: Any, acc: Any, w: Any, x: Any) -> Any:
    sdot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", _INTS, [_INTS, _OCTETS, _OCTETS])
    return builder.call(sdot, [acc, w, builder.bitcast(x, _OCTETS)])
