"""Linear: the one place where model, adapter and kernel meet.

    h = W x + bias + B* (A* x) + p*

W is quantized or dense and never changes; (A*, B*) is whatever the recipe of this request compiled to, looked up by
the module's name. No method of composition is known here, and no number format.
"""

from __future__ import annotations

import numpy as np

from edgecal_kernels.clock import LORA, Clock
from edgecal_kernels.dispatch import Backend
from edgecal_kernels.quant import Array, QuantizedTensor
from edgecal_kernels.reference import Activations

from .adapters.compiled import RunningAdapter


class Linear:
    """One module, e.g. `model.layers.0.self_attn.q_proj`: weight (d, k), optional bias (d,).

    `part` is what its time is charged to on `clock`.
    """

    __slots__ = ("bias", "clock", "name", "ops", "part", "weight")

    def __init__(
        self,
        name: str,
        weight: QuantizedTensor | Array,
        bias: Array | None = None,
        *,
        ops: Backend,
        clock: Clock,
        part: int,
    ) -> None:
        self.name = name
        self.weight = weight
        self.bias = bias
        self.ops = ops
        self.clock = clock
        self.part = part

    @property
    def shape(self) -> tuple[int, int]:
        d, k = self.weight.shape
        return d, k

    def __call__(self, x: Activations, adapter: RunningAdapter | None) -> Array:
        """x of (T, k) -> float32 (T, d)."""
        pair = adapter.pairs.get(self.name) if adapter is not None else None
        dense = pair if pair is not None and isinstance(pair.a, np.ndarray) else None
        h: Array = self.ops.matmul(x, self.weight, self.bias, pair if dense is None else None, self.clock)
        self.clock.mark(self.part)
        if dense is not None:
            self.ops.add_lora(x.x, dense.a, dense.b, h)
            if dense.bias is not None:
                h += dense.bias
            self.clock.mark(LORA)
        return h
