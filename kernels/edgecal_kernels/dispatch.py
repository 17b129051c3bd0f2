"""Which back end serves: the compiled one where it can, NumPy where it must.

EDGECAL_BACKEND=numpy|numba, or an explicit name, overrides; tests use both.
"""

from __future__ import annotations

import os
from types import ModuleType

from . import reference
from .errors import BackendError

BACKENDS = ("numba", "numpy")
BACKEND_ENV = "EDGECAL_BACKEND"


def backend(name: str | None = None) -> ModuleType:
    """The module of operations called `name`; without a name EDGECAL_BACKEND's, else numba's where it imports.

    Raises BackendError for an unknown name or one that this machine cannot run.
    """
    name = name or os.environ.get(BACKEND_ENV) or None
    if name == "numpy":
        return reference
    if name not in (None, "numba"):
        raise BackendError(f"unknown back end {name!r}; choose one of {', '.join(BACKENDS)}")
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if name is None:
            return reference
        raise BackendError(
            f"the numba back end needs the package numba ({error}); install it, or use EDGECAL_BACKEND=numpy"
        ) from error
    from . import numba_ops

    return numba_ops
