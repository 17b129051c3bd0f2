"""What goes into the cache: keys and values rounded to its type, at their place; and rope, which comes before it.

Scalar code, for it is linear in the tokens. A cache is given by `Cached.addresses`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import simd
from .cached import FP16, FP32, INT8, Cached
from .jit import kernel, parallel
from .quant import Array

_SETS_WORTH_A_THREAD = 1 << 15  # elements to rotate or to write


@kernel
def remember_head(x: Any, first: int, head_dim: int, width: int, place: Any, at: int, key: bool) -> None:
    """Write one head's key or value, from element `first` of flat x, to position `at` of the cache as a whole.

    The bits of `Cached.write`. Position `at` counts from the first position of the first head of the first layer.
    """
    keys, values, key_scales, value_scales, kind, _ = place
    inverse = np.float32(0)
    if kind == INT8:
        extreme = np.float32(0)
        for i in range(head_dim):
            extreme = max(extreme, abs(x[first + i]))
        if extreme > 0:
            inverse = np.float32(127) / extreme
        simd.store_one(key_scales if key else value_scales, at, extreme / np.float32(127))
    target, step = (at // 16 * 16 * width + at % 16, 16) if key else (at * width, 1)
    array = keys if key else values
    for i in range(head_dim):
        value = x[first + i]
        if kind == FP16:
            simd.store_one_half(array, target + i * step, value)
        elif kind == FP32:
            simd.store_one(array, target + i * step, value)
        else:
            simd.store_one_int8(array, target + i * step, np.float32(np.rint(value * inverse)))


@kernel
def _remember_share(
    keys: Any, values: Any, shape: Any, place: Any, layer: int, pos: int, width: int, first: int, stride: int
) -> None:
    n_tokens, n_kv, head_dim = shape
    for token in range(first, n_tokens, stride):
        for head in range(n_kv):
            at, element = (layer * n_kv + head) * place[5] + pos + token, (token * n_kv + head) * head_dim
            remember_head(keys, element, head_dim, width, place, at, True)
            remember_head(values, element, head_dim, width, place, at, False)


@kernel
def _remember_alone(keys: Any, values: Any, shape: Any, place: Any, layer: int, pos: int, width: int) -> None:
    _remember_share(keys, values, shape, place, layer, pos, width, np.int64(0), np.int64(1))


@parallel
def _remember(keys: Any, values: Any, shape: Any, place: Any, layer: int, pos: int, width: int) -> None:
    for chunk in prange(32):
        _remember_share(keys, values, shape, place, layer, pos, width, np.int64(chunk), np.int64(32))


def remember(cached: Cached, layer: int, pos: int, keys: Array, values: Array) -> None:
    """As `reference.remember`, with the same bits."""
    write = _remember_alone if keys.size < _SETS_WORTH_A_THREAD else _remember
    flat = np.ascontiguousarray(keys).reshape(-1), np.ascontiguousarray(values).reshape(-1)
    write(*flat, keys.shape, cached.addresses, layer, pos, cached.values.shape[3])


@kernel
def rotate(x: Any, at: int, cos: Any, sin: Any, pos: int) -> None:
    """The bits of `reference.rope`, for the head at element `at` of flat x and row `pos` of the tables."""
    half = cos.shape[1]
    for i in range(half):
        first, second = x[at + i], x[at + half + i]
        x[at + i] = first * cos[pos, i] - second * sin[pos, i]
        x[at + half + i] = second * cos[pos, i] + first * sin[pos, i]


@kernel
def _rotate_share(x: Any, shape: Any, cos: Any, sin: Any, first: int, stride: int) -> None:
    n_tokens, n_heads, head_dim = shape
    for token in range(first, n_tokens, stride):
        for head in range(n_heads):
            rotate(x, (token * n_heads + head) * head_dim, cos, sin, token)


@kernel
def _rotate_alone(x: Any, shape: Any, cos: Any, sin: Any) -> None:
    _rotate_share(x, shape, cos, sin, np.int64(0), np.int64(1))


@parallel
def _rotate(x: Any, shape: Any, cos: Any, sin: Any) -> None:
    for chunk in prange(32):
        _rotate_share(x, shape, cos, sin, np.int64(chunk), np.int64(32))


def rope(x: Array, cos: Array, sin: Array) -> None:
    """As `reference.rope`, with the same bits."""
    turn = _rotate_alone if x.size < _SETS_WORTH_A_THREAD else _rotate
    turn(x.reshape(-1), x.shape, np.ascontiguousarray(cos), np.ascontiguousarray(sin))
