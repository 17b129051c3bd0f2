"""Activations rounded to int8, a scale per 32 columns: what the integer products multiply."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import memory
from .jit import kernel, parallel
from .packed_tokens import TOKEN_BYTES, TOKENS, pack_tokens
from .rounded_steps import round_eight, round_one


@kernel
def quantize_row(x: int, k: int, rounded: Any) -> None:
    """`reference.quantize_rows` of k numbers, a multiple of 32: a row, or several that follow one another. `x` is their
    address, `rounded` those of the results: codes, scales and sums."""
    codes, scale, total = rounded
    step, steps = 0, k // 32
    while step < steps:
        at = x + step * 128, codes + step * 32, scale + step * 4, total + step * 4
        if step + 8 <= steps:
            round_eight(*at)
            step += 8
        else:
            round_one(*at)
            step += 1


@kernel
def further(rounded: Any, n: int) -> Any:
    """The addresses of rounded activations, n elements (whole steps of 32) later."""
    codes, scale, total = rounded
    return codes + n, scale + n // 8, total + n // 8


@kernel
def round_share(x: Any, codes: Any, scale: Any, total: Any, packed: Any, share: int, shares: int) -> None:
    """`Operations.round_and_pack`: one thread's part of the tokens."""
    n, k = x.shape
    first, last = tokens_share(n, share, shares)
    start = further((memory.address(codes), memory.address(scale), memory.address(total)), first * k)
    quantize_row(memory.address(x) + first * k * 4, (last - first) * k, start)
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
