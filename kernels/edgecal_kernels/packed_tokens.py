"""Tokens rounded to int8, packed for blocks of the matrix kernel: TOKENS of them at a time, fewer where they are left.

What a step of 32 columns needs lies together and at constant offsets:

    4 octets of columns, of each the 8 int8 of every token | start, half start int32 (each STARTS times), scale,
    shift float32, each for all tokens

start = -8 times the sum of the codes, half start the same of the first 16 columns, shift = scale times that sum.

Addresses are int64, and everything is in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _numba_intrinsic

from . import isa
from .jit import kernel
from .memory import emit_load, emit_pointer, read_float, read_short, write_float, write_int
from .simd import i64

intrinsic: Any = _numba_intrinsic
TOKENS: int = isa.active().TOKENS
SOME = 4 if TOKENS == 8 else 2  # where fewer than TOKENS are left
STARTS = 4 if isa.active().ROWS == 4 else 1  # copies of a start: where registers hold four numbers, read as one
STARTS_AT, HALF_STARTS_AT, SCALES_AT = 32, 32 + 4 * STARTS, 32 + 8 * STARTS  # bytes before them, for each token
TOKEN_BYTES = SCALES_AT + 8  # of a step of a token
START_OFFSET = 8  # that of nibbles, whose dot products can start with what is packed
_BIAS: int = isa.bias()


@kernel
def tokens_of_block(left: int) -> int:
    """How many tokens the next block takes where `left` are, two at least: TOKENS, SOME or 2."""
    return TOKENS if left >= TOKENS else (SOME if left >= SOME else 2)


@kernel
def read_total(totals: int) -> Any:
    """The sum of the codes of a step, whose halves have theirs at this address."""
    return types.int32(read_short(totals) + read_short(totals + 2))


def _emit_octets(n: int) -> Callable:
    def typing(context: Any, x: Any, stride: Any, to: Any) -> Any:
        """The octets of a step of n tokens, which lie `stride` bytes apart: the first of each, then the second ..."""

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            octets = ir.VectorType(i64, 4)
            places = [builder.add(v[0], builder.mul(v[1], i64(token))) for token in range(n)]
            tokens = isa.joined(builder, [emit_load(builder, place, 0, octets, 1) for place in places])
            turned = isa.pick(builder, tokens, tokens, [token * 4 + octet for octet in range(4) for token in range(n)])
            builder.store(turned, emit_pointer(builder, v[2], 0, turned.type)).align = 1
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return intrinsic(typing)


_octets_most, _octets_some, _octets2 = _emit_octets(TOKENS), _emit_octets(SOME), _emit_octets(2)


@kernel
def _pack(x: int, x_scale: int, x_total: int, k: int, n: int, to: int) -> None:
    """A block of n tokens of k columns, which follow one another."""
    steps = k // 32
    for step in range(steps):
        at = x + step * 32
        if n == TOKENS:
            _octets_most(at, k, to)
        elif n == SOME:
            _octets_some(at, k, to)
        else:
            _octets2(at, k, to)
        for token in range(n):
            at = (token * steps + step) * 4
            total, scale = read_total(x_total + at), read_float(x_scale + at)
            first_total = read_short(x_total + at)
            for copy in range(STARTS):
                place = to + (token * STARTS + copy) * 4
                write_int(place + STARTS_AT * n, types.int32(_BIAS - START_OFFSET * total))
                write_int(place + HALF_STARTS_AT * n, types.int32(_BIAS - START_OFFSET * first_total))
            write_float(to + SCALES_AT * n + token * 4, scale)
            write_float(to + (SCALES_AT + 4) * n + token * 4, scale * types.float32(total))
        to += TOKEN_BYTES * n


@kernel
def pack_tokens(rounded: Any, n: int, k: int, packed: int) -> None:
    """n tokens of k columns, whose codes, scales and sums lie at `rounded`. An odd one is left out."""
    codes, scale, total = rounded
    steps, token = k // 32, 0
    while token < n - n % 2:
        width = tokens_of_block(n - token)
        at, to = token * steps * 4, packed + token * steps * TOKEN_BYTES
        # A number that is constant unrolls the loops over tokens
        if width == TOKENS:
            _pack(codes + token * k, scale + at, total + at, k, TOKENS, to)
        else:
            _pack(codes + token * k, scale + at, total + at, k, width, to)
        token += width
