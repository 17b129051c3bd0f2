"""One step through the whole decoder in one compiled call: what `model.py` says in Python, for speed.

A step is a few tokens, each with its own place in a cache and its own adapter: the next token of one sequence, the
next tokens of several, or a guess of several tokens of one. The logits have the same bits as from the single
operations. What the decoder does not take (fp32 weights, an fp32 cache, odd sizes, many tokens) is left to those;
`Decoder.build` returns None where it can take nothing. The kernels are in decoder_walk.py.

Trap: the threads wait for each other, so all must run at the same time. OpenMP starts them all; a work-stealing layer
might not, and then the decoder runs on one thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numpy.typing import NDArray

from .clock import Clock
from .decoder_walk import AFFINE, INT4, INT8, LINEAR, PAIR, ROW, alone, together
from .decoder_weights import DecoderWeights, Pair, Place
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor

_FORMATS = {"int8": INT8, "int4": INT4, "int4_affine": AFFINE}


class Decoder:
    """Runs steps of up to MAX_ROWS tokens. Not reentrant by itself: a lock serializes the threads of a server.

    Make one with `Decoder.build`. It holds the weights it was given, and their addresses.
    """

    MAX_ROWS = 16

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights
        self._lock = threading.Lock()
        self._table = _describe(weights)
        self._norm_biases = np.zeros((0, 1), np.float32) if weights.norm_biases is None else weights.norm_biases
        self._pairs = np.zeros((1, len(weights.layers), 7), PAIR)  # slot 0: no adapter
        self._slots: WeakKeyDictionary[Hashable, int] = WeakKeyDictionary()
        self._scratch = _Scratch(weights, self._table, 0, 0, 0)

    @classmethod
    def build(cls, weights: DecoderWeights) -> Decoder | None:
        """None where a weight is float32 or a size does not fill whole registers."""
        linears = [w for layer in weights.layers for w, _ in layer] + [weights.head]
        packed = all(isinstance(w, QuantizedTensor) for w in linears)
        whole = all(w.shape[1] % STEP == 0 and w.shape[0] % TILE_ROWS == 0 for w in linears[:-1])
        if not packed or not whole or weights.head_dim % 16:
            return None
        return cls(weights)

    def step(
        self,
        x: Array,
        places: Sequence[Place],
        cos: Array,
        sin: Array,
        clock: Clock,
        *,
        first_logit: int = 0,
    ) -> Array:
        """Logits (N - first_logit, V) of tokens [first_logit, N) whose embeddings are x (N, D), N <= MAX_ROWS.

        Row i has its keys and values written at `places[i]` before any row attends, so rows may follow one another in
        one cache. cos, sin float32 (N, half) are their rotations.
        """
        n = len(x)
        with self._lock:
            slots = [0 if p.adapter is None else self._slot(p.adapter, p.pairs) for p in places]
            adapted = any(slots)
            rank = int(self._pairs[sorted(set(slots))]["padded"].max()) if adapted else 0
            n_threads = _threads()
            if not self._scratch.serves(n_threads, n, rank):
                self._scratch = _Scratch(self._weights, self._table, n_threads, n, rank)
            scratch, w = self._scratch, self._weights
            rows = scratch.rows[:n]
            for i, (place, slot) in enumerate(zip(places, slots, strict=True)):
                keys, values = place.keys, place.values
                rows[i] = (keys.ctypes.data, values.ctypes.data, keys.shape[2], place.pos, slot)
            shared = scratch.shared(n)
            shared[0][:] = x
            logits = np.empty((n - first_logit, int(self._table[-1, 0]["tiles"]) * TILE_ROWS), np.float32)
            run = alone if n_threads == 1 else together
            run(
                n_threads,
                scratch.words,
                (self._table, w.norms, self._norm_biases),
                self._pairs,
                rows,
                shared,
                scratch.own,
                (cos, sin),
                (w.n_heads, w.n_kv_heads, w.head_dim, first_logit, adapted),
                (w.eps, 1.0 / math.sqrt(w.head_dim)),
                clock.counters,
                logits,
            )
        return logits[:, : w.head.shape[0]]

    def _slot(self, adapter: Hashable, pairs: Callable[[], Sequence[Pair | None]]) -> int:
        """Where the addresses of an adapter's matrices stand; an adapter that nobody has any more frees its place."""
        slot = self._slots.get(adapter)
        if slot is None:
            free = set(range(1, len(self._pairs))) - set(self._slots.values())
            if not free:
                free = {len(self._pairs)}
                self._pairs = np.concatenate([self._pairs, np.zeros_like(self._pairs)])
            slot = min(free)
            self._pairs[slot] = _describe_pairs(pairs(), self._pairs.shape[1])
            self._slots[adapter] = slot
        return slot


