"""A barrier for the threads of one parallel region.

OpenMP's own barrier ends the region, and a region costs microseconds; a token needs more than a hundred barriers. Here
every thread counts the barriers that it has reached in a word of its own and polls the words of the others: a cache
line moves once from one core to another, where a shared counter would bounce between them. It spins first, then yields,
so that a thread that was descheduled gets its core back at once.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _numba_intrinsic

from .isa import declare
from .jit import kernel
from .records import WORDS

intrinsic: Any = _numba_intrinsic
_SPINS = 4000
i32, i64 = ir.IntType(32), ir.IntType(64)


def _word(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


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
def yield_core(context: Any) -> Any:
    """sched_yield of the C library."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        builder.call(declare(builder, "sched_yield", i32, []), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def barrier(words: Any, thread: int, n_threads: int) -> None:
    """Wait until all threads are here. `words`: int64 (n_threads * WORDS,), zeros at first, for these threads only."""
    count = _get(words, thread * WORDS) + 1
    _set(words, thread * WORDS, count)
    spins = 0
    for other in range(n_threads):
        while _get(words, other * WORDS) < count:
            spins += 1
            if spins > _SPINS:
                yield_core()
