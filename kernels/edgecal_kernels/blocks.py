"""A block of the matrix kernel: 2, 4 or 8 tokens times rows of one or two tiles of weights, as one Numba value.

The sums of a block are one long LLVM vector (tokens x tiles x ROWS lanes), which the compiler keeps in registers like
any other; how many fit is what an instruction set's TOKENS, TILES and ROWS say. The type of `zeros8()`, `zeros4()` or
`zeros2()`, passed into a kernel, decides for how many tokens it is compiled.

The tokens of a block are packed first (`packed_tokens`), so that what a step needs of them lies together and at
constant offsets.

Addresses are int64, and everything is in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _numba_intrinsic

from . import isa
from .memory import emit_load, emit_pointer
from .packed_tokens import HALF_STARTS_AT, SCALES_AT, SOME, START_OFFSET, STARTS, STARTS_AT, TOKENS
from .simd import Vector, emit_int8, f32, i8, i32, i64

intrinsic: Any = _numba_intrinsic
TILES: int = isa.active().TILES
WHOLE, FIRST, SECOND = range(3)  # a step, or a half of it: 16 columns
ROWS: int = isa.active().ROWS
_BIAS: int = isa.bias()

_LINES = Vector("Lines", i8, 4 * ROWS * TILES)
_FACTORS = Vector("Factors", f32, ROWS * TILES)
_SUMS = {n: Vector(f"Sums{n}", f32, ROWS * TILES * n) for n in (2, 4, 8)}
_DOTS = {n: Vector(f"Dots{n}", i32, ROWS * TILES * n) for n in (2, 4, 8)}
_FLOATS = ir.VectorType(f32, ROWS)


def sums_type(n: int) -> Any:
    """Numba's type of the sums of n tokens, that of `zeros2()`, `zeros4()` or `zeros8()`."""
    return _SUMS[n]


def _tokens(block: Any) -> int:
    return next(n for n in _SUMS if block in (_SUMS[n], _DOTS[n]))


# ------------------------------------------------------------------------------------------ lines of weights


@intrinsic
def load_lines(context: Any, codes: Any, distance: Any) -> Any:
    """The ROWS of a line of each tile; the second tile lies `distance` bytes after the first."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        places = [v[0], builder.add(*v)][:TILES]
        return isa.joined(builder, [emit_load(builder, place, 0, ir.VectorType(i8, 4 * ROWS), 1) for place in places])

    return _LINES(types.int64, types.int64), generate


@intrinsic
def load_halves(context: Any, halves: Any, distance: Any) -> Any:
    """ROWS float16 of each tile, widened."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        places = [v[0], builder.add(*v)][:TILES]
        half = ir.VectorType(ir.HalfType(), ROWS)
        rows = [builder.fpext(emit_load(builder, place, 0, half, 1), _FLOATS) for place in places]
        return isa.joined(builder, rows)

    return _FACTORS(types.int64, types.int64), generate


