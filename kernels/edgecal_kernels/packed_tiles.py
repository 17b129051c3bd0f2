"""Products of packed weights with several tokens, a tile or two at a time.

Formats whose codes are more than nibbles cost instructions to unpack. Where many tokens come, a few steps of the tiles
are unpacked once, into bytes that the dot products take as they are and factors in float32; they stay in the
first-level cache while every block of tokens meets them, and sums wait beside them. Writing them is what that costs:
fewer tokens, and formats that are unpacked with a mask and a shift, are quicker without.
"""

from __future__ import annotations

from typing import Any

from . import blocks, memory, simd
from .blocks import ROWS, TILES
from .formats import SPECS, FormatSpec
from .jit import inlined, kernel_for
from .kernel_choice import one_of
from .packed_blocks import BLOCKS, over_tokens
from .packed_kernels import ZERO
from .packed_steps import FACTORS, PREFETCH, next_step, operand_offset, room_of, super_place
from .packed_tokens import TOKEN_BYTES
from .simd import store

MANY = 16  # tokens from which unpacking pays
_TOGETHER = 64  # tokens that meet what is unpacked before the next steps take its place
_SEGMENT = 16 // TILES  # steps that are unpacked together: 10 KB, sums another 8
_STEP_BYTES = 640  # of a tile when it is unpacked: eight lines of operands, two of factors
_TILE_BYTES = _SEGMENT * _STEP_BYTES
_unpacked, _sums = memory.stack_of(TILES * _TILE_BYTES), memory.stack_of(TILES * 64 * _TOGETHER)


def _unpack_kernel(format: FormatSpec) -> Any:
    """`steps` steps of a tile, from `start` on, as operands and factors."""
    lines, parts, has_super_scale = format.packing.step_bytes // 64, format.super_parts, format.has_super_scale
    operands, factors, prefetch = simd.UNPACK[format.bits], FACTORS[format.name], PREFETCH[format.name]

    @kernel_for(format.name)
    def unpack(codes: int, scale: int, extra: int, sizes: Any, tile: int, start: int, steps: int, to: int) -> None:
        tile_lines, n_groups, per_group, _k, _d = sizes
        group, inside = (tile * n_groups + start // per_group) * 16, start % per_group
        for step in range(start, start + steps):
            at = (tile * tile_lines + step * lines) * 64
            unit = super_place(tile, n_groups, step, parts) if has_super_scale else ZERO
            prefetch(codes + at, scale, extra, group, unit)
            operands(codes + at, to)
            w_scale, other = factors(scale, extra, group, unit)
            store(to, 128, w_scale)
            store(to, 144, other)
            group, inside = next_step(group, inside, per_group)
            to += _STEP_BYTES

    return unpack


def _unpacked_kernel(format: FormatSpec) -> Any:
    """As a block of `packed_blocks`, against the steps that are unpacked. What earlier ones left is at `sums_at`, where
    `last` says whether the sums stay or are the product."""
    has_minimum, halves = format.has_minimum, format.halves
    offset, room = operand_offset(format), room_of(format)
    first, second = (blocks.FIRST, blocks.SECOND) if halves else (blocks.WHOLE, blocks.WHOLE)
    begin, dot8, finish = blocks.BEGIN[offset, first], blocks.DOT8[room], blocks.FINISH[room, offset, second]
    finish_first, begin_second = blocks.FINISH[room, offset, first], blocks.BEGIN[offset, second]

    @inlined
    def dot_octet(dots: Any, at: int, far: int, here: int, n: int, octet: int) -> Any:
        one, two = blocks.load_lines(at + octet * 128, far), blocks.load_lines(at + octet * 128 + 64, far)
        return dot8(dots, one, two, here + octet * n * 8)

    @kernel_for(format.name)
    def unpacked_block(of: Any, here: int, n: int, token: int, row: int, sums: Any) -> None:
        at, start, steps, last, sums_at, out, stride, beside = of
        at, here, far = at + row * 4, here + start * n * TOKEN_BYTES, beside * _TILE_BYTES
        place = sums_at + token % _TOGETHER * TILES * 64 + row * 4
        if start > 0:
            sums = blocks.load_sums(sums, place, TILES * 64, 64)
        for _ in range(steps):
            dots = begin(sums, here)
            if ROWS == 4:  # unrolled, which LLVM would not do
                dots = dot_octet(dot_octet(dots, at, far, here, n, 0), at, far, here, n, 1)
            else:
                for octet in range(2):
                    dots = dot_octet(dots, at, far, here, n, octet)
            if halves:
                dots = finish_first(dots, here)
                sums = blocks.scale_and_add(sums, dots, blocks.load_factors(at + 512, far), here)
                dots = begin_second(sums, here)
            if ROWS == 4:
                dots = dot_octet(dot_octet(dots, at, far, here, n, 2), at, far, here, n, 3)
            else:
                for octet in range(2, 4):
                    dots = dot_octet(dots, at, far, here, n, octet)
            dots = finish(dots, here)
            sums = blocks.scale_and_add(sums, dots, blocks.load_factors(at + (576 if halves else 512), far), here)
            if has_minimum:
                sums = blocks.shift(sums, blocks.load_factors(at + 576, far), here)
            at, here = at + _STEP_BYTES, here + n * TOKEN_BYTES
        if last:
            blocks.store(out + token * stride + row * 4, stride, beside * 64, sums)
        else:
            blocks.store(place, TILES * 64, 64, sums)

    return unpacked_block


UNPACKED = {name: _unpacked_kernel(format) for name, format in SPECS.items() if format.bits in (5, 6)}


def _tile_kernel(format: FormatSpec) -> Any:
    """n tokens, an odd one left out, against a tile and the one `beside` it. The other arguments are those of
    `packed_kernels`."""
    direct = over_tokens(BLOCKS[format.name], format.name)
    unpacks = format.name in UNPACKED
    if unpacks:
        unpack, through = _unpack_kernel(format), over_tokens(UNPACKED[format.name], f"{format.name}_unpacked")
    else:
        unpack, through = direct, direct  # not called

    @kernel_for(format.name)
    def tile_product(
        codes: int, scale: int, extra: int, sizes: Any, packed: int, n: int, out: int, tile: int, beside: int
    ) -> None:
        _tile_lines, _n_groups, _per_group, k, d = sizes
        steps, n = k // 32, n - n % 2
        token_bytes = steps * TOKEN_BYTES
        if unpacks and n >= MANY:
            to, sums_at, there = _unpacked(), _sums(), out + tile * 64
            for token in range(0, n, _TOGETHER):
                for start in range(0, steps, _SEGMENT):
                    some = min(_SEGMENT, steps - start)
                    for beyond in range(beside + 1):
                        unpack(codes, scale, extra, sizes, tile + beyond, start, some, to + beyond * _TILE_BYTES)
                    of = (to, start, some, start + some == steps, sums_at, there, d * 4, beside)
                    through(of, packed, token_bytes, token, min(token + _TOGETHER, n))
        else:
            direct((codes, scale, extra, sizes, out, tile, beside), packed, token_bytes, ZERO, n)

    return tile_product


TILE_PRODUCTS = {name: _tile_kernel(format) for name, format in SPECS.items()}
tile_product = one_of(list(TILE_PRODUCTS.values()))
