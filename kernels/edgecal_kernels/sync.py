"""A barrier for the threads of one parallel region.

OpenMP's own barrier ends the region, and a region costs microseconds; a token needs about 150 barriers. This one
counts arrivals in a shared word: whoever arrives last opens the next generation, the others watch for it, first
spinning, then yielding the core, so that a thread that was pushed off its core gets it back at once.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _numba_intrinsic

from .isa import declare
from .jit import kernel

intrinsic: Any = _numba_intrinsic
_SPINS = 4000
i32, i64 = ir.IntType(32), ir.IntType(64)


def _word(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def _add(context: Any, words: Any, index: Any, value: Any) -> Any:
    """words[index] += value, atomically; the value before."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.atomic_rmw("add", _word(context, builder, sig.args[0], v[0], v[1]), v[2], "seq_cst")

    return types.int64(words, types.intp, types.int64), generate


@intrinsic
def _get(context: Any, words: Any, index: Any) -> Any:
    """words[index] as other threads see it."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.load_atomic(_word(context, builder, sig.args[0], v[0], v[1]), "acquire", 8)

    return types.int64(words, types.intp), generate


@intrinsic
def _set(context: Any, words: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        builder.store_atomic(v[2], _word(context, builder, sig.args[0], v[0], v[1]), "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), generate


@intrinsic
def _yield_core(context: Any) -> Any:
    """sched_yield of the C library."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        builder.call(declare(builder, "sched_yield", i32, []), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def barrier(words: Any, n_threads: int) -> None:
    """Wait until all have come. `words` int64 (16,), zero at first: arrivals in [0], generation in [8]."""
    if n_threads == 1:
        return
    generation = _get(words, 8)
    if _add(words, 0, 1) == n_threads - 1:
        _set(words, 0, 0)
        _set(words, 8, generation + 1)
        return
    spins = 0
    while _get(words, 8) == generation:
        spins += 1
        if spins > _SPINS:
            _yield_core()
