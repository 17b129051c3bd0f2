"""BLAS on one thread while modules are merged side by side.

Merging has a thread for each core already. Where OpenBLAS starts its own beside them, they wait for each other in
loops: the SVD forms took forty times as long on two busy cores. OpenBLAS, which NumPy's wheels bring, is asked through
the symbol that NumPy's own extension links to; with any other BLAS this does nothing.

threadpoolctl finds more libraries, by going through all that the process has loaded, OpenMP of the kernels among them,
and would be one more package that everybody installs. OpenBLAS is what NumPy's wheels come with, so two symbols do.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_PREFIXES = ("scipy_openblas_", "openblas_")
_SUFFIXES = ("64_", "_64", "")
_lock = threading.Lock()
_users: list[int] = []  # what to go back to, once per user


@cache
def _controls() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """(get, set) of OpenBLAS's number of threads, or None."""
    from numpy.linalg import _umath_linalg

    try:
        library = ctypes.CDLL(_umath_linalg.__file__)
    except OSError:
        return None
    for prefix in _PREFIXES:
        for suffix in _SUFFIXES:
            try:
                return library[f"{prefix}get_num_threads{suffix}"], library[f"{prefix}set_num_threads{suffix}"]
            except AttributeError:
                continue
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """For the whole process, until the last of those who asked for it has left."""
    controls = _controls()
    if controls is None:
        yield
        return
    get, set_to = controls
    with _lock:
        _users.append(_users[0] if _users else get())
        set_to(1)
    try:
        yield
    finally:
        with _lock:
            before = _users.pop()
            if not _users:
                set_to(before)
