"""Causal attention over a KV cache.

The work of one item is some tokens times the query heads of one key head: `rows`. It goes through the cache in blocks
of 64 positions counted from position 0. A block is widened to float32 once for all rows, and then the scores (q K^T)
and the mixture (weights V) are two small matrix products of the same form. A row keeps its highest score so far, the
sum of its weights in 16 lanes and its mixture, and scales them down when a block brings a higher score (online
softmax; Milakov and Gimelshein 2018, arXiv 1805.02867). Memory does not grow with the context.

The rule that makes prefix reuse, speculation and batches exact: the arithmetic of a row depends on its own position
only. Each number is one chain of fused multiply-adds in the order of the elements and positions. Positions that a row
may not see have a weight of exactly 0, and adding 0 * v changes nothing; rows that fill up a set of four are thrown
away.

A cache is given by `Cached.addresses`.

Trap: constants that are passed to kernels are NumPy's integers, because Numba specializes on literal Python integers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange, types

from . import memory, simd
from .cached import FP16, FP32, INT8, KEY_GROUP, PAIRS, Addresses
from .elementwise import exp_lanes
from .function_pointer import by_address
from .jit import kernel, parallel
from .records import View
from .simd import add, load, mul, splat, store
from .small_products import Scales, Strides, multiply_rows

BLOCK = np.int64(64)  # positions
ROWS = 64  # of an item, about: a block of keys and values and what belongs to the rows stay in the first-level cache
_ZERO: Any = np.int64(0)
_LANES: Any = np.int64(16)


class Parts(NamedTuple):
    """Where a block of keys and of values, as float32, and what belongs to the rows lie in an item's buffer."""

    keys: Any
    values: Any
    queries: Any
    mixed: Any
    weights: Any
    sums: Any
    highest: Any


_VIEW = types.NamedTuple((types.int64, types.int64, types.int64, types.float64, types.int64), View)
_ADDRESSES = types.NamedUniTuple(types.int64, len(Addresses._fields), Addresses)


@kernel
def attention_scratch(n_rows: int, width: int) -> Any:
    """A buffer for an item of up to `n_rows` rows."""
    rows = (n_rows + 3) // 4 * 4
    return np.empty(2 * BLOCK * width + rows * (2 * width + BLOCK + _LANES + 1), np.float32)


@kernel
def _parts(scratch: int, rows: int, width: int) -> Any:
    """For a multiple of four rows."""
    values = scratch + BLOCK * width * 4
    queries = values + BLOCK * width * 4
    mixed = queries + rows * width * 4
    weights = mixed + rows * width * 4
    sums = weights + rows * BLOCK * 4
    return Parts(scratch, values, queries, mixed, weights, sums, sums + rows * _LANES * 4)


@kernel
def _clear(x: int, start: int, stop: int) -> None:
    """Elements [start, stop), whole vectors."""
    for i in range(start, stop, 16):
        store(x, i, splat(np.float32(0)))


@kernel
def _widen(kind: int, source: int, at: int, n: int, out: Any) -> None:
    """n elements of the cache as float32."""
    if kind == FP16:
        for i in range(0, n, 16):
            store(out, i, simd.load_half(source, at + i))
    elif kind == INT8:
        for i in range(0, n, 16):
            store(out, i, simd.load_int8(source, at + i))
    else:
        for i in range(0, n, 16):
            store(out, i, load(source, at + i))


