"""Plain NEON (Raspberry Pi 4): smull to int16, addp adds neighbours, sadalp adds neighbours again into int32.

The int16 sums of two products cannot overflow: activations are rounded to -127..127, so they reach 2 * 128 * 127 at
most. The matrix kernel makes these two of two lines (smlal). Of codes of six bits it can add neighbours to that in
int16, too, and of nibbles all sixteen products that a step adds to one place (30480): they are widened once per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from . import declare, joined, lanes, pinned, splat, split

INT8_OFFSET, VECTORS, TOKENS, TILES = 0, 8, 2, 1

_INTS, _WORDS, _OCTETS = (ir.VectorType(ir.IntType(b), n) for b, n in ((32, 4), (16, 8), (8, 8)))


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    fours = [builder.bitcast(lanes(builder, x, 2 * e, 2), _OCTETS) for e in range(8)]
    quarters = []
    for q in range(4):
        low, high = (_products(builder, lanes(builder, w, 16 * q + 8 * h, 8), fours[2 * q + h]) for h in (0, 1))
        quarters.append(builder.add(lanes(builder, acc, 4 * q, 4), _widened(builder, _neighbours(builder, low, high))))
    return joined(builder, quarters)


def begin(builder: Any, start: Sequence[Any]) -> list[Any]:
    return [ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)] * len(start)


def dot8(builder: Any, sums: Sequence[Any], lines: Sequence[Any], octets: Any, bits: int) -> list[Any]:
    """Sums are int32, those of nibbles two int16 in the place of one; pinned, as those of avx2.py."""
    weights = [split(builder, line, 8) for line in lines]
    fours = builder.bitcast(octets, ir.IntType(32).as_pointer())
    found = []
    for token, acc in enumerate(sums):
        places = [builder.load(builder.gep(fours, [ir.IntType(32)(2 * token + line)])) for line in (0, 1)]
        xs = [builder.bitcast(splat(builder, four, 2), _OCTETS) for four in places]
        quarters = []
        for q, own in enumerate(split(builder, acc, 4)):
            low, high = (
                builder.add(*(_products(builder, weights[line][2 * q + h], xs[line]) for line in (0, 1)))
                for h in (0, 1)
            )
            quarters.append(pinned(builder, _added(builder, own, low, high, bits), "w"))
        found.append(joined(builder, quarters))
    return found


def _added(builder: Any, acc: Any, low: Any, high: Any, bits: int) -> Any:
    if bits == 4:
        words = builder.add(builder.bitcast(acc, _WORDS), _neighbours(builder, low, high))
        return builder.bitcast(words, _INTS)
    if bits == 6:
        return builder.add(acc, _widened(builder, _neighbours(builder, low, high)))
    addp = declare(builder, "llvm.aarch64.neon.addp.v4i32", _INTS, [_INTS, _INTS])
    return builder.add(acc, builder.call(addp, [_widened(builder, low), _widened(builder, high)]))


def finish(builder: Any, sums: Sequence[Any], start: Sequence[Any], bits: int) -> list[Any]:
    found = []
    for acc, first in zip(sums, start, strict=True):
        if bits == 4:
            quarters = split(builder, acc, 4)
            acc = joined(builder, [_widened(builder, builder.bitcast(quarter, _WORDS)) for quarter in quarters])
        found.append(builder.add(acc, first))
    return found


def _products(builder: Any, w: Any, x: Any) -> Any:
    smull = declare(builder, "llvm.aarch64.neon.smull.v8i16", _WORDS, [_OCTETS, _OCTETS])
    return builder.call(smull, [w, x])


def _neighbours(builder: Any, low: Any, high: Any) -> Any:
    """Neighbours of two vectors added, in int16."""
    return builder.call(declare(builder, "llvm.aarch64.neon.addp.v8i16", _WORDS, [_WORDS, _WORDS]), [low, high])


def _widened(builder: Any, words: Any) -> Any:
    """Neighbours added, in int32."""
    return builder.call(declare(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", _INTS, [_WORDS]), [words])
