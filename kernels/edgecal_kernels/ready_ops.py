"""The back end that was compiled before: `Operations` with the kernels of a ready-made library, without Numba.

Importing it loads the library, once for the process; BackendError where none fits.
"""

from __future__ import annotations

import numpy as np

from .operations import Kernels, Operations
from .quant import Array
from .ready_library import find_library
from .ready_threads import number_of_threads, threads, use_threads

NAME = "ready"

__all__ = [
    "INSTRUCTIONS",
    "NAME",
    "Activations",
    "add_lora",
    "add_packed_lora",
    "attention",
    "build_decoder",
    "embed",
    "gated",
    "layer_norm",
    "library",
    "matmul",
    "merging",
    "number_of_threads",
    "pack_int8",
    "preparing_seconds",
    "quantize_rows",
    "remember",
    "rms_norm",
    "rope",
    "use_threads",
]

library = find_library()
INSTRUCTIONS = library.isa
merging = library.merging
_pack, _pack_transposed = library.shared("pack"), library.shared("pack_transposed")


def _pack_either(w: Array, *rest: object) -> None:
    """An adapter's matrix lies in either order."""
    if w.flags.f_contiguous:
        _pack_transposed(w, *rest)
    else:
        _pack(np.ascontiguousarray(w), *rest)


def preparing_seconds() -> float:
    """What compiling and loading kernels has taken so far: nothing worth counting."""
    return 0.0


_operations = Operations(
    Kernels(
        tiles=library.tiles,
        threads=threads,
        walkers=threads,
        round=library.shared("round"),
        multiply=library.shared("multiply"),
        inner=library.shared("inner"),
        outer=library.shared("outer"),
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
    )
)
Activations = _operations.activations
add_lora, add_packed_lora = _operations.add_lora, _operations.add_packed_lora
matmul, quantize_rows = _operations.matmul, _operations.quantize_rows
rms_norm, layer_norm, gated = _operations.rms_norm, _operations.layer_norm, _operations.gated
rope, remember, attention = _operations.rope, _operations.remember, _operations.attention
embed, pack_int8, build_decoder = _operations.embed, _operations.pack_int8, _operations.build_decoder
