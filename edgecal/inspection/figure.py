"""The weight changes of a recipe beside plain linear merging: how their values are spread, how large they are by layer.

What paper 1 shows in its Figure 5 for its methods ("Efficient Compositional Multi-tasking for On-device Large Language
Models", EMNLP 2025), for any recipe: `measure` gives numbers, `figure_picture` draws them. Norms are exact, out of the
factors (adapters/factors.py). The histograms are of the values of dW on every Nth row, N odd and fixed by the module's
size, so that no dW is ever formed whole, and the same recipe gives the same numbers everywhere.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.calibration import Calibration, component
from ..adapters.compiled import CompiledAdapter
from ..adapters.gram import Factors
from ..adapters.lora import LoraAdapter
from ..adapters.recipe import Recipe, compile_recipe
from ..architecture import Architecture
from ..errors import AdapterError, RecipeError

BINS = 81  # odd: zero is the middle of a bin
SPREAD = 6.0  # the histogram ends at this many times the root mean square
_SAMPLE = 100_000  # values of one dW that are looked at, about


@dataclass(frozen=True)
class Values:
    """One dW: its Frobenius norm, the root mean square of its values, and of the sampled ones the number, the largest
    magnitude, the counts by bin and how many lie outside all bins."""

    norm: float
    rms: float
    sampled: int
    largest: float
    counts: list[int]
    outside: int


@dataclass(frozen=True)
class ModuleValues:
    """`half_range`: the bins divide [-half_range, half_range] evenly; the same for all layers of a component."""

    module: str
    component: str
    layer: int | None
    shape: tuple[int, int]
    half_range: float
    recipe: Values
    baseline: Values | None


@dataclass(frozen=True)
class Measurement:
    """`recipe` and `baseline` as Recipe.to_dict gives them; no baseline where there are no adapters to merge."""

    model: str
    recipe: dict[str, Any]
    baseline: dict[str, Any] | None
    modules: list[ModuleValues]
    notes: list[str] = field(default_factory=list)

    @property
    def components(self) -> list[str]:
        return list(dict.fromkeys(m.component for m in self.modules))

    def to_dict(self) -> dict[str, Any]:
        return {"bins": BINS, **asdict(self)}

    def to_csv(self) -> str:
        """One row per module and series; the counts follow in columns bin_0 ..."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        facts = ["module", "component", "layer", "series", "norm", "rms", "sampled", "largest", "outside", "half_range"]
        writer.writerow([*facts, *(f"bin_{i}" for i in range(BINS))])
        for m in self.modules:
            for series, values in (("recipe", m.recipe), ("baseline", m.baseline)):
                if values is None:
                    continue
                numbers = (values.norm, values.rms, values.sampled, values.largest, values.outside, m.half_range)
                writer.writerow([m.module, m.component, m.layer, series, *numbers, *values.counts])
        return out.getvalue()


def measure(
    recipe: Recipe, adapters: Mapping[str, LoraAdapter], architecture: Architecture, *, model: str = ""
) -> Measurement:
    """Compile `recipe` and the linear merge (Eq. 5) of the same adapters, and look at the dW of both.

    Where the adapters' ranks differ, so that Eq. 5 is not defined, the baseline is their exact mean (concat). Raises
    RecipeError for a recipe without adapters or with steps, and whatever compiling raises.
    """
    if recipe.steps or not (recipe.adapters or recipe.calibration):
        raise RecipeError(f"{recipe.method} is no merge: there is no dW to look at")
    calibration = Calibration.load(recipe.calibration) if recipe.calibration else None
    compiled = compile_recipe(recipe, adapters, calibration, architecture.shapes, architecture.facts)
    assert compiled is not None
    notes: list[str] = []
    plain = baseline = None
    if recipe.adapters:
        plain, baseline = _baseline(recipe, adapters, architecture)
        if plain.method != "linear":
            notes.append("the adapters' ranks differ, so the baseline is the exact mean of their dW (concat)")
    if any(pair.bias is not None for pair in compiled.pairs.values()):
        notes.append("the calibration adds a vector to the output, which is no part of dW and not shown")
    if recipe.method == "linear" and recipe.weights is None:
        notes.append("the recipe is the baseline itself")
    modules = _modules(compiled, baseline)
    return Measurement(model, recipe.to_dict(), plain.to_dict() if plain else None, modules, notes)


def _baseline(
    recipe: Recipe, adapters: Mapping[str, LoraAdapter], architecture: Architecture
) -> tuple[Recipe, CompiledAdapter | None]:
    plain = Recipe("linear", recipe.adapters)
    try:
        return plain, compile_recipe(plain, adapters, None, architecture.shapes, architecture.facts)
    except AdapterError:
        plain = Recipe("concat", recipe.adapters)
        return plain, compile_recipe(plain, adapters, None, architecture.shapes, architecture.facts)


def _modules(compiled: CompiledAdapter, baseline: CompiledAdapter | None) -> list[ModuleValues]:
    others = baseline.pairs if baseline is not None else {}
    norms = {}
    for module, pair in compiled.pairs.items():
        other = others.get(module)
        norms[module] = Factors.of(pair).norm(), Factors.of(other).norm() if other is not None else 0.0
    half: dict[str, float] = {}
    for module, pair in compiled.pairs.items():
        rms = max(norms[module]) / math.sqrt(len(pair.b) * pair.a.shape[1])
        half[component(module)] = max(half.get(component(module), 0.0), SPREAD * rms)
    found = []
    for module, pair in compiled.pairs.items():
        name = component(module)
        layer = next((int(part) for part in module.split(".") if part.isdecimal()), None)
        width = half[name] or 1.0
        found.append(
            ModuleValues(
                module,
                name,
                layer,
                (len(pair.b), pair.a.shape[1]),
                width,
                _values(Factors.of(pair), norms[module][0], width),
                _values(Factors.of(others[module]), norms[module][1], width) if module in others else None,
            )
        )
    return found


def _values(factors: Factors, norm: float, half_range: float) -> Values:
    d, k = factors.shape
    step = max(1, math.ceil(d * k / _SAMPLE)) | 1
    step = min(step, d if d % 2 else max(1, d - 1))
    values = factors.rows(0, d, step)
    counts = histogram(values, half_range)
    return Values(
        norm,
        norm / math.sqrt(d * k),
        values.size,
        float(np.abs(values).max(initial=0)),
        counts.tolist(),
        values.size - int(counts.sum()),
    )


def histogram(values: NDArray[np.float64], half_range: float) -> NDArray[np.int64]:
    """Counts (BINS,) over [-half_range, half_range)."""
    places = np.floor((values.ravel() / half_range + 1) * (BINS / 2))
    inside = (places >= 0) & (places < BINS)
    return np.bincount(places[inside].astype(np.int64), minlength=BINS)
