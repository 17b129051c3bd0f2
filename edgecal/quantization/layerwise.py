"""A forward pass layer by layer, over all windows of a text, that hands each module's inputs over before it goes on.

Modules are rounded in the order in which a token meets them, in four steps of a layer: q, k and v; o; gate and up;
down. The inputs of each come from what is below it as it was rounded, so that it can make good what they lost. Weights
and activations are float32 here: what a weight is worth is its value, in whatever form it is packed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels import reference
from edgecal_kernels.quant import Array
from edgecal_kernels.reference import Activations

from ..architecture import outer_parts
from ..builder import Builder, Norm
from ..cache import KVCache
from ..config import ModelConfig
from ..linear import Linear
from ..model import Layer, rope_table

Replace = Callable[[Mapping[str, Array], NDArray[np.float32]], Mapping[str, Array]]
"""Weights (d, k) by tensor name that have the same inputs x, and the sum over tokens of x^T x, (k, k); gives what is to
stand in their place."""

_TOGETHER = 2048  # tokens: products of a window by itself would take twice the time, for passes over a large matrix


class _Half(NamedTuple):
    """Of a layer: a norm, modules that see what it gives, one that sees what they make of it, perhaps another norm."""

    norm: Norm
    entry: tuple[Linear, ...]
    inner: Callable[[Array], Array]
    exit: Linear
    norm_out: Norm | None

    def leave(self, x: Array, inputs: Array) -> Array:
        """x with what the half adds, of the inputs of its exit."""
        added = self.exit(Activations(inputs), None)
        return x + (added if self.norm_out is None else self.norm_out(added))


class Layerwise:
    """Runs layers on windows of up to `length` tokens. `read` gives a tensor by name, float32."""

    def __init__(self, config: ModelConfig, read: Callable[[str], Array], length: int) -> None:
        self._config, self._read = config, read
        self._cos, self._sin = rope_table(config.inverse_frequencies(), length)
        self._cache = KVCache(replace(config, n_layers=1), "fp32")  # of the layer at hand
        self._cache.reserve(length)

    def run(self, layer: int, windows: Sequence[Array], replace: Replace) -> list[Array]:
        """The windows (T, D) behind a layer whose modules `replace` has changed."""
        for half in self._halves(layer):
            _change(half.entry, map(half.norm, windows), replace)
            inputs = [half.inner(half.norm(x)) for x in windows]
            _change((half.exit,), inputs, replace)
            windows = [half.leave(x, found) for x, found in zip(windows, inputs, strict=True)]
        return list(windows)

    def _halves(self, layer: int) -> Iterator[_Half]:
        parts = Layer(Builder(self._config, self._read, reference), layer)
        attention, mlp = parts.attention, parts.mlp
        attention.layer = 0  # of the cache

        def mix(x: Array) -> Array:
            return attention.mix(x, (self._cos[:, : len(x)], self._sin[:, : len(x)]), self._cache, None)

        queries = attention.q_proj, attention.k_proj, attention.v_proj
        yield _Half(parts.attention_in, queries, mix, attention.o_proj, parts.attention_out)
        gates = mlp.gate_proj, mlp.up_proj
        yield _Half(parts.mlp_in, gates, lambda x: mlp.widen(x, None), mlp.down_proj, parts.mlp_out)

    def head_inputs(self, windows: Sequence[Array]) -> NDArray[np.float32]:
        """Sum over tokens of x^T x behind the last norm, (D, D)."""
        norm = Builder(self._config, self._read, reference).norm(outer_parts(self._config)["norm"])
        return _gram(map(norm, windows), self._config.hidden_size)


def _change(modules: Sequence[Linear], inputs: Iterable[Array], replace: Replace) -> None:
    """Modules that have the same inputs, window by window."""
    weights = {f"{module.name}.weight": module.weight for module in modules}
    made = replace(weights, _gram(inputs, modules[0].shape[1]))  # type: ignore[arg-type]
    for module in modules:
        module.weight = made[f"{module.name}.weight"]


def _gram(inputs: Iterable[Array], k: int) -> NDArray[np.float32]:
    gram, waiting = np.zeros((k, k), np.float32), []
    for x in inputs:
        waiting.append(x)
        if sum(map(len, waiting)) >= _TOGETHER:
            _add_products(gram, waiting)
    if waiting:
        _add_products(gram, waiting)
    return gram


def _add_products(gram: NDArray[np.float32], waiting: list[Array]) -> None:
    x = np.concatenate(waiting)
    waiting.clear()
    gram += x.T @ x
