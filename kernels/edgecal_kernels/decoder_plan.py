"""What a step is told, as records at addresses, and how compiled code gets at them.

One address of a plan says it all: every array that is handed to a compiled function costs the interpreter a
microsecond, many when the weights have just swept the processor's caches.

Trap: addresses are int64, because Numba adds an unsigned and a signed integer as float64.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic as _numba_intrinsic

from .clock import PARTS
from .isa import declare
from .jit import kernel

# A packed matrix as the kernels see it: addresses of its arrays (`extra`: minima or rows' scales) and of its bias (0:
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

intrinsic: Any = _numba_intrinsic


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """For `carray`."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.inttoptr(v[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@kernel
def floats(address: int, n: int, width: int) -> Any:
    """The float32 (n, width) at an address."""
    return carray(pointer(address), (n, width), np.float32)


@intrinsic
def now(context: Any) -> Any:
    """Nanoseconds of the monotonic clock, Python's perf_counter_ns."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        i32, i64 = ir.IntType(32), ir.IntType(64)
        time = builder.alloca(i64, 2)
        monotonic = i32(6 if sys.platform == "darwin" else 1)
        builder.call(declare(builder, "clock_gettime", i32, [i32, i64.as_pointer()]), [monotonic, time])
        seconds = builder.load(time)
        nanoseconds = builder.load(builder.gep(time, [i32(1)]))
        return builder.add(builder.mul(seconds, i64(1_000_000_000)), nanoseconds)

    return types.int64(), generate


@kernel
def charge(clock: int, part: int, time: int) -> None:
    """Add a time to a part of the clock whose counters lie at an address."""
    carray(pointer(clock), (len(PARTS),), np.int64)[part] += time


@kernel
def tick(clock: int, part: int, last: int) -> int:
    """Charge the time since `last` to `part`; the time now. Nothing when there is no clock (0)."""
    if clock == 0:
        return last
    time = now()
    charge(clock, part, time - last)
    return time
