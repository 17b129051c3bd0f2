"""The operations of `reference.py` by compiled kernels: shapes, padding, room for results, and whether several threads
are worth it.

Whoever compiled the kernels hands them in (`Kernels`): Numba in this process (`numba_ops`), or a library that was made
before (`ready_ops`). Nothing here knows which.

Every kernel takes arrays, numbers and tuples of numbers, and, where work can be divided, last the number of shares: one
is done by the calling thread, several by the threads together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from . import reference
from .cached import Cached
from .clock import LORA, Clock
from .decoder import Decoder
from .decoder_weights import ACTIVATIONS, DecoderWeights
from .errors import QuantizationError
from .quant import QUARTER_ROWS, STEP, TILE_ROWS, Array, QuantizedTensor
from .records import (
    FORMAT_NUMBER,
    TOKEN_BYTES,
    Pair,
    Sizes,
    View,
    address,
    extra_address,
    inner_bytes,
    pair_record,
)

Run = Callable[..., None]
_SHARES = 32  # of attention and of what goes into the cache: more than threads, so that these end together
# What is worth waking other threads, some 20 us of work
_BYTES_TO_MULTIPLY = 1 << 18  # of weights, times tokens
_NUMBERS_TO_ROUND = 1 << 16
_NUMBERS_TO_CACHE = 1 << 15
_PRODUCTS_TO_ATTEND = 1 << 18


@dataclass(frozen=True)
class Kernels:
    """Compiled kernels by what they do; the files that hold them say with which arguments.

    `tiles`: how many tiles a product takes at a time. `threads()`: how many threads there are now for the calling
    thread; `walkers()`: of these, how many are sure to run at the same time.
    """

    tiles: int
    threads: Callable[[], int]
    walkers: Callable[[], int]
    round: Run
    multiply: Run
    inner: Run
    dense: Run
    add_lora: Run
    embed: Run
    normalize: Run
    gate: Run
    rotate: Run
    remember: Run
    attend: Run
    pack: Run
    walk: Run


Packed = tuple[NDArray[np.int8], Array, NDArray[np.int16], NDArray[np.uint8]]


class PackedActivations(reference.Activations):
    """As `reference.Activations`, packed for the kernels by all threads when it is first needed."""

    __slots__ = ("_packed", "_places", "_round_and_pack")

    def __init__(self, x: Array, round_and_pack: Callable[[Array], Packed]) -> None:
        super().__init__(x)
        self._round_and_pack = round_and_pack
        self._packed: Packed | None = None
        self._places: tuple[int, ...] = ()

    def rounded(self) -> tuple[NDArray[np.int8], Array, NDArray[np.int16]]:
        return self.packed()[:3]

    def packed(self) -> Packed:
        """Codes, scales, sums, and the same in blocks of tokens, as `Operations.round_and_pack`."""
        if self._packed is None:
            self._packed = self._round_and_pack(self.x)
            self._places = tuple(address(array) for array in self._packed)
        return self._packed

    def places(self) -> tuple[int, ...]:
        """Where these four lie."""
        self.packed()
        return self._places


class _Known(NamedTuple):
    """What a product asks of its weight; asking it anew took as long as the products of a short prompt's adapters."""

    format: int
    places: tuple[int, ...]
    sizes: Sizes
    counts: tuple[int, int]
    nbytes: int


_KNOWN: WeakKeyDictionary[QuantizedTensor, _Known] = WeakKeyDictionary()


def _known(weight: QuantizedTensor) -> _Known:
    """Its arrays stay where they are as long as it lives."""
    found = _KNOWN.get(weight)
    if found is None:
        found = _KNOWN[weight] = _ask(weight)
    return found


