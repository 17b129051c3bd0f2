"""AVX2: vpmaddubsw (unsigned x signed bytes, pairs added into int16), then vpmaddwd with ones into int32.

The int16 pair sums saturate at 32767. Int8 weights would reach that once an offset made them unsigned, so the sign
moves from the weight to the activation (vpsignb): |w| * (x * sign w), at most 2 * 127 * 127 in a pair. Of codes of six
bits two pairs stay below (2 * 2 * 63 * 127 = 32004), of nibbles all eight that a step adds to one place (30480): they
are widened as seldom.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from llvmlite import ir

from . import declare, fours, join, lanes, pinned, splat, split

INT8_OFFSET, VECTORS, TOKENS, TILES, ROWS = 0, 8, 4, 1, 16
_INTS, _WORDS, _OCTETS = (ir.VectorType(ir.IntType(b), 256 // b) for b in (32, 16, 8))


def dot4(builder: Any, acc: Any, w: Any, x: Any, signed: bool) -> Any:
    halves = []
    for h in (0, 1):
        four = builder.bitcast(lanes(builder, x, 8 * h, 8), _OCTETS)
        quads = _widened(builder, _pairs(builder, lanes(builder, w, 32 * h, 32), four, signed))
        halves.append(builder.add(lanes(builder, acc, 8 * h, 8), quads))
    return join(builder, *halves)


def dot16(builder: Any, acc: Any, lines: Sequence[Any], octets: Any, bits: int) -> Any:
    """Products are added in int16 as far as that holds them: of four lines of nibbles, of two of six bits."""
    together = {4: 4, 6: 2, 8: 1}[bits]
    xs = [builder.bitcast(splat(builder, four, 8), _OCTETS) for four in fours(builder, octets, len(lines))]
    found = []
    for h, own in enumerate(split(builder, acc, 2)):
        pairs = [_pairs(builder, split(builder, w, 2)[h], x, bits == 8) for w, x in zip(lines, xs, strict=True)]
        for at in range(0, len(lines), together):
            own = builder.add(own, _widened(builder, reduce(builder.add, pairs[at : at + together])))
        found.append(own)
    return join(builder, *found)


def begin(builder: Any, start: Sequence[Any]) -> list[Any]:
    return [ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)] * len(start)


def dot8(builder: Any, sums: Sequence[Any], lines: Sequence[Any], octets: Any, bits: int) -> list[Any]:
    """Sums are int32, those of nibbles two int16 in the place of one.

    They are pinned: LLVM would otherwise add in an order that keeps all of a step's weights in registers, which there
    are not.
    """
    halves = [split(builder, acc, 2) for acc in sums]
    fours = builder.bitcast(octets, ir.IntType(32).as_pointer())
    weights = [split(builder, line, 2) for line in lines]
    for together in ((0, 1),) if bits == 6 else ((0,), (1,)):
        for token, own in enumerate(halves):
            places = [builder.load(builder.gep(fours, [ir.IntType(32)(2 * token + line)])) for line in together]
            xs = [builder.bitcast(splat(builder, four, 8), _OCTETS) for four in places]
            for h in (0, 1):
                pairs = [_pairs(builder, weights[line][h], x, bits == 8) for line, x in zip(together, xs, strict=True)]
                own[h] = pinned(builder, _added(builder, own[h], pairs, bits), "x")
    return [join(builder, *own) for own in halves]


def _added(builder: Any, acc: Any, pairs: Sequence[Any], bits: int) -> Any:
    add = declare(builder, "llvm.sadd.sat.v16i16", _WORDS, [_WORDS, _WORDS])
    if bits == 4:
        return builder.bitcast(builder.call(add, [builder.bitcast(acc, _WORDS), *pairs]), _INTS)
    return builder.add(acc, _widened(builder, pairs[0] if len(pairs) == 1 else builder.call(add, pairs)))


def finish(builder: Any, sums: Sequence[Any], start: Sequence[Any], bits: int) -> list[Any]:
    found = []
    for acc, first in zip(sums, start, strict=True):
        if bits == 4:
            acc = join(builder, *(_widened(builder, builder.bitcast(half, _WORDS)) for half in split(builder, acc, 2)))
        found.append(builder.add(acc, first))
    return found


def _pairs(builder: Any, weights: Any, x: Any, signed: bool) -> Any:
    """32 products, neighbours added: 16 int16."""
    if signed:
        sign = declare(builder, "llvm.x86.avx2.psign.b", _OCTETS, [_OCTETS, _OCTETS])
        x, weights = builder.call(sign, [x, weights]), builder.call(sign, [weights, weights])
    return builder.call(declare(builder, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, [_OCTETS, _OCTETS]), [weights, x])


def _widened(builder: Any, pairs: Any) -> Any:
    """Neighbours added: 8 int32."""
    return builder.call(
        declare(builder, "llvm.x86.avx2.pmadd.wd", _INTS, [_WORDS, _WORDS]), [pairs, ir.Constant(_WORDS, [1] * 16)]
    )
