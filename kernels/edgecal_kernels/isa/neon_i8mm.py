"""NEON with the int8 matrix extension: smmla multiplies two rows of eight columns with two tokens at once.

Phones since about 2021, Graviton 3, Apple M2 have it (Armv8.6 i8mm). Two lines of four columns each, interleaved, give
the rows of eight. Sums of a pair of tokens grow row by row, token beside token, and are sorted by token once per step.
A single token would leave half of every smmla to zeros; sdot serves it. Both sum integers: the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from . import declare, load_fours, neon_dotprod, pick

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 0, 8, 8, 1, 4
dot4, dot16, splat_of = neon_dotprod.dot4, neon_dotprod.dot16, neon_dotprod.splat_of
signed_square, dot32 = neon_dotprod.signed_square, neon_dotprod.dot32
BIAS, to_float = neon_dotprod.BIAS, neon_dotprod.to_float
begin_dots, end_dots = neon_dotprod.begin_dots, neon_dotprod.end_dots
_INTS, _OCTETS = ir.VectorType(ir.IntType(32), 4), ir.VectorType(ir.IntType(8), 16)


def begin(builder: Any, start: Sequence[Any]) -> list[Any]:
    sums = []
    for even, odd in zip(start[::2], start[1::2], strict=True):
        pair = pick(builder, even, odd, [0, 4, 1, 5])
        sums += [pair, pair]
    return sums


def dot8(builder: Any, sums: Sequence[Any], lines: Sequence[Any], octets: Any, bits: int) -> list[Any]:
    smmla = declare(builder, "llvm.aarch64.neon.smmla.v4i32.v16i8", _INTS, [_INTS, _OCTETS, _OCTETS])
    first, second = (builder.bitcast(line, _INTS) for line in lines)
    rows = [  # of eight columns, two to a register
        builder.bitcast(pick(builder, first, second, [i, 4 + i, i + 1, 5 + i]), _OCTETS) for i in (0, 2)
    ]
    found = []
    for token in range(0, len(sums), 2):
        x = builder.bitcast(load_fours(builder, octets, token // 2), _OCTETS)
        found += [builder.call(smmla, [sums[token + half], rows[half], x]) for half in (0, 1)]
    return found


def finish(builder: Any, sums: Sequence[Any], start: Sequence[Any], bits: int) -> list[Any]:
    found = []
    for first, second in zip(sums[::2], sums[1::2], strict=True):
        found += [pick(builder, first, second, range(odd, 8, 2)) for odd in (0, 1)]
    return found
