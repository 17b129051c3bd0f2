"""Activations rounded to int8, a scale per 32 columns: what the integer products multiply, by token or in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import blocks, memory, simd
from .blocks import TOKEN_BYTES, TOKENS
from .jit import kernel, parallel
from .simd import mul, splat


@kernel
def quantize_row(x: int, k: int, rounded: Any) -> None:
    """One row of `reference.quantize_rows`, k a multiple of 32. `x` is its address, `rounded` those of the results:
    codes, scales and sums."""
    codes, scale, total = rounded
    for step in range(k // 32):
        at = step * 32
        a, b = simd.load(x, at), simd.load(x, at + 16)
        extreme = simd.extreme(a, b)
        inverse = np.float32(0.0)
        if extreme > 0:
            inverse = np.float32(127.0) / extreme
        a, b = simd.round_even(mul(a, splat(inverse))), simd.round_even(mul(b, splat(inverse)))
        simd.store_int8(codes, at, a)
        simd.store_int8(codes, at + 16, b)
        simd.store_one(scale, step, extreme / np.float32(127.0))
        memory.write_int(total + step * 4, simd.sums_whole(a, b))


@kernel
def further(rounded: Any, n: int) -> Any:
    """The addresses of rounded activations, n elements (whole steps of 32) later."""
    codes, scale, total = rounded
    return codes + n, scale + n // 8, total + n // 8


@kernel
def pack_tokens(rounded: Any, n: int, k: int, packed: int) -> None:
    """n tokens as `blocks` wants them. An odd one is left out."""
    codes, scale, total = rounded
    steps, stride = k // 32, k // 32 * 4
    token = 0
    while token < n - n % 2:
        width = blocks.tokens_of_block(n - token)
        codes_of, scale_of, total_of = codes + token * k, scale + token * stride, total + token * stride
        blocks.pack(codes_of, scale_of, total_of, k, stride, steps, width, packed + token * steps * TOKEN_BYTES)
        token += width


@kernel
def round_share(x: Any, codes: Any, scale: Any, total: Any, packed: Any, share: int, shares: int) -> None:
    """`Operations.round_and_pack`: one thread's part of the tokens."""
    n, k = x.shape
    first, last = tokens_share(n, share, shares)
    start = further((memory.address(codes), memory.address(scale), memory.address(total)), first * k)
    for row in range(last - first):
        quantize_row(memory.address(x) + (first + row) * k * 4, k, further(start, row * k))
    pack_tokens(start, last - first, k, memory.address(packed) + first * (k // 32) * TOKEN_BYTES)


@kernel
def tokens_share(n: int, share: int, shares: int) -> Any:
    """A part of n tokens that begins with a whole block."""
    n_blocks = (n + TOKENS - 1) // TOKENS
    return n_blocks * share // shares * TOKENS, min(n_blocks * (share + 1) // shares * TOKENS, n)


@parallel
def round_together(x: Any, codes: Any, scale: Any, total: Any, packed: Any, shares: int) -> None:
    for share in prange(shares):
        round_share(x, codes, scale, total, packed, np.int64(share), shares)
