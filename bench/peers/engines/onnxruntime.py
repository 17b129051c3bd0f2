"""ONNX Runtime GenAI, on a model that its builder made of the float weights (conversions.py)."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

from .worker import BASE, LORA, Worker, thin

FOLDERS = {BASE: "onnx", LORA: "onnx_lora"}


class OnnxRuntime(Worker):
    """The builder writes an adapter into the graph, its factors rounded like the weights: "lora" is a model of its own,
    which is opened beside the other one and counts in its memory."""

    install = "pip install onnxruntime-genai"

    def imports(self) -> None:
        import onnxruntime_genai

        self.api = onnxruntime_genai

    def load(self) -> None:
        self.models: dict[str, Any] = {}
        self.deep: dict[tuple[str, int], Any] = {}
        self.use(BASE)
        self.tokenizer = self.api.Tokenizer(self.models[BASE])

    def use(self, variant: str) -> None:
        self.variant = variant
        if variant not in self.models:
            config = self.api.Config(self.model[FOLDERS[variant]])
            session = {"intra_op_num_threads": self.threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self.models[variant] = self.api.Model(config)

    def facts(self) -> dict[str, Any]:
        return {"version": self.api.__version__}

    def _generator(self, n_tokens: int) -> Any:
        """An empty cache with room for so many, under the variant in use."""
        model = self.models[self.variant]
        params = self.api.GeneratorParams(model)
        params.set_search_options(max_length=n_tokens, do_sample=False)
        return self.api.Generator(model, params)

    def _run(self, generator: Any, ids: Any) -> Any:
        """Logits of the last token, float32 (V,)."""
        import numpy as np

        generator.append_tokens(np.array(ids, np.int32))
        return np.asarray(generator.get_logits())[0, -1]

    def prefill(self, n: int) -> float:
        generator = self._generator(max(n + 1, 1088))
        started = perf_counter()
        self._run(generator, self.ids[:n]).argmax()
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        if depth == 0:
            generator = self._generator(1088)
        else:
            if (self.variant, depth) not in self.deep:
                self.deep[self.variant, depth] = generator = self._generator(depth + 256)
                self._run(generator, self.ids[:depth])
            generator = self.deep[self.variant, depth]
            if generator.token_count() > depth:
                generator.rewind_to(depth)
        started = perf_counter()
        for token in self.ids[depth : depth + n]:
            self._run(generator, [token]).argmax()
        return perf_counter() - started

    def first_token(self, text: str) -> float:
        generator = self._generator(256)
        started = perf_counter()
        token = int(self._run(generator, self.tokenizer.encode(text)).argmax())
        self.tokenizer.decode([token])
        return perf_counter() - started

    def probe(self) -> list[float]:
        return thin(self._run(self._generator(1088), self.ids[:128]))
