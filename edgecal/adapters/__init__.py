"""Adapters: what was trained, how several become one low-rank pair per module, and for which files that holds."""

from __future__ import annotations

from .calibration import Calibration
from .lora import CompiledAdapter, CompiledPair, LoraAdapter, LoraPair, LoraShape
from .recipe import Recipe, Step, compile_recipe, compile_steps
from .running import RunningAdapter, RunningPair

__all__ = [
    "Calibration",
    "CompiledAdapter",
    "CompiledPair",
    "LoraAdapter",
    "LoraPair",
    "LoraShape",
    "Recipe",
    "RunningAdapter",
    "RunningPair",
    "Step",
    "compile_recipe",
    "compile_steps",
]
