"""Products with packed weights: activations rounded to int8, integer dot products, float32 sums.

The vector kernels (`_matvec_*`) keep a tile's accumulators in registers while its weights stream by; the matrix
kernels unpack a step's weights once for sixteen tokens. Both add a group at a time, from left to right, with one fused
multiply-add, so they agree bit by bit.
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
_WORTH_A_THREAD = 1 << 18  # bytes of weights from which one token is worth waking other threads (20 us of work)


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
    out: Any,
    tiles: Any,
) -> None:
    """One token against a range of tiles: accumulators stay in registers, weights stream once.

    `codes`, `scale`, `minimum` are arrays or addresses; sizes = (steps of a row, groups of a row, steps per group).
    `x` may have fewer steps than `codes`, whose columns are padded to whole groups.
    """
    n_steps, n_groups, per_group = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(x_scale.shape[1]):
            at = (tile * n_steps + step) * 256
            total = x_total[0, step]
            dots = splat_int(np.int32(0) if affine else np.int32(-8) * total)
            for quad in range(4):
                line = simd.load_bytes(codes, at + quad * 64)
                dots = dot4_nibbles(dots, low_nibbles(line), x, step * 32 + quad * 4)
                dots = dot4_nibbles(dots, high_nibbles(line), x, step * 32 + 16 + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            xs = x_scale[0, step]
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(xs)), acc)
            if affine:
                acc = fma(load_half(minimum, group), splat(xs * np.float32(total)), acc)
        store(out, tile * 16, acc)


@kernel
def _matvec_int4_alone(
    codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group)
    matvec_int4(codes, scale, minimum, minimum.size > 0, sizes, x, x_scale, x_total, out, (0, codes.shape[0]))


@parallel
def _matvec_int4(
    codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group)
    for tile in prange(codes.shape[0]):
        matvec_int4(codes, scale, minimum, minimum.size > 0, sizes, x, x_scale, x_total, out, (tile, tile + 1))


@parallel
def _matmul_int4(
    codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    """Many tokens: a step's weights are unpacked once for a block of tokens."""
    n_tiles, n_steps = codes.shape[0], codes.shape[1]
    n_groups, n_tokens, k, d = scale.shape[1], x.shape[0], x.shape[1], out.shape[1]
    affine = minimum.shape[0] > 0
    for tile in prange(n_tiles):
        sums = np.empty(16 * 16, np.float32)
        for first in range(0, n_tokens, 16):
            block = min(16, n_tokens - first)
            for t in range(block):
                store(sums, t * 16, splat(np.float32(0)))
            for step in range(x_scale.shape[1]):
                at = (tile * n_steps + step) * 256
                line0, line1 = simd.load_bytes(codes, at), simd.load_bytes(codes, at + 64)
                line2, line3 = simd.load_bytes(codes, at + 128), simd.load_bytes(codes, at + 192)
                low0, low1, low2, low3 = (
                    low_nibbles(line0),
                    low_nibbles(line1),
                    low_nibbles(line2),
                    low_nibbles(line3),
                )
                high0, high1, high2, high3 = (
                    high_nibbles(line0),
                    high_nibbles(line1),
                    high_nibbles(line2),
                    high_nibbles(line3),
                )
                group = (tile * n_groups + step // per_group) * 16
                row_scale = load(scale, group)
                row_minimum = load(minimum, group) if affine else row_scale
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
    codes: Any, scale: Any, sizes: Any, x: Any, x_scale: Any, x_total: Any, out: Any, tiles: Any
) -> None:
    """As `matvec_int4`."""
    n_steps, n_groups, per_group = sizes
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(x_scale.shape[1]):
            at = (tile * n_steps + step) * 512
            dots = splat_int(np.int32(-INT8_OFFSET) * x_total[0, step])
            for quad in range(8):
                line = simd.as_operand(simd.load_bytes(codes, at + quad * 64))
                dots = dot4_int8(dots, line, x, step * 32 + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(x_scale[0, step])), acc)
        store(out, tile * 16, acc)


@kernel
def _matvec_int8_alone(
    codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group)
    matvec_int8(codes, scale, sizes, x, x_scale, x_total, out, (0, codes.shape[0]))


@parallel
def _matvec_int8(codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    sizes = (codes.shape[1], scale.shape[1], per_group)
    for tile in prange(codes.shape[0]):
        matvec_int8(codes, scale, sizes, x, x_scale, x_total, out, (tile, tile + 1))


@parallel
def _matmul_int8(codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    n_tiles, n_steps = codes.shape[0], codes.shape[1]
    n_groups, n_tokens, k, d = scale.shape[1], x.shape[0], x.shape[1], out.shape[1]
    for tile in prange(n_tiles):
        sums = np.empty(16 * 16, np.float32)
        for first in range(0, n_tokens, 16):
            block = min(16, n_tokens - first)
            for t in range(block):
                store(sums, t * 16, splat(np.float32(0)))
            for step in range(x_scale.shape[1]):
                at = (tile * n_steps + step) * 512
                w0, w1 = (
                    simd.as_operand(simd.load_bytes(codes, at)),
                    simd.as_operand(simd.load_bytes(codes, at + 64)),
                )
                w2, w3 = (
                    simd.as_operand(simd.load_bytes(codes, at + 128)),
                    simd.as_operand(simd.load_bytes(codes, at + 192)),
                )
                w4, w5 = (
                    simd.as_operand(simd.load_bytes(codes, at + 256)),
                    simd.as_operand(simd.load_bytes(codes, at + 320)),
                )
                w6, w7 = (
                    simd.as_operand(simd.load_bytes(codes, at + 384)),
                    simd.as_operand(simd.load_bytes(codes, at + 448)),
                )
                row_scale = load(scale, (tile * n_groups + step // per_group) * 16)
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


def packed_product(activations: reference.Activations, weight: QuantizedTensor) -> Array:
    """x (T, k) times a packed weight (d, k), transposed: float32 (T, d)."""
    x, x_scale, x_total = activations.rounded()
    out = np.empty((len(x), weight.n_tiles * TILE_ROWS), np.float32)
    scale, per_group = weight.scale.view(np.uint16), weight.group_size // STEP
    alone = weight.nbytes < _WORTH_A_THREAD
    if weight.format == "int8":
        vector = _matvec_int8_alone if alone else _matvec_int8
        multiply = vector if len(x) == 1 else _matmul_int8
        multiply(weight.codes, scale, per_group, x, x_scale, x_total, out)
    else:
        minimum = _NO_MINIMUM if weight.minimum is None else weight.minimum.view(np.uint16)
        vector = _matvec_int4_alone if alone else _matvec_int4
        multiply = vector if len(x) == 1 else _matmul_int4
        multiply(weight.codes, scale, minimum, per_group, x, x_scale, x_total, out)
    d = weight.shape[0]
    return out if out.shape[1] == d else np.ascontiguousarray(out[:, :d])
