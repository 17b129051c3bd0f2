"""What all engines have in common: the methods that they are asked by.

    load()                     the model ready for its first token
    use(variant)               "base", "lora" (one rank-32 adapter on all seven components) or "lc++" (edgecal only)
    prefill(n)                 seconds for n prompt tokens into an empty cache, logits of the last one included
    decode(n, depth)           seconds for n tokens, one at a time, behind `depth` tokens that are in the cache already
    first_token(text)          seconds from a text to the text of the first token of the answer
    probe()                    some logits, to compare the engines' arithmetic; None where an engine gives none
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

PROBED = 512  # logits of every k-th token that `probe` returns
BASE, LORA, LCPP = "base", "lora", "lc++"


def status(field: str) -> int:
    """VmHWM (peak resident), VmRSS ... of this process in bytes; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def thin(logits: Any) -> list[float]:
    return [float(x) for x in logits[:: max(1, len(logits) // PROBED)]]


class Worker(ABC):
    """One engine. `job` is the request that made the process: model, threads, ids, adapters. `install` says how to get
    the package that `imports` needs."""

    variants: tuple[str, ...] = (BASE, LORA)
    install = ""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.threads, self.ids = job, int(job["threads"]), [int(i) for i in job["ids"]]
        self.model: dict[str, Any] = job["model"]
        self.variant = BASE

    @abstractmethod
    def imports(self) -> None:
        """What has to be imported before a model can be loaded."""

    @abstractmethod
    def load(self) -> None:
        """The model ready for its first token."""

    @abstractmethod
    def prefill(self, n: int) -> float: ...

    @abstractmethod
    def decode(self, n: int, depth: int) -> float: ...

    @abstractmethod
    def first_token(self, text: str) -> float: ...

    def probe(self) -> list[float] | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {}

    def use(self, variant: str) -> None:
        self.variant = variant
