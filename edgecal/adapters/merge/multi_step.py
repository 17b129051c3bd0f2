"""Multi-step: one pass per task, each with its own adapter and instruction, on the answer of the pass before.

Not a merge but a pipeline, and the yardstick of paper 1: it costs as many passes as there are tasks.
`recipe.compile_steps` compiles each step; the engine runs them in turn.
"""

from __future__ import annotations

from .registry import Method, register

MULTI_STEP = register(
    Method(
        "multi_step",
        "one pass per task",
        "Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
        passes=2,
        min_adapters=0,
        max_adapters=0,
    )
)
