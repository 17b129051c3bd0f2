"""Packed codes on NEON: what the products of one token take of a step, a quarter of its lines at a time.

A quarter of four lines becomes eight operands before the next one is read, so that all of it stays in registers. Upper
bits are freed of their neighbours for two lines at once; then a shift with insertion takes the nibble (sri) or the
upper bits (sli) to their place and leaves what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from .isa import declare, filled, in_order, joined, load_bytes, pinned, split

_OCTETS = ir.VectorType(ir.IntType(8), 16)


def by_quarters(
    builder: Any, sums: Sequence[Any], codes: Any, bits: int, dot: Callable[[Any, Sequence[Any], int], Any]
) -> list[Any]:
    """`dot32` of an instruction set whose `dot(acc, operands, half)` adds the products of a quarter's four operands.

    Two quarters are loaded together (ldp).
    """
    quarters = [split(builder, acc, 4) for acc in sums]
    for pair in (0, 2):
        lines = [split(builder, load_bytes(builder, codes, 64 * line + 16 * pair, 32), 2) for line in range(bits)]
        for q, parts in enumerate(zip(*lines, strict=True), pair):
            operands = _UNPACK[bits](builder, parts)
            for half, own in ((0, quarters[0]), (1, quarters[-1])):
                own[q] = dot(own[q], operands[4 * half : 4 * half + 4], half)
        for own in quarters:
            own[pair : pair + 2] = in_order(builder, own[pair : pair + 2])
    return [joined(builder, own) for own in quarters]


def nibbles(builder: Any, line: Any) -> tuple[Any, Any]:
    """The low ones and the high ones."""
    return builder.and_(line, filled(_OCTETS, 15)), _right(builder, line, 4)


def _unpack_4(builder: Any, lines: Sequence[Any]) -> list[Any]:
    low, high = zip(*(nibbles(builder, line) for line in lines), strict=True)
    return [*low, *high]


def _unpack_5(builder: Any, lines: Sequence[Any]) -> list[Any]:
    *packed, upper = lines
    shifted = [upper, *(_right(builder, upper, quad) for quad in (1, 2, 3))]
    low = [builder.and_(bits, filled(_OCTETS, 1)) for bits in shifted]
    high = [pinned(builder, builder.and_(bits, filled(_OCTETS, 16)), "w") for bits in shifted]
    first = [_insert(builder, "sli", *both) for both in zip(packed, low, strict=True)]
    return first + [_insert(builder, "sri", *both) for both in zip(high, packed, strict=True)]


def _unpack_6(builder: Any, lines: Sequence[Any]) -> list[Any]:
    packed, ((low_even, low_odd), (even, odd)) = lines[:4], (_apart(builder, upper) for upper in lines[4:])
    first = [
        _insert(builder, "sli", packed[0], low_even),
        _insert(builder, "sli", packed[1], low_odd),
        _low_of(builder, packed[2], low_even),
        _low_of(builder, packed[3], low_odd),
    ]
    high = [_left(builder, even), _left(builder, odd), even, odd]
    return first + [_insert(builder, "sri", *both) for both in zip(high, packed, strict=True)]


# By the bits of a code: a step's lines, as many as bits, as eight operands
_UNPACK = {4: _unpack_4, 5: _unpack_5, 6: _unpack_6, 8: lambda builder, lines: list(lines)}


def _apart(builder: Any, upper: Any) -> list[Any]:
    """Bits 0, 1, 4, 5 and bits 2, 3, 6, 7 of bytes, each at 0, 1, 4, 5: as they are, or LLVM would mask them anew."""
    pairs = filled(_OCTETS, 0x33)
    return [pinned(builder, builder.and_(bits, pairs), "w") for bits in (upper, _right(builder, upper, 2))]


def _low_of(builder: Any, low: Any, high: Any) -> Any:
    """Bits 0 to 3 of `low`, 4 to 7 of `high`: bit."""
    return builder.or_(builder.and_(low, filled(_OCTETS, 0x0F)), builder.and_(high, filled(_OCTETS, 0xF0)))


def _insert(builder: Any, how: str, into: Any, shifted: Any) -> Any:
    """`shifted`, moved by four bits to the left (sli) or right (sri), over what `into` has there."""
    kinds = [_OCTETS, _OCTETS, ir.IntType(32)]
    insert = declare(builder, f"llvm.aarch64.neon.v{how}.v16i8", _OCTETS, kinds)
    return builder.call(insert, [into, shifted, ir.IntType(32)(4)])


def _right(builder: Any, value: Any, bits: int) -> Any:
    return builder.lshr(value, filled(_OCTETS, bits))


def _left(builder: Any, value: Any) -> Any:
    return builder.shl(value, filled(_OCTETS, 4))
