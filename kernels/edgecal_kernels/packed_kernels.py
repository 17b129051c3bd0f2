"""The inner loops of products with packed weights: rounded activations in, float32 sums out.

The vector kernels (`_vector_*`) serve one token: its sums stay in registers while the weights stream by. The matrix
kernels (`_block_*`) do so for a block of two or four tokens and, where there are registers, two tiles, so that every
line of weights and every activation that is loaded serves several times; `blocks` holds their operations. Both add a
group at a time, from left to right, with one fused multiply-add, so they agree bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import blocks, isa, simd
from .blocks import TILES, TOKEN_BYTES
from .jit import kernel
from .simd import dot4_int8, dot4_nibbles, fma, high_nibbles, load_half, low_nibbles, mul, splat, splat_int, store

INT8_OFFSET: int = isa.active().INT8_OFFSET
INT8, INT4_F16, AFFINE, INT6, INT4 = range(5)
ZERO: Any = np.int64(0)
AHEAD = 8192  # bytes of codes: what a processor fetches by itself ends with the page and starts late in the next


@kernel
def int8_line(codes: Any, at: int) -> Any:
    return simd.as_operand(simd.load_bytes(codes, at))


@kernel
def _ask(codes: int, lines: int, scale: int, width: int) -> None:
    """Ask memory for the lines of codes and the scales (of `width` bytes) of a step some way ahead.

    Two cores that do nothing but read get a tenth to a fifth more from memory than two that multiply and do not ask.
    """
    for line in range(lines):
        simd.prefetch(codes, line * 64 + AHEAD)
    simd.prefetch(scale, AHEAD * width // (lines * 4))


@kernel
def _ask_once(codes: int, lines: int, scale: int, width: int) -> None:
    """`_ask` for one token, whose weights are read once: code and cache keep their place in the second cache."""
    for line in range(lines):
        simd.prefetch_once(codes, line * 64 + AHEAD)
    simd.prefetch_once(scale, AHEAD * width // (lines * 4))


@kernel
def _vector_nibbles(
    codes: int,
    scale: int,
    minimum: Any,
    rows: Any,
    six: Any,
    sizes: Any,
    x: int,
    x_scale: int,
    x_total: int,
    out: int,
    tiles: Any,
) -> None:
    """One token against a range of tiles: accumulators stay in registers, weights stream once.

    Everything lies at addresses. `minimum` is None but for affine int4, `rows` (scales of rows) but for int4, `six`
    but for int6. sizes = (lines of a tile, groups of a row, steps per group, columns of x, columns of out). x has whole
    steps, maybe fewer than `codes`, whose columns are padded to groups, or more, by zeros: an adapter's tiles may end
    within a step, and what is read behind them counts for nothing.
    """
    tile_lines, n_groups, per_group, k, _ = sizes
    lines = 4 if six is None else 6
    offset = 0 if minimum is not None else 8 if six is None else 32
    width = 2 if rows is None else 1
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        group, inside = tile * n_groups * 16, 0
        for step in range(k // 32):
            at = (tile * tile_lines + step * lines) * 64
            _ask_once(codes + at, lines, scale + group * width, width)
            total = blocks.read_int(x_total + step * 4)
            dots = splat_int(np.int32(-offset * total))
            if six is not None:
                first_upper, second_upper = simd.load_bytes(codes, at + 256), simd.load_bytes(codes, at + 320)
            for quad in range(4):
                line = simd.load_bytes(codes, at + quad * 64)
                first, second = low_nibbles(line), high_nibbles(line)
                if six is not None:
                    first = simd.with_upper(first, first_upper, quad)
                    second = simd.with_upper(second, second_upper, quad)
                dots = dot4_nibbles(dots, first, x, step * 32 + quad * 4)
                dots = dot4_nibbles(dots, second, x, step * 32 + 16 + quad * 4)
            xs = blocks.read_float(x_scale + step * 4)
            w_scale = load_half(scale, group) if rows is None else simd.load_signed_square(scale, group)
            acc = fma(simd.to_float(dots), mul(w_scale, splat(xs)), acc)
            if minimum is not None:
                simd.prefetch_once(minimum, group * 2 + AHEAD // (lines * 2))
                acc = fma(load_half(minimum, group), splat(xs * np.float32(total)), acc)
            group, inside = _next_step(group, inside, per_group)
        if rows is not None:
            acc = mul(acc, simd.load(rows, tile * 16))
        store(out, tile * 16, acc)


@kernel
def _vector_int8(codes: int, scale: int, sizes: Any, x: int, x_scale: int, x_total: int, out: int, tiles: Any) -> None:
    """As `_vector_nibbles`."""
    tile_lines, n_groups, per_group, k, _ = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        group, inside = tile * n_groups * 16, 0
        for step in range(k // 32):
            at = (tile * tile_lines + step * 8) * 64
            _ask_once(codes + at, 8, scale + group * 2, 2)
            dots = splat_int(np.int32(-INT8_OFFSET * blocks.read_int(x_total + step * 4)))
            for quad in range(8):
                dots = dot4_int8(dots, int8_line(codes, at + quad * 64), x, step * 32 + quad * 4)
            xs = blocks.read_float(x_scale + step * 4)
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(xs)), acc)
            group, inside = _next_step(group, inside, per_group)
        store(out, tile * 16, acc)


@kernel
def quarter_tiles(codes: int, scale: int, steps: int, x: int, x_scale: int, out: int, tiles: Any) -> None:
    """One token against a range of quarter tiles of int8, four sums for each; otherwise as `_vector_nibbles`."""
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(steps):
            place = tile * steps + step
            at = codes + place * 128
            dots = splat_int(np.int32(0))
            for half in range(2):
                simd.prefetch_once(at, half * 64 + AHEAD)
                dots = simd.dot16_int8(dots, simd.load_bytes(at, half * 64), x, step * 32 + half * 16)
            w_scale = mul(simd.load_half_fours(scale, place * 4), splat(blocks.read_float(x_scale + step * 4)))
            acc = fma(simd.to_float(dots), w_scale, acc)
        simd.store_sums_of_four(out, tile * 4, acc)


@kernel
def _next_step(group: int, inside: int, per_group: int) -> Any:
    """Element of the group's scales and step within the group, one step on. A division would cost as much as the dot
    products, and the branches in it keep them from overlapping."""
    last = inside + 1 == per_group
    return group + (16 if last else 0), 0 if last else inside + 1


@kernel
def _block_nibbles(
    codes: int,
    scale: int,
    minimum: Any,
    rows: Any,
    six: Any,
    sizes: Any,
    packed: int,
    n: int,
    out: int,
    tile: int,
    beside: int,
    sums: Any,
) -> None:
    """A block of n tokens against TILES tiles, `tile` and the one `beside` tiles on; `sums` are its zeros."""
    tile_lines, n_groups, per_group, k, d = sizes
    lines = 4 if six is None else 6
    width = 2 if rows is None else 1
    group, inside = tile * n_groups * 16, 0
    far_codes, far_group = beside * tile_lines * 64, beside * n_groups * 16
    for step in range(k // 32):
        at = codes + (tile * tile_lines + step * lines) * 64
        here = packed + step * n * TOKEN_BYTES
        for beyond in range(TILES):
            _ask(at + beyond * far_codes, lines, scale + (group + beyond * far_group) * width, width)
        dots = blocks.begin(sums, here)
        if six is not None:
            first_upper, second_upper = blocks.load_lines(at + 256, far_codes), blocks.load_lines(at + 320, far_codes)
        for half in range(2):
            line = blocks.load_lines(at + half * 128, far_codes)
            next_line = blocks.load_lines(at + half * 128 + 64, far_codes)
            octet = here + half * n * 8
            one, two, three, four = blocks.low(line), blocks.low(next_line), blocks.high(line), blocks.high(next_line)
            if six is not None:
                one = blocks.with_upper(one, first_upper, half * 2)
                two = blocks.with_upper(two, first_upper, half * 2 + 1)
                three = blocks.with_upper(three, second_upper, half * 2)
                four = blocks.with_upper(four, second_upper, half * 2 + 1)
            dots = blocks.dot8_nibbles(dots, one, two, octet)
            dots = blocks.dot8_nibbles(dots, three, four, octet + n * 16)
        if rows is None:
            w_scale = blocks.load_halves(scale + group * 2, far_group * 2)
        else:
            w_scale = blocks.load_signed_squares(scale + group, far_group)
        sums = blocks.scale_and_add(sums, dots, w_scale, here)
        if minimum is not None:
            sums = blocks.shift(sums, blocks.load_halves(minimum + group * 2, far_group * 2), here)
        group, inside = _next_step(group, inside, per_group)
    if rows is not None:
        sums = blocks.multiply_rows(sums, rows + tile * 64, beside * 64)
    blocks.store(out + tile * 64, d * 4, beside * 64, sums)


@kernel
def _block_int8(
    codes: int, scale: int, sizes: Any, packed: int, n: int, out: int, tile: int, beside: int, sums: Any
) -> None:
    """As `_block_nibbles`."""
    tile_lines, n_groups, per_group, k, d = sizes
    group, inside = tile * n_groups * 16, 0
    far_codes, far_group = beside * tile_lines * 64, beside * n_groups * 32
    for step in range(k // 32):
        at = codes + (tile * tile_lines + step * 8) * 64
        here = packed + step * n * TOKEN_BYTES
        for beyond in range(TILES):
            _ask(at + beyond * far_codes, 8, scale + group * 2 + beyond * far_group, 2)
        dots = blocks.begin(sums, here)
        for octet in range(4):
            first = blocks.as_operands(blocks.load_lines(at + octet * 128, far_codes))
            second = blocks.as_operands(blocks.load_lines(at + octet * 128 + 64, far_codes))
            dots = blocks.dot8_int8(dots, first, second, here + octet * n * 8)
        sums = blocks.scale_and_add(sums, dots, blocks.load_halves(scale + group * 2, far_group), here)
        group, inside = _next_step(group, inside, per_group)
    blocks.store(out + tile * 64, d * 4, beside * 64, sums)


@kernel
def vector(
    format: int,
    codes: int,
    scale: int,
    extra: int,
    sizes: Any,
    x: int,
    x_scale: int,
    x_total: int,
    out: int,
    tiles: Any,
) -> None:
    """`extra` is the address of the minima (int4_affine) or of the rows' scales (int4)."""
    if format == INT8:
        _vector_int8(codes, scale, sizes, x, x_scale, x_total, out, tiles)
    elif format == INT4_F16:
        _vector_nibbles(codes, scale, None, None, None, sizes, x, x_scale, x_total, out, tiles)
    elif format == INT4:
        _vector_nibbles(codes, scale, None, extra, None, sizes, x, x_scale, x_total, out, tiles)
    elif format == INT6:
        _vector_nibbles(codes, scale, None, None, True, sizes, x, x_scale, x_total, out, tiles)
    else:
        _vector_nibbles(codes, scale, extra, None, None, sizes, x, x_scale, x_total, out, tiles)


@kernel
def block(
    format: int, codes: int, scale: int, extra: int, sizes: Any, packed: int, n: int, out: int, place: Any, sums: Any
) -> None:
    """As `vector`; place = (tile, beside)."""
    tile, beside = place
    if format == INT8:
        _block_int8(codes, scale, sizes, packed, n, out, tile, beside, sums)
    elif format == INT4_F16:
        _block_nibbles(codes, scale, None, None, None, sizes, packed, n, out, tile, beside, sums)
    elif format == INT4:
        _block_nibbles(codes, scale, None, extra, None, sizes, packed, n, out, tile, beside, sums)
    elif format == INT6:
        _block_nibbles(codes, scale, None, None, True, sizes, packed, n, out, tile, beside, sums)
    else:
        _block_nibbles(codes, scale, extra, None, None, sizes, packed, n, out, tile, beside, sums)
