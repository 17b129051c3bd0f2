"""Plain NEON (Raspberry Pi 4): smull to int16, addp adds neighbours, sadalp adds neighbours again into int32.

The int16 sums of two products cannot overflow: activations are rounded to -127..127, so they reach 2 * 128 * 127 at
most. They are made of two lines (smlal), for one token those of less than eight bits of four (4 * 63 * 127 = 32004),
and of less than six (8 * 31 * 127 = 31496) with their neighbours. Of codes of six bits the matrix kernel can add
neighbours to the products of two lines in int16, too, and of nibbles all sixteen products that a step adds to one place
(30480): they are widened once per step, for one token twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from .. import neon_codes
from . import declare, joined, lanes, load_fours, neon_dotprod, pick, pinned, split, total

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 0, 8, 4, 1, 4

splat_of, signed_square = neon_dotprod.splat_of, neon_dotprod.signed_square
_INTS, _WORDS, _OCTETS = (ir.VectorType(ir.IntType(b), n) for b, n in ((32, 4), (16, 8), (8, 8)))


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    fours = [builder.bitcast(lanes(builder, x, 2 * e, 2), _OCTETS) for e in range(8)]
    quarters = []
    for q in range(4):
        low, high = (_products(builder, lanes(builder, w, 16 * q + 8 * h, 8), fours[2 * q + h]) for h in (0, 1))
        quarters.append(builder.add(lanes(builder, acc, 4 * q, 4), _widened(builder, _neighbours(builder, low, high))))
    return joined(builder, quarters)


def dot16(builder: Any, acc: Any, lines: Sequence[Any], octets: Any, bits: int) -> Any:
    xs, quarters = _sixteen(builder, octets, 0), [split(builder, line, 4) for line in lines]
    parts = zip(split(builder, acc, 4), *quarters, strict=True)
    return joined(builder, [_quarter(builder, own, four, xs, bits) for own, *four in parts])


def dot32(builder: Any, sums: Sequence[Any], codes: Any, octets: Any, bits: int) -> list[Any]:
    xs = [_sixteen(builder, octets, half) for half in (0, 1)]

    def dot(acc: Any, operands: Sequence[Any], half: int) -> Any:
        return _quarter(builder, acc, operands, xs[half], bits)

    return neon_codes.by_quarters(builder, sums, codes, bits, dot)


def _sixteen(builder: Any, octets: Any, half: int) -> list[list[Any]]:
    """Of sixteen activations each four, twice in either half of a register."""
    x = load_fours(builder, octets, half)
    return [_halves(builder, x, n) for n in range(4)]


def _quarter(builder: Any, acc: Any, operands: Sequence[Any], xs: Sequence[Sequence[Any]], bits: int) -> Any:
    """acc + dot products of four rows with sixteen columns."""
    weights = [split(builder, operand, 2) for operand in operands]
    halves = list[list[Any]]()  # sums that int16 holds
    for h in (0, 1):
        products = [_products(builder, weights[n][h], xs[n][h]) for n in range(4)]
        sets = (products[:2], products[2:]) if bits == 8 else (products,)
        halves.append([total(builder, values) for values in sets])
    if bits < 6:
        more = _widened(builder, _neighbours(builder, halves[0][0], halves[1][0]))
    else:
        wide = [total(builder, [_widened(builder, words) for words in half]) for half in halves]
        more = _neighbours(builder, *wide)
    return builder.add(acc, more)


def _halves(builder: Any, fours: Any, lane: int) -> list[Any]:
    """Four bytes, of a lane, for both rows of either half of a register."""
    four = pick(builder, fours, fours, [lane] * 4)
    return split(builder, builder.bitcast(four, ir.VectorType(ir.IntType(8), 16)), 2)


def begin(builder: Any, start: Sequence[Any]) -> list[Any]:
    return [ir.Constant(_INTS, [0] * 4)] * len(start)


def dot8(builder: Any, sums: Sequence[Any], lines: Sequence[Any], octets: Any, bits: int) -> list[Any]:
    """Sums are int32, those of nibbles two int16 in the place of one; pinned, as those of avx2.py."""
    weights = [split(builder, line, 2) for line in lines]
    found = []
    for token, acc in enumerate(sums):
        if token % 2 == 0:
            x = load_fours(builder, octets, token // 2)
        xs = [_halves(builder, x, token % 2 * 2 + line) for line in (0, 1)]
        low, high = (
            total(builder, [_products(builder, weights[line][h], xs[line][h]) for line in (0, 1)]) for h in (0, 1)
        )
        found.append(pinned(builder, _added(builder, acc, low, high, bits), "w"))
    return found


def _added(builder: Any, acc: Any, low: Any, high: Any, bits: int) -> Any:
    if bits == 4:
        words = builder.add(builder.bitcast(acc, _WORDS), _neighbours(builder, low, high))
        return builder.bitcast(words, _INTS)
    if bits == 6:
        return builder.add(acc, _widened(builder, _neighbours(builder, low, high)))
    return builder.add(acc, _neighbours(builder, _widened(builder, low), _widened(builder, high)))


def finish(builder: Any, sums: Sequence[Any], start: Sequence[Any], bits: int) -> list[Any]:
    if bits == 4:
        sums = [_widened(builder, builder.bitcast(words, _WORDS)) for words in sums]
    return [builder.add(acc, first) for acc, first in zip(sums, start, strict=True)]


def _products(builder: Any, w: Any, x: Any) -> Any:
    smull = declare(builder, "llvm.aarch64.neon.smull.v8i16", _WORDS, [_OCTETS, _OCTETS])
    return builder.call(smull, [w, x])


def _neighbours(builder: Any, low: Any, high: Any) -> Any:
    """Neighbours of two vectors added, as wide as they are."""
    kind = low.type
    name = f"llvm.aarch64.neon.addp.v{kind.count}i{kind.element.width}"
    return builder.call(declare(builder, name, kind, [kind, kind]), [low, high])


def _widened(builder: Any, words: Any) -> Any:
    """Neighbours added, in int32."""
    return builder.call(declare(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", _INTS, [_WORDS]), [words])
