"""The inner loops of products with packed weights: rounded activations in, float32 sums out.

Each number format has two kernels, made from its entry in the table of formats. `vector` serves one token: its sums
stay in registers while the weights stream by. `block` serves two or four tokens and, where there are registers, two
tiles, so that every line of weights and every activation that is loaded serves several times; `blocks` holds its
operations. Both add a group at a time, from left to right, with one fused multiply-add, so they agree bit by bit.

What a format says (the bits of a code, the kind of its scales) is constant in its kernels: Numba drops the branches
that the format does not take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from . import blocks, isa, simd
from .blocks import ROWS, TILES, TOKEN_BYTES
from .formats import SPECS, FormatSpec
from .jit import inlined, kernel, kernel_for
from .kernel_choice import one_of
from .records import Sizes
from .simd import begin_dots, end_dots, fma, load_half, mul, splat, store

INT8_OFFSET: int = isa.active().INT8_OFFSET
ZERO: Any = np.int64(0)
AHEAD = 8192  # bytes of codes: a processor's own prefetching ends with the page and starts late in the next


SIZES = types.NamedUniTuple(types.int64, len(Sizes._fields), Sizes)


def operand_offset(format: FormatSpec) -> int:
    """What a dot product has too much for each unit of the activations' sum: the instructions multiply with codes as
    they are stored, and with whole bytes plus INT8_OFFSET."""
    return INT8_OFFSET if format.bits == 8 else format.code_offset


def _room(format: FormatSpec) -> int:
    """The bits of a code for which dot products are made."""
    return 6 if format.bits == 5 else format.bits


def _upper(bits: int, second: bool) -> tuple[int, int]:
    """Where the line with the upper bits of half a step is, and the number of the half's first quad in it."""
    return (256, 4 * second) if bits == 5 else (256 + 64 * second, 0)


@kernel
def int8_line(codes: Any, at: int) -> Any:
    return simd.as_operand(simd.load_bytes(codes, at))


