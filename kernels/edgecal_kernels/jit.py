"""The one place that fixes how kernels are compiled, where they are kept, and how their threads wait.

Compiled once and kept on disk; IEEE arithmetic (no reassociation: the order of additions is part of the result); no
bounds checks; the GIL released.

Everything here is settled when the first kernel is decorated, so it does not matter which module of kernels a program
imports first. The folder is named by the instruction set, among others: `isa.active()` settles that, for good.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba

from . import isa
from .kept_kernels import KeptKernels
from .paths import cache_directory, private_temporary_directory

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}

# Waiting threads of GNU OpenMP spin for milliseconds by default. On a machine that is busy otherwise that burns the
# very core the awaited thread needs: decode fell from 160 to 10 tokens/s beside one other process. This many turns,
# some 0.2 ms, outlast the interpreter's work between two tokens (10 % of the time of a small model's token, when the
# threads have to be woken for each) and leave an idle process idle. OpenMP reads it at the first parallel kernel.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def kernel_cache_directory(isa_name: str) -> Path:
    """Compiled kernels, a folder per installation, content of the sources, Numba version and instruction set.

    Numba's own index goes by a source's path and time of change, so both are part of the name: kernels that another
    checkout compiled are none of this one's. It adds the CPU's name and features, so one home folder may serve
    several machines.
    """
    digest = hashlib.sha256(f"{numba.__version__} {isa_name}".encode())
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), *(here / "isa").glob("*.py")]):
        digest.update(f"{source} {source.stat().st_mtime_ns}".encode())
        digest.update(source.read_bytes())
    return cache_directory() / "kernels" / digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def kernel_cache() -> Path:
    """Where this process keeps its kernels: in the cache folder, or where that cannot be written, in a private folder
    for temporary files. Where neither can, the cache folder, and `can_keep` is false. It need not exist."""
    wanted = kernel_cache_directory(isa.active_name())
    if not _writable(wanted) and (private := private_temporary_directory()) is not None:
        aside = private / wanted.name
        if _writable(aside):
            return aside
    return wanted


_keep = True


def keep_nothing() -> None:
    """Before anything is compiled: it is for another processor, and of no use to this one."""
    global _keep
    _keep = False


@lru_cache(maxsize=1)
def can_keep() -> bool:
    """Whether compiled kernels can be kept in `kernel_cache()`. Elsewhere they are not: Numba would fall back to the
    folder of the sources, where nothing tells one instruction set from another, and they are compiled anew instead."""
    return _keep and _writable(kernel_cache())


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


_preparing = numba.core.event.TimingListener()  # Numba holds this lock while it compiles, or loads what it compiled
numba.core.event.register("numba:compiler_lock", _preparing)


def preparing_seconds() -> float:
    """What this process has spent on compiling kernels, or on loading them, so far: the first use of each pays that."""
    return _preparing.duration if _preparing.done else 0.0


def _compiled(function: Callable, **options: Any) -> Any:
    isa.active()  # names what an ARM core has; Numba's target is fixed with the first function that it is given
    dispatcher = numba.njit(**_OPTIONS, **options)(function)
    if can_keep():
        # It reads the setting once; afterwards that is the program's own again.
        settings: Any = numba.config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(kernel_cache())
        try:
            dispatcher._cache = KeptKernels(function)
        finally:
            settings.CACHE_DIR = before
    return dispatcher


def kernel(function: Callable) -> Any:
    """Decorator for a compiled function that runs in the calling thread."""
    return _compiled(function)


def kernel_for(variant: str) -> Callable[[Callable], Any]:
    """As `kernel`, for a function that is defined once per variant, each time with other values around it.

    Numba names what it compiles by the function's name, the types of its arguments and a count of the process. Kernels
    that two processes left on disk may have the same count; by the name alone one would be linked in another's place.
    """

    def decorate(function: Callable) -> Any:
        function.__qualname__ = f"{function.__name__}_{variant}"
        return kernel(function)

    return decorate


def inlined(function: Callable) -> Any:
    """As `kernel`, with its body put where it is called: by Numba, while LLVM weighs its size."""
    return _compiled(function, inline="always")


def parallel(function: Callable) -> Any:
    """Decorator for a compiled function whose `prange` loops share the threads."""
    return _compiled(function, parallel=True)
