"""Composition methods: one idea per file, a pure function on arrays, registered with its paper.

A method takes the LoRA pairs of one module and gives one pair. It knows neither models nor files; `recipe.py`
feeds it module by module. To add a method, write its file and import it here.

Papers: *paper 1* is "Efficient Compositional Multi-tasking for On-device Large Language Models" (EMNLP 2025),
*paper 2* "On-device System of Compositional Multi-tasking in Large Language Models" (2025).
"""

from __future__ import annotations

from . import (
    concat,
    learnable_calibration,
    learnable_calibration_pp,
    linear,
    multi_step,
    projection_merge,
    single,
    zero_shot,
)
from .registry import Method, find_method, method_names, methods

__all__ = [
    "Method",
    "concat",
    "find_method",
    "learnable_calibration",
    "learnable_calibration_pp",
    "linear",
    "method_names",
    "methods",
    "multi_step",
    "projection_merge",
    "single",
    "zero_shot",
]
