"""How many threads the compiled kernels take, said around each call.

Numba keeps the number per Python thread, and a thread that was never told takes every logical core, hyperthreads
included. So nothing is set once for a process: whoever runs kernels names the number where they run, and a program's
own Numba code finds the one that it had.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numba
import numba.np.ufunc.parallel

from . import cpu
from .errors import BackendError

_child_of_openmp = False


def _after_fork() -> None:
    """GNU OpenMP's threads stay in the parent, and its next parallel region ends the child by a signal."""
    global _child_of_openmp
    launched: Any = numba.np.ufunc.parallel
    _child_of_openmp = sys.platform == "linux" and launched._is_initialized and numba.threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def number_of_threads(wanted: int | None = None) -> int:
    """`wanted`, else the physical (big) cores, as far as a quota of time (docker --cpus) and Numba's own limit allow.

    Raises BackendError for a number that this process cannot have (NUMBA_NUM_THREADS, by default all logical cores).
    """
    settings: Any = numba.config
    most = int(settings.NUMBA_NUM_THREADS)
    number = min(cpu.physical_cores(), cpu.usable_cores(), most) if wanted is None else wanted
    if not 1 <= number <= most:
        raise BackendError(f"{number} threads were asked for; this process has 1 to {most} (set NUMBA_NUM_THREADS)")
    return number


class use_threads:
    """Kernels that this Python thread calls in the block take `number` threads; None: as many as without the block.

    BackendError in a process that was forked from one in which kernels had run. A class for speed: it stands around
    every forward pass.
    """

    __slots__ = ("_after", "_number")

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._after: int | None = None  # to be set at the end

    def __enter__(self) -> None:
        if _child_of_openmp:
            raise BackendError(
                "this process was forked from one that had run compiled kernels, whose threads do not survive that: "
                'start processes by spawn (multiprocessing.get_context("spawn")), or fork before the first use'
            )
        if self._number is not None:
            before = numba.get_num_threads()
            if before != self._number:
                numba.set_num_threads(self._number)
                self._after = before

    def __exit__(self, *error: object) -> None:
        if self._after is not None:
            numba.set_num_threads(self._after)
