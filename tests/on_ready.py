"""`pytest -p tests.on_ready ...`: every test that asks for the numba back end gets the ready one, in this process.

The libraries are those of `make kernels`, or of the folder that EDGECAL_READY names. What a test starts in another
process, and tests of compiling itself, still take Numba.
"""

from __future__ import annotations

from edgecal_kernels import dispatch

_backend = dispatch.backend


def backend(name: str | None = None):
    return _backend("ready" if name == "numba" else name)


dispatch.backend = backend
assert (reason := dispatch.why_not_ready()) is None, reason
