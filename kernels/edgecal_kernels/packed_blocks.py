"""The inner loops of a product with packed weights for several tokens: blocks of them against one or two tiles.

A line of weights and an activation that are loaded serve several times; `blocks` holds the operations. Groups are added
from left to right, each with one fused multiply-add, as in `packed_kernels`: the same bits.
"""

from __future__ import annotations

from typing import Any

from . import blocks
from .blocks import ROWS, TILES
from .formats import SPECS, FormatSpec
from .jit import inlined, kernel, kernel_for
from .packed_kernels import ZERO
from .packed_steps import INT8_OFFSET, PREFETCH, next_step, operand_offset, room_of, super_place, upper_place
from .packed_tokens import SOME, TOKEN_BYTES, TOKENS, tokens_of_block


def over_tokens(block: Any, name: str) -> Any:
    """A kernel that takes `block` over tokens [first, last) of those at `packed`, whole pairs, and the parts of rows.

    `block` is told `of`, whatever it is, where its tokens are packed, how many they are and the number of the first,
    its part of the rows, and zeros to begin with.
    """

    @kernel_for(name)
    def blocks_of_tokens(of: Any, packed: int, token_bytes: int, first: int, last: int) -> None:
        token = first
        while token < last:
            here, width = packed + token * token_bytes, tokens_of_block(last - token)
            for row in range(0, 16, ROWS):
                if width == TOKENS:
                    block(of, here, TOKENS, token, row, blocks.zeros_most())
                elif width == SOME:
                    block(of, here, SOME, token, row, blocks.zeros_some())
                else:
                    block(of, here, 2, token, row, blocks.zeros2())
            token += width

    return blocks_of_tokens


def _half_kernel(format: FormatSpec, second: bool) -> Any:
    """The dot products of half a step, 16 columns, of a block: the lower nibbles of its lines, or the higher ones."""
    bits, dot8 = format.bits, blocks.DOT8[room_of(format)]
    nibbles, with_upper = blocks.high if second else blocks.low, blocks.WITH_UPPER.get(bits)
    upper_at, upper_quad = upper_place(bits, second)

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
    """A block of n tokens, at `here` as `blocks` says, against ROWS rows, from `row` on, of a tile and the one `beside`
    tiles on.

    of: the matrix, as `packed_kernels` has it, `out`, and the tiles.
    """
    bits, has_minimum, has_row_scale = format.bits, format.has_minimum, format.has_row_scale
    has_super_scale, halves, parts = format.has_super_scale, format.halves, format.super_parts
    lines, prefetch = format.packing.step_bytes // 64, PREFETCH[format.name]
    offset, room = operand_offset(format), room_of(format)
    first, last = (blocks.FIRST, blocks.SECOND) if halves else (blocks.WHOLE, blocks.WHOLE)
    begin, dot8, finish = blocks.BEGIN[offset, first], blocks.DOT8[room], blocks.FINISH[room, offset, last]
    first_half, second_half = _half_kernel(format, False), _half_kernel(format, True)
    with_upper, (upper_at, upper_quad) = blocks.WITH_UPPER.get(bits), upper_place(bits, True)
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
    def block(of: Any, here: int, n: int, token: int, row: int, sums: Any) -> None:
        codes, scale, extra, sizes, out, tile, beside = of
        tile_lines, n_groups, per_group, k, d = sizes
        group, inside = tile * n_groups * 16 + row, 0
        far_codes, far_group = beside * tile_lines * 64, beside * n_groups * 16
        far_unit = beside * super_place(1, n_groups, 0, parts) * 2
        for step in range(k // 32):
            at = codes + (tile * tile_lines + step * lines) * 64 + row * 4
            if row == 0:
                for beyond in range(TILES):
                    ahead = super_place(tile + beyond * beside, n_groups, step, parts) if has_super_scale else ZERO
                    prefetch(at + beyond * far_codes, scale, extra, group + beyond * far_group, ahead)
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
            group, inside = next_step(group, inside, per_group)
            here += n * TOKEN_BYTES
        if has_row_scale:
            sums = blocks.multiply_rows(sums, extra + (tile * 16 + row) * 4, beside * 64)
        blocks.store(out + (token * d + tile * 16 + row) * 4, d * 4, beside * 64, sums)

    return block


BLOCKS = {name: _block_kernel(format) for name, format in SPECS.items()}


@kernel
def _add_block(of: Any, here: int, n: int, token: int, row: int, sums: Any) -> None:
    """As a block of int8, added to what `out` holds: an adapter's B*, whose tiles have `quads` column quads.

    A line that is read after the last quad, of the next tile or of the padding, is multiplied by zeros.
    """
    codes, scale, quads, out, d, tile, beside = of
    n_groups = (quads + 7) // 8
    far_codes, far_scale = beside * quads * 64, beside * n_groups * 32
    for step in range(n_groups):
        at = codes + (tile * quads + step * 8) * 64 + row * 4
        dots = _begin_int8(sums, here)
        for octet in range((min(8, quads - step * 8) + 1) // 2):
            dots = _dot_octet(dots, at + octet * 128, far_codes, here + octet * n * 8)
        dots = _finish_int8(dots, here)
        w_scale = blocks.load_halves(scale + (tile * n_groups + step) * 32 + row * 2, far_scale)
        sums = blocks.scale_and_add(sums, dots, w_scale, here)
        here += n * TOKEN_BYTES
    blocks.add_to(out + (token * d + tile * 16 + row) * 4, d * 4, beside * 64, sums)


add_blocks = over_tokens(_add_block, "add")


