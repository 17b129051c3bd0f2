"""What kernels are told besides arrays: sizes, views, and the records of a decoding step, with the addresses in them.

No Numba here: whoever calls a kernel fills them in, compiled where it may have been.

Trap: addresses are int64, because Numba adds an unsigned and a signed integer as float64.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .formats import SPECS
from .quant import STEP, Array, QuantizedTensor

FORMAT_NUMBER = {name: number for number, name in enumerate(SPECS)}  # by which kernels choose
TOKEN_BYTES = 72  # of a step of a token, packed as `blocks` has it: room for any instruction set
WORDS = 16  # int64 of a thread at a barrier: two lines of 64 bytes, which some processors fetch together


class Sizes(NamedTuple):
    """What the loops have to know of a packed matrix and of its product."""

    tile_lines: int  # 64-byte lines of codes from one tile to the next
    n_groups: int  # of a row
    per_group: int  # steps of a group
    k: int  # columns of x, in whole steps
    d: int  # columns of out


class Pair(Protocol):
    """What an adapter adds to a module: scaling * b (a x) + bias. a (R, k) and b (d, R) packed in int8, both None for
    rank 0, scaling a power of two, bias float32 (d,) or None."""

    @property
    def a(self) -> QuantizedTensor | Array | None: ...

    @property
    def b(self) -> QuantizedTensor | Array | None: ...

    @property
    def scaling(self) -> float: ...

    @property
    def bias(self) -> Array | None: ...


class View(NamedTuple):
    """What the rows of an item of attention have in common: the position of the first token, the size of a head
    (`width` is head_dim in whole vectors), what scores are multiplied by, the number of positions that a row sees (0:
    all)."""

    pos: Any
    head_dim: Any
    width: Any
    scaling: Any
    window: Any


# A packed matrix as the kernels see it: addresses of its arrays (`extra`: see `extra_address`) and of its bias (0:
# not there), and sizes.
LINEAR = np.dtype(
    [(name, np.int64) for name in ("codes", "scale", "extra", "bias", "format")]
    + [(name, np.int64) for name in ("tiles", "tile_lines", "groups", "per_group", "inputs")]
)
# An adapter's two int8 matrices for a module; `padded` is the rank in whole steps, `b_lines` those of a tile of B*. The
# last rows of A* may lie in `quarters`.
PAIR = np.dtype(
    [(name, np.int64) for name in ("a_codes", "a_scale", "b_codes", "b_scale", "bias")]
    + [(name, np.int64) for name in ("quarter_codes", "quarter_scale", "quarters")]
    + [(name, np.int64) for name in ("rank", "padded", "a_tiles", "a_lines", "a_groups", "b_lines")]
    + [("scaling", np.float64)]
)
# Where a token's keys and values lie, which adapter it has (0: none), and the token. All int64: see `Decoder.step`.
ROW = np.dtype(
    [(name, np.int64) for name in ("keys", "values", "key_scales", "value_scales", "kind", "capacity")]
    + [(name, np.int64) for name in ("pos", "slot", "id")]
)
# What a layer's attention sees and turns by: its window (0: everything before it) and its table of rotations.
LAYER = np.dtype([("window", np.int64), ("rope", np.int64)])
# All that stays the same from step to step: addresses and sizes.
PLAN = np.dtype(
    [(name, np.int64) for name in ("words", "table", "pairs", "rows", "n_layers", "n_slots", "most")]
    + [(name, np.int64) for name in ("x", "q", "k", "v", "gate", "up", "down", "mixed", "inner", "inner_width")]
    + [(name, np.int64) for name in ("normed", "codes", "scale", "total")]
    + [(name, np.int64) for name in ("wide_codes", "wide_scale", "wide_total")]
    + [(name, np.int64) for name in ("inner_codes", "inner_scale", "inner_total")]
    + [(name, np.int64) for name in ("norms", "norm_biases", "norms_per_layer", "head_norms", "layers")]
    + [(name, np.int64) for name in ("cos", "sin", "positions", "half", "activation")]
    + [(name, np.int64) for name in ("hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim")]
    + [("eps", np.float64), ("scaling", np.float64), ("embedding_scale", np.float64)]
)


_word = ctypes.c_size_t.from_address


def _place_of_data() -> int | None:
    """Where an array object keeps the address of its elements. Asking `array.ctypes` takes a microsecond, as long as a
    small kernel. Found out and not assumed; None where it cannot be."""
    if sys.implementation.name != "cpython":
        return None
    probes: list[NDArray] = [np.zeros(3), np.arange(5, dtype=np.int8)[1:], np.zeros((2, 2), np.float32)]
    places = range(ctypes.sizeof(ctypes.c_void_p) * 2, np.ndarray.__basicsize__, ctypes.sizeof(ctypes.c_void_p))
    return next((at for at in places if all(_word(id(x) + at).value == x.ctypes.data for x in probes)), None)


_DATA = _place_of_data()


def data_address(array: NDArray) -> int:
    """`array.ctypes.data`, faster."""
    return int(array.ctypes.data) if _DATA is None else _word(id(array) + _DATA).value


def address(array: NDArray | None) -> int:
    """Where an array lies, 0 for what is not there."""
    return 0 if array is None or array.size == 0 else data_address(array)


def extra_address(weight: QuantizedTensor) -> int:
    """Where the minima lie, or the scales of rows or of 256 columns: 0 for a format that has none of them."""
    extra = (weight.minimum, weight.row_scale, weight.super_scale)
    return next((address(array) for array in extra if array is not None), 0)


def inner_bytes(n: int, width: int) -> int:
    """The room that A* x of n tokens takes, `width` columns in whole steps: float32, int8, scales, sums, and packed."""
    return n * width * 5 + n * (width // STEP) * (8 + TOKEN_BYTES)


def pair_record(pair: Pair) -> NDArray:
    """A PAIR, (1,). It holds addresses, so the pair has to live as long."""
    record = np.zeros(1, PAIR)
    a, b = pair.a, pair.b
    record["bias"] = address(pair.bias)
    if a is not None:
        assert isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor)
        record["a_codes"], record["a_scale"] = address(a.codes), address(a.scale)
        record["b_codes"], record["b_scale"] = address(b.codes), address(b.scale)
        record["rank"], record["padded"] = a.shape[0], b.n_groups * STEP
        record["a_tiles"], record["a_lines"], record["a_groups"] = a.n_tiles, a.tile_lines, a.n_groups
        record["quarter_codes"], record["quarter_scale"] = address(a.quarter_codes), address(a.quarter_scale)
        record["quarters"], record["b_lines"], record["scaling"] = a.n_quarters, b.tile_lines, pair.scaling
    return record
