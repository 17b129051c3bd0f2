"""One token through the whole decoder in one compiled call: what `model.py` says in Python, for speed.

Decoding runs some two hundred small products per token, and calling each from Python, with a parallel region of its
own, costs as much as the arithmetic. Here the threads enter once per token and walk through the layers together. Every
thread repeats the cheap parts (norms, rounding the activations), which needs no waiting; the products are divided by
tiles of rows, attention by heads, and six barriers per layer (the bars) keep the threads in step:

    norm, round, q k v | rope, cache | attention | round, o, add | norm, round, gate up, swiglu | round, down, add |

The arithmetic is that of the single operations, in the same order, so the logits have the same bits. What the decoder
does not take (fp32 weights, an fp32 cache, odd sizes) is left to the single operations; `Decoder.build` says so by
returning None.

Trap: the threads wait for each other, so all must run at the same time. OpenMP starts them all; a work-stealing layer
might not, and then the decoder runs on one thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from . import simd
from .attention import attend
from .decoder_weights import DecoderWeights, Pair
from .dense import lora_inner, lora_lanes
from .elementwise import normalize, swiglu_lanes
from .jit import kernel, parallel
from .packed_matmul import matvec_int4, matvec_int8, quantize_row
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor
from .sync import barrier

Q, K, V, OUT, GATE, UP, DOWN = range(7)
_INT8, _INT4, _AFFINE = range(3)
_FORMATS = {"int8": _INT8, "int4": _INT4, "int4_affine": _AFFINE}

# A linear module as the kernels see it: addresses of its arrays (0: not there) and sizes.
LINEAR = np.dtype(
    [(name, np.uint64) for name in ("codes", "scale", "minimum")]
    + [(name, np.int64) for name in ("format", "tiles", "steps", "groups", "per_group", "inputs", "bias")]
)
LORA = np.dtype([("a", np.uint64), ("b", np.uint64), ("rank", np.int64), ("bias", np.int64)])


@kernel
def _product(
    linear: Any,
    lora: Any,
    biases: Any,
    lora_biases: Any,
    x: Any,
    rounded: Any,
    inner: Any,
    out: Any,
    rows: Any,
) -> None:
    """Rows [first, last) of out = W x + bias + B* (A* x) + bias*; `rounded` is x in int8, `inner` scratch (R,)."""
    first, last = rows
    codes, scale, total = rounded
    sizes, tiles = (linear.steps, linear.groups, linear.per_group), (first // 16, last // 16)
    if linear.format == _INT8:
        matvec_int8(linear.codes, linear.scale, sizes, codes, scale, total, out, tiles)
    else:
        affine = linear.format == _AFFINE
        matvec_int4(linear.codes, linear.scale, linear.minimum, affine, sizes, codes, scale, total, out, tiles)
    if linear.bias >= 0:
        for row in range(first, last):
            out[row] += biases[linear.bias + row]
    if lora.rank > 0:
        lora_inner(x, 0, lora.a, linear.inputs, lora.rank, inner)
        for row in range(first, last, 16):
            lora_lanes(inner, lora.b, linear.tiles * 16, lora.rank, out, 0, row)
    if lora.bias >= 0:
        for row in range(first, last):
            out[row] += lora_biases[lora.bias + row]


@kernel
def _share(tiles: int, thread: int, n_threads: int) -> Any:
    """This thread's rows of a product with so many tiles."""
    return tiles * thread // n_threads * 16, tiles * (thread + 1) // n_threads * 16


