"""Which back end serves: the compiled one where it can, NumPy where it must.

`backend()` resolves once per name. EDGECAL_BACKEND=numpy|numba, or an explicit name, overrides; tests use both.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from . import reference
from .errors import BackendError
from .paths import cache_directory

BACKENDS = ("numba", "numpy")
BACKEND_ENV = "EDGECAL_BACKEND"


def kernel_cache_directory(isa_name: str) -> Path:
    """Compiled kernels, a folder per installation, content of the sources, Numba version and instruction set.

    Numba's own index goes by a source's path and time of change, so both are part of the name: kernels that another
    checkout compiled are none of this one's. It adds the CPU's name and features, so one home folder may serve
    several machines.
    """
    import numba

    digest = hashlib.sha256(f"{numba.__version__} {isa_name}".encode())
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), *(here / "isa").glob("*.py")]):
        digest.update(f"{source} {source.stat().st_mtime_ns}".encode())
        digest.update(source.read_bytes())
    return cache_directory() / "kernels" / digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _numba_backend() -> ModuleType:
    try:
        import numba
    except ImportError as error:
        raise BackendError(
            f"the numba back end needs the package numba ({error}); install it, or use EDGECAL_BACKEND=numpy"
        ) from error
    from . import cpu, isa

    # Waiting threads of GNU OpenMP spin for milliseconds by default. On a machine that is busy otherwise that burns
    # the very core the awaited thread needs: decode fell from 160 to 10 tokens/s beside one other process. This many
    # turns, some 0.2 ms, outlast the interpreter's work between two tokens (10 % of the time of a small model's token,
    # when the threads have to be woken for each) and leave an idle process idle.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    name = cpu.detect_isa()
    isa.activate(name)
    # The decorators read the setting when the module is imported; afterwards it is the program's own again.
    settings: Any = numba.config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(kernel_cache_directory(name))
    try:
        from . import numba_ops
    finally:
        settings.CACHE_DIR = before
    return numba_ops


def backend(name: str | None = None) -> ModuleType:
    """The module of operations called `name`; without a name EDGECAL_BACKEND's, else numba's where it imports.

    Raises BackendError for an unknown name or one that this machine cannot run.
    """
    name = name or os.environ.get(BACKEND_ENV) or None
    if name is None:
        try:
            return _numba_backend()
        except BackendError:
            return reference
    if name == "numpy":
        return reference
    if name == "numba":
        return _numba_backend()
    raise BackendError(f"unknown back end {name!r}; choose one of {', '.join(BACKENDS)}")


def loaded() -> ModuleType | None:
    """The compiled back end if this process has it already, for work that is not worth loading it."""
    return _numba_backend() if _numba_backend.cache_info().currsize else None


def set_threads(n: int | None = None) -> int:
    """Threads of the compiled kernels: `n`, else the physical (big) cores; returns the number in use.

    Raises BackendError for more threads than Numba was started with (NUMBA_NUM_THREADS, by default all cores).
    """
    import numba

    from .cpu import physical_cores

    settings: Any = numba.config
    most = int(settings.NUMBA_NUM_THREADS)
    wanted = min(physical_cores(), most) if n is None else n
    if not 1 <= wanted <= most:
        raise BackendError(f"{wanted} threads were asked for; this process has 1 to {most} (set NUMBA_NUM_THREADS)")
    numba.set_num_threads(wanted)
    return wanted