class _Scratch:
    """Buffers of a step, made again only when they have to grow."""

    def __init__(self, weights: DecoderWeights, table: NDArray, n_threads: int, n: int, rank: int) -> None:
        self._served = (n_threads, n, rank)
        hidden_size, kv = weights.norms.shape[1], weights.n_kv_heads * weights.head_dim
        heads, ffn = weights.n_heads * weights.head_dim, int(table[:-1, 4]["tiles"].max(initial=0)) * TILE_ROWS
        widest = int(table["inputs"].max())

        def floats(*shape: int) -> Array:
            return np.zeros(shape, np.float32)

        self.words = np.zeros(16, np.int64)
        self.rows = np.zeros(n, ROW)
        # x, q, k, v, gate, up, what o_proj and down_proj give, what attention gives; then the adapters' A* x
        sizes = (hidden_size, heads, kv, kv, ffn, ffn, hidden_size, heads)
        self._shared = tuple(floats(n, size) for size in sizes)
        self._inner = floats(3, n, max(rank, 1))
        self._views: dict[int, tuple[Array, ...]] = {}
        steps, inner_steps = widest // STEP, max(rank // STEP, 1)
        self.own = (
            floats(n_threads, n, hidden_size),
            np.zeros((n_threads, n * widest), np.int8),
            floats(n_threads, n, steps),
            np.zeros((n_threads, n, steps), np.int32),
            np.zeros((n_threads, inner_steps * STEP), np.int8),
            floats(n_threads, inner_steps),
            np.zeros((n_threads, inner_steps), np.int32),
        )

    def serves(self, n_threads: int, n: int, rank: int) -> bool:
        threads, most, widest = self._served
        return threads == n_threads and n <= most and rank <= widest

    def shared(self, n: int) -> tuple[Array, ...]:
        """The buffers that all threads write to, cut to n rows."""
        if n not in self._views:
            self._views[n] = (*(buffer[:n] for buffer in self._shared), self._inner)
        return self._views[n]


def _describe(weights: DecoderWeights) -> NDArray:
    """The table of linear modules (layers + 1, 7), the head in the last row."""
    table = np.zeros((len(weights.layers) + 1, 7), LINEAR)
    for i, row in enumerate([*weights.layers, [(weights.head, None)]]):
        for j, (weight, bias) in enumerate(row):
            assert isinstance(weight, QuantizedTensor)
            table[i, j] = (
                weight.codes.ctypes.data,
                weight.scale.ctypes.data,
                _address(weight.minimum),
                _address(bias),
                _FORMATS[weight.format],
                weight.n_tiles,
                weight.codes.shape[1],
                weight.n_groups,
                weight.group_size // STEP,
                weight.shape[1],
            )
    return table


def _describe_pairs(pairs: Sequence[Pair | None], n_layers: int) -> NDArray:
    table = np.zeros((n_layers, 7), PAIR)
    for i, pair in enumerate(pairs):
        if pair is None:
            continue
        place = table[i // 7, i % 7 : i % 7 + 1]
        place["bias"] = _address(pair.bias)
        if pair.a is not None:
            assert isinstance(pair.a, QuantizedTensor) and isinstance(pair.b, QuantizedTensor)
            place["a_codes"], place["a_scale"] = pair.a.codes.ctypes.data, pair.a.scale.ctypes.data
            place["b_codes"], place["b_scale"] = pair.b.codes.ctypes.data, pair.b.scale.ctypes.data
            place["rank"], place["padded"] = pair.a.shape[0], pair.b.codes.shape[1] * STEP
            place["a_tiles"], place["steps"] = pair.a.n_tiles, pair.a.codes.shape[1]
            place["scaling"] = pair.scaling
    return table


def _address(array: NDArray | None) -> int:
    return 0 if array is None else array.ctypes.data


def _threads() -> int:
    """Threads that are sure to run at the same time: all of OpenMP's, one of any other layer's."""
    try:
        return int(numba.get_num_threads()) if numba.threading_layer() == "omp" else 1
    except ValueError:  # no parallel kernel ran yet: the first prefill of more than a token settles it
        return 1
