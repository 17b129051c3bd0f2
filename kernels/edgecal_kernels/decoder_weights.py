"""What a model gives a back end that can run one token through all layers in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .quant import Array, QuantizedTensor

COMPONENTS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """Everything that a token needs but the embedding. Layers' linears in the order of COMPONENTS.

    `norms` float32 (2 * n_layers + 1, D): input and post-attention norm of each layer, then the final one;
    `norm_biases` the same for LayerNorm, else None.
    """

    layers: Sequence[Sequence[tuple[QuantizedTensor | Array, Array | None]]]
    head: QuantizedTensor | Array
    norms: Array
    norm_biases: Array | None
    eps: float
    n_heads: int
    n_kv_heads: int
    head_dim: int


class Pair(Protocol):
    """A low-rank pair: a float32 (R, k) in C order, b (d, R) in Fortran order, bias (d,) or None."""

    @property
    def a(self) -> Array: ...

    @property
    def b(self) -> Array: ...

    @property
    def bias(self) -> Array | None: ...
