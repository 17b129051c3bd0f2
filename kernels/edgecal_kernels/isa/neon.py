"""Plain NEON (Raspberry Pi 4): smull to int16, addp adds neighbours, sadalp adds neighbours again into int32.

The int16 sums of two products cannot overflow: activations are rounded to -127..127, so they reach 2 * 128 * 127 at
most.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import declare, join, lanes

INT8_OFFSET, VECTORS, TOKENS, TILES = 0, 8, 2, 1


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    ints, words, octets = (ir.VectorType(ir.IntType(b), n) for b, n in ((32, 4), (16, 8), (8, 8)))
    smull = declare(builder, "llvm.aarch64.neon.smull.v8i16", words, [octets, octets])
    addp = declare(builder, "llvm.aarch64.neon.addp.v8i16", words, [words, words])
    saddlp = declare(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", ints, [words])
    fours = [builder.bitcast(lanes(builder, x, 2 * e, 2), octets) for e in range(8)]
    quarters = []
    for q in range(4):
        low, high = (builder.call(smull, [lanes(builder, w, 16 * q + 8 * h, 8), fours[2 * q + h]]) for h in (0, 1))
        sums = builder.call(saddlp, [builder.call(addp, [low, high])])
        quarters.append(builder.add(lanes(builder, acc, 4 * q, 4), sums))
    return join(builder, join(builder, *quarters[:2]), join(builder, *quarters[2:]))
