"""The clock of `clock.py` in compiled code: its counters lie at an address, 0 where it stands."""

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
from .memory import pointer

intrinsic: Any = _numba_intrinsic


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
