"""Paper 1's Table 3 for any recipes: passes, additional parameters, additional storage.

"Additional" is beside the adapters, which are there for their own tasks anyway. A joint expert (paper 1's upper bound)
is an adapter of its own, trained for the composition alone: give it as `single` and read `adapter_parameters`. Needs
the shapes of the model and none of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters.calibration import Calibration
from ..adapters.compiled import CompiledAdapter
from ..adapters.lora import LoraAdapter
from ..adapters.recipe import Recipe, compile_recipe, compile_steps
from ..architecture import Architecture


@dataclass(frozen=True)
class Cost:
    """Of one method. Storage in bytes: of the adapters' files, and of the calibration's tensors in its file;
    `run_time_bytes` are the compiled pairs that stay in memory."""

    name: str
    method: str
    n_passes: int
    adapters: int
    adapter_parameters: int
    adapter_bytes: int
    extra_parameters: int
    extra_bytes: int
    rank: int
    run_time_bytes: int

    @property
    def extra_share(self) -> float:
        """Of the adapters' parameters; 0 without adapters."""
        return self.extra_parameters / self.adapter_parameters if self.adapter_parameters else 0.0


def costs(
    architecture: Architecture, recipes: Mapping[str, Recipe | None], adapters: Mapping[str, LoraAdapter]
) -> list[Cost]:
    """One row per recipe. Raises what compiling a recipe raises."""
    return [_cost(name, recipe or Recipe("zero_shot"), architecture, adapters) for name, recipe in recipes.items()]


def _cost(name: str, recipe: Recipe, architecture: Architecture, adapters: Mapping[str, LoraAdapter]) -> Cost:
    shapes, facts = architecture.shapes, architecture.facts
    compiled: list[CompiledAdapter | None]
    if recipe.steps:
        compiled = compile_steps(recipe, adapters, shapes, facts)
    else:
        calibration = Calibration.load(recipe.calibration) if recipe.calibration else None
        compiled = [compile_recipe(recipe, adapters, calibration, shapes, facts)]
    there = [adapter for adapter in compiled if adapter is not None]
    used = [adapters[n] for n in recipe.adapter_names]
    return Cost(
        name=name,
        method=recipe.method,
        n_passes=recipe.passes,
        adapters=len(used),
        adapter_parameters=sum(adapter.n_parameters for adapter in used),
        adapter_bytes=sum(adapter.nbytes for adapter in used),
        extra_parameters=max((adapter.extra_parameters for adapter in there), default=0),
        extra_bytes=max((adapter.extra_bytes for adapter in there), default=0),
        rank=max((adapter.rank for adapter in there), default=0),
        run_time_bytes=sum({id(adapter): adapter.nbytes for adapter in there}.values()),
    )


def to_rows(rows: list[Cost]) -> list[dict[str, Any]]:
    """JSON-ready, with the computed share."""
    return [{**vars(row), "extra_share": row.extra_share} for row in rows]
