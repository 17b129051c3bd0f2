"""The threads of the compiled back end, whichever it is."""

from __future__ import annotations

from edgecal_kernels.dispatch import backend
from edgecal_kernels.errors import BackendError


def threads_now() -> int:
    """How many the kernels that this Python thread calls take now."""
    return backend("numba").kernels.threads()


def most_threads() -> int:
    """The largest number that it does not refuse."""
    number = 1
    while True:
        try:
            backend("numba").number_of_threads(number + 1)
        except BackendError:
            return number
        number += 1
