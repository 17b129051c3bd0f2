"""Products with packed weights: activations rounded to int8, integer dot products, float32 sums.

The vector kernels (`_vector_*`) serve one token: its sums stay in registers while the weights stream by. The matrix
kernels (`_block_*`) do so for a block of two or four tokens and, where there are registers, two tiles, so that every
line of weights and every activation that is loaded serves several times; `blocks` holds their operations. Both add a
group at a time, from left to right, with one fused multiply-add, so they agree bit by bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import prange

from . import blocks, isa, reference, simd
from .blocks import TILES, TOKEN_BYTES, TOKENS
from .jit import kernel, parallel
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor
from .simd import (
    dot4_int8,
    dot4_nibbles,
    fma,
    high_nibbles,
    load,
    load_half,
    low_nibbles,
    mul,
    splat,
    splat_int,
    store,
)

INT8_OFFSET: int = isa.active().INT8_OFFSET
_NO_MINIMUM = np.zeros((0, 0, 0), np.uint16)
INT8, INT4, AFFINE = range(3)
FORMAT_NUMBER = {"int8": INT8, "int4": INT4, "int4_affine": AFFINE}
_CHUNK_BYTES = 1 << 18  # of packed tokens at a time: a quarter of a usual second cache
_AHEAD = 8192  # bytes of codes: what a processor fetches by itself ends with the page and starts late in the next
_WORTH_A_THREAD = 1 << 18  # bytes of weights times tokens that are worth waking other threads (20 us of work)


@kernel
def _int8_line(codes: Any, at: int) -> Any:
    return simd.as_operand(simd.load_bytes(codes, at))


@kernel
def _ask(codes: int, lines: int, scale: int, per_scale: int) -> None:
    """Ask memory for what a step some way ahead will read: its lines of codes, and scales, a byte per so many of those.

    Two cores that do nothing but read get a tenth to a fifth more from memory than two that multiply and do not ask.
    """
    for line in range(lines):
        simd.prefetch(codes, line * 64 + _AHEAD)
    simd.prefetch(scale, _AHEAD // per_scale)


@kernel
def _vector_int4(
    codes: int, scale: int, minimum: Any, sizes: Any, x: int, x_scale: int, x_total: int, out: int, tiles: Any
) -> None:
    """One token against a range of tiles: accumulators stay in registers, weights stream once.

    Everything lies at addresses; `minimum` is None for symmetric int4. sizes = (steps of a row, groups of a row, steps
    per group, columns of x, columns of out). x has whole steps, maybe fewer than `codes`, whose columns are padded to
    groups.
    """
    n_steps, n_groups, per_group, k, _ = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        group, inside = tile * n_groups * 16, 0
        for step in range(k // 32):
            at = (tile * n_steps + step) * 256
            _ask(codes + at, 4, scale + group * 2, 8)
            total = blocks.read_int(x_total + step * 4)
            dots = splat_int(np.int32(-8 * total) if minimum is None else np.int32(0))
            for quad in range(4):
                line = simd.load_bytes(codes, at + quad * 64)
                dots = dot4_nibbles(dots, low_nibbles(line), x, step * 32 + quad * 4)
                dots = dot4_nibbles(dots, high_nibbles(line), x, step * 32 + 16 + quad * 4)
            xs = blocks.read_float(x_scale + step * 4)
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(xs)), acc)
            if minimum is not None:
                simd.prefetch(minimum, group * 2 + _AHEAD // 8)
                acc = fma(load_half(minimum, group), splat(xs * np.float32(total)), acc)
            group, inside = _next_step(group, inside, per_group)
        store(out, tile * 16, acc)


@kernel
def _vector_int8(codes: int, scale: int, sizes: Any, x: int, x_scale: int, x_total: int, out: int, tiles: Any) -> None:
    """As `_vector_int4`."""
    n_steps, n_groups, per_group, k, _ = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        group, inside = tile * n_groups * 16, 0
        for step in range(k // 32):
            at = (tile * n_steps + step) * 512
            _ask(codes + at, 8, scale + group * 2, 16)
            dots = splat_int(np.int32(-INT8_OFFSET * blocks.read_int(x_total + step * 4)))
            for quad in range(8):
                dots = dot4_int8(dots, _int8_line(codes, at + quad * 64), x, step * 32 + quad * 4)
            xs = blocks.read_float(x_scale + step * 4)
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(xs)), acc)
            group, inside = _next_step(group, inside, per_group)
        store(out, tile * 16, acc)


@kernel
def _next_step(group: int, inside: int, per_group: int) -> Any:
    """Element of the group's scales and step within the group, one step on. A division would cost as much as the dot
    products, and the branches in it keep them from overlapping."""
    last = inside + 1 == per_group
    return group + (16 if last else 0), 0 if last else inside + 1


@kernel
def _block_int4(
    codes: int, scale: int, minimum: Any, sizes: Any, packed: int, n: int, out: int, tile: int, beside: int, sums: Any
) -> None:
    """A block of n tokens against TILES tiles, `tile` and the one `beside` tiles on; `sums` are its zeros."""
    n_steps, n_groups, per_group, k, d = sizes
    group, inside = tile * n_groups * 16, 0
    far_codes, far_group = beside * n_steps * 256, beside * n_groups * 32
    for step in range(k // 32):
        at = codes + (tile * n_steps + step) * 256
        here = packed + step * n * TOKEN_BYTES
        for one in range(TILES):
            _ask(at + one * far_codes, 4, scale + group * 2 + one * far_group, 8)
        dots = blocks.begin(sums, here)
        for half in range(2):
            first, second = (
                blocks.load_lines(at + half * 128, far_codes),
                blocks.load_lines(at + half * 128 + 64, far_codes),
            )
            octet = here + half * n * 8
            dots = blocks.dot8_nibbles(dots, blocks.low(first), blocks.low(second), octet)
            dots = blocks.dot8_nibbles(dots, blocks.high(first), blocks.high(second), octet + n * 16)
        sums = blocks.scale_and_add(sums, dots, blocks.load_halves(scale + group * 2, far_group), here)
        if minimum is not None:
            sums = blocks.shift(sums, blocks.load_halves(minimum + group * 2, far_group), here)
        group, inside = _next_step(group, inside, per_group)
    blocks.store(out + tile * 64, d * 4, beside * 64, sums)


@kernel
def _block_int8(
    codes: int, scale: int, sizes: Any, packed: int, n: int, out: int, tile: int, beside: int, sums: Any
) -> None:
    """As `_block_int4`."""
    n_steps, n_groups, per_group, k, d = sizes
    group, inside = tile * n_groups * 16, 0
    far_codes, far_group = beside * n_steps * 512, beside * n_groups * 32
    for step in range(k // 32):
        at = codes + (tile * n_steps + step) * 512
        here = packed + step * n * TOKEN_BYTES
        for one in range(TILES):
            _ask(at + one * far_codes, 8, scale + group * 2 + one * far_group, 16)
        dots = blocks.begin(sums, here)
        for octet in range(4):
            first = blocks.as_operands(blocks.load_lines(at + octet * 128, far_codes))
            second = blocks.as_operands(blocks.load_lines(at + octet * 128 + 64, far_codes))
            dots = blocks.dot8_int8(dots, first, second, here + octet * n * 8)
        sums = blocks.scale_and_add(sums, dots, blocks.load_halves(scale + group * 2, far_group), here)
        group, inside = _next_step(group, inside, per_group)
    blocks.store(out + tile * 64, d * 4, beside * 64, sums)


@kernel
def _vector(
    format: int,
    codes: int,
    scale: int,
    minimum: int,
    sizes: Any,
    x: int,
    x_scale: int,
    x_total: int,
    out: int,
    tiles: Any,
) -> None:
    if format == INT8:
        _vector_int8(codes, scale, sizes, x, x_scale, x_total, out, tiles)
    elif format == INT4:
        _vector_int4(codes, scale, None, sizes, x, x_scale, x_total, out, tiles)
    else:
        _vector_int4(codes, scale, minimum, sizes, x, x_scale, x_total, out, tiles)


@kernel
def _block(
    format: int,
    codes: int,
    scale: int,
    minimum: int,
    sizes: Any,
    packed: int,
    n: int,
    out: int,
    tile: int,
    beside: int,
    sums: Any,
) -> None:
    if format == INT8:
        _block_int8(codes, scale, sizes, packed, n, out, tile, beside, sums)
    elif format == INT4:
        _block_int4(codes, scale, None, sizes, packed, n, out, tile, beside, sums)
    else:
        _block_int4(codes, scale, minimum, sizes, packed, n, out, tile, beside, sums)


@kernel
def multiply(
    format: int,
    codes: Any,
    scale: Any,
    minimum: Any,
    sizes: Any,
    x: Any,
    x_scale: Any,
    x_total: Any,
    tokens: Any,
    out: Any,
    tiles: Any,
) -> None:
    """Tokens [first, last) of x against a range of tiles, into the same rows of `out`.

    `format` is INT8, INT4 or AFFINE. `codes`, `scale`, `minimum` are arrays or addresses; x, x_scale, x_total (the
    rounded activations) and `out` arrays whose rows lie k, x_scale.shape[1] and d elements apart. sizes as in
    `_vector_int4`.
    """
    k, d = sizes[3], sizes[4]
    steps, stride = k // 32, x_scale.shape[1] * 4
    w, w_scale, w_minimum = blocks.address(codes), blocks.address(scale), blocks.address(minimum)
    xs, scales, totals, target = (
        blocks.address(x),
        blocks.address(x_scale),
        blocks.address(x_total),
        blocks.address(out),
    )
    first, last = tokens[0], tokens[1]
    if last - first == 1:
        at = first * stride
        there = target + first * d * 4
        _vector(format, w, w_scale, w_minimum, sizes, xs + first * k, scales + at, totals + at, there, tiles)
        return
    # Packed tokens are read once per pair of tiles and stay in the second cache meanwhile.
    fitting = max(_CHUNK_BYTES // (max(steps, 1) * TOKEN_BYTES) // TOKENS, 1) * TOKENS
    most = min(fitting, (last - first + TOKENS - 1) // TOKENS * TOKENS)
    buffer = np.empty(most * steps * TOKEN_BYTES, np.uint8)
    factor = -8 if format == INT4 else -INT8_OFFSET if format == INT8 else 0
    while first < last:
        n = min(most, last - first)
        packed = blocks.address(buffer)
        whole, place = n // TOKENS * TOKENS, 0
        while place < n - n % 2:
            width = TOKENS if place < whole else 2
            token = first + place
            blocks.pack(
                xs + token * k,
                scales + token * stride,
                totals + token * stride,
                k,
                stride,
                steps,
                factor,
                width,
                packed + place * steps * TOKEN_BYTES,
            )
            place += width
        for tile in range(tiles[0], tiles[1], TILES):
            beside = min(TILES, tiles[1] - tile) - 1  # an odd tile at the end is its own second
            place = 0
            while place < n - n % 2:
                here, there = packed + place * steps * TOKEN_BYTES, target + (first + place) * d * 4
                if TOKENS == 4 and place < whole:
                    _block(format, w, w_scale, w_minimum, sizes, here, 4, there, tile, beside, blocks.zeros4())
                    place += 4
                else:
                    _block(format, w, w_scale, w_minimum, sizes, here, 2, there, tile, beside, blocks.zeros2())
                    place += 2
            if n % 2:
                token = first + n - 1
                at = token * stride
                own = (tile, tile + beside + 1)
                there = target + token * d * 4
                _vector(format, w, w_scale, w_minimum, sizes, xs + token * k, scales + at, totals + at, there, own)
        first += n


@kernel
def add_int8(
    codes: Any, scale: Any, sizes: Any, x: Any, x_scale: Any, x_total: Any, token: int, out: Any, tiles: Any, quads: int
) -> None:
    """One token, as `multiply`, added to what `out` holds. Only the first `quads` column quads of `codes` are not zero:
    the inner dimension of an adapter is its rank, which seldom fills whole steps, and zeros need not be read."""
    n_steps, n_groups, per_group, k, d = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(k // 32):
            at = (tile * n_steps + step) * 512
            i = token * k + step * 32
            dots = splat_int(np.int32(-INT8_OFFSET) * x_total[token, step])
            for quad in range(min(8, quads - step * 8)):
                dots = dot4_int8(dots, _int8_line(codes, at + quad * 64), x, i + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(x_scale[token, step])), acc)
        place = token * d + tile * 16
        store(out, place, simd.add(load(out, place), acc))


@kernel
def _alone(
    format: int, codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group, x.shape[1], out.shape[1])
    multiply(format, codes, scale, minimum, sizes, x, x_scale, x_total, (0, len(x)), out, (0, codes.shape[0]))


@parallel
def _together(
    format: int,
    codes: Any,
    scale: Any,
    minimum: Any,
    per_group: int,
    x: Any,
    x_scale: Any,
    x_total: Any,
    out: Any,
    n_threads: int,
) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group, x.shape[1], out.shape[1])
    pairs = (codes.shape[0] + TILES - 1) // TILES
    shares = min(pairs, n_threads)
    for share in prange(shares):
        first, last = pairs * share // shares * TILES, pairs * (share + 1) // shares * TILES
        tiles = (first, min(last, codes.shape[0]))
        multiply(format, codes, scale, minimum, sizes, x, x_scale, x_total, (0, len(x)), out, tiles)


def packed_product(activations: reference.Activations, weight: QuantizedTensor) -> Array:
    """x (T, k) times a packed weight (d, k), transposed: float32 (T, d)."""
    x, x_scale, x_total = activations.rounded()
    out = np.empty((len(x), weight.n_tiles * TILE_ROWS), np.float32)
    scale, per_group = weight.scale.view(np.uint16), weight.group_size // STEP
    minimum = _NO_MINIMUM if weight.minimum is None else weight.minimum.view(np.uint16)
    format, n_threads = FORMAT_NUMBER[weight.format], numba.get_num_threads()
    if weight.nbytes * len(x) < _WORTH_A_THREAD:
        _alone(format, weight.codes, scale, minimum, per_group, x, x_scale, x_total, out)
    else:
        _together(format, weight.codes, scale, minimum, per_group, x, x_scale, x_total, out, n_threads)
    d = weight.shape[0]
    return out if out.shape[1] == d else np.ascontiguousarray(out[:, :d])