@intrinsic
def load_signed_squares(context: Any, small: Any, distance: Any) -> Any:
    """ROWS int8 s of each tile as s abs(s)."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        places = [v[0], builder.add(*v)][:TILES]
        codes = [emit_load(builder, place, 0, ir.VectorType(i8, ROWS), 1) for place in places]
        return isa.joined(builder, [isa.signed_square(builder, code) for code in codes])

    return _FACTORS(types.int64, types.int64), generate


@intrinsic
def load_multiples(context: Any, small: Any, unit: Any, distance: Any, unit_distance: Any) -> Any:
    """ROWS int8 of each tile times as many float16 of each tile."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        small, unit, distance, unit_distance = v
        rows = []
        for at, unit_at in ((small, unit), (builder.add(small, distance), builder.add(unit, unit_distance)))[:TILES]:
            half = emit_load(builder, unit_at, 0, ir.VectorType(ir.HalfType(), ROWS), 1)
            multiple = emit_int8(builder, emit_load(builder, at, 0, ir.VectorType(i8, ROWS), 1))
            rows.append(builder.fmul(multiple, builder.fpext(half, _FLOATS)))
        return isa.joined(builder, rows)

    return _FACTORS(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def load_factors(context: Any, factors: Any, distance: Any) -> Any:
    """ROWS float32 of each tile."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        places = [v[0], builder.add(*v)][:TILES]
        return isa.joined(builder, [emit_load(builder, place, 0, _FLOATS) for place in places])

    return _FACTORS(types.int64, types.int64), generate


def _emit_bytes(change: Callable[[Any, Any, int], Any]) -> Callable:
    def typing(context: Any, lines: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            return change(builder, v[0], v[0].type.count)

        return lines(lines), generate

    return intrinsic(typing)


def _low(builder: Any, lines: Any, n: int) -> Any:
    return builder.and_(lines, ir.Constant(lines.type, [15] * n))


def _high(builder: Any, lines: Any, n: int) -> Any:
    return builder.lshr(lines, ir.Constant(lines.type, [4] * n))


def _signed(builder: Any, lines: Any, n: int) -> Any:
    return isa.as_operand(builder, lines)


low, high, as_operands = _emit_bytes(_low), _emit_bytes(_high), _emit_bytes(_signed)


def _emit_with_upper(n: int) -> Callable:
    def typing(context: Any, nibbles: Any, upper: Any, quad: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            return isa.with_upper(builder, v[0], v[1], v[2], n)

        return nibbles(nibbles, upper, types.int64), generate

    return intrinsic(typing)


# By the bits of a code: nibbles and the upper bits of this quad, the operand of a line or of a part of one
WITH_UPPER = {4 + n: _emit_with_upper(n) for n in (1, 2)}


# ------------------------------------------------------------------------------------------------------ sums


def _emit_zeros(n: int) -> Callable:
    def typing(context: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            return ir.Constant(_SUMS[n].llvm, [0.0] * _SUMS[n].llvm.count)

        return _SUMS[n](), generate

    return intrinsic(typing)


zeros2, zeros4, zeros8 = _emit_zeros(2), _emit_zeros(4), _emit_zeros(8)
zeros_most, zeros_some = {2: zeros2, 4: zeros4, 8: zeros8}[TOKENS], zeros4 if SOME == 4 else zeros2


def _by_tile(builder: Any, block: Any, n: int) -> list[list[Any]]:
    """[tile][token] -> ROWS lanes."""
    parts = isa.split(builder, block, TILES * n)
    return [parts[tile * n : tile * n + n] for tile in range(TILES)]


def _of_token(builder: Any, packed: Any, offset: int, of: ir.Type, n: int, token: int) -> Any:
    """In all lanes a number of four bytes, of the n that lie `offset` bytes after the address of a block."""
    return isa.splat_of(builder, emit_pointer(builder, packed, offset, of), n, token, ROWS)


def _starts(builder: Any, packed: Any, n: int, offset: int, part: int) -> list[Any]:
    """Of each token, in all lanes: BIAS - offset times the sum of its codes in this part of the step."""
    kind = ir.VectorType(i32, ROWS)
    if offset == 0:
        return [isa.filled(kind, _BIAS)] * n

    def packed_at(place: int) -> list[Any]:
        if STARTS == ROWS:
            return isa.registers(builder, emit_pointer(builder, packed, place * n, i8), n)
        return [_of_token(builder, packed, place * n, i32, n, token) for token in range(n)]

    packed_starts = packed_at(HALF_STARTS_AT if part == FIRST else STARTS_AT)
    if part == SECOND:
        packed_starts = [builder.sub(*both) for both in zip(packed_starts, packed_at(HALF_STARTS_AT), strict=True)]
    times = offset // START_OFFSET
    if times > 1:
        shift = isa.filled(kind, times.bit_length() - 1)
        packed_starts = [builder.shl(start, shift) for start in packed_starts]
    biases = 0 if part == SECOND else times
    missing = isa.filled(kind, (1 - biases) * _BIAS & 0xFFFFFFFF)
    return [builder.add(start, missing) for start in packed_starts]


def _emit_begin(offset: int, part: int) -> Callable:
    def typing(context: Any, sums: Any, packed: Any) -> Any:
        """The start values of a step's dot products. `sums` only says for how many tokens."""
        n = _tokens(sums)

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            return isa.joined(builder, isa.begin(builder, _starts(builder, v[1], n, offset, part)) * TILES)

        return _DOTS[n](sums, types.int64), generate

    return intrinsic(typing)


def _emit_dot8(bits: int) -> Callable:
    def typing(context: Any, dots: Any, first: Any, second: Any, packed: Any) -> Any:
        """dots += two lines of each tile times the octet of every token at `packed`."""
        n = _tokens(dots)

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            octets = emit_pointer(builder, v[3], 0, i8)
            lines = zip(isa.split(builder, v[1], TILES), isa.split(builder, v[2], TILES), strict=True)
            found: list[Any] = []
            for tile, pair in zip(_by_tile(builder, v[0], n), lines, strict=True):
                found += isa.dot8(builder, tile, pair, octets, bits)
            return isa.joined(builder, found)

        return dots(dots, first, second, types.int64), generate

    return intrinsic(typing)


# By what is added to a code before it is multiplied, by the bits that a code has room for, and by the part of a step
_OFFSETS, _BITS, _PARTS = (0, 8, 16, 32, 128), (4, 6, 8), (WHOLE, FIRST, SECOND)
BEGIN = {(offset, part): _emit_begin(offset, part) for offset in _OFFSETS for part in _PARTS}
DOT8 = {bits: _emit_dot8(bits) for bits in _BITS}


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.call(isa.declare(builder, f"llvm.fma.v{ROWS}f32", a.type, [a.type] * 3), [a, b, c])


def _emit_finish(bits: int, offset: int, part: int) -> Callable:
    def typing(context: Any, dots: Any, packed: Any) -> Any:
        """The dot products of a step or half step, after its last DOT8."""
        n = _tokens(dots)

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            start = _starts(builder, v[1], n, offset, part)
            tiles = [isa.finish(builder, tile, start, bits) for tile in _by_tile(builder, v[0], n)]
            return isa.joined(builder, [dot for tile in tiles for dot in tile])

        return dots(dots, types.int64), generate

    return intrinsic(typing)


FINISH = {
    (bits, offset, part): _emit_finish(bits, offset, part) for bits in _BITS for offset in _OFFSETS for part in _PARTS
}


@intrinsic
def scale_and_add(context: Any, sums: Any, dots: Any, scale: Any, packed: Any) -> Any:
    """sums += dots * (scale of the row * scale of the token), rounded as the vector kernel does."""
    n = _tokens(sums)

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        found = []
        for tile, row_scale in enumerate(isa.split(builder, v[2], TILES)):
            own_sums, own_dots = (_by_tile(builder, part, n)[tile] for part in (v[0], v[1]))
            for token in range(n):
                factor = _of_token(builder, v[3], SCALES_AT * n, f32, n, token)
                dots_now = isa.to_float(builder, own_dots[token])
                found.append(_fma(builder, dots_now, builder.fmul(row_scale, factor), own_sums[token]))
        return isa.joined(builder, found)

    return sums(sums, dots, scale, types.int64), generate


@intrinsic
def shift(context: Any, sums: Any, minimum: Any, packed: Any) -> Any:
    """sums += minimum of the row * (scale of the token * sum of its codes)."""
    n = _tokens(sums)

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        found = []
        for tile, row in enumerate(isa.split(builder, v[1], TILES)):
            for token, acc in enumerate(_by_tile(builder, v[0], n)[tile]):
                factor = _of_token(builder, v[2], (SCALES_AT + 4) * n, f32, n, token)
                found.append(_fma(builder, row, factor, acc))
        return isa.joined(builder, found)

    return sums(sums, minimum, types.int64), generate


@intrinsic
def multiply_rows(context: Any, sums: Any, rows: Any, distance: Any) -> Any:
    """sums times the ROWS float32 at `rows` of each tile; the second tile's lie `distance` bytes after them."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        found = []
        for place, parts in zip([v[1], builder.add(v[1], v[2])], _by_tile(builder, v[0], _tokens(sums)), strict=False):
            row = emit_load(builder, place, 0, _FLOATS)
            found += [builder.fmul(part, row) for part in parts]
        return isa.joined(builder, found)

    return sums(sums, types.int64, types.int64), generate


@intrinsic
def load_sums(context: Any, sums: Any, out: Any, stride: Any, distance: Any) -> Any:
    """What `store` wrote. `sums` only says for how many tokens."""
    n = _tokens(sums)

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        places = _places(builder, n, *v[1:])
        return isa.joined(builder, [emit_load(builder, place, 0, _FLOATS) for place in places])

    return sums(sums, types.int64, types.int64, types.int64), generate


def _places(builder: Any, n: int, out: Any, stride: Any, distance: Any) -> list[Any]:
    """Where the sums of n tokens are, first those of the first tile."""
    rows = [builder.add(out, builder.mul(stride, i64(token))) for token in range(n)]
    return [builder.add(row, builder.mul(distance, i64(tile))) for tile in range(TILES) for row in rows]


def _emit_store(adding: bool) -> Callable:
    def typing(context: Any, out: Any, stride: Any, distance: Any, sums: Any) -> Any:
        """Write a block, or add it to what is there; its tokens lie `stride` bytes apart, its tiles `distance`.

        A tile may be its own second, so all is read before anything is written.
        """
        n = _tokens(sums)

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            places = _places(builder, n, *v[:3])
            parts = isa.split(builder, v[3], TILES * n)
            if adding:
                before = [emit_load(builder, place, 0, _FLOATS) for place in places]
                parts = [builder.fadd(old, part) for old, part in zip(before, parts, strict=True)]
            for place, part in zip(places, parts, strict=True):
                builder.store(part, emit_pointer(builder, place, 0, _FLOATS)).align = 4
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, sums), generate

    return intrinsic(typing)


store, add_to = _emit_store(adding=False), _emit_store(adding=True)
