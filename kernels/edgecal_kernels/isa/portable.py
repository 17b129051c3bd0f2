"""No special instruction: each of the four bytes of a lane is widened by shifts and multiplied as int32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import splat

INT8_OFFSET, TOKENS, TILES = 0, 2, 1


def dot4(builder: Any, acc: Any, w: Any, four: Any, signed: bool) -> Any:
    ints = acc.type
    words = builder.bitcast(w, ints)
    top = ir.Constant(ints, [24] * 16)
    for byte in range(4):
        left = ir.Constant(ir.IntType(32), 24 - 8 * byte)
        weight = builder.ashr(builder.shl(words, ir.Constant(ints, [24 - 8 * byte] * 16)), top)
        x = builder.ashr(builder.shl(four, left), ir.Constant(ir.IntType(32), 24))
        acc = builder.add(acc, builder.mul(weight, splat(builder, x, 16)))
    return acc
