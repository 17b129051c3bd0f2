"""The base alone, told both tasks in its instruction: paper 1's baseline. Compiles to nothing."""

from __future__ import annotations

from .registry import Method, register

ZERO_SHOT = register(
    Method(
        "zero_shot",
        "the base alone",
        "Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
        min_adapters=0,
        max_adapters=0,
    )
)
