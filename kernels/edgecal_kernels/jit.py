"""The one place that fixes how kernels are compiled.

Compiled once and kept on disk; IEEE arithmetic (no reassociation: the order of additions is part of the result); no
bounds checks; the GIL released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False}


def kernel(function: Callable) -> Any:
    """Decorator for a compiled function that runs in the calling thread."""
    return numba.njit(**_OPTIONS)(function)


def parallel(function: Callable) -> Any:
    """Decorator for a compiled function whose `prange` loops share the threads."""
    return numba.njit(parallel=True, **_OPTIONS)(function)
