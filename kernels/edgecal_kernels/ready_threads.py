"""Threads for the kernels of a ready-made library: `team` has what they do there.

They are threads of Python that have entered the library and wait inside, without the interpreter's lock. A process has
one team, as large as the most that was asked for; one job runs at a time. A child that was forked has none of its
parent's threads, and makes its own when it needs them.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from . import cpu
from .errors import BackendError
from .records import WORDS

_HEAD, _LINE = 3 * WORDS, 128  # words before those of the members (`team.MEMBERS`), bytes of alignment

_own = threading.local()  # .number: what `use_threads` said in this thread


def most_threads() -> int:
    return os.cpu_count() or 1


def number_of_threads(wanted: int | None = None) -> int:
    """`wanted`, else the physical (big) cores, as far as a quota of time (docker --cpus) allows.

    Raises BackendError for a number that this machine does not have.
    """
    number = min(cpu.physical_cores(), cpu.usable_cores()) if wanted is None else wanted
    if not 1 <= number <= most_threads():
        raise BackendError(f"{number} threads were asked for; this machine has 1 to {most_threads()}")
    return number


def threads() -> int:
    """How many the kernels that this Python thread calls take now."""
    number = getattr(_own, "number", None)
    if number is None:
        number = _own.number = number_of_threads()
    return number


class use_threads:
    """Kernels that this Python thread calls in the block take `number` threads; None: as many as without the block."""

    __slots__ = ("_before", "_number")

    def __init__(self, number: int | None) -> None:
        self._number = number

    def __enter__(self) -> None:
        if self._number is not None:
            self._before = getattr(_own, "number", None)
            _own.number = self._number

    def __exit__(self, *error: object) -> None:
        if self._number is not None:
            _own.number = self._before


class Team:
    """The threads of this process; `work` and `run` are the library's functions of `team`."""

    def __init__(self, work: Callable[..., Any], run: Callable[..., int]) -> None:
        self._work, self._run = work, run
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Nobody is there."""
        self._lock = threading.Lock()
        self._members = 1  # the caller
        memory = np.zeros(_HEAD + (most_threads() + 1) * WORDS + _LINE // 8, np.int64)
        self._words = memory[-memory.ctypes.data % _LINE // 8 :]
        self._address = int(self._words.ctypes.data)

    def run(self, code: int, slots: Any, shares: int, n_threads: int) -> int:
        """A kernel's shares by this thread and n_threads - 1 others; 0, or what a kernel that failed says."""
        with self._lock:
            if n_threads > self._members:
                number_of_threads(n_threads)  # the team has no room for more
            while self._members < n_threads:
                try:
                    _thread.start_new_thread(self._work, (self._address, self._members, int(self._words[0])))
                except RuntimeError as error:
                    raise BackendError(f"a thread for the kernels cannot be started: {error}") from error
                self._members += 1
            return self._run(self._address, code, slots, shares, n_threads)
