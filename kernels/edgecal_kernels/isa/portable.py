"""No special instruction: each of the four bytes of a lane is widened by shifts and multiplied as int32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 0, 8, 2, 1, 16


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    ints = acc.type
    words = builder.bitcast(w, ints)
    top = ir.Constant(ints, [24] * 16)
    for byte in range(4):
        left = ir.Constant(ints, [24 - 8 * byte] * 16)
        weight, activation = (builder.ashr(builder.shl(fours, left), top) for fours in (words, x))
        acc = builder.add(acc, builder.mul(weight, activation))
    return acc
