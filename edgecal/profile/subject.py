"""One method while it is measured: its compiled passes, its caches, what was found so far."""

from __future__ import annotations

from time import perf_counter

from ..adapters.compiled import RunningAdapter
from ..adapters.recipe import Recipe
from ..cache import KVCache
from ..decoding.generate import prefill
from ..engine import Engine
from .footprint import adapter_operations
from .results import MethodResult
from .trace import Span


class Subject:
    """`recipe` None is the bare base. `ratios`: a token's time with the kernels' clock by that without, per case.
    `shot_tokens` of examples stand before every prompt of an in_context recipe, and are read with it."""

    def __init__(self, name: str, recipe: Recipe | None, engine: Engine) -> None:
        self.name, self.recipe, self.engine = name, recipe, engine
        self.compiled: list[RunningAdapter | None] = [None]
        self.ratios: dict[tuple[int, int, int], list[float]] = {}
        self._caches: dict[int, KVCache] = {}
        self.shot_tokens = 0
        if recipe is not None and recipe.shots:
            self.shot_tokens = len(engine.prepare("x", recipe=recipe).ids) - len(engine.encode("x"))
        names = () if recipe is None else recipe.adapter_names
        self.result = MethodResult(
            name=name,
            method="zero_shot" if recipe is None else recipe.method,
            recipe={"method": "zero_shot"} if recipe is None else recipe.to_dict(),
            n_passes=1 if recipe is None else recipe.passes,
            rank=0,
            adapter_parameters=sum(engine.adapters[n].n_parameters for n in names if n in engine.adapters),
            adapter_bytes=0,
            adapter_operations=0,
            extra_parameters=0,
            extra_bytes=0,
        )

    def compile(self, repeats: int) -> Span:
        """Compile the recipe so often, each time anew; the calibration's file is read the first time only."""
        result = self.result
        for _ in range(repeats):
            self.engine.forget_compiled()
            before = perf_counter()
            self.compiled = self.engine.compile(self.recipe)
            result.compile_s.append(perf_counter() - before)
        there = [adapter for adapter in self.compiled if adapter is not None]
        last = self.compiled[-1]
        result.rank = max((adapter.rank for adapter in there), default=0)
        result.adapter_bytes = last.nbytes if last is not None else 0
        result.adapter_operations = adapter_operations(last)
        result.extra_parameters = max((adapter.extra_parameters for adapter in there), default=0)
        result.extra_bytes = max((adapter.extra_bytes for adapter in there), default=0)
        return Span("compile", before, result.compile_s[-1], self.name, {"recipe": result.recipe})

    @property
    def held_bytes(self) -> int:
        """Of all passes' pairs, each adapter once."""
        return sum({id(adapter): adapter.nbytes for adapter in self.compiled if adapter is not None}.values())

    def cache(self, index: int, depth: int, fill: list[int]) -> KVCache:
        """The cache of pass `index` with the first `depth` of the ids in it; `fill` are those of the greatest depth.

        Every measurement feeds the ids in order, and a token has the same bits whatever the chunks. So what was
        written behind one depth is just what a deeper one needs, and one cache, filled once, serves all of them.
        """
        engine = self.engine
        if depth == 0:  # as a request finds it: empty, and growing
            return KVCache(engine.model.config, engine.cache_dtype)
        if index not in self._caches:
            cache = KVCache(engine.model.config, engine.cache_dtype)
            prefill(engine.model, fill, cache, self.compiled[index])
            self._caches[index] = cache
        self._caches[index].length = depth
        return self._caches[index]
