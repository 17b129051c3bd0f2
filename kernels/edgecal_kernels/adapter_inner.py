"""The first half of an adapter in int8, for the tokens of a prompt: A* x, rounded again and packed for B*.

The threads share the tokens, for the rows of A* are few. What they leave is a few kilobytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, prange, types

from . import memory, simd
from .function_pointer import by_address
from .jit import kernel, parallel
from .linear_product import ROUNDED, beyond, inner_places
from .memory import pointer
from .packed_kernels import ZERO
from .packed_matmul import fitting_tokens, multiply_packed, multiply_quarters
from .packed_tokens import pack_tokens
from .records import FORMAT_NUMBER, PAIR, Sizes
from .rounding import quantize_row, tokens_share
from .simd import splat

# NumPy's integers, because Numba specializes on literal Python integers
_INT8 = np.int64(FORMAT_NUMBER["int8"])
_ONE: Any = np.int64(1)


@kernel
def inner_share(pair: int, k: int, n: int, x: Any, inner: int, share: int, shares: int) -> None:
    """A* x of a part of n tokens, rounded, times the pair's scaling, and packed, to where `inner_places` says.

    Addresses: of a PAIR; x as ROUNDED, of k columns in whole steps; `inner`, room for `inner_bytes`.
    """
    of = carray(pointer(pair), (1,), PAIR)[0]
    first, last = tokens_share(n, share, shares)
    width, most, at, column = of.padded, fitting_tokens(k // 32), first, of.a_tiles * 16
    sizes = Sizes(of.a_lines, of.a_groups, _ONE, k, width)
    (to, to_scale, to_total, to_packed), values = inner_places(inner, n, width)
    for row in range(first, last):
        for start in range(column, width, 16):  # more than A* writes
            simd.store(values + row * width * 4, start, splat(np.float32(0)))
    while at < last:
        rows, out = min(most, last - at), values + at * width * 4
        xs, scales, totals, packed = beyond(x, at, k)
        tokens, quarters = (xs, scales, totals), (ZERO, of.quarters)
        tiles = (ZERO, of.a_tiles)
        multiply_packed(_INT8, of.a_codes, of.a_scale, ZERO, sizes, tokens, packed, rows, out, tiles)
        multiply_quarters(of.quarter_codes, of.quarter_scale, k, width, tokens, ZERO, rows, out, column, quarters)
        at += rows
    codes, scale, total, packed = beyond((to, to_scale, to_total, to_packed), first, width)
    rounded, factor, numbers = (codes, scale, total), np.float32(of.scaling), (last - first) * width
    quantize_row(values + first * width * 4, numbers, rounded)
    for step in range(numbers // 32):  # a power of two: as good as scaling the values
        memory.write_float(scale + step * 4, memory.read_float(scale + step * 4) * factor)
    pack_tokens(rounded, last - first, width, packed)


_call_inner, inner_code = by_address(inner_share, *[types.int64] * 3, ROUNDED, *[types.int64] * 3)


@parallel
def inner_together(code: int, pair: int, k: int, n: int, x: Any, inner: int, shares: int) -> None:
    for share in prange(shares):
        _call_inner(code, pair, k, n, x, inner, np.int64(share), shares)
