"""edgecal, through its engine and, where a measure needs it, the functions below that."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from .worker import BASE, LCPP, LORA, Worker, thin


class Edgecal(Worker):
    variants = (BASE, LORA, LCPP)

    def imports(self) -> None:
        from edgecal import Engine, KVCache  # noqa: F401
        from edgecal_kernels.dispatch import backend

        backend(self.model.get("backend"))

    def load(self) -> None:
        from edgecal import Engine

        self.engine = Engine.load(self.model["packed"], threads=self.threads, backend=self.model.get("backend"))
        self.recipes: dict[str, Any] = {BASE: None}
        self.compiled: dict[str, Any] = {BASE: None}
        self.deep: dict[tuple[str, int], Any] = {}

    def facts(self) -> dict[str, Any]:
        model = self.engine.model
        head = 0 if model.config.tie_word_embeddings else model.embed_tokens.nbytes
        ranks = {name: compiled.rank for name, compiled in self.compiled.items() if compiled is not None}
        # A step reads one row of an untied embedding, and everything else whole
        return {"read_per_token": model.weight_bytes - head, "instructions": model.ops.INSTRUCTIONS, "ranks": ranks}

    def use(self, variant: str) -> None:
        if variant not in self.compiled:
            self._compile(variant)
        self.variant = variant

    def _compile(self, variant: str) -> None:
        from edgecal import Recipe
        from edgecal.adapters.recipe import compile_recipe

        engine, paths = self.engine, self.job["adapters"]["peft"]
        names = ("first", "second")[: 1 if variant == LORA else 2]
        for name, path in zip(names, paths, strict=False):
            if name not in engine.adapters:
                engine.add_adapter(path, name)
        if variant == LORA:
            recipe, calibration = Recipe("single", names), None
        else:
            recipe = Recipe("learnable_calibration_pp", names, calibration="in memory")
            calibration = self._calibration([engine.adapters[name] for name in names])
        self.recipes[variant] = recipe
        shapes, kernels = engine.model.linear_shapes, engine.model.ops.merging
        merged = compile_recipe(recipe, engine.adapters, calibration, shapes, engine.base, kernels)
        self.compiled[variant] = engine.model.run_form(merged)

    def _calibration(self, adapters: list[Any]) -> Any:
        """A random LC++ calibration for these adapters; s = 4 as in the paper."""
        import numpy as np

        from edgecal.adapters.calibration import Calibration
        from edgecal_weights.calibration_file import AdapterReference, BaseModelFacts, CalibrationFile

        rng, groups = np.random.default_rng(5), dict[str, dict[str, Any]]()
        for module, (d, k) in self.engine.model.linear_shapes.items():
            p1, p2 = rng.standard_normal((4, k), np.float32), rng.standard_normal((d, 4), np.float32)
            groups.setdefault(module.rsplit(".", 1)[1], {"P1": p1 / np.float32(k**0.5), "P2": p2 * np.float32(0.02)})
        base = self.engine.base
        facts = [base[key] for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")]
        references = tuple(AdapterReference(adapter.name, adapter.sha256) for adapter in adapters)
        weights = (1 / len(adapters),) * len(adapters)
        return Calibration(
            CalibrationFile(
                "learnable_calibration_pp", references, weights, BaseModelFacts("bench", *facts), groups, rank=4
            )
        )

    def _prefill(self, n: int) -> tuple[Any, Any]:
        from edgecal import KVCache
        from edgecal.decoding.generate import prefill

        cache = KVCache(self.engine.model.config, self.engine.cache_dtype)
        return prefill(self.engine.model, self.ids[:n], cache, self.compiled[self.variant]), cache

    def prefill(self, n: int) -> float:
        started = perf_counter()
        logits, _ = self._prefill(n)
        logits.argmax()
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        from edgecal import KVCache
        from edgecal.decoding.generate import decode

        model, adapter = self.engine.model, self.compiled[self.variant]
        if depth == 0:
            cache = KVCache(model.config, self.engine.cache_dtype)
        else:
            if (self.variant, depth) not in self.deep:
                self.deep[self.variant, depth] = self._prefill(depth)[1]
            cache = self.deep[self.variant, depth]
            cache.truncate(depth)
        started = perf_counter()
        for token in self.ids[depth : depth + n]:
            decode(model, token, cache, adapter).argmax()
        return perf_counter() - started

    def first_token(self, text: str) -> float:
        from edgecal import KVCache
        from edgecal.engine import Settings

        cache = KVCache(self.engine.model.config, self.engine.cache_dtype)
        settings = Settings(max_tokens=1, raw=True)
        started = perf_counter()
        next(iter(self.engine.stream(text, recipe=self.recipes[self.variant], settings=settings, cache=cache)))
        return perf_counter() - started

    def probe(self) -> list[float]:
        return thin(self._prefill(128)[0])

    def read_weights(self, passes: int) -> dict[str, float]:
        """A plain read of the memory that the weights lie in, by as many threads: what a step is held against."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        from edgecal_kernels.bandwidth import plain_read
        from edgecal_weights.file_kind import PACKED_FILE

        if not hasattr(self, "parts"):
            path = Path(self.model["packed"], PACKED_FILE)
            words = np.asarray(np.memmap(path, np.uint64, "c", shape=(path.stat().st_size // 8,)))
            self.parts, self.read = np.array_split(words, self.threads), plain_read()
            self.readers = ThreadPoolExecutor(self.threads)
            list(self.readers.map(self.read, self.parts))
        started = perf_counter()
        for _ in range(passes):
            list(self.readers.map(self.read, self.parts))
        return {"bytes": float(passes * sum(part.nbytes for part in self.parts)), "seconds": perf_counter() - started}
