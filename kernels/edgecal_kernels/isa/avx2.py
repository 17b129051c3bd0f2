"""AVX2: vpmaddubsw (unsigned x signed bytes, pairs added into int16), then vpmaddwd with ones into int32.

The int16 pair sums saturate at 32767. Nibbles stay far below (2 * 15 * 127). Int8 weights would not once an offset
made them unsigned, so the sign moves from the weight to the activation (vpsignb): |w| * (x * sign w), at most
2 * 127 * 127.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import declare, join, lanes

INT8_OFFSET, VECTORS, TOKENS, TILES = 0, 8, 2, 1


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    ints, words, octets = (ir.VectorType(ir.IntType(b), 256 // b) for b in (32, 16, 8))
    pairs = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", words, [octets, octets])
    quads = declare(builder, "llvm.x86.avx2.pmadd.wd", ints, [words, words])
    sign = declare(builder, "llvm.x86.avx2.psign.b", octets, [octets, octets])
    ones = ir.Constant(words, [1] * 16)
    halves = []
    for h in (0, 1):
        weights, four = lanes(builder, w, 32 * h, 32), builder.bitcast(lanes(builder, x, 8 * h, 8), octets)
        if signed:
            four = builder.call(sign, [four, weights])
            weights = builder.call(sign, [weights, weights])
        products = builder.call(quads, [builder.call(pairs, [weights, four]), ones])
        halves.append(builder.add(lanes(builder, acc, 8 * h, 8), products))
    return join(builder, *halves)
