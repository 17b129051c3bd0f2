"""The compiled kernels of merging, as the methods are handed them.

A process that runs a model on the compiled back end has them, and merges several times as fast as with NumPy. One that
merges and writes the result (`edgecal merge`) has them where a ready-made library serves; it would wait longer for
Numba than for NumPy. So whoever compiles a recipe says which it is (`compile_recipe`), and nothing depends on what
else a process has loaded. Both give the same bits (but for `slerp`, whose inner products are rounded in another order),
on any number of threads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels import dispatch
from edgecal_weights.binary_file import Decode, decode_floats

Kernels = ModuleType | None
"""`edgecal_kernels.merging`, the `merging` of a back end; None: NumPy, in which the methods are written."""


def ready_kernels() -> Kernels:
    """Those of the ready-made library, where that serves."""
    name = dispatch.asked()
    if name in (None, "ready") and dispatch.why_not_ready() is None:
        return dispatch.backend("ready").merging
    return None


def plain(x: NDArray[Any]) -> NDArray[Any]:
    """`x`, or a copy of it, in C order, aligned and writable: the kind of array that the kernels were compiled for."""
    return np.require(x, requirements=["C", "A", "W"])


def decoder(kernels: Kernels) -> Decode:
    """`edgecal_weights.binary_file.decode_floats`, with these kernels."""
    if kernels is None:
        return decode_floats

    def decode(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> None:
        if dtype == "F16":
            kernels.decode_half(raw.view(np.uint16), out)
        elif dtype == "BF16":
            kernels.decode_bfloat(raw.view(np.uint16), out.view(np.uint32))
        else:
            decode_floats(raw, dtype, out)

    return decode