@kernel
def _widen_keys(place: Any, at: int, tiles: int, width: int, out: Any) -> None:
    """`tiles` tiles of keys from position `at` on as float32."""
    if place.kind != INT8:
        _widen(place.kind, place.keys, at * width, tiles * 16 * width, out)
        return
    scale_at, begin = at // 16 * (width // KEY_GROUP), at * width
    for group in range(tiles * (width // KEY_GROUP)):
        scale = simd.load_half(place.key_scales, (scale_at + group) * 16)
        for i in range(group * KEY_GROUP * 16, (group + 1) * KEY_GROUP * 16, 16):
            store(out, i, mul(simd.load_int8(place.keys, begin + i), scale))


@kernel
def _copy(source: int, target: int, n: int, factor: Any) -> None:
    """n float32 at an address, times a factor, to another."""
    whole = n - n % 16
    for i in range(0, whole, 16):
        store(target, i, mul(load(source, i), splat(factor)))
    for i in range(whole, n):
        simd.store_one(target, i, simd.load_one(source, i) * factor)


@kernel
def _place_query(q: int, head_dim: int, kind: int, query: int) -> None:
    """A query at an address to another, in the order in which the keys' channels lie."""
    if kind != INT8:
        _copy(q, query, head_dim, np.float32(1))
        return
    half = (head_dim + 1) // 2
    for i in range(half):
        simd.store_one(query, i // PAIRS * KEY_GROUP + i % PAIRS, simd.load_one(q, i))
    for i in range(head_dim - half):
        simd.store_one(query, i // PAIRS * KEY_GROUP + PAIRS + i % PAIRS, simd.load_one(q, half + i))


@kernel
def _fetch(place: Any, at: int, width: int) -> None:
    """Prefetch a block of the cache, while the block before it is worked on."""
    size = 1 if place.kind == INT8 else (2 if place.kind == FP16 else 4)
    for i in range(at * width * size, (at + BLOCK) * width * size, 64):
        simd.prefetch(place.keys, i)
        simd.prefetch(place.values, i)
    if place.kind == INT8:
        for i in range(at * width * 2 // KEY_GROUP, (at + BLOCK) * width * 2 // KEY_GROUP, 64):
            simd.prefetch(place.key_scales, i)
        for i in range(at * 4, (at + BLOCK) * 4, 64):
            simd.prefetch(place.value_scales, i)


@kernel
def _weigh(
    row: int, hidden: int, seen: int, scaling: Any, place: Any, scale_at: int, weights: int, highest: int, sums: int
) -> float:
    """Scores of a block, in `weights`, to weights, for a row that sees positions [hidden, seen) of it.

    Returns the factor by which the row's mixture has to shrink. With int8, weights, once summed, take the values'
    scales.
    """
    at, stop = row * BLOCK, (seen + 15) // 16 * 16
    top = splat(np.float32(-np.inf))
    for j in range(0, stop, 16):
        store(weights, at + j, mul(load(weights, at + j), splat(scaling)))
    for j in range(hidden):
        simd.store_one(weights, at + j, np.float32(-np.inf))
    for j in range(seen, stop):
        simd.store_one(weights, at + j, np.float32(-np.inf))
    for j in range(0, stop, 16):
        top = simd.maximum(top, load(weights, at + j))
    before = simd.load_one(highest, row)
    now = max(before, simd.max_lanes(top))
    simd.store_one(highest, row, now)
    for j in range(0, stop, 16):
        store(weights, at + j, exp_lanes(simd.sub(load(weights, at + j), splat(now))))
    for j in range(hidden):
        simd.store_one(weights, at + j, np.float32(0))
    for j in range(seen, stop):
        simd.store_one(weights, at + j, np.float32(0))
    _clear(weights, at + stop, at + BLOCK)
    shrink = exp_lanes(splat(before - now))
    total = mul(load(sums, row * 16), shrink)
    for j in range(0, stop, 16):
        weight = load(weights, at + j)
        total = add(total, weight)
        if place.kind == INT8:
            store(weights, at + j, mul(weight, load(place.value_scales, scale_at + j)))
    store(sums, row * 16, total)
    return simd.first_lane(shrink)


@kernel
def _begin_rows(q: int, first: int, heads: int, per_token: int, n_rows: int, view: Any, kind: int, parts: Any) -> None:
    """Queries in the order of the cache's keys; no score, no weight, no mixture yet."""
    width, padded = view.width, (n_rows + 3) // 4 * 4
    _clear(parts.queries, _ZERO if view.head_dim < width else n_rows * width, padded * width)
    for row in range(n_rows):
        source = first + row // heads * per_token + row % heads * view.head_dim
        _place_query(q + source * 4, view.head_dim, kind, parts.queries + row * width * 4)
        simd.store_one(parts.highest, row, np.float32(-np.inf))
    _clear(parts.mixed, _ZERO, padded * width)
    _clear(parts.sums, _ZERO, padded * 16)


@kernel
def _finish_rows(out: int, first: int, heads: int, per_token: int, n_rows: int, view: Any, parts: Any) -> None:
    """Mixtures over the sums of their weights."""
    for row in range(n_rows):
        target = first + row // heads * per_token + row % heads * view.head_dim
        normal = np.float32(1) / simd.sum_lanes(load(parts.sums, row * 16))
        _copy(parts.mixed + row * view.width * 4, out + target * 4, view.head_dim, normal)


@kernel
def attend(
    q: int, out: int, first: int, tokens: int, heads: int, per_token: int, view: Any, place: Any, at: int, scratch: int
) -> None:
    """One item: `tokens` tokens from position `pos` on, times the `heads` query heads of one key head.

    Element `first` of q and out is the first token's first head; the next token is `per_token` elements on, the next
    head head_dim. place = `Cached.addresses`; the key head's position 0 is position `at` of the cache as a whole,
    (layer * K + head) * capacity. q, out and scratch (`attention_scratch`) are addresses.
    """
    pos, _head_dim, width, scaling, window = view
    n_rows, vectors = tokens * heads, width // 16
    parts = _parts(scratch, (n_rows + 3) // 4 * 4, width)
    keys, values, queries, mixed, weights, sums, highest = parts
    _begin_rows(q, first, heads, per_token, n_rows, view, place.kind, parts)
    length = pos + tokens
    halves, whole = simd.halves(place.keys), simd.whole(place.keys)
    value_halves, value_whole = simd.halves(place.values), simd.whole(place.values)
    direct = n_rows <= 8 and place.kind != FP32  # one pass or two over a block cost less than a copy of it
    groups = width // KEY_GROUP
    begin_block = max(_ZERO, pos - window + 1) // BLOCK * BLOCK if window > 0 else _ZERO
    for start in range(begin_block, length, BLOCK):
        # Tiles of keys are whole; of values only what is filled: a cache may end within the block
        present = min(BLOCK, length - start)
        if tokens == 1 and start + BLOCK < length:
            _fetch(place, at + start + BLOCK, width)
        if not direct:
            _widen_keys(place, at + start, (present + 15) // 16, width, keys)
            _widen(place.kind, place.values, (at + start) * width, present * width, values)
        early = max(0, start - pos) * heads  # rows that end before this block
        late = min(tokens, start + BLOCK + window - 1 - pos) * heads if window > 0 else n_rows  # their window is later
        for row in range(early // 4 * 4, late, 4):
            some = min(4, n_rows - row)
            _clear(weights, row * BLOCK, (row + 4) * BLOCK)
            layout = Strides(_LANES, 16 * width, BLOCK)
            source, target = row * width, row * BLOCK
            begin = (at + start) * width
            seen = min(BLOCK, pos + (row + some - 1) // heads + 1 - start)  # of the last row, which sees most
            tiles = (seen + 15) // 16
            if direct and place.kind == FP16:
                multiply_rows(some, queries, source, width, width, halves, begin, layout, tiles, weights, target, None)
            elif direct:
                scales = Scales(place.key_scales, (at + start) * groups, groups * 16)
                multiply_rows(some, queries, source, width, width, whole, begin, layout, tiles, weights, target, scales)
            else:
                copied = simd.singles(keys)
                multiply_rows(some, queries, source, width, width, copied, _ZERO, layout, tiles, weights, target, None)
            for r in range(row, row + some):
                stop = min(BLOCK, pos + r // heads + 1 - start)
                hidden = max(_ZERO, pos + r // heads + 1 - window - start) if window > 0 else _ZERO
                if stop <= hidden:
                    _clear(weights, r * BLOCK, (r + 1) * BLOCK)
                else:
                    shrink = _weigh(r, hidden, stop, np.float32(scaling), place, at + start, weights, highest, sums)
                    if shrink != np.float32(1):
                        for i in range(r * width, (r + 1) * width, 16):
                            store(mixed, i, mul(load(mixed, i), splat(shrink)))
            layout = Strides(width, _LANES, width)
            if direct and place.kind == FP16:
                multiply_rows(
                    some, weights, target, BLOCK, seen, value_halves, begin, layout, vectors, mixed, source, None
                )
            elif direct:
                multiply_rows(
                    some, weights, target, BLOCK, seen, value_whole, begin, layout, vectors, mixed, source, None
                )
            else:
                copied = simd.singles(values)
                multiply_rows(some, weights, target, BLOCK, seen, copied, _ZERO, layout, vectors, mixed, source, None)
    _finish_rows(out, first, heads, per_token, n_rows, view, parts)


@kernel
def attend_share(q: Any, out: Any, shape: Any, view: Any, place: Any, layer: int, first: int, stride: int) -> None:
    """Items first, first + stride, ...; shape = (T, H, K). Late tokens, which see most, come first."""
    n_tokens, n_heads, n_kv = shape
    pos, head_dim, width, scaling, window = view
    heads = n_heads // n_kv
    block = max(1, ROWS // heads)
    n_blocks = (n_tokens + block - 1) // block
    scratch = attention_scratch(min(block, n_tokens) * heads, width)
    own_q, own_out = memory.address(q), memory.address(out)
    for item in range(first, n_blocks * n_kv, stride):
        head, token = item % n_kv, (n_blocks - 1 - item // n_kv) * block
        element = (token * n_heads + head * heads) * head_dim
        at = (layer * n_kv + head) * place.capacity
        tokens = min(block, n_tokens - token)
        here = View(pos + token, head_dim, width, scaling, window)
        attend(own_q, own_out, element, tokens, heads, n_heads * head_dim, here, place, at, memory.address(scratch))


call_share, share_code = by_address(
    attend_share,
    *(types.float32[::1], types.float32[::1], types.UniTuple(types.int64, 3)),
    *(_VIEW, _ADDRESSES, types.int64, types.int64, types.int64),
)


@parallel
def attend_together(code: int, q: Any, out: Any, shape: Any, view: Any, place: Any, layer: int, shares: int) -> None:
    for share in prange(shares):
        call_share(code, q, out, shape, view, place, layer, np.int64(share), shares)
