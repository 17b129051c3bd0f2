"""Threads that share a kernel's work without any runtime: part of a ready-made library, not used where Numba runs.

A team is int64 words at an address, all zeros at first. Its members are threads of the program that called `work` and
come back only when they are dismissed. A job is a kernel, its arguments and a number of shares; `run` hands it out,
does the caller's part and waits for the others. The shares of a member follow one another, as OpenMP divides a loop.

The first word says which job it is and how many threads it has, in one: a member that a job does not need never reads
the rest of it, which may change meanwhile. Between two jobs a member polls that word for a moment, which outlasts the
interpreter's work between two tokens, then it sleeps in the kernel (a futex) and costs nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from .compiled_clock import now
from .isa import declare
from .jit import kernel
from .records import WORDS
from .sync import i32, i64, intrinsic, yield_core

MOST = 1023  # threads
_BITS = 10  # of the first word, for the number of threads
JOB, CODE, SLOTS, SHARES, ASLEEP = 0, WORDS, WORDS + 1, WORDS + 2, 2 * WORDS
MEMBERS = 3 * WORDS  # from here on, WORDS for each: the last job that it has done, and how it ended
_SPIN_NS = 200_000
_SPINS = 4000
_WAIT, _WAKE, _ALL = 128, 129, 2**31 - 1  # FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE, everyone


def _word(builder: Any, team: Any, index: Any) -> Any:
    return builder.inttoptr(builder.add(team, builder.mul(index, i64(8))), i64.as_pointer())


@intrinsic
def _get(context: Any, team: Any, index: Any) -> Any:
    """A word as the others see it; one order for all threads."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.load_atomic(_word(builder, *v), "seq_cst", 8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _set(context: Any, team: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        builder.store_atomic(v[2], _word(builder, v[0], v[1]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _add(context: Any, team: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        builder.atomic_rmw("add", _word(builder, v[0], v[1]), v[2], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _pause(context: Any) -> Any:
    """The processor's hint that a thread polls: the other thread of its core gets the time."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        if builder.module.triple.startswith("x86"):
            builder.call(declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        else:
            builder.call(declare(builder, "llvm.aarch64.hint", ir.VoidType(), [i32]), [i32(1)])  # yield
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _futex(context: Any, team: Any, operation: Any, value: Any) -> Any:
    """Linux's futex on the low half of the first word; `build_runtime` has the system call."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        word = builder.inttoptr(v[0], ir.IntType(8).as_pointer())
        numbers = [builder.trunc(number, i32) for number in v[1:]]
        builder.call(declare(builder, "edgecal_futex", i64, [word.type, i32, i32]), [word, *numbers])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _call(context: Any, code: Any, slots: Any, share: Any, shares: Any) -> Any:
    """A kernel of the library, by its address; how it ended (0: well)."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.call(builder.inttoptr(v[0], ir.FunctionType(i64, [i64] * 3).as_pointer()), v[1:])

    return types.int64(*[types.int64] * 4), generate


@kernel
def _now() -> int:
    return now()  # room on the stack for the time, once and not in every round of a loop


@kernel
def _do(code: int, slots: int, shares: int, member: int, n_threads: int) -> int:
    status = 0
    for share in range(member * shares // n_threads, (member + 1) * shares // n_threads):
        status |= _call(code, slots, share, shares)
    return status


@kernel
def _next_job(team: int, seen: int) -> int:
    """The first word, once it is not `seen` any more."""
    began, turns = _now(), 0
    while _get(team, JOB) == seen:
        _pause()
        turns += 1
        if turns % 64 == 0 and _now() - began > _SPIN_NS:
            _add(team, ASLEEP, 1)
            if _get(team, JOB) == seen:
                _futex(team, _WAIT, seen)
            _add(team, ASLEEP, -1)
            began = _now()
    return _get(team, JOB)


@kernel
def work(team: int, member: int, seen: int) -> int:
    """A member's life: jobs after `seen`, the first word when it was taken on, until one without a kernel."""
    while True:
        seen = _next_job(team, seen)
        n_threads = seen & MOST
        if member < n_threads:
            code = _get(team, CODE)
            if code == 0:
                return 0
            status = _do(code, _get(team, SLOTS), _get(team, SHARES), member, n_threads)
            _set(team, MEMBERS + member * WORDS + 1, status)
            _set(team, MEMBERS + member * WORDS, seen)


@kernel
def run(team: int, code: int, slots: int, shares: int, n_threads: int) -> int:
    """A kernel's shares by the caller and n_threads - 1 members; 0, or what kernels that failed say."""
    _set(team, CODE, code)
    _set(team, SLOTS, slots)
    _set(team, SHARES, shares)
    job = ((_get(team, JOB) >> _BITS) + 1) << _BITS | n_threads
    _set(team, JOB, job)
    if _get(team, ASLEEP) > 0:
        _futex(team, _WAKE, _ALL)
    status = _do(code, slots, shares, 0, n_threads)
    for member in range(1, n_threads):
        turns = 0
        while _get(team, MEMBERS + member * WORDS) != job:
            _pause()
            turns += 1
            if turns > _SPINS:
                yield_core()
        status |= _get(team, MEMBERS + member * WORDS + 1)
    return status