@kernel
def _round(x: Any, k: int, codes: Any, scale: Any, total: Any) -> Any:
    """int8 codes, scales and sums of x (k,) in this thread's buffers."""
    quantize_row(x, 0, k, codes, scale, total, 0)
    return codes, scale[:, : k // 32], total[:, : k // 32]


@kernel
def _rotate(x: Any, at: int, cos: Any, sin: Any) -> None:
    """The bits of `reference.rope`, for one head."""
    half = cos.shape[0]
    for i in range(half):
        first, second = x[at + i], x[at + half + i]
        x[at + i] = first * cos[i] - second * sin[i]
        x[at + half + i] = second * cos[i] + first * sin[i]


@kernel
def _remember(x: Any, at: int, width: int, cache: Any, head: int, pos: int) -> None:
    """Write one head of x to position `pos` of a layer's cache (K, capacity, width) in float16."""
    place = (head * cache.shape[1] + pos) * width
    for i in range(0, width, 16):
        simd.store_half(cache, place + i, simd.load(x, at + i))


@kernel
def _walk(
    thread: int,
    n_threads: int,
    words: Any,
    weights: Any,
    adapter: Any,
    shared: Any,
    own: Any,
    cache: Any,
    rotation: Any,
    pos: int,
    eps: float,
    scaling: float,
    logits: Any,
) -> None:
    """What one thread does for a token; the tuples are those of `Decoder.__call__`."""
    table, biases, norms, norm_biases = weights
    lora, lora_biases = adapter
    x, q, k, v, gate, up, mixed = shared  # x (1, D), q and mixed (1, H, W), the others flat
    normed, codes, inner = own[0][thread], own[1][thread], own[4][thread]
    row, scale, total = (own[0][thread : thread + 1], own[2][thread : thread + 1], own[3][thread : thread + 1])
    keys, values = cache  # (layers, K, capacity, W)
    cos, sin = rotation
    n_layers, hidden_size = table.shape[0] - 1, x.shape[1]
    n_heads, width, n_kv_heads = q.shape[1], q.shape[2], keys.shape[1]
    centered = norm_biases.shape[0] > 0
    flat_q, flat_mixed = q.reshape(-1), mixed.reshape(-1)
    scores = np.empty(pos + 17, np.float32)
    for layer in range(n_layers):
        normalize(x, norms[2 * layer], norm_biases[2 * layer] if centered else norms[0], eps, centered, row)
        rounded = _round(normed, hidden_size, codes, scale, total)
        for which, target in ((Q, flat_q), (K, k), (V, v)):
            linear = table[layer, which]
            share = _share(linear.tiles, thread, n_threads)
            _product(linear, lora[layer, which], biases, lora_biases, normed, rounded, inner, target, share)
        barrier(words, n_threads)
        for head in range(thread, n_heads, n_threads):
            _rotate(flat_q, head * width, cos, sin)
        for head in range(thread, n_kv_heads, n_threads):
            _rotate(k, head * width, cos, sin)
            _remember(k, head * width, width, keys[layer], head, pos)
            _remember(v, head * width, width, values[layer], head, pos)
        barrier(words, n_threads)
        attend(q, keys[layer], values[layer], pos, scaling, mixed, thread, n_threads, scores)
        barrier(words, n_threads)
        rounded = _round(flat_mixed, n_heads * width, codes, scale, total)
        share = _share(table[layer, OUT].tiles, thread, n_threads)
        _product(table[layer, OUT], lora[layer, OUT], biases, lora_biases, flat_mixed, rounded, inner, up, share)
        for i in range(share[0], share[1]):
            x[0, i] += up[i]
        barrier(words, n_threads)
        normalize(x, norms[2 * layer + 1], norm_biases[2 * layer + 1] if centered else norms[0], eps, centered, row)
        rounded = _round(normed, hidden_size, codes, scale, total)
        share = _share(table[layer, GATE].tiles, thread, n_threads)
        for which, target in ((GATE, gate), (UP, up)):
            _product(
                table[layer, which], lora[layer, which], biases, lora_biases, normed, rounded, inner, target, share
            )
        for i in range(share[0], share[1], 16):
            swiglu_lanes(gate, up, i)
        barrier(words, n_threads)
        rounded = _round(gate, table[layer, DOWN].inputs, codes, scale, total)
        share = _share(table[layer, DOWN].tiles, thread, n_threads)
        _product(table[layer, DOWN], lora[layer, DOWN], biases, lora_biases, gate, rounded, inner, up, share)
        for i in range(share[0], share[1]):
            x[0, i] += up[i]
        barrier(words, n_threads)
    last = 2 * n_layers
    normalize(x, norms[last], norm_biases[last] if centered else norms[0], eps, centered, row)
    rounded = _round(normed, hidden_size, codes, scale, total)
    share = _share(table[n_layers, 0].tiles, thread, n_threads)
    _product(table[n_layers, 0], lora[n_layers, 0], biases, lora_biases, normed, rounded, inner, logits, share)


@kernel
def _alone(
    n_threads: int,
    words: Any,
    weights: Any,
    adapter: Any,
    shared: Any,
    own: Any,
    cache: Any,
    rotation: Any,
    pos: int,
    eps: float,
    scaling: float,
    logits: Any,
) -> None:
    _walk(0, 1, words, weights, adapter, shared, own, cache, rotation, pos, eps, scaling, logits)


@parallel
def _together(
    n_threads: int,
    words: Any,
    weights: Any,
    adapter: Any,
    shared: Any,
    own: Any,
    cache: Any,
    rotation: Any,
    pos: int,
    eps: float,
    scaling: float,
    logits: Any,
) -> None:
    for thread in prange(n_threads):
        _walk(thread, n_threads, words, weights, adapter, shared, own, cache, rotation, pos, eps, scaling, logits)


# ------------------------------------------------------------------------------------------------ the Python side


class Decoder:
    """Runs single tokens. Not reentrant by itself: a lock serializes the threads of a server.

    Make one with `Decoder.build`. It holds the weights it was given, and their addresses.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights
        self._lock = threading.Lock()
        self._loras: WeakKeyDictionary[object, tuple[NDArray, Array]] = WeakKeyDictionary()
        self._table, self._biases = _describe(weights)
        self._norm_biases = np.zeros((0, 1), np.float32) if weights.norm_biases is None else weights.norm_biases
        self._no_lora = self._lora_table([None] * (len(weights.layers) * 7))
        self._scratch: tuple[Any, ...] = ()

    @classmethod
    def build(cls, weights: DecoderWeights) -> Decoder | None:
        """None where a weight is float32 or a size does not fill whole registers."""
        linears = [w for layer in weights.layers for w, _ in layer] + [weights.head]
        packed = all(isinstance(w, QuantizedTensor) for w in linears)
        whole = all(w.shape[1] % STEP == 0 and w.shape[0] % TILE_ROWS == 0 for w in linears[:-1])
        if not packed or not whole or weights.head_dim % 16:
            return None
        return cls(weights)

    def __call__(
        self,
        x: Array,
        keys: NDArray[np.float16],
        values: NDArray[np.float16],
        pos: int,
        cos: Array,
        sin: Array,
        adapter: object | None = None,
        pairs: Callable[[], Sequence[Pair | None]] | None = None,
    ) -> Array:
        """Logits (V,) after the token whose embedding is x (D,), at position `pos`.

        keys, values float16 (layers, K, capacity, head_dim) have room for it and are written; cos, sin (half,) are its
        rotation. `pairs()` gives the adapter's pairs, seven per layer; it is asked once in an adapter's life.
        """
        with self._lock:
            lora = self._no_lora
            if adapter is not None and pairs is not None:
                if adapter not in self._loras:
                    self._loras[adapter] = self._lora_table(pairs())
                lora = self._loras[adapter]
            n_threads = _threads()
            words, shared, own = self._buffers(n_threads, int(lora[0]["rank"].max()))
            shared[0][0] = x
            w = self._weights
            logits = np.empty(self._table[-1, 0]["tiles"] * TILE_ROWS, np.float32)
            run = _alone if n_threads == 1 else _together
            run(
                n_threads,
                words,
                (self._table, self._biases, w.norms, self._norm_biases),
                lora,
                shared,
                own,
                (keys.view(np.uint16), values.view(np.uint16)),
                (cos, sin),
                pos,
                w.eps,
                1.0 / math.sqrt(w.head_dim),
                logits,
            )
            return logits[: w.head.shape[0]]

    def _buffers(self, n_threads: int, rank: int) -> tuple[Any, ...]:
        """(barrier words, shared buffers, each thread's buffers), made again only when they have to grow."""
        if self._scratch and len(self._scratch[2][0]) == n_threads and self._scratch[2][4].shape[1] >= rank:
            return self._scratch
        w = self._weights
        hidden_size = w.norms.shape[1]
        widest = max(int(self._table["inputs"].max()), int(self._table[:-1]["tiles"].max()) * TILE_ROWS)
        heads, kv = (1, w.n_heads, w.head_dim), w.n_kv_heads * w.head_dim

        def floats(*shape: int) -> Array:
            return np.zeros(shape, np.float32)

        shared = (
            floats(1, hidden_size),
            floats(*heads),
            floats(kv),
            floats(kv),
            floats(widest),
            floats(widest),
            floats(*heads),
        )
        own = (
            floats(n_threads, hidden_size),
            np.zeros((n_threads, widest), np.int8),
            floats(n_threads, widest // STEP),
            np.zeros((n_threads, widest // STEP), np.int32),
            floats(n_threads, max(rank, 1)),
        )
        self._scratch = (np.zeros(16, np.int64), shared, own)
        return self._scratch

    def _lora_table(self, pairs: Sequence[Pair | None]) -> tuple[NDArray, Array]:
        table = np.zeros((len(self._weights.layers) + 1, 7), LORA)
        table["bias"] = -1
        biases, length = [], 0
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            place = table[i // 7, i % 7 : i % 7 + 1]
            if len(pair.a):
                place["a"], place["b"], place["rank"] = pair.a.ctypes.data, pair.b.ctypes.data, len(pair.a)
            if pair.bias is not None:
                place["bias"] = length
                biases.append(pair.bias)
                length += len(pair.bias)
        return table, np.concatenate([*biases, np.zeros(1, np.float32)])


def _describe(weights: DecoderWeights) -> tuple[NDArray, Array]:
    """The table of linear modules (layers + 1, 7), the head in the last row, and all biases in one array."""
    table = np.zeros((len(weights.layers) + 1, 7), LINEAR)
    biases, length = [], 0
    rows = [*weights.layers, [(weights.head, None)]]
    for i, row in enumerate(rows):
        for j, (weight, bias) in enumerate(row):
            assert isinstance(weight, QuantizedTensor)
            minimum = 0 if weight.minimum is None else weight.minimum.ctypes.data
            table[i, j] = (
                weight.codes.ctypes.data,
                weight.scale.ctypes.data,
                minimum,
                _FORMATS[weight.format],
                weight.n_tiles,
                weight.codes.shape[1],
                weight.n_groups,
                weight.group_size // STEP,
                weight.shape[1],
                -1 if bias is None else length,
            )
            if bias is not None:
                biases.append(bias)
                length += len(bias)
    return table, np.concatenate([*biases, np.zeros(1, np.float32)])


def _threads() -> int:
    """Threads that are sure to run at the same time: all of OpenMP's, one of any other layer's."""
    try:
        return int(numba.get_num_threads()) if numba.threading_layer() == "omp" else 1
    except ValueError:  # no parallel kernel ran yet: the first prefill of more than a token settles it
        return 1
