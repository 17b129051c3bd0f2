"""Products with packed weights: activations rounded to int8, integer dot products, float32 sums.

Here tokens are cut into blocks and tiles into the shares of threads; the loops are in packed_kernels.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numba import prange, types
from numpy.typing import NDArray

from . import blocks, reference, simd
from .blocks import TILES, TOKEN_BYTES, TOKENS
from .function_pointer import by_address
from .jit import kernel, parallel
from .packed_kernels import (
    AHEAD,
    FORMAT_NUMBER,
    INT8_OFFSET,
    SIZES,
    ZERO,
    Sizes,
    block,
    int8_line,
    quarter_tiles,
    vector,
)
from .quant import QUARTER_ROWS, STEP, TILE_ROWS, Array, QuantizedTensor
from .rounding import further, pack_tokens, round_and_pack
from .simd import dot4_int8, fma, load, load_half, mul, splat, splat_int, store

_CHUNK_BYTES = 1 << 18  # of packed tokens at a time: a quarter of a usual second-level cache
WORTH_A_THREAD = 1 << 18  # bytes of weights times tokens that are worth waking other threads (20 us of work)


@kernel
def fitting_tokens(steps: int) -> int:
    """How many packed tokens, which are read once per pair of tiles, stay in the second-level cache meanwhile."""
    return max(_CHUNK_BYTES // (max(steps, 1) * TOKEN_BYTES) // TOKENS, 1) * TOKENS


@kernel
def multiply(
    format: int,
    codes: int,
    scale: int,
    extra: int,
    sizes: Any,
    x: Any,
    first: int,
    last: int,
    out: int,
    tiles: Any,
) -> None:
    """Tokens [first, last) of x against a range of tiles, into the same rows of `out`.

    `format` is one of FORMAT_NUMBER. Arrays are given by their addresses, because passing a Numba array costs seven to
    nine words a call: `codes`, `scale`, `extra` (`extra_address`), x = codes, scales and sums of the rounded
    activations, and `out`, whose rows are d elements. sizes as in `packed_kernels`.

    Trap: Numba specializes on literal integers. A number written in a call, or in a tuple that is passed, is a part of
    its type and compiles `multiply` anew; np.int64(0) does not.
    """
    k, d = sizes.k, sizes.d
    steps = k // 32
    if last - first == 1:
        xs, scales, totals = further(x, first * k)
        vector(format, (codes, scale, extra, sizes, xs, scales, totals, out + first * d * 4, tiles))
        return
    most = min(fitting_tokens(steps), (last - first + TOKENS - 1) // TOKENS * TOKENS)
    buffer = np.empty(most * steps * TOKEN_BYTES, np.uint8)
    while first < last:
        n = min(most, last - first)
        # In the loop, or Numba gives the buffer back before it is used: an address keeps no array alive
        packed = blocks.address(buffer)
        here = further(x, first * k)
        pack_tokens(here, n, k, packed)
        multiply_packed(format, codes, scale, extra, sizes, here, packed, n, out + first * d * 4, tiles)
        first += n


@kernel
def multiply_packed(
    format: int,
    codes: int,
    scale: int,
    extra: int,
    sizes: Any,
    x: Any,
    packed: int,
    n: int,
    out: int,
    tiles: Any,
) -> None:
    """n tokens, at x and as `pack_tokens` left them, against a range of tiles, TILES at a time."""
    k, d = sizes.k, sizes.d
    token_bytes, whole = k // 32 * TOKEN_BYTES, n // TOKENS * TOKENS
    for tile in range(tiles[0], tiles[1], TILES):
        beside = min(TILES, tiles[1] - tile) - 1  # an odd tile at the end is its own second
        token = 0
        while token < n - n % 2:
            here, there = packed + token * token_bytes, out + token * d * 4
            if TOKENS == 4 and token < whole:
                block(format, (codes, scale, extra, sizes, here, 4, there, tile, beside, blocks.zeros4()))
                token += 4
            else:
                block(format, (codes, scale, extra, sizes, here, 2, there, tile, beside, blocks.zeros2()))
                token += 2
        if n % 2:
            xs, scales, totals = further(x, (n - 1) * k)
            own = (tile, tile + beside + 1)
            vector(format, (codes, scale, extra, sizes, xs, scales, totals, out + (n - 1) * d * 4, own))


@kernel
def multiply_quarters(
    codes: int,
    scale: int,
    k: int,
    d: int,
    x: Any,
    first: int,
    last: int,
    out: int,
    column: int,
    tiles: Any,
) -> None:
    """As `multiply`, for quarter tiles; the sums of the first go to columns [column, column + 4) of `out`.

    Token by token: they are the few last rows of an adapter's A*.
    """
    for token in range(first, last):
        here, scales, _ = further(x, token * k)
        quarter_tiles(codes, scale, k // 32, here, scales, out + (token * d + column) * 4, tiles)


@kernel
def add_int8(codes: int, scale: int, quads: int, x: Any, out: int, tiles: Any) -> None:
    """One token, as `multiply`, added to what `out` holds: an adapter's B*, whose tiles have `quads` column quads."""
    n_groups = (quads + 7) // 8
    xs, scales, totals = x
    for tile in range(tiles[0], tiles[1]):
        acc = splat(np.float32(0))
        for step in range(n_groups):
            at = (tile * quads + step * 8) * 64
            dots = splat_int(np.int32(-INT8_OFFSET) * blocks.read_int(totals + step * 4))
            for quad in range(min(8, quads - step * 8)):
                simd.prefetch_once(codes, at + quad * 64 + AHEAD)
                dots = dot4_int8(dots, int8_line(codes, at + quad * 64), xs, step * 32 + quad * 4)
            group, factor = (tile * n_groups + step) * 16, blocks.read_float(scales + step * 4)
            acc = fma(simd.to_float(dots), mul(load_half(scale, group), splat(factor)), acc)
        store(out, tile * 16, simd.add(load(out, tile * 16), acc))


