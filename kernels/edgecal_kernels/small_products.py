"""The two small matrix products of attention: some rows times a block of the cache, for scores and for mixtures.

Each output is one chain of fused multiply-adds in the order of the summands, whatever the shape of the block that it is
computed in; attention.py relies on it. An int8 times a float16 scale is exact in float32, so it makes no difference
whether elements are scaled here or before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import isa
from .cached import KEY_GROUP
from .jit import kernel
from .simd import fma, load, load_cached, load_half, load_one, mul, splat, store

_ZERO, _ONE, _FOUR = np.int64(0), np.int64(1), np.int64(4)
# Four rows by four vectors at once, where the registers hold sixteen sums, the four vectors and a factor; else by one
_WIDE: bool = isa.active().VECTORS >= 21


class Strides(NamedTuple):
    """In elements: from a summand of b to the next, from a vector of b to the next, from a row of c to the next."""

    b_row: Any
    b_tile: Any
    c_row: Any


class Scales(NamedTuple):
    """Those of the keys of an int8 cache, at an address: the 16 float16 at first + t * tile + 16 * g belong to summands
    8 g ... 8 g + 7 of vector t."""

    address: Any
    first: Any
    tile: Any


@kernel
def _step(n: int, scales: Any) -> int:
    """How many summands share a scale: all n (at least 1), or a number that n is a multiple of, constant for speed."""
    if scales is None:
        return n
    return KEY_GROUP


@kernel
def _factors(scales: Any, i: int) -> Any:
    """The scales of four vectors for summands from i on, if there are any."""
    if scales is None:
        return None, None, None, None
    address, first, tile = scales
    at = first + i // KEY_GROUP * 16
    f0, f1 = load_half(address, at), load_half(address, at + tile)
    return f0, f1, load_half(address, at + 2 * tile), load_half(address, at + 3 * tile)


@kernel
def _element(b: Any, at: int, factor: Any) -> Any:
    if factor is None:
        return load_cached(b, at)
    return mul(load_cached(b, at), factor)


@kernel
def _multiply_4x4(
    a: Any, a_at: int, a_row: int, n: int, b: Any, b_at: int, strides: Any, c: Any, c_at: int, scales: Any
) -> None:
    """c[r, t] += sum over i < n of a[r, i] * b[i, t] for four rows r and four vectors t.

    b[i, t] lies at b_at + i * b_row + t * b_tile of b, as `load_cached` takes it, and c[r, t] at
    c_at + r * c_row + t * 16. `scales` are Scales or None.
    """
    b_row, b_tile, c_row = strides
    c1, c2, c3 = c_at + c_row, c_at + 2 * c_row, c_at + 3 * c_row
    a1, a2, a3 = a_at + a_row, a_at + 2 * a_row, a_at + 3 * a_row
    s00, s01, s02, s03 = load(c, c_at), load(c, c_at + 16), load(c, c_at + 32), load(c, c_at + 48)
    s10, s11, s12, s13 = load(c, c1), load(c, c1 + 16), load(c, c1 + 32), load(c, c1 + 48)
    s20, s21, s22, s23 = load(c, c2), load(c, c2 + 16), load(c, c2 + 32), load(c, c2 + 48)
    s30, s31, s32, s33 = load(c, c3), load(c, c3 + 16), load(c, c3 + 32), load(c, c3 + 48)
    for start in range(0, n, _step(n, scales)):
        f0, f1, f2, f3 = _factors(scales, start)
        for i in range(start, start + _step(n, scales)):
            at = b_at + i * b_row
            b0, b1 = _element(b, at, f0), _element(b, at + b_tile, f1)
            b2, b3 = _element(b, at + 2 * b_tile, f2), _element(b, at + 3 * b_tile, f3)
            w = splat(load_one(a, a_at + i))
            s00, s01, s02, s03 = fma(w, b0, s00), fma(w, b1, s01), fma(w, b2, s02), fma(w, b3, s03)
            w = splat(load_one(a, a1 + i))
            s10, s11, s12, s13 = fma(w, b0, s10), fma(w, b1, s11), fma(w, b2, s12), fma(w, b3, s13)
            w = splat(load_one(a, a2 + i))
            s20, s21, s22, s23 = fma(w, b0, s20), fma(w, b1, s21), fma(w, b2, s22), fma(w, b3, s23)
            w = splat(load_one(a, a3 + i))
            s30, s31, s32, s33 = fma(w, b0, s30), fma(w, b1, s31), fma(w, b2, s32), fma(w, b3, s33)
    _store_4(c, c_at, s00, s01, s02, s03)
    _store_4(c, c1, s10, s11, s12, s13)
    _store_4(c, c2, s20, s21, s22, s23)
    _store_4(c, c3, s30, s31, s32, s33)


@kernel
def _store_4(c: Any, at: int, s0: Any, s1: Any, s2: Any, s3: Any) -> None:
    store(c, at, s0)
    store(c, at + 16, s1)
    store(c, at + 32, s2)
    store(c, at + 48, s3)


@kernel
def _multiply_1x4(a: Any, a_at: int, n: int, b: Any, b_at: int, strides: Any, c: Any, c_at: int, scales: Any) -> None:
    """`_multiply_4x4` for one row."""
    b_row, b_tile, _ = strides
    s0, s1, s2, s3 = load(c, c_at), load(c, c_at + 16), load(c, c_at + 32), load(c, c_at + 48)
    for start in range(0, n, _step(n, scales)):
        f0, f1, f2, f3 = _factors(scales, start)
        for i in range(start, start + _step(n, scales)):
            at = b_at + i * b_row
            w = splat(load_one(a, a_at + i))
            s0, s1 = fma(w, _element(b, at, f0), s0), fma(w, _element(b, at + b_tile, f1), s1)
            s2, s3 = fma(w, _element(b, at + 2 * b_tile, f2), s2), fma(w, _element(b, at + 3 * b_tile, f3), s3)
    _store_4(c, c_at, s0, s1, s2, s3)


@kernel
def _multiply_4x1(
    a: Any, a_at: int, a_row: int, n: int, b: Any, b_at: int, strides: Any, c: Any, c_at: int, scales: Any, fourth: Any
) -> None:
    """`_multiply_4x4` for one vector; for three rows where `fourth` is None."""
    b_row, _, c_row = strides
    a1, a2, a3 = a_at + a_row, a_at + 2 * a_row, a_at + 3 * a_row
    s0, s1, s2 = load(c, c_at), load(c, c_at + c_row), load(c, c_at + 2 * c_row)
    s3 = s2 if fourth is None else load(c, c_at + 3 * c_row)
    for start in range(0, n, _step(n, scales)):
        factor = _factors(scales, start)[0]
        for i in range(start, start + _step(n, scales)):
            vector = _element(b, b_at + i * b_row, factor)
            s0 = fma(splat(load_one(a, a_at + i)), vector, s0)
            s1 = fma(splat(load_one(a, a1 + i)), vector, s1)
            s2 = fma(splat(load_one(a, a2 + i)), vector, s2)
            if fourth is not None:
                s3 = fma(splat(load_one(a, a3 + i)), vector, s3)
    store(c, c_at, s0)
    store(c, c_at + c_row, s1)
    store(c, c_at + 2 * c_row, s2)
    if fourth is not None:
        store(c, c_at + 3 * c_row, s3)


@kernel
def multiply_rows(
    rows: int,
    a: Any,
    a_at: int,
    a_row: int,
    n: int,
    b: Any,
    b_at: int,
    strides: Any,
    vectors: int,
    c: Any,
    c_at: int,
    scales: Any,
) -> None:
    """c += a b for four rows, of which only the first `rows` are used, and `vectors` vectors."""
    b_tile = strides.b_tile
    t = 0
    if _WIDE or rows == 1:
        while t + 4 <= vectors:
            own = _from_vector(scales, t, _FOUR)
            if rows == 1:
                _multiply_1x4(a, a_at, n, b, b_at + t * b_tile, strides, c, c_at + t * 16, own)
            else:
                _multiply_4x4(a, a_at, a_row, n, b, b_at + t * b_tile, strides, c, c_at + t * 16, own)
            t += 4
    while t < vectors:
        own = _from_vector(scales, t, _ONE)
        at, to = b_at + t * b_tile, c_at + t * 16
        if rows == 3:  # the query heads of a key head, in models of which there are many
            _multiply_4x1(a, a_at, a_row, n, b, at, strides, c, to, own, None)
        else:
            _multiply_4x1(a, a_at, a_row, n, b, at, strides, c, to, own, _ONE)
        t += 1


@kernel
def _from_vector(scales: Any, t: int, vectors: int) -> Any:
    """The scales from vector t on; with one vector only its own, since there may be none after it to read."""
    if scales is None:
        return None
    address, first, tile = scales
    return Scales(address, first + t * tile, tile if vectors > 1 else _ZERO)
