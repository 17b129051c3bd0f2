"""Causal attention over a KV cache, one (token, head) at a time in two passes: scores, then values.

An item's arithmetic depends on its own position only, never on the chunk of the prompt it arrives in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from . import simd
from .elementwise import exp_lanes
from .jit import kernel, parallel
from .quant import Array
from .simd import add, fma, load, mul, splat, store

_WORTH_A_THREAD = 1 << 18  # multiply-adds from which it is worth waking other threads


@kernel
def attend(
    q: Any,
    query: int,
    keys: Any,
    values: Any,
    base: int,
    length: int,
    width: int,
    scaling: float,
    out: Any,
    scores: Any,
) -> None:
    """One head of one token: the query at element `query` of q against `length` positions, into the same place of out.

    Position j of the head's keys and values lies at element base + j * width; width = head_dim padded to 16 with
    zeros. keys, values: arrays, or addresses of float16. `scores` holds a float per position and 16 more.
    """
    highest = np.float32(-np.inf)
    for j in range(length):
        acc = splat(np.float32(0))
        for i in range(0, width, 16):
            acc = fma(load(q, query + i), simd.load_cached(keys, base + j * width + i), acc)
        score = simd.sum_lanes(acc) * np.float32(scaling)
        scores[j] = score
        highest = max(highest, score)
    for j in range(length, (length + 15) // 16 * 16):
        scores[j] = np.float32(-np.inf)
    sums = splat(np.float32(0))
    for j in range(0, length, 16):
        weight = exp_lanes(simd.sub(load(scores, j), splat(highest)))
        store(scores, j, weight)
        sums = add(sums, weight)
    # The padding adds exp(-87) a piece: beside the largest weight, which is 1, float32 cannot see it
    total = simd.sum_lanes(sums)
    normal = np.float32(1) / total
    i = 0
    while i + 64 <= width:
        a, b, c, d = (
            splat(np.float32(0)),
            splat(np.float32(0)),
            splat(np.float32(0)),
            splat(np.float32(0)),
        )
        for j in range(length):
            weight = splat(scores[j])
            at = base + j * width + i
            a = fma(weight, simd.load_cached(values, at), a)
            b = fma(weight, simd.load_cached(values, at + 16), b)
            c = fma(weight, simd.load_cached(values, at + 32), c)
            d = fma(weight, simd.load_cached(values, at + 48), d)
        store(out, query + i, mul(a, splat(normal)))
        store(out, query + i + 16, mul(b, splat(normal)))
        store(out, query + i + 32, mul(c, splat(normal)))
        store(out, query + i + 48, mul(d, splat(normal)))
        i += 64
    while i < width:
        a = splat(np.float32(0))
        for j in range(length):
            a = fma(splat(scores[j]), simd.load_cached(values, base + j * width + i), a)
        store(out, query + i, mul(a, splat(normal)))
        i += 16


@kernel
def _attend_items(
    q: Any, keys: Any, values: Any, pos: int, scaling: float, out: Any, first: int, stride: int, scores: Any
) -> None:
    """Items first, first + stride, ... of the (token, head) pairs; q, out (T, H, width), keys (K, capacity, width)."""
    n_tokens, n_heads, width = q.shape
    capacity, per_kv = keys.shape[1], n_heads // keys.shape[0]
    for item in range(first, n_tokens * n_heads, stride):
        token, head = item // n_heads, item % n_heads
        base = (head // per_kv) * capacity * width
        attend(q, item * width, keys, values, base, pos + token + 1, width, scaling, out, scores)


@kernel
def _attention_alone(q: Any, keys: Any, values: Any, pos: int, scaling: float, out: Any) -> None:
    _attend_items(q, keys, values, pos, scaling, out, 0, 1, np.empty(pos + q.shape[0] + 16, np.float32))


@parallel
def _attention(q: Any, keys: Any, values: Any, pos: int, scaling: float, out: Any) -> None:
    chunks = min(q.shape[0] * q.shape[1], 32)  # strided over the items: later tokens attend to more
    for chunk in prange(chunks):
        _attend_items(q, keys, values, pos, scaling, out, chunk, chunks, np.empty(pos + q.shape[0] + 16, np.float32))


def attention(q: Array, keys: NDArray, values: NDArray, pos: int) -> Array:
    """As `reference.attention`."""
    n_tokens, n_heads, head_dim = q.shape
    width = keys.shape[2]
    if width != head_dim:
        q = np.pad(q, ((0, 0), (0, 0), (0, width - head_dim)))
    if keys.dtype == np.float16:
        keys, values = keys.view(np.uint16), values.view(np.uint16)
    out = np.empty((n_tokens, n_heads, width), np.float32)
    compute = _attention_alone if (pos + n_tokens) * out.size < _WORTH_A_THREAD else _attention
    compute(np.ascontiguousarray(q), keys, values, pos, 1.0 / math.sqrt(head_dim), out)
    return out[:, :, :head_dim].reshape(n_tokens, n_heads * head_dim)