@kernel
def _prefetch(codes: int, lines: int, scale: int, width: int) -> None:
    """Prefetch the lines of codes and the scales (of `width` bytes) of a step AHEAD bytes later.

    Two cores that only read get a tenth to a fifth more from memory than two that multiply without prefetching.
    """
    for line in range(lines):
        simd.prefetch(codes, line * 64 + AHEAD)
    simd.prefetch(scale, AHEAD * width // (lines * 4))


@kernel
def _prefetch_once(codes: int, lines: int, scale: int, width: int) -> None:
    """`_prefetch` for one token, whose weights are read once: code and KV cache stay in the second-level cache."""
    for line in range(lines):
        simd.prefetch_once(codes, line * 64 + AHEAD)
    simd.prefetch_once(scale, AHEAD * width // (lines * 4))


@kernel
def _next_step(group: int, inside: int, per_group: int) -> Any:
    """Element of the group's scales and step within the group, for the next step. A division would cost as much as the
    dot products, and its branches keep them from overlapping."""
    last = inside + 1 == per_group
    return group + (16 if last else 0), 0 if last else inside + 1


@kernel
def super_place(tile: int, n_groups: int, step: int, parts: int) -> int:
    """Element of the numbers that 256 columns share, of which there are `parts` for each row."""
    return (tile * ((n_groups + 7) // 8) + step // 8) * parts * 16


def _vector_kernel(format: FormatSpec) -> Any:
    """One token against a range of tiles: accumulators stay in registers, weights stream once.

    Arrays are given by their addresses, `extra` as `records.extra_address` says. `sizes` are Sizes. x may have fewer
    steps than `codes`, whose columns are padded to groups, or more, which are zeros: an adapter's tiles may end within
    a step, and what is read after them is multiplied by 0.
    """
    bits, has_minimum, has_row_scale = format.bits, format.has_minimum, format.has_row_scale
    has_super_scale, halves, parts = format.has_super_scale, format.halves, format.super_parts
    lines, width, offset = format.packing.step_bytes // 64, format.scale_bytes, operand_offset(format)
    dot32 = simd.DOT32[bits, halves]

    @kernel_for(format.name)
    def vector(
        codes: int, scale: int, extra: int, sizes: Any, x: int, x_scale: int, x_total: int, out: int, tiles: Any
    ) -> None:
        tile_lines, n_groups, per_group, k, _d = sizes
        for tile in range(tiles[0], tiles[1]):
            acc = splat(np.float32(0))
            group, inside = tile * n_groups * 16, 0
            for step in range(k // 32):
                at = (tile * tile_lines + step * lines) * 64
                _prefetch_once(codes + at, lines, scale + group * width, width)
                total = blocks.read_total(x_total + step * 4)
                first_total = blocks.read_short(x_total + step * 4) if halves else total
                start = np.int32(-offset * first_total)
                if halves:
                    second_start = np.int32(-offset * (total - first_total))
                    both = begin_dots(start), begin_dots(second_start)
                    dots, second_dots = dot32(both, codes + at, x, step * 32)
                else:
                    (dots,) = dot32((begin_dots(start),), codes + at, x, step * 32)
                xs = blocks.read_float(x_scale + step * 4)
                if has_super_scale:
                    unit = super_place(tile, n_groups, step, parts)
                    simd.prefetch_once(extra, unit * 2 + AHEAD * parts // (lines * 16))
                    w_scale = mul(simd.load_int8(scale, group * 2), load_half(extra, unit))
                    other = mul(simd.load_int8(scale, group * 2 + 16), load_half(extra, unit + 16 * (parts - 1)))
                elif has_row_scale:
                    w_scale = simd.load_signed_square(scale, group)
                else:
                    w_scale = load_half(scale, group)
                acc = fma(end_dots(dots, start), mul(w_scale, splat(xs)), acc)
                if halves:
                    acc = fma(end_dots(second_dots, second_start), mul(other, splat(xs)), acc)
                elif has_super_scale:
                    acc = fma(other, splat(xs * np.float32(total)), acc)
                elif has_minimum:
                    simd.prefetch_once(extra, group * 2 + AHEAD // (lines * 2))
                    acc = fma(load_half(extra, group), splat(xs * np.float32(total)), acc)
                group, inside = _next_step(group, inside, per_group)
            if has_row_scale:
                acc = mul(acc, simd.load(extra, tile * 16))
            store(out, tile * 16, acc)

    return vector


def _half_kernel(format: FormatSpec, second: bool) -> Any:
    """The dot products of half a step, 16 columns, of a block: the lower nibbles of its lines, or the higher ones."""
    bits, dot8 = format.bits, blocks.DOT8[_room(format)]
    nibbles, with_upper = blocks.high if second else blocks.low, blocks.WITH_UPPER.get(bits)
    upper_at, upper_quad = _upper(bits, second)

    @kernel_for(f"{format.name}_{'second' if second else 'first'}")
    def half(dots: Any, at: int, far_codes: int, octets: int, n: int) -> Any:
        if with_upper is not None:
            upper = blocks.load_lines(at + upper_at, far_codes)
        for octet in range(2):
            one = nibbles(blocks.load_lines(at + octet * 128, far_codes))
            two = nibbles(blocks.load_lines(at + octet * 128 + 64, far_codes))
            if with_upper is not None:
                one = with_upper(one, upper, upper_quad + octet * 2)
                two = with_upper(two, upper, upper_quad + octet * 2 + 1)
            dots = dot8(dots, one, two, octets + octet * n * 8)
        return dots

    return half


_begin_int8, _dot8_int8, _finish_int8 = (
    blocks.BEGIN[INT8_OFFSET, blocks.WHOLE],
    blocks.DOT8[8],
    blocks.FINISH[8, INT8_OFFSET, blocks.WHOLE],
)


@inlined
def _dot_octet(dots: Any, at: int, distance: int, octets: int) -> Any:
    """dots += two lines of int8, of each tile, times an octet of every token."""
    one = blocks.as_operands(blocks.load_lines(at, distance))
    two = blocks.as_operands(blocks.load_lines(at + 64, distance))
    return _dot8_int8(dots, one, two, octets)


def _block_kernel(format: FormatSpec) -> Any:
    """A block of n tokens against ROWS rows, from `row` on, of TILES tiles, `tile` and the one `beside` tiles on;
    `sums` are its zeros.

    The tokens are at `packed`, as `blocks` says; the other arguments are those of `_vector_kernel`.
    """
    bits, has_minimum, has_row_scale = format.bits, format.has_minimum, format.has_row_scale
    has_super_scale, halves, parts = format.has_super_scale, format.halves, format.super_parts
    lines, width = format.packing.step_bytes // 64, format.scale_bytes
    offset, room = operand_offset(format), _room(format)
    first, last = (blocks.FIRST, blocks.SECOND) if halves else (blocks.WHOLE, blocks.WHOLE)
    begin, dot8, finish = blocks.BEGIN[offset, first], blocks.DOT8[room], blocks.FINISH[room, offset, last]
    first_half, second_half = _half_kernel(format, False), _half_kernel(format, True)
    with_upper, (upper_at, upper_quad) = blocks.WITH_UPPER.get(bits), _upper(bits, True)
    finish_first, begin_second = blocks.FINISH[room, offset, first], blocks.BEGIN[offset, last]

    @inlined
    def dot_part(dots: Any, at: int, distance: int, here: int, n: int, part: int) -> Any:
        """dots += two lines of a step: a quarter of int8, half of what is packed in nibbles."""
        if bits == 8:
            return _dot_octet(dots, at + part * 128, distance, here + part * n * 8)
        octets = here + part * n * 8
        line = blocks.load_lines(at + part * 128, distance)
        next_line = blocks.load_lines(at + part * 128 + 64, distance)
        one, two, three, four = blocks.low(line), blocks.low(next_line), blocks.high(line), blocks.high(next_line)
        if with_upper is not None:
            first_upper = blocks.load_lines(at + 256, distance)
            second_upper = blocks.load_lines(at + upper_at, distance)
            one = with_upper(one, first_upper, part * 2)
            two = with_upper(two, first_upper, part * 2 + 1)
            three = with_upper(three, second_upper, upper_quad + part * 2)
            four = with_upper(four, second_upper, upper_quad + part * 2 + 1)
        return dot8(dot8(dots, one, two, octets), three, four, octets + n * 16)

    @kernel_for(format.name)
    def block(
        codes: int,
        scale: int,
        extra: int,
        sizes: Any,
        packed: int,
        n: int,
        out: int,
        tile: int,
        beside: int,
        row: int,
        sums: Any,
    ) -> None:
        tile_lines, n_groups, per_group, k, d = sizes
        group, inside = tile * n_groups * 16 + row, 0
        far_codes, far_group = beside * tile_lines * 64, beside * n_groups * 16
        far_unit = beside * super_place(1, n_groups, 0, parts) * 2
        for step in range(k // 32):
            at = codes + (tile * tile_lines + step * lines) * 64 + row * 4
            here = packed + step * n * TOKEN_BYTES
            if row == 0:
                for beyond in range(TILES):
                    _prefetch(at + beyond * far_codes, lines, scale + (group + beyond * far_group) * width, width)
            if has_super_scale:  # two numbers for each row of a group
                place = scale + group * 2 - row
                unit = extra + (super_place(tile, n_groups, step, parts) + row) * 2
            dots = begin(sums, here)
            if halves:
                dots = finish_first(first_half(dots, at, far_codes, here, n), here)
                w_scale = blocks.load_multiples(place, unit, far_group * 2, far_unit)
                sums = blocks.scale_and_add(sums, dots, w_scale, here)
                dots = second_half(begin_second(sums, here), at, far_codes, here + n * 16, n)
            elif ROWS == 4:  # unrolled, which LLVM would not do
                dots = dot_part(dot_part(dots, at, far_codes, here, n, 0), at, far_codes, here, n, 1)
                if bits == 8:
                    dots = dot_part(dot_part(dots, at, far_codes, here, n, 2), at, far_codes, here, n, 3)
            else:
                for part in range(4 if bits == 8 else 2):
                    dots = dot_part(dots, at, far_codes, here, n, part)
            dots = finish(dots, here)
            if has_super_scale:
                w_scale = blocks.load_multiples(place + (16 if halves else 0), unit, far_group * 2, far_unit)
            elif has_row_scale:
                w_scale = blocks.load_signed_squares(scale + group, far_group)
            else:
                w_scale = blocks.load_halves(scale + group * 2, far_group * 2)
            sums = blocks.scale_and_add(sums, dots, w_scale, here)
            if has_minimum and has_super_scale:
                minimum = blocks.load_multiples(place + 16, unit + 32, far_group * 2, far_unit)
                sums = blocks.shift(sums, minimum, here)
            elif has_minimum:
                sums = blocks.shift(sums, blocks.load_halves(extra + group * 2, far_group * 2), here)
            group, inside = _next_step(group, inside, per_group)
        if has_row_scale:
            sums = blocks.multiply_rows(sums, extra + (tile * 16 + row) * 4, beside * 64)
        blocks.store(out + (tile * 16 + row) * 4, d * 4, beside * 64, sums)

    return block


VECTORS = {name: _vector_kernel(format) for name, format in SPECS.items()}
BLOCKS = {name: _block_kernel(format) for name, format in SPECS.items()}
vector, block = one_of(list(VECTORS.values())), one_of(list(BLOCKS.values()))


@kernel
def add_block(
    codes: int,
    scale: int,
    quads: int,
    packed: int,
    n: int,
    out: int,
    d: int,
    tile: int,
    beside: int,
    row: int,
    sums: Any,
) -> None:
    """As `block` of int8, added to what `out` holds: an adapter's B*, whose tiles have `quads` column quads.

    A line that is read after the last quad, of the next tile or of the padding, is multiplied by zeros.
    """
    n_groups = (quads + 7) // 8
    far_codes, far_scale = beside * quads * 64, beside * n_groups * 32
    for step in range(n_groups):
        at, here = codes + (tile * quads + step * 8) * 64 + row * 4, packed + step * n * TOKEN_BYTES
        dots = _begin_int8(sums, here)
        for octet in range((min(8, quads - step * 8) + 1) // 2):
            dots = _dot_octet(dots, at + octet * 128, far_codes, here + octet * n * 8)
        dots = _finish_int8(dots, here)
        w_scale = blocks.load_halves(scale + (tile * n_groups + step) * 32 + row * 2, far_scale)
        sums = blocks.scale_and_add(sums, dots, w_scale, here)
    blocks.add_to(out + (tile * 16 + row) * 4, d * 4, beside * 64, sums)


@kernel
def quarter_tiles(codes: int, scale: int, steps: int, x: int, x_scale: int, out: int, tiles: Any) -> None:
    """One token against a range of quarter tiles of int8, four sums for each; otherwise as `vector`."""
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(steps):
            place = tile * steps + step
            at = codes + place * 128
            dots = begin_dots(np.int32(0))
            for half in range(2):
                simd.prefetch_once(at, half * 64 + AHEAD)
                dots = simd.dot16_int8(dots, simd.load_bytes(at, half * 64), x, step * 32 + half * 16)
            w_scale = mul(simd.load_half_fours(scale, place * 4), splat(blocks.read_float(x_scale + step * 4)))
            acc = fma(end_dots(dots, np.int32(0)), w_scale, acc)
        simd.store_sums_of_four(out, tile * 4, acc)