def _ask(weight: QuantizedTensor) -> _Known:
    n_tiles, n_quarters = weight.n_tiles, weight.n_quarters
    columns, rows = -(-weight.shape[1] // STEP) * STEP, n_tiles * TILE_ROWS + n_quarters * QUARTER_ROWS
    whole = address(weight.codes), address(weight.scale), extra_address(weight)
    return _Known(
        FORMAT_NUMBER[weight.format],
        (*whole, address(weight.quarter_codes), address(weight.quarter_scale)),
        Sizes(weight.tile_lines, weight.n_groups, weight.group_size // STEP, columns, rows),
        (n_tiles, n_quarters),
        weight.nbytes,
    )


_KNOWN_PAIRS: WeakKeyDictionary[Pair, NDArray] = WeakKeyDictionary()


def _known_pair(pair: Pair) -> NDArray:
    """Its PAIR."""
    found = _KNOWN_PAIRS.get(pair)
    if found is None:
        found = _KNOWN_PAIRS[pair] = pair_record(pair)
    return found


@dataclass(eq=False)
class Operations:
    """A compiled back end: its operations, each as the function of its name in `reference`, and what else one has.

    `merging`: the kernels that merge adapters. `number_of_threads` and `use_threads` set how many `kernels.threads()`
    are. `preparing_seconds()`: what compiling and loading kernels has taken so far.
    """

    NAME: str
    INSTRUCTIONS: str
    kernels: Kernels
    merging: Any
    number_of_threads: Callable[..., int]
    use_threads: Callable[[int | None], AbstractContextManager[None]]
    preparing_seconds: Callable[[], float]

    def Activations(self, x: Array) -> PackedActivations:
        return PackedActivations(x, self.round_and_pack)

    def quantize_rows(self, x: Array) -> tuple[NDArray[np.int8], Array, NDArray[np.int16]]:
        """The same codes, bit for bit."""
        return self.round_and_pack(x)[:3]

    def round_and_pack(self, x: Array) -> Packed:
        """As `reference.quantize_rows`, and the same tokens packed for products with several."""
        n, k = x.shape
        steps = -(-k // STEP)
        if k != steps * STEP:  # np.pad takes twenty times as long
            padded = np.zeros((n, steps * STEP), np.float32)
            padded[:, :k] = x
            x = padded
        codes = np.empty((n, steps * STEP), np.int8)
        scale, total = np.empty((n, steps), np.float32), np.empty((n, 2 * steps), np.int16)
        shares = 1 if x.size < _NUMBERS_TO_ROUND else self.kernels.threads()
        packed = np.empty((n - n % 2) * steps * TOKEN_BYTES, np.uint8)
        self.kernels.round(np.ascontiguousarray(x), codes, scale, total, packed, shares)
        return codes, scale, total, packed

    def matmul(
        self,
        activations: PackedActivations,
        weight: QuantizedTensor | Array,
        bias: Array | None = None,
        pair: Pair | None = None,
        clock: Clock | None = None,
    ) -> Array:
        """As `reference.matmul`. The kernels add what is added, where the rows of W fill whole tiles."""
        if isinstance(weight, np.ndarray) or weight.shape[0] % TILE_ROWS or weight.n_quarters:
            out = self._plain_product(activations, weight)
            add = reference.add_to_product
            add(out, activations, bias, pair, clock, self._plain_product, self.Activations)
            return out
        if pair is None:
            return self._packed_product(activations, weight, (address(bias), 0, 0, 0, 0))
        activations.packed()  # where that is still to be done, the product and not the pair is charged with it
        start, timed = perf_counter_ns(), clock is not None and clock.running
        inner, width = self._inner_product(activations, pair)
        spent = np.zeros(1, np.int64) if timed else None
        if clock is not None:
            clock.charge(LORA, perf_counter_ns() - start)
        added = (address(bias), address(_known_pair(pair)), address(inner), width, address(spent))
        out = self._packed_product(activations, weight, added)
        if clock is not None and spent is not None:
            clock.charge(LORA, int(spent[0]))
        return out

    def _plain_product(self, activations: PackedActivations, weight: QuantizedTensor | Array) -> Array:
        if isinstance(weight, np.ndarray):
            return self._dense_product(activations.x, weight)
        out = self._packed_product(activations, weight, (0, 0, 0, 0, 0))
        d = weight.shape[0]
        return out if out.shape[1] == d else np.ascontiguousarray(out[:, :d])

    def _packed_product(self, activations: PackedActivations, weight: QuantizedTensor, added: Any) -> Array:
        """added: addresses of a bias, a PAIR, what `_inner_product` left and its width, and where the time goes."""
        x, n, known, shares = activations.places(), len(activations.x), _known(weight), 1
        out = np.empty((n, known.sizes.d), np.float32)
        if known.nbytes * n >= _BYTES_TO_MULTIPLY:
            pairs = -(-known.counts[0] // self.kernels.tiles)
            shares = max(min(pairs, self.kernels.threads()), 1)
        format, places, sizes, counts, _ = known
        self.kernels.multiply(format, places, sizes, counts, n, x, *added, address(out), shares)
        return out

    def _inner_product(self, activations: PackedActivations, pair: Pair) -> tuple[NDArray[np.uint8] | None, int]:
        """A* x of the tokens, as the product that takes it wants it, and its columns in whole steps."""
        if pair.a is None:
            return None, 0
        (rank, k), x, n = pair.a.shape, activations.places(), len(activations.x)
        width = -(-rank // STEP) * STEP
        inner = np.empty(inner_bytes(n, width), np.uint8)
        shares = 1 if rank * k * n < _BYTES_TO_MULTIPLY else self.kernels.threads()
        self.kernels.inner(address(_known_pair(pair)), -(-k // STEP) * STEP, n, x, address(inner), shares)
        return inner, width

    def _dense_product(self, x: Array, weight: Array) -> Array:
        out = np.empty((len(x), len(weight)), np.float32)
        x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
        shares = self.kernels.threads()
        self.kernels.dense(x.reshape(-1), weight.reshape(-1), out.reshape(-1), len(x), *weight.shape, shares)
        return out

    def embed(self, weight: QuantizedTensor | Array, ids: NDArray[np.integer]) -> Array:
        """The same bits."""
        if isinstance(weight, np.ndarray):
            return reference.embed(weight, ids)
        of, k = _known(weight), weight.shape[1]
        out = np.empty((len(ids), of.sizes.k), np.float32)
        self.kernels.embed(of.format, of.places, of.sizes, np.ascontiguousarray(ids, np.int64), out)
        return out if out.shape[1] == k else np.ascontiguousarray(out[:, :k])

    def add_lora(self, x: Array, a: Array, b: Array, out: Array) -> None:
        """Fastest when b is in Fortran order (the engine's pairs are)."""
        rank, n = len(a), len(x)
        if rank == 0:
            return
        flat = (np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(a).reshape(-1))
        transposed = np.ascontiguousarray(b.T).reshape(-1)
        shares = min(self.kernels.threads(), n) if n > 1 else 1  # one is too little work to wake another thread
        self.kernels.add_lora(*flat, transposed, out.reshape(-1), rank, n, shares)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """For x (T, D)."""
        out = np.empty_like(x)
        self.kernels.normalize(x, weight, weight, eps, False, out)
        return out

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """For x (T, D)."""
        out = np.empty_like(x)
        self.kernels.normalize(x, weight, bias, eps, True, out)
        return out

    def gated(self, gate: Array, up: Array, activation: str = "silu") -> Array:
        self.kernels.gate(ACTIVATIONS.index(activation), gate.reshape(-1), up.reshape(-1))
        return gate

    def rope(self, x: Array, cos: Array, sin: Array) -> None:
        """The same bits."""
        shares = 1 if x.size < _NUMBERS_TO_CACHE else _SHARES
        flat, tables = x.reshape(-1), (np.ascontiguousarray(cos), np.ascontiguousarray(sin))
        self.kernels.rotate(flat, x.shape, *tables, shares)

    def remember(self, cached: Cached, layer: int, pos: int, keys: Array, values: Array) -> None:
        """The same bits."""
        flat = np.ascontiguousarray(keys).reshape(-1), np.ascontiguousarray(values).reshape(-1)
        shares = 1 if keys.size < _NUMBERS_TO_CACHE else _SHARES
        self.kernels.remember(*flat, keys.shape, cached.addresses, layer, pos, cached.values.shape[3], shares)

    def attention(
        self, q: Array, cached: Cached, layer: int, pos: int, scale: float | None = None, window: int = 0
    ) -> Array:
        n_tokens, n_heads, head_dim = q.shape
        n_kv, width = cached.values.shape[1], cached.values.shape[3]
        out = np.empty((n_tokens, n_heads * head_dim), np.float32)
        flat, shape = np.ascontiguousarray(q).reshape(-1), (n_tokens, n_heads, n_kv)
        view = View(pos, head_dim, width, 1.0 / math.sqrt(scale or head_dim), window)
        shares = 1 if (pos + n_tokens) * out.size < _PRODUCTS_TO_ATTEND else _SHARES
        self.kernels.attend(flat, out.reshape(-1), shape, view, cached.addresses, layer, shares)
        return out

    def pack_int8(self, w: Array, factor: float = 1.0) -> QuantizedTensor:
        """Without padding that no product needs: see QuantizedTensor on adapters.

        The rank is the number of rows of A* and of columns of B*, which seldom fills whole tiles or steps. More than
        twelve rows after the last whole tile make another one.
        """
        d, k = w.shape
        n_tiles, n_quarters = d // TILE_ROWS, -(-(d % TILE_ROWS) // QUARTER_ROWS)
        if n_quarters == TILE_ROWS // QUARTER_ROWS:
            n_tiles, n_quarters = n_tiles + 1, 0
        n_groups, quads = -(-k // STEP), -(-k // 4)
        memory = np.zeros((n_tiles * quads + 7) * 64, np.uint8)  # kernels read whole steps, past the last tile too
        codes = memory[: n_tiles * quads * 64].reshape(n_tiles, quads, 64)
        scale = np.zeros((n_tiles, n_groups, TILE_ROWS), np.float16)
        quarter_codes = np.zeros((n_quarters, 2 * n_groups, 64), np.uint8)
        quarter_scale = np.zeros((n_quarters, n_groups, QUARTER_ROWS), np.float16)
        finite = np.ones(n_tiles + n_quarters, np.bool_)
        for start, bits, own_codes, own_scale, own_finite in (
            (0, 0, codes, scale, finite[:n_tiles]),
            (n_tiles * TILE_ROWS, 2, quarter_codes, quarter_scale, finite[n_tiles:]),
        ):
            if len(own_codes):
                places = own_codes.view(np.int32), own_scale.view(np.uint16), own_finite
                shares = min(self.kernels.threads(), len(own_codes))
                self.kernels.pack(w, np.float32(factor), start, bits, *places, shares)
        if not finite.all():
            raise QuantizationError("a weight is NaN or infinite; quantization needs finite values")
        whole = codes.reshape(n_tiles, 1, -1) if n_tiles else np.zeros((0, 1, quads * 64), np.uint8)
        packed = QuantizedTensor("int8", (d, k), STEP, whole, scale)
        return replace(packed, quarter_codes=quarter_codes, quarter_scale=quarter_scale) if n_quarters else packed

    def build_decoder(self, weights: DecoderWeights) -> Decoder | None:
        """A few tokens through all layers in one call, where the weights allow it; else None."""
        return Decoder.build(weights, self.kernels.walk, self.kernels.walkers)
