"""A forward pass layer by layer, over all windows of a text, that hands each module's inputs over before it goes on.

Modules are rounded in the order in which a token meets them, in four steps of a layer: q, k and v; o; gate and up;
down. The inputs of each come from what is below it as it was rounded, so that it can make good what they lost. Weights
and activations are float32 here: what a weight is worth is its value, in whatever form it is packed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels import reference
from edgecal_kernels.quant import Array
from edgecal_kernels.reference import Activations

from ..adapters.compiled import RunningAdapter
from ..architecture import Part, layer_parts, outer_parts
from ..cache import KVCache
from ..config import ModelConfig
from ..linear import Linear
from ..model import Builder, Layer, rope_table

STEPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
Replace = Callable[[Mapping[str, Array], NDArray[np.float32]], Mapping[str, Array]]
"""Weights (d, k) by tensor name that have the same inputs x, and the sum over tokens of x^T x, (k, k); gives what is to
stand in their place."""


class _Reached(Exception):
    """The inputs in question are known; what follows is not needed."""


class _Watched(Linear):
    """A module that adds up x^T x of its inputs while `gram` is there, and then does not run."""

    __slots__ = ("gram",)

    def __init__(self, linear: Linear) -> None:
        super().__init__(linear.name, linear.weight, linear.bias, ops=linear.ops, clock=linear.clock, part=linear.part)
        self.gram: Array | None = None

    def __call__(self, x: Activations, adapter: RunningAdapter | None) -> Array:
        if self.gram is not None:
            self.gram += x.x.T @ x.x
            raise _Reached
        return super().__call__(x, adapter)


class _Builder(Builder):
    def linear(self, module: Part, part: int) -> _Watched:
        watched = self.linears[module.name] = _Watched(super().linear(module, part))
        return watched


class Layerwise:
    """Runs layers on windows of up to `length` tokens. `read` gives a tensor by name, float32."""

    def __init__(self, config: ModelConfig, read: Callable[[str], Array], length: int) -> None:
        self._config, self._read = config, read
        self._cos, self._sin = rope_table(config.inverse_frequencies(), length)
        self._cache = KVCache(config, "fp32")
        self._cache.reserve(length)

    def run(self, layer: int, windows: Sequence[Array], replace: Replace) -> list[Array]:
        """The windows (T, D) behind a layer whose modules `replace` has changed, in the order of STEPS."""
        build = _Builder(self._config, self._read, reference)
        halves, parts = Layer(build, layer), layer_parts(self._config, layer)

        def attend(x: Array) -> Array:
            rope = self._cos[:, : len(x)], self._sin[:, : len(x)]
            return halves.attend(x, rope, self._cache, None)

        def transform(x: Array) -> Array:
            return halves.transform(x, None)

        def change(roles: Sequence[str], half: Callable[[Array], Array], windows: Sequence[Array]) -> None:
            modules = [build.linears[parts[role].name] for role in roles]
            weights = {f"{module.name}.weight": module.weight for module in modules}
            made = replace(weights, _gram(modules[0], half, windows))  # type: ignore[arg-type]
            for module in modules:
                module.weight = made[f"{module.name}.weight"]

        change(STEPS[0], attend, windows)
        change(STEPS[1], attend, windows)
        windows = [attend(x) for x in windows]
        change(STEPS[2], transform, windows)
        change(STEPS[3], transform, windows)
        return [transform(x) for x in windows]

    def head_inputs(self, windows: Sequence[Array]) -> NDArray[np.float32]:
        """Sum over tokens of x^T x behind the last norm, (D, D)."""
        norm = Builder(self._config, self._read, reference).norm(outer_parts(self._config)["norm"])
        gram = np.zeros((self._config.hidden_size,) * 2, np.float32)
        for window in windows:
            normed = norm(window)
            gram += normed.T @ normed
        return gram


def _gram(module: Linear, half: Callable[[Array], Array], windows: Sequence[Array]) -> NDArray[np.float32]:
    assert isinstance(module, _Watched)
    module.gram = np.zeros((module.shape[1],) * 2, np.float32)
    for window in windows:
        with suppress(_Reached):
            half(window)
    gram, module.gram = module.gram, None
    return gram
