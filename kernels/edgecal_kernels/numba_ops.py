"""The compiled back end: the operations of reference.py, gathered from the files that hold the kernels.

Every kernel is written once, against the vectors of `simd`; the instruction set is chosen when it is compiled. The
arithmetic of an output element does not depend on how many tokens or threads share the work, so a prompt gives the
same bits in one chunk, in several, or token by token.

Trap: Numba's disk cache notices changes of a kernel's own file but not of `simd`, `isa` or another kernel it calls;
jit.py therefore keeps a cache directory per content of all these files.
"""

from __future__ import annotations

import numpy as np

from . import isa, merging
from .adapter_product import add_packed_lora
from .attention import attention
from .cache_write import remember, rope
from .decoder import Decoder, DecoderWeights
from .dense import add_lora, dense_product
from .elementwise import gated, layer_norm, rms_norm
from .embedding import embed
from .jit import preparing_seconds
from .packed_matmul import Activations, packed_product
from .packing import pack_int8
from .quant import Array, QuantizedTensor
from .rounding import quantize_rows
from .threads import use_threads

NAME = "numba"

__all__ = [
    "NAME",
    "Activations",
    "add_lora",
    "add_packed_lora",
    "attention",
    "build_decoder",
    "embed",
    "gated",
    "isa",
    "layer_norm",
    "matmul",
    "merging",
    "pack_int8",
    "preparing_seconds",
    "quantize_rows",
    "remember",
    "rms_norm",
    "rope",
    "use_threads",
]


def matmul(activations: Activations, weight: QuantizedTensor | Array) -> Array:
    """As `reference.matmul`."""
    if isinstance(weight, np.ndarray):
        return dense_product(activations.x, weight)
    return packed_product(activations, weight)


def build_decoder(weights: DecoderWeights) -> Decoder | None:
    """A few tokens through all layers in one call, where the weights allow it; else None."""
    return Decoder.build(weights)
