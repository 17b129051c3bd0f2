"""mistral.rs, by its Python package."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from .worker import BASE, Worker


class MistralRs(Worker):
    """mistral.rs counts the tokens of a text itself; a text of n tokens may come back as n plus or minus a few."""

    install = "pip install mistralrs"
    variants = (BASE,)

    def imports(self) -> None:
        self.api = import_module("mistralrs")

    def load(self) -> None:
        path = Path(self.model["gguf"])
        which = self.api.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        self.runner = self.api.Runner(which=which, prefix_cache_n=0, max_seqs=1)
        self.texts: dict[int, str] = {}

    def _usage(self, text: str, n: int) -> Any:
        request = self.api.CompletionRequest(
            prompt=text, model="default", max_tokens=n, temperature=0.0, ignore_eos=True
        )
        return self.runner.send_completion_request(request).usage

    def _text(self, n: int) -> str:
        if n not in self.texts:
            from tokenizers import Tokenizer

            self.texts[n] = Tokenizer.from_file(self.model["tokenizer"]).decode(self.ids[:n])
        return self.texts[n]

    def prefill(self, n: int) -> float:
        usage = self._usage(self._text(n), 1)
        return float(usage.total_prompt_time_sec) * n / usage.prompt_tokens

    def decode(self, n: int, depth: int) -> float:
        usage = self._usage(self._text(max(depth, 1)), n + 1)
        return float(usage.total_completion_time_sec) * n / (usage.completion_tokens - 1)

    def first_token(self, text: str) -> float:
        started = perf_counter()
        self._usage(text, 1)
        return perf_counter() - started