@kernel
def _multiply_share(
    format: int,
    places: Any,
    sizes: Any,
    counts: Any,
    x: Any,
    x_scale: Any,
    x_total: Any,
    packed: Any,
    out: Any,
    share: int,
    shares: int,
) -> None:
    """The work of one thread: a range of tiles, and of the tokens for quarter tiles. counts: of both."""
    codes, scale, extra, quarter_codes, quarter_scale = places
    n_tiles, n_quarters = counts
    pairs, n = (n_tiles + TILES - 1) // TILES, len(out)
    rounded, target = (blocks.address(x), blocks.address(x_scale), blocks.address(x_total)), blocks.address(out)
    first, last = pairs * share // shares * TILES, pairs * (share + 1) // shares * TILES
    tiles = (first, min(last, n_tiles))
    k, d, column = sizes.k, sizes.d, n_tiles * 16
    if n == 1:
        xs, scales, totals = rounded
        vector(format, (codes, scale, extra, sizes, xs, scales, totals, target, tiles))
    at, most, of_tokens = 0, fitting_tokens(k // 32), blocks.address(packed)
    while at < n > 1:
        here, there = further(rounded, at * k), of_tokens + at * (k // 32) * TOKEN_BYTES
        multiply_packed(format, codes, scale, extra, sizes, here, there, min(most, n - at), target + at * d * 4, tiles)
        at += most
    begin, end, quarters = n * share // shares, n * (share + 1) // shares, (ZERO, n_quarters)
    multiply_quarters(quarter_codes, quarter_scale, k, d, rounded, begin, end, target, column, quarters)


call_share, share_code = by_address(
    _multiply_share,
    *(types.int64, types.UniTuple(types.int64, 5), SIZES, types.UniTuple(types.int64, 2)),
    *(types.int8[::1], types.float32[:, ::1], types.int32[:, ::1], types.uint8[::1], types.float32[:, ::1]),
    *(types.int64, types.int64),
)


@parallel
def _multiply(
    code: int,
    format: int,
    places: Any,
    sizes: Any,
    counts: Any,
    x: Any,
    x_scale: Any,
    x_total: Any,
    packed: Any,
    out: Any,
    shares: int,
) -> None:
    for share in prange(shares):
        call_share(code, format, places, sizes, counts, x, x_scale, x_total, packed, out, np.int64(share), shares)


def extra_address(weight: QuantizedTensor) -> int:
    """Where the minima or the rows' scales lie, 0 for a format that has neither."""
    return address(weight.minimum if weight.row_scale is None else weight.row_scale)


def address(array: NDArray | None) -> int:
    """Where an array lies, 0 for what is not there."""
    return 0 if array is None or array.size == 0 else int(array.ctypes.data)


class Known(NamedTuple):
    """What a product asks of its weight; asking it anew took as long as the products of a short prompt's adapters."""

    format: int
    places: tuple[int, ...]
    sizes: Sizes
    counts: tuple[int, int]
    nbytes: int


_KNOWN: WeakKeyDictionary[QuantizedTensor, Known] = WeakKeyDictionary()


def known(weight: QuantizedTensor) -> Known:
    """Its arrays stay where they are as long as it lives."""
    found = _KNOWN.get(weight)
    if found is None:
        found = _KNOWN[weight] = _ask(weight)
    return found


def _ask(weight: QuantizedTensor) -> Known:
    n_tiles, n_quarters = weight.n_tiles, weight.n_quarters
    columns, rows = -(-weight.shape[1] // STEP) * STEP, n_tiles * TILE_ROWS + n_quarters * QUARTER_ROWS
    whole = address(weight.codes), address(weight.scale), extra_address(weight)
    return Known(
        FORMAT_NUMBER[weight.format],
        (*whole, address(weight.quarter_codes), address(weight.quarter_scale)),
        Sizes(weight.tile_lines, weight.n_groups, weight.group_size // STEP, columns, rows),
        (n_tiles, n_quarters),
        weight.nbytes,
    )


class Activations(reference.Activations):
    """As `reference.Activations`, packed for the kernels by all threads when it is first needed."""

    __slots__ = ("_packed",)

    def __init__(self, x: Array) -> None:
        super().__init__(x)
        self._packed: NDArray[np.uint8] | None = None

    def rounded(self) -> tuple[NDArray[np.int8], Array, NDArray[np.int32]]:
        return self.packed()[:3]

    def packed(self) -> tuple[NDArray[np.int8], Array, NDArray[np.int32], NDArray[np.uint8]]:
        """Codes, scales, sums, and the same in blocks of tokens, as `rounding.round_and_pack`."""
        if self._rounded is None or self._packed is None:
            codes, scale, total, self._packed = round_and_pack(self.x)
            self._rounded = codes, scale, total
        return *self._rounded, self._packed


def packed_product(activations: Activations, weight: QuantizedTensor) -> Array:
    """x (T, k) times a packed weight (d, k), transposed: float32 (T, d)."""
    x, x_scale, x_total, packed = activations.packed()
    of = known(weight)
    sizes, n_tiles = of.sizes, of.counts[0]
    out = np.empty((len(x), sizes.d), np.float32)
    arguments = (of.format, of.places, sizes, of.counts, x.reshape(-1), x_scale, x_total, packed, out)
    if of.nbytes * len(x) < WORTH_A_THREAD:
        _multiply_share(*arguments, 0, 1)
    else:
        _multiply(share_code(), *arguments, max(min((n_tiles + TILES - 1) // TILES, numba.get_num_threads()), 1))
    d = weight.shape[0]
    return out if out.shape[1] == d else np.ascontiguousarray(out[:, :d])
