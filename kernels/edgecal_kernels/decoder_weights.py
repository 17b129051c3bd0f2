"""What a model gives a back end that can run a step through all layers in one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .cached import Cached
from .quant import Array, QuantizedTensor
from .records import Pair

COMPONENTS = ("q", "k", "v", "o", "gate", "up", "down")
N_COMPONENTS = len(COMPONENTS)
ACTIVATIONS = ("silu", "gelu_tanh")  # of the MLP; their places are their numbers in compiled code


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """Everything that a token needs. Layers' linears in the order of COMPONENTS.

    `norms` float32 (2 * n_layers + 1, D): what goes into attention and MLP of each layer, then the final one; with
    four a layer, what comes out of each half is normed too: in, out, in, out. `norm_biases` the same for LayerNorm,
    else None. `head_norms` float32 (2 * n_layers, head_dim): of each layer's queries and keys, or None.

    Scores are divided by the square root of `attention_scale`. `windows` and `ropes` have a number per layer: the
    positions that it sees (0: all), and which table of rotations it takes. `options` names everything that the model
    has beside the plain frame; a decoder that does not know one must refuse it.
    """

    layers: Sequence[Sequence[tuple[QuantizedTensor | Array, Array | None]]]
    head: QuantizedTensor | Array
    embedding: QuantizedTensor | Array
    norms: Array
    norm_biases: Array | None
    head_norms: Array | None
    eps: float
    n_heads: int
    n_kv_heads: int
    head_dim: int
    attention_scale: float
    embedding_scale: float
    windows: Sequence[int]
    ropes: Sequence[int]
    options: frozenset[str] = frozenset()

    @property
    def activation(self) -> str:
        return next((name for name in ACTIVATIONS if name in self.options), ACTIVATIONS[0])


class Place(NamedTuple):
    """Where a token goes: position `pos` of a cache with room for it, float16 or int8.

    `pairs()` gives its adapter's pairs, seven per layer; it is asked once in an adapter's life.
    """

    cached: Cached
    pos: int
    adapter: Hashable | None
    pairs: Callable[[], Sequence[Pair | None]]
