"""Products with packed weights: activations rounded to int8, integer dot products, float32 sums.

Here tokens are cut into blocks; the loops are in packed_kernels.py, for one token, and in packed_tiles.py, for several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from . import memory, simd
from .blocks import TILES
from .jit import kernel
from .packed_kernels import quarter_tiles, vector
from .packed_steps import AHEAD, INT8_OFFSET, int8_line
from .packed_tiles import tile_product
from .packed_tokens import TOKEN_BYTES, TOKENS, pack_tokens, read_total
from .rounding import further
from .simd import begin_dots, dot4_int8, end_dots, fma, load, load_half, mul, splat, store

_CHUNK_BYTES = 1 << 18  # of packed tokens at a time: a quarter of a usual second-level cache


@kernel
def fitting_tokens(steps: int) -> int:
    """How many packed tokens, which are read once per pair of tiles, stay in the second-level cache meanwhile."""
    return max(_CHUNK_BYTES // (max(steps, 1) * TOKEN_BYTES) // TOKENS, 1) * TOKENS


@kernel
def multiply(
    format: int,
    codes: int,
    scale: int,
    extra: int,
    sizes: Any,
    x: Any,
    first: int,
    last: int,
    out: int,
    tiles: Any,
) -> None:
    """Tokens [first, last) of x against a range of tiles, into the same rows of `out`.

    `format` is one of FORMAT_NUMBER. Arrays are given by their addresses, because passing a Numba array costs seven to
    nine words a call: `codes`, `scale`, `extra` (`records.extra_address`), x = codes, scales and sums of the rounded
    activations, and `out`, whose rows are d elements. sizes as in `packed_kernels`.

    Trap: Numba specializes on literal integers. A number written in a call, or in a tuple that is passed, is a part of
    its type and compiles `multiply` anew; np.int64(0) does not.
    """
    k, d = sizes.k, sizes.d
    steps = k // 32
    if last - first == 1:
        xs, scales, totals = further(x, first * k)
        vector(format, (codes, scale, extra, sizes, xs, scales, totals, out + first * d * 4, tiles))
        return
    most = min(fitting_tokens(steps), (last - first + TOKENS - 1) // TOKENS * TOKENS)
    buffer = np.empty(most * steps * TOKEN_BYTES, np.uint8)
    while first < last:
        n = min(most, last - first)
        # In the loop, or Numba gives the buffer back before it is used: an address keeps no array alive
        packed = memory.address(buffer)
        here = further(x, first * k)
        pack_tokens(here, n, k, packed)
        multiply_packed(format, codes, scale, extra, sizes, here, packed, n, out + first * d * 4, tiles)
        first += n


@kernel
def multiply_packed(
    format: int,
    codes: int,
    scale: int,
    extra: int,
    sizes: Any,
    x: Any,
    packed: int,
    n: int,
    out: int,
    tiles: Any,
) -> None:
    """n tokens, at x and as `pack_tokens` left them, against a range of tiles, TILES at a time."""
    k, d = sizes.k, sizes.d
    for tile in range(tiles[0], tiles[1], TILES):
        beside = min(TILES, tiles[1] - tile) - 1  # an odd tile at the end is its own second
        if n > 1:
            tile_product(format, (codes, scale, extra, sizes, packed, n, out, tile, beside))
        if n % 2:
            xs, scales, totals = further(x, (n - 1) * k)
            own = (tile, tile + beside + 1)
            vector(format, (codes, scale, extra, sizes, xs, scales, totals, out + (n - 1) * d * 4, own))


@kernel
def multiply_quarters(
    codes: int,
    scale: int,
    k: int,
    d: int,
    x: Any,
    first: int,
    last: int,
    out: int,
    column: int,
    tiles: Any,
) -> None:
    """As `multiply`, for quarter tiles; the sums of the first go to columns [column, column + 4) of `out`.

    Four tokens at a time: they are the few last rows of an adapter's A*.
    """
    token = first
    while token < last:
        n = 4 if token + 4 <= last else 1
        here, scales, _ = further(x, token * k)
        at = out + (token * d + column) * 4
        if n == 4:
            quarter_tiles(codes, scale, k // 32, here, scales, at, d, 4, tiles)
        else:
            quarter_tiles(codes, scale, k // 32, here, scales, at, d, 1, tiles)
        token += n


@kernel
def add_int8(codes: int, scale: int, quads: int, x: Any, out: int, tiles: Any) -> None:
    """One token, as `multiply`, added to what `out` holds: an adapter's B*, whose tiles have `quads` column quads."""
    n_groups = (quads + 7) // 8
    xs, scales, totals = x
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(n_groups):
            at = (tile * quads + step * 8) * 64
            start = types.int32(np.int32(-INT8_OFFSET) * read_total(totals + step * 4))
            dots = begin_dots(start)
            for quad in range(min(8, quads - step * 8)):
                simd.prefetch_once(codes, at + quad * 64 + AHEAD)
                dots = dot4_int8(dots, int8_line(codes, at + quad * 64), xs, step * 32 + quad * 4)
            group, factor = (tile * n_groups + step) * 16, memory.read_float(scales + step * 4)
            acc = fma(end_dots(dots, start), mul(load_half(scale, group), splat(factor)), acc)
        store(out, tile * 16, simd.add(load(out, tile * 16), acc))


@kernel
def add_row(row: int, out: int, tiles: Any) -> None:
    """One token: a bias, at an address, to these tiles."""
    for at in range(tiles[0] * 16, tiles[1] * 16, 16):
        store(out, at, simd.add(load(out, at), load(row, at)))
