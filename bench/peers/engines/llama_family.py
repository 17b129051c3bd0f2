"""What llama.cpp and its fork ik_llama.cpp have in common: a context of so many tokens, ids in batches, the logits of
the last one, and what is timed of it."""

from __future__ import annotations

from abc import abstractmethod
from time import perf_counter
from typing import Any

from .worker import Worker, thin

CELLS = 256  # a context has a multiple of so many tokens


def whole_cells(n_tokens: int) -> int:
    return -(-n_tokens // CELLS) * CELLS


class LlamaFamily(Worker):
    """`_ready` and `_run` are the engine's own; `name` is what it is called in messages."""

    name = ""
    BATCH = 512

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self._opened: Any = None

    @abstractmethod
    def _ready(self, n_tokens: int) -> Any:
        """An empty context with room for so many, under the variant in use."""

    @abstractmethod
    def _run(self, context: Any, ids: list[int], pos: int = 0) -> Any:
        """Logits of the last of `ids`, which stand from `pos` on: float32 (V,), a view of the engine's memory."""

    @abstractmethod
    def _open_adapter(self, path: str) -> Any:
        """The engine's handle of an adapter; a null pointer where it cannot load it."""

    def _adapter(self) -> Any:
        """The handle of the job's adapter, which is loaded once."""
        if self._opened is None:
            path = self.job["adapters"]["gguf"]
            self._opened = self._open_adapter(path)
            if not self._opened:
                raise RuntimeError(f"{self.name} cannot load the adapter {path}")
        return self._opened

    def prefill(self, n: int) -> float:
        context = self._ready(n)
        started = perf_counter()
        self._run(context, self.ids[:n]).argmax()
        return perf_counter() - started

    def _write(self, context: Any, n: int, depth: int) -> float:
        """Seconds for n tokens, one at a time, behind the `depth` tokens that the context holds."""
        started = perf_counter()
        for pos, token in enumerate(self.ids[depth : depth + n], depth):
            self._run(context, [token], pos).argmax()
        return perf_counter() - started

    def probe(self) -> list[float]:
        return thin(self._run(self._ready(128), self.ids[:128]))
