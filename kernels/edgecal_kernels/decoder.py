"""One step through the whole decoder in one compiled call: what `model.py` says in Python, for speed.

A step is a few tokens, each with its own place in a cache and its own adapter: the next token of one sequence, the
next tokens of several, or a guess of several tokens of one. The logits have the same bits as from the single
operations. What the decoder does not take (fp32 weights, an fp32 cache, odd sizes, many tokens) is left to those;
`Decoder.build` returns None where it can take nothing. The kernels are in decoder_walk.py.

Trap: the threads wait for each other, so all must run at the same time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .clock import Clock
from .decoder_weights import ACTIVATIONS, N_COMPONENTS, DecoderWeights, Place
from .errors import BackendError
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor
from .records import (
    FORMAT_NUMBER,
    LAYER,
    LINEAR,
    PAIR,
    PLAN,
    ROW,
    WORDS,
    Pair,
    address,
    data_address,
    extra_address,
    pair_record,
)


class Decoder:
    """Runs steps of up to MAX_ROWS tokens. Not reentrant by itself: a lock serializes the threads of a server.

    Make one with `Decoder.build`. It holds the weights it was given, and their addresses.
    """

    MAX_ROWS = 16
    KNOWN = frozenset({"layer_norm", "qk_norm", "output_norms", "sliding_window", "local_rope", "embedding_scale"}) | {
        *ACTIVATIONS
    }
    """Options of a model (`DecoderWeights.options`) that a step computes."""

    def __init__(self, weights: DecoderWeights, walk: Callable[..., None], walkers: Callable[[], int]) -> None:
        self._weights = weights
        self._walk, self._walkers = walk, walkers
        self._lock = threading.Lock()
        self._table = _describe(weights)
        self._pairs = np.zeros((1, len(weights.layers), N_COMPONENTS), PAIR)  # slot 0: no adapter
        self._ranks = {0: 0}  # of the adapters, in whole steps
        self._slots: WeakKeyDictionary[Hashable, int] = WeakKeyDictionary()
        self._scratches: dict[int, _Scratch] = {}  # by the number of threads

    @classmethod
    def build(cls, weights: DecoderWeights, walk: Callable[..., None], walkers: Callable[[], int]) -> Decoder | None:
        """None where a weight is float32 or a size does not fill whole registers.

        `walk` and `walkers` are those of `operations.Kernels`.

        BackendError for a model with an option that a step does not compute: it would answer wrongly without a word.
        """
        unknown = sorted(weights.options - cls.KNOWN)
        if unknown:
            raise BackendError(
                f"the compiled decoder does not know {', '.join(unknown)}; it knows {', '.join(sorted(cls.KNOWN))}. "
                "EDGECAL_BACKEND=numpy runs the model without it"
            )
        linears = [*(w for layer in weights.layers for w, _ in layer), weights.head, weights.embedding]
        packed = all(isinstance(w, QuantizedTensor) for w in linears)
        whole = all(w.shape[1] % STEP == 0 and w.shape[0] % TILE_ROWS == 0 for w in linears[:-2])
        if not packed or not whole or weights.head_dim % 16:
            return None
        return cls(weights, walk, walkers)

    def step(
        self,
        ids: Sequence[int],
        places: Sequence[Place],
        rotation: tuple[Array, Array],
        clock: Clock,
        first_logit: int = 0,
    ) -> Array:
        """Logits (N - first_logit, V) of tokens [first_logit, N) of `ids`, N <= MAX_ROWS.

        Row i has its keys and values written at `places[i]` before any row attends, so rows may follow one another in
        one cache. `rotation`: cos and sin, float32 (n_ropes, positions, half), of all positions that occur.
        """
        n, head = len(ids), self._weights.head.shape[0]
        logits = np.empty((n - first_logit, -(-head // TILE_ROWS) * TILE_ROWS), np.float32)
        counters = clock.counters
        with self._lock:
            n_threads = self._walkers()
            slots = [0 if p.adapter is None else self._slot(p.adapter, p.pairs) for p in places]
            adapted = any(slots)
            rank = max(self._ranks[slot] for slot in slots) if adapted else 0
            scratch = self._scratch(n_threads, n, rank)
            scratch.rotate(*rotation)
            scratch.adapt(self._pairs)
            for i, place in enumerate(places):
                scratch.rows[i] = (*place.cached.addresses, place.pos, slots[i], ids[i])
            where, times = scratch.address, address(counters)
            self._walk(where, n, first_logit, int(adapted), times, data_address(logits), n_threads)
        return logits[:, :head]

    def _scratch(self, n_threads: int, n: int, rank: int) -> _Scratch:
        """Buffers for `n` rows and adapters of this rank, a set for each number of threads that takes turns here."""
        scratch = self._scratches.get(n_threads)
        if scratch is None or n > scratch.most or rank > scratch.widest:
            if scratch is not None:  # neither may shrink, or two kinds of steps in turn would make them anew each time
                n, rank = max(n, scratch.most), max(rank, scratch.widest)
            scratch = self._scratches[n_threads] = _Scratch(self._weights, self._table, n_threads, n, rank)
        return scratch

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
            self._ranks[slot] = int(self._pairs[slot]["padded"].max())
            self._slots[adapter] = slot
        return slot


class _Scratch:
    """Buffers of a step and where they lie, made again only when they have to grow."""

    def __init__(self, weights: DecoderWeights, table: NDArray, n_threads: int, n: int, rank: int) -> None:
        self.most, self.widest = n, rank
        w, hidden_size = weights, weights.norms.shape[1]
        heads, kv = w.n_heads * w.head_dim, w.n_kv_heads * w.head_dim
        intermediate_size = int(table[:-1, 4]["tiles"].max(initial=0)) * TILE_ROWS
        widest, inner_width = int(table["inputs"].max()), max(rank, STEP)

        def floats(*shape: int) -> Array:
            return np.zeros(shape, np.float32)

        self.rows = np.zeros((n, len(ROW.names or ())), np.int64)  # each a ROW: numbers are written faster than records
        self._buffers: dict[str, NDArray] = {
            "words": np.zeros(n_threads * WORDS, np.int64),
            "table": table,
            "rows": self.rows,
            "x": floats(n, hidden_size),
            "q": floats(n, heads),
            "k": floats(n, kv),
            "v": floats(n, kv),
            "gate": floats(n, intermediate_size),
            "up": floats(n, intermediate_size),
            "down": floats(n, hidden_size),
            "mixed": floats(n, heads),
            "inner": floats(3, n, inner_width),
            "normed": floats(n_threads, n, hidden_size),
            "codes": np.zeros((n_threads, n * hidden_size), np.int8),
            "scale": floats(n_threads, n, hidden_size // STEP),
            "total": np.zeros((n_threads, n, hidden_size // STEP * 2), np.int16),
            "wide_codes": np.zeros(n * widest, np.int8),
            "wide_scale": floats(n, widest // STEP),
            "wide_total": np.zeros((n, widest // STEP * 2), np.int16),
            "inner_codes": np.zeros((n_threads, inner_width), np.int8),
            "inner_scale": floats(n_threads, inner_width // STEP),
            "inner_total": np.zeros((n_threads, inner_width // STEP * 2), np.int16),
            "layers": np.array(list(zip(w.windows, w.ropes, strict=True)), LAYER),
        }
        numbers = {
            "inner_width": inner_width,
            "most": n,
            "n_layers": len(w.layers),
            "norms": w.norms.ctypes.data,
            "norm_biases": address(w.norm_biases),
            "norms_per_layer": (len(w.norms) - 1) // len(w.layers),  # one more is the last
            "head_norms": address(w.head_norms),
            "activation": ACTIVATIONS.index(w.activation),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "n_heads": w.n_heads,
            "n_kv_heads": w.n_kv_heads,
            "head_dim": w.head_dim,
            "eps": w.eps,
            "scaling": 1.0 / math.sqrt(w.attention_scale),
            "embedding_scale": w.embedding_scale,
        }
        self.plan = np.zeros(1, PLAN)
        for name, value in {**numbers, **{name: x.ctypes.data for name, x in self._buffers.items()}}.items():
            self.plan[name] = value
        self.address = self.plan.ctypes.data
        self._rotation: tuple[Array, Array] | None = None
        self._pairs: NDArray | None = None

    def rotate(self, cos: Array, sin: Array) -> None:
        """Use these tables of rotations."""
        if self._rotation is None or self._rotation[0] is not cos:
            self._rotation = cos, sin
            self.plan["cos"], self.plan["sin"] = cos.ctypes.data, sin.ctypes.data
            self.plan["positions"], self.plan["half"] = cos.shape[1:]

    def adapt(self, pairs: NDArray) -> None:
        """Use this table of adapters."""
        if self._pairs is not pairs:
            self._pairs = pairs
            self.plan["pairs"], self.plan["n_slots"] = pairs.ctypes.data, len(pairs)


def _describe(weights: DecoderWeights) -> NDArray:
    """The table of linear modules (layers + 1, N_COMPONENTS), head and embedding in the last row."""
    table = np.zeros((len(weights.layers) + 1, N_COMPONENTS), LINEAR)
    for i, row in enumerate([*weights.layers, [(weights.head, None), (weights.embedding, None)]]):
        for j, (weight, bias) in enumerate(row):
            assert isinstance(weight, QuantizedTensor)
            table[i, j] = (
                weight.codes.ctypes.data,
                weight.scale.ctypes.data,
                extra_address(weight),
                address(bias),
                FORMAT_NUMBER[weight.format],
                weight.n_tiles,
                weight.tile_lines,
                weight.n_groups,
                weight.group_size // STEP,
                weight.shape[1],
            )
    return table


def _describe_pairs(pairs: Sequence[Pair | None], n_layers: int) -> NDArray:
    table = np.zeros((n_layers, N_COMPONENTS), PAIR)
    for i, pair in enumerate(pairs):
        if pair is not None:
            table[divmod(i, N_COMPONENTS)] = pair_record(pair)[0]
    return table
