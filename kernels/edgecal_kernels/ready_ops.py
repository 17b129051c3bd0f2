"""The back end that was compiled before: `Operations` with the kernels of a ready-made library, without Numba.

Importing it loads the library, once for the process; BackendError where none fits.
"""

from __future__ import annotations

import numpy as np

from .operations import Kernels, Operations
from .quant import Array
from .ready_library import find_library
from .ready_threads import number_of_threads, threads, use_threads

library = find_library()
_pack, _pack_transposed = library.shared("pack"), library.shared("pack_transposed")


def _pack_either(w: Array, *rest: object) -> None:
    """An adapter's matrix lies in either order."""
    if w.flags.f_contiguous:
        _pack_transposed(w, *rest)
    else:
        _pack(np.ascontiguousarray(w), *rest)


OPERATIONS = Operations(
    NAME="ready",
    INSTRUCTIONS=library.isa,
    kernels=Kernels(
        tiles=library.tiles,
        threads=threads,
        walkers=threads,
        round=library.shared("round"),
        multiply=library.shared("multiply"),
        inner=library.shared("inner"),
        dense=library.shared("dense"),
        add_lora=library.shared("add_lora"),
        embed=library.kernel("embed"),
        normalize=library.kernel("normalize"),
        gate=library.kernel("gate"),
        rotate=library.shared("rotate"),
        remember=library.shared("remember"),
        attend=library.shared("attend"),
        pack=_pack_either,
        walk=library.shared("walk"),
    ),
    merging=library.merging,
    number_of_threads=number_of_threads,
    use_threads=use_threads,
    preparing_seconds=lambda: 0.0,  # nothing worth counting
)
