"""Which back end serves: kernels that were made before, Numba's of this machine, or NumPy where neither is there.

EDGECAL_BACKEND=ready|numba|numpy, or an explicit name, overrides; tests use all three.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from . import reference
from .errors import BackendError

BACKENDS = ("ready", "numba", "numpy")
BACKEND_ENV = "EDGECAL_BACKEND"

Backend = Any  # the module `reference`, or `Operations`; only the one that made `Activations` takes them


def backend(name: str | None = None) -> Backend:
    """The operations called `name`; without a name EDGECAL_BACKEND's, else the first of BACKENDS that serves.

    Raises BackendError for an unknown name or one that this machine cannot run.
    """
    name = asked(name)
    if name is not None and name not in BACKENDS:
        raise BackendError(f"unknown back end {name!r}; choose one of {', '.join(BACKENDS)}")
    if name == "numpy":
        return reference
    if name == "ready" or (name is None and why_not_ready() is None):
        if (reason := why_not_ready()) is not None:
            raise BackendError(f"the ready back end does not serve: {reason}")
        from . import ready_ops

        return ready_ops.OPERATIONS
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if name is None:
            return reference
        raise BackendError(
            f'the numba back end needs the package numba ({error}); `pip install "edgecal[jit]"`, or leave it out'
        ) from error
    from . import numba_ops

    return numba_ops.OPERATIONS


def asked(name: str | None = None) -> str | None:
    """`name`, else EDGECAL_BACKEND's, else None: whichever serves."""
    return name or os.environ.get(BACKEND_ENV) or None


@lru_cache(maxsize=1)
def why_not_ready() -> str | None:
    """Why the ready back end does not serve in this process; None where it does."""
    try:
        from . import ready_ops  # noqa: F401
    except BackendError as error:
        return str(error)
    return None


def serving(name: str | None = None) -> str:
    """A line about which back end serves and why, for reports."""
    ops = backend(name)
    if ops.NAME == "ready":
        for_whom = ", for any x86-64 processor" if ops.INSTRUCTIONS == "portable" else ""
        return f"ready ({ops.INSTRUCTIONS}): kernels that were made before{for_whom}"
    if asked(name):
        return f"{ops.NAME}: it was asked for"
    without = "" if ops.NAME == "numba" else "; Numba, which would compile them, is not there (extra jit)"
    return f"{ops.NAME}: {why_not_ready()}{without}"
