"""An adapter in int8 on top of a product: out += scaling * B* (A* x), for the tokens of a prompt.

The threads share the tokens of A* x, whose rows are few, and then the tiles of B*. What lies between them, rounded and
packed, is a few kilobytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types

from . import blocks
from .blocks import TILES, TOKEN_BYTES
from .function_pointer import by_address
from .jit import kernel, parallel
from .packed_blocks import add_blocks
from .packed_kernels import SIZES, ZERO
from .packed_matmul import add_int8, fitting_tokens, multiply_packed, multiply_quarters
from .records import FORMAT_NUMBER
from .rounding import further, pack_tokens, quantize_row, tokens_share

_INT8 = np.int64(FORMAT_NUMBER["int8"])
ROUNDED = types.UniTuple(types.int64, 4)  # addresses of tokens: codes, scales, sums, and the same packed


@kernel
def _beyond(tokens: Any, n: int, k: int) -> Any:
    """The addresses of tokens n tokens of k columns later, n whole blocks."""
    codes, scale, total, packed = tokens
    return *further((codes, scale, total), n * k), packed + n * (k // 32) * TOKEN_BYTES


@kernel
def inner_share(
    a: Any, sizes: Any, counts: Any, n: int, x: Any, values: int, inner: Any, factor: float, share: int, shares: int
) -> None:
    """A* x of a part of n tokens: in float32 at `values`, then rounded, times `factor`, and packed at `inner`.

    a: addresses as in `packed_matmul`; sizes.d columns of `values`, in whole steps, those that A* does not write zeros.
    """
    codes, scale, _, quarter_codes, quarter_scale = a
    first, last = tokens_share(n, share, shares)
    k, width, most, at = sizes.k, sizes.d, fitting_tokens(sizes.k // 32), first
    while at < last:
        rows, out = min(most, last - at), values + at * width * 4
        xs, scales, totals, packed = _beyond(x, at, k)
        tokens = xs, scales, totals
        multiply_packed(_INT8, codes, scale, ZERO, sizes, tokens, packed, rows, out, (ZERO, counts[0]))
        quarters, column = (ZERO, counts[1]), counts[0] * 16
        multiply_quarters(quarter_codes, quarter_scale, k, width, tokens, ZERO, rows, out, column, quarters)
        at += rows
    to_codes, to_scale, to_total, to_packed = _beyond(inner, first, width)
    rounded = to_codes, to_scale, to_total
    for row in range(last - first):
        own = further(rounded, row * width)
        quantize_row(values + (first + row) * width * 4, width, own)
        for step in range(width // 32):  # a power of two: as good as scaling the values
            blocks.write_float(own[1] + step * 4, blocks.read_float(own[1] + step * 4) * factor)
    pack_tokens(rounded, last - first, width, to_packed)


@kernel
def outer_share(
    codes: int, scale: int, quads: int, n_tiles: int, n: int, inner: Any, width: int, out: int, share: int, shares: int
) -> None:
    """out += B* times n tokens of `width` columns at `inner`, for a part of the tiles. `codes`, `scale`: of B*."""
    xs, scales, totals, packed = inner
    pairs, d, token_bytes = (n_tiles + TILES - 1) // TILES, n_tiles * 16, width // 32 * TOKEN_BYTES
    first, last = pairs * share // shares * TILES, min(pairs * (share + 1) // shares * TILES, n_tiles)
    for tile in range(first, last, TILES):
        beside = min(TILES, last - tile) - 1
        add_blocks((codes, scale, quads, out, d, tile, beside), packed, token_bytes, ZERO, n - n % 2)
        if n % 2:
            last_token = further((xs, scales, totals), (n - 1) * width)
            add_int8(codes, scale, quads, last_token, out + (n - 1) * d * 4, (tile, tile + beside + 1))


_call_inner, inner_code = by_address(
    inner_share,
    *(types.UniTuple(types.int64, 5), SIZES, types.UniTuple(types.int64, 2), types.int64, ROUNDED, types.int64),
    *(ROUNDED, types.float32, types.int64, types.int64),
)
_call_outer, outer_code = by_address(
    outer_share,
    *(types.int64, types.int64, types.int64, types.int64, types.int64, ROUNDED, types.int64, types.int64),
    *(types.int64, types.int64),
)


@parallel
def inner_together(
    code: int,
    a: Any,
    sizes: Any,
    counts: Any,
    n: int,
    x: Any,
    values: int,
    inner: Any,
    factor: float,
    shares: int,
) -> None:
    for share in prange(shares):
        _call_inner(code, a, sizes, counts, n, x, values, inner, factor, np.int64(share), shares)


@parallel
def outer_together(
    code: int, codes: int, scale: int, quads: int, n_tiles: int, n: int, inner: Any, width: int, out: int, shares: int
) -> None:
    for share in prange(shares):
        _call_outer(code, codes, scale, quads, n_tiles, n, inner, width, out, np.int64(share), shares)
