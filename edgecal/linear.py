"""Linear: the one place where model, adapter and kernel meet.

    h = W x + bias + B* (A* x) + p*

W is quantized or dense and never changes; (A*, B*) is whatever the recipe of this request compiled to, looked up by
the module's name. No method of composition is known here, and no number format.
"""

from __future__ import annotations

from types import ModuleType

from edgecal_kernels.quant import Array, QuantizedTensor
from edgecal_kernels.reference import Activations

from .adapters.lora import CompiledAdapter


class Linear:
    """One module, e.g. `model.layers.0.self_attn.q_proj`: weight (d, k), optional bias (d,)."""

    __slots__ = ("bias", "name", "ops", "weight")

    def __init__(
        self, name: str, weight: QuantizedTensor | Array, bias: Array | None = None, *, ops: ModuleType
    ) -> None:
        self.name = name
        self.weight = weight
        self.bias = bias
        self.ops = ops

    @property
    def shape(self) -> tuple[int, int]:
        d, k = self.weight.shape
        return d, k

    def __call__(self, x: Activations, adapter: CompiledAdapter | None) -> Array:
        """x of (T, k) -> float32 (T, d)."""
        h: Array = self.ops.matmul(x, self.weight)
        if self.bias is not None:
            h += self.bias
        pair = adapter.pairs.get(self.name) if adapter is not None else None
        if pair is not None:
            self.ops.add_lora(x.x, pair.a, pair.b, h)
            if pair.bias is not None:
                h += pair.bias
        return h
