"""In-context learning: the base alone, shown examples of the whole task before the question: paper 1's baseline.

Compiles to nothing; `Engine.prepare` puts the recipe's `shots` in front. Their tokens are read with every prompt, and
come out of the prefix cache from the second one on.
"""

from __future__ import annotations

from .registry import Method, register

IN_CONTEXT = register(
    Method(
        "in_context",
        "the base alone, after examples",
        "Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
        min_adapters=0,
        max_adapters=0,
    )
)
