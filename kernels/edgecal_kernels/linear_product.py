"""A linear module for the tokens of a prompt: out = W x + bias + B* (A* x) + bias*.

The threads share the tiles of W. What is added to a pair of tiles follows their product at once, while they are in the
cache; A* x is there before (`adapter_inner`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, prange, types

from . import memory
from .blocks import TILES
from .compiled_clock import now
from .function_pointer import by_address
from .jit import kernel, parallel
from .memory import pointer
from .packed_blocks import add_blocks
from .packed_kernels import SIZES, ZERO
from .packed_matmul import add_int8, add_row, fitting_tokens, multiply_packed, multiply_quarters
from .packed_tokens import TOKEN_BYTES
from .records import PAIR
from .rounding import further

ROUNDED = types.UniTuple(types.int64, 4)  # addresses of tokens: codes, scales, sums, and the same packed


@kernel
def beyond(tokens: Any, n: int, k: int) -> Any:
    """The addresses of tokens n tokens of k columns later, n whole blocks."""
    codes, scale, total, packed = tokens
    return *further((codes, scale, total), n * k), packed + n * (k // 32) * TOKEN_BYTES


@kernel
def _add_rows(row: int, n: int, d: int, out: int, tiles: Any) -> None:
    for token in range(n):
        add_row(row, out + token * d * 4, tiles)


@kernel
def inner_places(inner: int, n: int, width: int) -> Any:
    """Where A* of a pair leaves n tokens of `width` columns, at `inner`: as `ROUNDED`, and before that in float32."""
    steps = width // 32
    packed = inner + n * width * 4
    scale = packed + (n - n % 2) * steps * TOKEN_BYTES
    return (scale + n * steps * 8, scale, scale + n * steps * 4, packed), inner


@kernel
def _add_pair(pair_at: int, x: Any, first: int, n: int, d: int, out: int, tiles: Any) -> None:
    """B* times what A* left of n tokens, from `first` on of those at x, and bias*, to their rows at `out`. One tile or
    TILES."""
    pair = carray(pointer(pair_at), (1,), PAIR)[0]
    if pair.rank > 0:
        width = pair.padded
        xs, scales, totals, packed = beyond(x, first, width)
        of = pair.b_codes, pair.b_scale, pair.b_lines, out, d, tiles[0], tiles[1] - tiles[0] - 1
        add_blocks(of, packed, width // 32 * TOKEN_BYTES, ZERO, n - n % 2)
        if n % 2:
            last = further((xs, scales, totals), (n - 1) * width)
            add_int8(pair.b_codes, pair.b_scale, pair.b_lines, last, out + (n - 1) * d * 4, tiles)
    if pair.bias != 0:
        _add_rows(pair.bias, n, d, out, tiles)


@kernel
def linear_share(
    format: int,
    places: Any,
    sizes: Any,
    counts: Any,
    n: int,
    x: Any,
    bias: int,
    pair: int,
    inner: int,
    width: int,
    spent: int,
    out: int,
    share: int,
    shares: int,
) -> None:
    """The work of one thread: a range of tiles, and of the tokens for quarter tiles. counts: of both.

    Addresses: places of codes, scales, `records.extra_address`, and codes and scales of quarter tiles, to which nothing
    is added; x as ROUNDED; a bias; a PAIR, and what its A* left, of `width` columns, at `inner`; `spent`, for the
    nanoseconds that B* and bias* take the first thread. 0 where one is not there or not wanted.
    """
    codes, scale, extra, quarter_codes, quarter_scale = places
    n_tiles, n_quarters = counts
    k, d, pairs = sizes.k, sizes.d, (n_tiles + TILES - 1) // TILES
    begin, end = pairs * share // shares * TILES, min(pairs * (share + 1) // shares * TILES, n_tiles)
    most, first, time, x_inner = fitting_tokens(k // 32), ZERO, ZERO, inner_places(inner, n, width)[0]
    while first < n:
        some, target = min(most, n - first), out + first * d * 4
        xs, scales, totals, packed = beyond(x, first, k)
        for tile in range(begin, end, TILES):
            tiles = (tile, min(tile + TILES, end))
            multiply_packed(format, codes, scale, extra, sizes, (xs, scales, totals), packed, some, target, tiles)
            if bias != 0:
                _add_rows(bias, some, d, target, tiles)
            if pair != 0:
                before = now() if spent != 0 else ZERO
                _add_pair(pair, x_inner, first, some, d, target, tiles)
                time += now() - before if spent != 0 else ZERO
        first += some
    if spent != 0 and share == 0:
        memory.write_long(spent, time)
    xs, scales, totals, _ = x
    begin, end, quarters, column = n * share // shares, n * (share + 1) // shares, (ZERO, n_quarters), n_tiles * 16
    multiply_quarters(quarter_codes, quarter_scale, k, d, (xs, scales, totals), begin, end, out, column, quarters)


_call_share, share_code = by_address(
    linear_share,
    *(types.int64, types.UniTuple(types.int64, 5), SIZES, types.UniTuple(types.int64, 2), types.int64, ROUNDED),
    *[types.int64] * 8,
)


@parallel
def linear_together(
    code: int,
    format: int,
    places: Any,
    sizes: Any,
    counts: Any,
    n: int,
    x: Any,
    bias: int,
    pair: int,
    inner: int,
    width: int,
    spent: int,
    out: int,
    shares: int,
) -> None:
    for share in prange(shares):
        _call_share(
            code, format, places, sizes, counts, n, x, bias, pair, inner, width, spent, out, np.int64(share), shares
        )
