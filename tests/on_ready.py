"""`pytest -p tests.on_ready ...`: every test that asks for the numba back end gets the ready one.

The libraries are those of `make kernels`, or of the folder that EDGECAL_READY names; EDGECAL_ISA chooses one. Commands
that tests start take them, too, in the place of NumPy. Tests of Numba's own (marker `numba`: what it compiles, keeps,
and its threads) are left out, and what a child of a test asks for by the name numba is still Numba's.
"""

from __future__ import annotations

import os

import pytest

from edgecal_kernels import dispatch
from tests.cli import shell

_backend = dispatch.backend


def backend(name: str | None = None):
    return _backend("ready" if name == "numba" else name)


dispatch.backend = backend
if reason := dispatch.why_not_ready():
    raise pytest.UsageError(f"tests.on_ready: {reason}")
shell.BACKEND = "ready"

from edgecal_kernels.ready_ops import library  # noqa: E402

os.environ["EDGECAL_READY"] = str(library.path.parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("numba"):
            item.add_marker(pytest.mark.skip(reason="of Numba's own"))


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"back end: {dispatch.serving()} ({library.path})")
