"""AVX-VNNI: vpdpbusd on 256-bit registers, so a line is two of them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import declare, join, lanes

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 128, 8, 4, 1, 16


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    ints, octets = ir.VectorType(ir.IntType(32), 8), ir.VectorType(ir.IntType(8), 32)
    instruction = declare(builder, "llvm.x86.avx512.vpdpbusd.256", ints, [ints, octets, octets])
    fours = [builder.bitcast(lanes(builder, x, 8 * h, 8), octets) for h in (0, 1)]
    halves = [
        builder.call(instruction, [lanes(builder, acc, 8 * h, 8), lanes(builder, w, 32 * h, 32), fours[h]])
        for h in (0, 1)
    ]
    return join(builder, *halves)
