"""What goes into the cache: keys and values rounded to its type, at their place; and rope, which keys take first.

Scalar code, for it is linear in the tokens. A cache is given by `Cached.addresses`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import simd
from .cached import FP16, INT8, KEY_GROUP, LARGEST, PAIRS, TINY
from .jit import kernel, parallel

KEY, VALUE = np.True_, np.False_  # for `remember_head`; Python's would be two types, and it compiled twice


@kernel
def _saturated(value: Any) -> Any:
    """Within what float16 holds; NaN stays."""
    if value > LARGEST:
        return LARGEST
    if value < -LARGEST:
        return -LARGEST
    return value


@kernel
def _larger(extreme: Any, value: Any) -> Any:
    """The larger magnitude; NaN once one was."""
    size = abs(_saturated(value))
    return size if size > extreme or size != size else extreme


@kernel
def _store_code(array: Any, at: int, value: Any, inverse: Any) -> None:
    code = np.float32(0)
    if inverse > 0:
        code = min(max(np.float32(np.rint(_saturated(value) * inverse)), np.float32(-127)), np.float32(127))
    simd.store_one_int8(array, at, code)


@kernel
def _inverse(scale: Any) -> Any:
    return np.float32(1) / scale if scale >= TINY else np.float32(0)


@kernel
def _remember_codes(x: Any, first: int, head_dim: int, width: int, place: Any, at: int, key: bool) -> None:
    """`remember_head` for int8."""
    keys, values, key_scales, value_scales = place.keys, place.values, place.key_scales, place.value_scales
    if not key:
        extreme = np.float32(0)
        for i in range(first, first + head_dim):
            extreme = _larger(extreme, x[i])
        scale = extreme / np.float32(127)
        simd.store_one(value_scales, at, scale)
        inverse = _inverse(scale)
        for i in range(head_dim):
            _store_code(values, at * width + i, x[first + i], inverse)
        return
    tile, lane, half = at // 16, at % 16, (head_dim + 1) // 2
    for pair in range(0, half, PAIRS):
        extreme = np.float32(0)
        for i in range(pair, min(pair + PAIRS, half)):
            extreme = _larger(extreme, x[first + i])
            if half + i < head_dim:
                extreme = _larger(extreme, x[first + half + i])
        group = pair // PAIRS
        scale_at = (tile * (width // KEY_GROUP) + group) * 16 + lane
        simd.store_one_half(key_scales, scale_at, extreme / np.float32(127))
        inverse = _inverse(simd.load_one_half(key_scales, scale_at))
        for i in range(pair, min(pair + PAIRS, half)):
            target = (tile * width + group * KEY_GROUP + i - pair) * 16 + lane
            _store_code(keys, target, x[first + i], inverse)
            if half + i < head_dim:
                _store_code(keys, target + PAIRS * 16, x[first + half + i], inverse)


@kernel
def remember_head(x: Any, first: int, head_dim: int, width: int, place: Any, at: int, key: bool) -> None:
    """Write one head's key or value, from element `first` of flat x, to position `at` of the cache as a whole.

    The bits of `Cached.write`. Position `at` counts from the first position of the first head of the first layer.
    """
    if place.kind == INT8:
        _remember_codes(x, first, head_dim, width, place, at, key)
        return
    target, step = (at // 16 * 16 * width + at % 16, 16) if key else (at * width, 1)
    array = place.keys if key else place.values
    for i in range(head_dim):
        value = x[first + i]
        if place.kind == FP16:
            simd.store_one_half(array, target + i * step, _saturated(value))
        else:
            simd.store_one(array, target + i * step, value)


@kernel
def remember_share(
    keys: Any, values: Any, shape: Any, place: Any, layer: int, pos: int, width: int, first: int, stride: int
) -> None:
    n_tokens, n_kv, head_dim = shape
    for token in range(first, n_tokens, stride):
        for head in range(n_kv):
            at, element = (layer * n_kv + head) * place.capacity + pos + token, (token * n_kv + head) * head_dim
            remember_head(keys, element, head_dim, width, place, at, KEY)
            remember_head(values, element, head_dim, width, place, at, VALUE)


@parallel
def remember_together(
    keys: Any, values: Any, shape: Any, place: Any, layer: int, pos: int, width: int, shares: int
) -> None:
    for share in prange(shares):
        remember_share(keys, values, shape, place, layer, pos, width, np.int64(share), shares)


@kernel
def rotate(x: Any, at: int, cos: Any, sin: Any, pos: int) -> None:
    """The bits of `reference.rope`, for the head at element `at` of flat x and row `pos` of the tables."""
    half = cos.shape[1]
    for i in range(half):
        first, second = x[at + i], x[at + half + i]
        x[at + i] = first * cos[pos, i] - second * sin[pos, i]
        x[at + half + i] = second * cos[pos, i] + first * sin[pos, i]


@kernel
def rotate_share(x: Any, shape: Any, cos: Any, sin: Any, first: int, stride: int) -> None:
    n_tokens, n_heads, head_dim = shape
    for token in range(first, n_tokens, stride):
        for head in range(n_heads):
            rotate(x, (token * n_heads + head) * head_dim, cos, sin, token)


@parallel
def rotate_together(x: Any, shape: Any, cos: Any, sin: Any, shares: int) -> None:
    for share in prange(shares):
        rotate_share(x, shape, cos, sin, np.int64(share), shares)
