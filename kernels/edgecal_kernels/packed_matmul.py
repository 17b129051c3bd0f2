"""Products with packed weights: activations rounded to int8, integer dot products, float32 sums.

Here tokens are cut into blocks and tiles into the shares of threads; the loops are in packed_kernels.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import prange

from . import blocks, reference, simd
from .blocks import TILES, TOKEN_BYTES, TOKENS
from .jit import kernel, parallel
from .packed_kernels import AFFINE, INT4, INT6, INT8, INT8_OFFSET, block, int8_line, vector
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor
from .simd import dot4_int8, fma, load, load_half, mul, splat, splat_int, store

_NO_MINIMUM = np.zeros((0, 0, 0), np.uint16)
FORMAT_NUMBER = {"int8": INT8, "int4": INT4, "int4_affine": AFFINE, "int6": INT6}
_CHUNK_BYTES = 1 << 18  # of packed tokens at a time: a quarter of a usual second cache
_WORTH_A_THREAD = 1 << 18  # bytes of weights times tokens that are worth waking other threads (20 us of work)


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

    `format` is one of FORMAT_NUMBER. `codes`, `scale`, `minimum` are arrays or addresses; x, x_scale, x_total (the
    rounded activations) and `out` arrays whose rows lie k, x_scale.shape[1] and d elements apart. sizes as in
    `packed_kernels`.
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
        vector(format, w, w_scale, w_minimum, sizes, xs + first * k, scales + at, totals + at, there, tiles)
        return
    # Packed tokens are read once per pair of tiles and stay in the second cache meanwhile.
    fitting = max(_CHUNK_BYTES // (max(steps, 1) * TOKEN_BYTES) // TOKENS, 1) * TOKENS
    most = min(fitting, (last - first + TOKENS - 1) // TOKENS * TOKENS)
    buffer = np.empty(most * steps * TOKEN_BYTES, np.uint8)
    factor = -8 if format == INT4 else -32 if format == INT6 else -INT8_OFFSET if format == INT8 else 0
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
                    block(format, w, w_scale, w_minimum, sizes, here, 4, there, tile, beside, blocks.zeros4())
                    place += 4
                else:
                    block(format, w, w_scale, w_minimum, sizes, here, 2, there, tile, beside, blocks.zeros2())
                    place += 2
            if n % 2:
                token = first + n - 1
                at = token * stride
                own = (tile, tile + beside + 1)
                there = target + token * d * 4
                vector(format, w, w_scale, w_minimum, sizes, xs + token * k, scales + at, totals + at, there, own)
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
                dots = dot4_int8(dots, int8_line(codes, at + quad * 64), x, i + quad * 4)
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
