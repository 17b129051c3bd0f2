"""AVX-512 VNNI: one vpdpbusd (unsigned x signed bytes, summed by four into int32) takes the whole line."""

from __future__ import annotations

from typing import Any

from . import declare

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 128, 32, 4, 2, 16


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    instruction = declare(builder, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc.type, w.type, w.type])
    return builder.call(instruction, [acc, w, builder.bitcast(x, w.type)])
