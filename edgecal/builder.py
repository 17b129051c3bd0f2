"""The parts that layers are put together from, made from a checkpoint's tensors by name: linear modules and norms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgecal_kernels.clock import Clock
from edgecal_kernels.dispatch import Backend
from edgecal_kernels.quant import Array, QuantizedTensor

from .architecture import Part
from .config import ModelConfig
from .linear import Linear

Weights = Callable[[str], "QuantizedTensor | Array"]  # tensor name -> weight, quantized or float32


class Norm:
    """RMSNorm, or LayerNorm when there is a bias."""

    def __init__(self, weight: Array, bias: Array | None, eps: float, ops: Backend) -> None:
        self.weight, self.bias, self.eps, self.ops = weight, bias, eps, ops

    def __call__(self, x: Array) -> Array:
        if self.bias is None:
            return self.ops.rms_norm(x, self.weight, self.eps)
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class Builder:
    """Makes the parts of a model from named weights. `arrays`: every weight that was taken, by name."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Backend) -> None:
        self.config, self.ops, self.clock = config, ops, Clock()
        self.linears: dict[str, Linear] = {}
        self.arrays: dict[str, QuantizedTensor | Array] = {}
        self._weights = weights

    def weight(self, name: str) -> QuantizedTensor | Array:
        self.arrays[name] = self._weights(name)
        return self.arrays[name]

    def vector(self, name: str, offset: float = 0.0) -> Array:
        weight = self.weight(name)
        assert isinstance(weight, np.ndarray), f"{name} is a vector and is never quantized"
        if offset:
            weight = self.arrays[name] = weight + np.float32(offset)
        return weight

    def linear(self, module: Part, part: int) -> Linear:
        weight = self.weight(f"{module.name}.weight")
        bias = self.vector(f"{module.name}.bias") if module.bias else None
        linear = Linear(module.name, weight, bias, ops=self.ops, clock=self.clock, part=part)
        self.linears[module.name] = linear
        return linear

    def norm(self, part: Part) -> Norm:
        weight = self.vector(f"{part.name}.weight", self.config.norm_weight_offset)
        bias = self.vector(f"{part.name}.bias") if part.bias else None
        return Norm(weight, bias, self.config.norm_eps, self.ops)
