"""NEON with the dot-product extension: sdot (signed bytes, summed by four into int32) on the four quarters of a line.

A Raspberry Pi 5 and most phones since 2018 have it (Armv8.2 asimddp).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import declare, join, lanes

INT8_OFFSET, VECTORS, TOKENS, TILES = 0, 8, 4, 1


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    ints, octets = ir.VectorType(ir.IntType(32), 4), ir.VectorType(ir.IntType(8), 16)
    sdot = declare(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", ints, [ints, octets, octets])
    fours = [builder.bitcast(lanes(builder, x, 4 * q, 4), octets) for q in range(4)]
    quarters = [
        builder.call(sdot, [lanes(builder, acc, 4 * q, 4), lanes(builder, w, 16 * q, 16), fours[q]]) for q in range(4)
    ]
    return join(builder, join(builder, *quarters[:2]), join(builder, *quarters[2:]))
