"""The compiled kernels of merging, where a process has them.

A process that runs a model has the compiled back end, and merges with it several times as fast as NumPy. One that
merges and writes the result (`edgecal merge`) would wait longer for Numba than for NumPy, so nothing is loaded here.
Both give the same bits (but for `slerp`, whose inner products are rounded in another order), on any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.dispatch import loaded
from edgecal_weights.binary_file import decode_floats


def kernels() -> Any | None:
    """`edgecal_kernels.merging`, or None where NumPy serves."""
    backend = loaded()
    return None if backend is None else backend.merging


def plain(x: NDArray[Any]) -> NDArray[Any]:
    """`x`, or a copy of it, in C order, aligned and writable: the kind of array that the kernels were compiled for."""
    return np.require(x, requirements=["C", "A", "W"])


def decode(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> None:
    """As `edgecal_weights.binary_file.decode_floats`."""
    compiled = kernels()
    if compiled is None or dtype not in ("F16", "BF16"):
        decode_floats(raw, dtype, out)
    elif dtype == "F16":
        compiled.decode_half(raw.view(np.uint16), out)
    else:
        compiled.decode_bfloat(raw.view(np.uint16), out.view(np.uint32))
