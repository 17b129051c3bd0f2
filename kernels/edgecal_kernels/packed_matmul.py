"""Products with packed weights: activations rounded to int8, integer dot products, float32 sums.

The vector kernels (`matvec_*`) keep a tile's accumulators in registers while its weights stream by; the matrix
kernels (`multiply_*`) unpack a step's weights once for sixteen tokens. Both add a group at a time, from left to right,
with one fused multiply-add, so they agree bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from . import isa, reference, simd
from .jit import kernel, parallel
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor
from .simd import (
    add,
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
TOKENS = 16  # whose sums a block keeps at hand
_WORTH_A_THREAD = 1 << 18  # bytes of weights times tokens that are worth waking other threads (20 us of work)


@kernel
def quantize_row(x: Any, start: int, k: int, codes: Any, scale: Any, total: Any, row: int) -> None:
    """One row of `reference.quantize_rows`; `x` is flat, k a multiple of 32."""
    for step in range(k // 32):
        at = start + step * 32
        a, b = simd.load(x, at), simd.load(x, at + 16)
        extreme = simd.max_lanes(simd.maximum(simd.absolute(a), simd.absolute(b)))
        inverse = np.float32(0.0)
        if extreme > 0:
            inverse = np.float32(127.0) / extreme
        a, b = simd.round_even(mul(a, splat(inverse))), simd.round_even(mul(b, splat(inverse)))
        simd.store_int8(codes, row * k + step * 32, a)
        simd.store_int8(codes, row * k + step * 32 + 16, b)
        scale[row, step] = extreme / np.float32(127.0)
        total[row, step] = np.int32(simd.sum_lanes(add(a, b)))


@kernel
def _quantize_rows(x: Any, codes: Any, scale: Any, total: Any) -> None:
    for row in range(x.shape[0]):
        quantize_row(x, row * x.shape[1], x.shape[1], codes, scale, total, row)


def quantize_rows(x: Array) -> tuple[NDArray[np.int8], Array, NDArray[np.int32]]:
    """As `reference.quantize_rows`."""
    n, k = x.shape
    steps = -(-k // STEP)
    if k != steps * STEP:
        x = np.pad(x, ((0, 0), (0, steps * STEP - k)))
    codes = np.empty((n, steps * STEP), np.int8)
    scale, total = np.empty((n, steps), np.float32), np.empty((n, steps), np.int32)
    _quantize_rows(np.ascontiguousarray(x), codes, scale, total)
    return codes, scale, total


@kernel
def matvec_int4(
    codes: Any,
    scale: Any,
    minimum: Any,
    affine: bool,
    sizes: Any,
    x: Any,
    x_scale: Any,
    x_total: Any,
    token: int,
    out: Any,
    tiles: Any,
) -> None:
    """One token against a range of tiles: accumulators stay in registers, weights stream once.

    `codes`, `scale`, `minimum` are arrays or addresses; sizes = (steps of a row, groups of a row, steps per group,
    columns of x, columns of out). x has whole steps, maybe fewer than `codes`, whose columns are padded to groups.
    """
    n_steps, n_groups, per_group, k, d = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(k // 32):
            at = (tile * n_steps + step) * 256
            i = token * k + step * 32
            total = x_total[token, step]
            dots = splat_int(np.int32(0) if affine else np.int32(-8) * total)
            for quad in range(4):
                line = simd.load_bytes(codes, at + quad * 64)
                dots = dot4_nibbles(dots, low_nibbles(line), x, i + quad * 4)
                dots = dot4_nibbles(dots, high_nibbles(line), x, i + 16 + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            xs = x_scale[token, step]
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(xs)), acc)
            if affine:
                acc = fma(load_half(minimum, group), splat(xs * np.float32(total)), acc)
        store(out, token * d + tile * 16, acc)


@kernel
def multiply_int4(
    codes: Any,
    scale: Any,
    minimum: Any,
    affine: bool,
    sizes: Any,
    x: Any,
    x_scale: Any,
    x_total: Any,
    tokens: Any,
    out: Any,
    tiles: Any,
) -> None:
    """Tokens [first, last) against a range of tiles: a step's weights are unpacked once for a block of tokens."""
    if tokens[1] - tokens[0] == 1:
        matvec_int4(codes, scale, minimum, affine, sizes, x, x_scale, x_total, tokens[0], out, tiles)
        return
    n_steps, n_groups, per_group, k, d = sizes
    sums = np.empty(TOKENS * 16, np.float32)
    for tile in range(tiles[0], tiles[1]):
        for first in range(tokens[0], tokens[1], TOKENS):
            block = min(TOKENS, tokens[1] - first)
            for t in range(block):
                store(sums, t * 16, splat(np.float32(0)))
            for step in range(k // 32):
                at = (tile * n_steps + step) * 256
                line0, line1 = simd.load_bytes(codes, at), simd.load_bytes(codes, at + 64)
                line2, line3 = simd.load_bytes(codes, at + 128), simd.load_bytes(codes, at + 192)
                low0, low1, low2, low3 = low_nibbles(line0), low_nibbles(line1), low_nibbles(line2), low_nibbles(line3)
                high0, high1, high2, high3 = (
                    high_nibbles(line0),
                    high_nibbles(line1),
                    high_nibbles(line2),
                    high_nibbles(line3),
                )
                group = (tile * n_groups + step // per_group) * 16
                row_scale = load_half(scale, group)
                row_minimum = load_half(minimum, group) if affine else row_scale
                for t in range(block):
                    token = first + t
                    i = token * k + step * 32
                    total = x_total[token, step]
                    dots = splat_int(np.int32(0) if affine else np.int32(-8) * total)
                    dots = dot4_nibbles(dots, low0, x, i)
                    dots = dot4_nibbles(dots, high0, x, i + 16)
                    dots = dot4_nibbles(dots, low1, x, i + 4)
                    dots = dot4_nibbles(dots, high1, x, i + 20)
                    dots = dot4_nibbles(dots, low2, x, i + 8)
                    dots = dot4_nibbles(dots, high2, x, i + 24)
                    dots = dot4_nibbles(dots, low3, x, i + 12)
                    dots = dot4_nibbles(dots, high3, x, i + 28)
                    xs = x_scale[token, step]
                    acc = fma(simd.to_float(dots), mul(row_scale, splat(xs)), load(sums, t * 16))
                    if affine:
                        acc = fma(row_minimum, splat(xs * np.float32(total)), acc)
                    store(sums, t * 16, acc)
            for t in range(block):
                store(out, (first + t) * d + tile * 16, load(sums, t * 16))


@kernel
def matvec_int8(
    codes: Any, scale: Any, sizes: Any, x: Any, x_scale: Any, x_total: Any, token: int, out: Any, tiles: Any
) -> None:
    """As `matvec_int4`."""
    n_steps, n_groups, per_group, k, d = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(k // 32):
            at = (tile * n_steps + step) * 512
            i = token * k + step * 32
            dots = splat_int(np.int32(-INT8_OFFSET) * x_total[token, step])
            for quad in range(8):
                line = simd.as_operand(simd.load_bytes(codes, at + quad * 64))
                dots = dot4_int8(dots, line, x, i + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(x_scale[token, step])), acc)
        store(out, token * d + tile * 16, acc)


@kernel
def multiply_int8(
    codes: Any, scale: Any, sizes: Any, x: Any, x_scale: Any, x_total: Any, tokens: Any, out: Any, tiles: Any
) -> None:
    """As `multiply_int4`."""
    if tokens[1] - tokens[0] == 1:
        matvec_int8(codes, scale, sizes, x, x_scale, x_total, tokens[0], out, tiles)
        return
    n_steps, n_groups, per_group, k, d = sizes
    sums = np.empty(TOKENS * 16, np.float32)
    for tile in range(tiles[0], tiles[1]):
        for first in range(tokens[0], tokens[1], TOKENS):
            block = min(TOKENS, tokens[1] - first)
            for t in range(block):
                store(sums, t * 16, splat(np.float32(0)))
            for step in range(k // 32):
                at = (tile * n_steps + step) * 512
                w0, w1 = _int8_line(codes, at), _int8_line(codes, at + 64)
                w2, w3 = _int8_line(codes, at + 128), _int8_line(codes, at + 192)
                w4, w5 = _int8_line(codes, at + 256), _int8_line(codes, at + 320)
                w6, w7 = _int8_line(codes, at + 384), _int8_line(codes, at + 448)
                row_scale = load_half(scale, (tile * n_groups + step // per_group) * 16)
                for t in range(block):
                    token = first + t
                    i = token * k + step * 32
                    dots = splat_int(np.int32(-INT8_OFFSET) * x_total[token, step])
                    dots = dot4_int8(dots, w0, x, i)
                    dots = dot4_int8(dots, w1, x, i + 4)
                    dots = dot4_int8(dots, w2, x, i + 8)
                    dots = dot4_int8(dots, w3, x, i + 12)
                    dots = dot4_int8(dots, w4, x, i + 16)
                    dots = dot4_int8(dots, w5, x, i + 20)
                    dots = dot4_int8(dots, w6, x, i + 24)
                    dots = dot4_int8(dots, w7, x, i + 28)
                    weight = mul(row_scale, splat(x_scale[token, step]))
                    store(sums, t * 16, fma(simd.to_float(dots), weight, load(sums, t * 16)))
            for t in range(block):
                store(out, (first + t) * d + tile * 16, load(sums, t * 16))


@kernel
def add_int8(
    codes: Any, scale: Any, sizes: Any, x: Any, x_scale: Any, x_total: Any, token: int, out: Any, tiles: Any, quads: int
) -> None:
    """As `matvec_int8`, added to what `out` holds. Only the first `quads` column quads of `codes` are not zero: the
    inner dimension of an adapter is its rank, which seldom fills whole steps, and lines of zeros need not be read."""
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
def _int8_line(codes: Any, at: int) -> Any:
    return simd.as_operand(simd.load_bytes(codes, at))


@kernel
def _int4_alone(
    codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group, x.shape[1], out.shape[1])
    tiles = (0, codes.shape[0])
    multiply_int4(codes, scale, minimum, minimum.size > 0, sizes, x, x_scale, x_total, (0, len(x)), out, tiles)


@parallel
def _int4(codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group, x.shape[1], out.shape[1])
    for tile in prange(codes.shape[0]):
        tiles = (tile, tile + 1)
        multiply_int4(codes, scale, minimum, minimum.size > 0, sizes, x, x_scale, x_total, (0, len(x)), out, tiles)


@kernel
def _int8_alone(codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group, x.shape[1], out.shape[1])
    multiply_int8(codes, scale, sizes, x, x_scale, x_total, (0, len(x)), out, (0, codes.shape[0]))


@parallel
def _int8(codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group, x.shape[1], out.shape[1])
    for tile in prange(codes.shape[0]):
        multiply_int8(codes, scale, sizes, x, x_scale, x_total, (0, len(x)), out, (tile, tile + 1))


def packed_product(activations: reference.Activations, weight: QuantizedTensor) -> Array:
    """x (T, k) times a packed weight (d, k), transposed: float32 (T, d)."""
    x, x_scale, x_total = activations.rounded()
    out = np.empty((len(x), weight.n_tiles * TILE_ROWS), np.float32)
    scale, per_group = weight.scale.view(np.uint16), weight.group_size // STEP
    alone = weight.nbytes * len(x) < _WORTH_A_THREAD
    if weight.format == "int8":
        (_int8_alone if alone else _int8)(weight.codes, scale, per_group, x, x_scale, x_total, out)
    else:
        minimum = _NO_MINIMUM if weight.minimum is None else weight.minimum.view(np.uint16)
        (_int4_alone if alone else _int4)(weight.codes, scale, minimum, per_group, x, x_scale, x_total, out)
    d = weight.shape[0]
    return out if out.shape[1] == d else np.ascontiguousarray(out[:, :d])
