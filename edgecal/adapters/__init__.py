"""Adapters: what was trained, how several become one low-rank pair per module, and for which files that holds."""

from __future__ import annotations

from .calibration import Calibration
from .compiled import CompiledAdapter, CompiledPair, RunningAdapter, RunningPair
from .lora import LoraAdapter, LoraPair, LoraShape
from .recipe import Recipe, Shot, Step, compile_recipe, compile_steps

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
    "Shot",
    "Step",
    "compile_recipe",
    "compile_steps",
]
