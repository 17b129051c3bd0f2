"""The rows of the papers' tables: what each method is, for one task, as a recipe.

A method is named and does not know the task: `linear` means the merge of the task's own adapters, `main_adapter` the
one of its main task alone. The adapters are found by the parts of the task (`summarize`, `professional`, `french`), the
calibrations by the adapters that they were trained for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..adapters.calibration import Calibration
from ..adapters.lora import LoraAdapter
from ..adapters.merge import find_method
from ..adapters.recipe import Recipe, Shot, Step
from ..errors import AdapterError, BenchmarkError, RecipeError
from .prompts import PromptSet
from .tasks import Task

PAPER = (
    "zero_shot",
    "in_context",
    "main_adapter",
    "auxiliary_adapter",
    "linear",
    "concat",
    "ties",
    "dare_linear",
    "slerp",
    "learnable_calibration",
    "learnable_calibration_pp",
    "projection_merge",
    "joint_expert",
    "multi_step",
)
"""The tables of both papers, as far as nothing has to be searched or trained for a row."""
ABLATIONS = ("learnable_calibration_only", "learnable_calibration_pp_only")
"""Paper 1's Table 4: the calibration without the LoRAs."""
OWN = ("in_context", "main_adapter", "auxiliary_adapter")
"""Names that are rows here and no merge methods."""


@dataclass(frozen=True)
class MethodSpec:
    """A row as the configuration asks for it. `method` is of the registry, or of OWN."""

    name: str
    method: str
    weights: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shots: int = 1


@dataclass(frozen=True)
class Row:
    """A method made ready for one task. `n_shots`: examples that the recipe has yet to get, for in_context."""

    name: str
    recipe: Recipe
    n_shots: int = 0

    def with_shots(self, shots: Sequence[Shot]) -> Row:
        """The row ready to run; others than in_context are as they are."""
        if not self.n_shots:
            return self
        return Row(self.name, Recipe("in_context", shots=tuple(shots[: self.n_shots])))


@dataclass(frozen=True)
class Inventory:
    """What there is to compose. `adapters` by part of a task, `joint` experts by the name of a task."""

    adapters: Mapping[str, LoraAdapter]
    joint: Mapping[str, LoraAdapter]
    calibrations: Mapping[str, Calibration]

    def of(self, task: Task) -> tuple[str, ...]:
        """The names of the task's adapters, in the order of its parts; BenchmarkError names one that is missing."""
        names = tuple(step.name for step in task.steps)
        for name in names:
            if name not in self.adapters:
                raise BenchmarkError(f"no adapter for {name!r}")
        return names


class Impossible(Exception):
    """There is not what this method needs for this task; the message says what."""


def row_for(spec: MethodSpec, task: Task, inventory: Inventory, prompts: PromptSet) -> Row:
    """Raises Impossible, or RecipeError for a specification that no task could have."""
    if spec.method == "in_context":
        return Row(spec.name, Recipe("zero_shot"), spec.shots)
    if spec.method == "zero_shot":
        return Row(spec.name, Recipe("zero_shot"))
    if spec.method == "joint_expert":
        if task.name not in inventory.joint:
            raise Impossible("no joint expert is named for it")
        return Row(spec.name, Recipe("joint_expert", (f"joint {task.name}",)))
    if spec.method == "multi_step" and len(task.steps) < 2:
        raise Impossible("a single task has one step")
    try:
        names = inventory.of(task)
    except BenchmarkError as error:
        raise Impossible(str(error)) from error
    if spec.method in ("main_adapter", "auxiliary_adapter"):
        return Row(spec.name, Recipe("single", (_single(spec.method, names),)))
    if spec.method == "multi_step":
        steps = tuple(Step(name, prompts.instruction(Task.parse(name))) for name in names)
        return Row(spec.name, Recipe("multi_step", steps=steps))
    entry = find_method(spec.method)
    if entry.max_adapters == 1 and len(names) > 1:
        raise Impossible("it takes one adapter")
    if entry.needs_calibration:
        return _calibrated(spec, names, inventory)
    if entry.needs_weights and spec.weights is None:
        raise Impossible("it needs weights, which `edgecal search` finds")
    if len(names) == 1 and spec.method != "single":
        raise Impossible("a single task has nothing to merge")
    options = tuple(spec.options.items())
    try:
        return Row(spec.name, Recipe(spec.method, names, spec.weights, options=options))
    except RecipeError as error:
        if len(names) == 2:  # what every method takes
            raise
        raise Impossible(str(error)) from error


def _single(method: str, names: Sequence[str]) -> str:
    if method == "main_adapter":
        return names[0]
    if len(names) < 2:
        raise Impossible("a single task has no auxiliary one")
    return names[1]


def _calibrated(spec: MethodSpec, names: tuple[str, ...], inventory: Inventory) -> Row:
    kind, only = spec.method.removesuffix("_only"), spec.method.endswith("_only")
    adapters = [inventory.adapters[name] for name in names]
    for path, calibration in inventory.calibrations.items():
        if calibration.method != kind:
            continue
        try:
            calibration.check_adapters(adapters)
        except AdapterError:
            continue
        shared = len(calibration.adapter_lists) > 1
        recipe = Recipe(spec.method, () if only else names, calibration=path)
        return Row(f"shared {spec.name}" if shared else spec.name, recipe)
    raise Impossible(f"no {kind} file that was trained for these adapters")


def rows_for(
    specs: Sequence[MethodSpec], task: Task, inventory: Inventory, prompts: PromptSet
) -> tuple[list[Row], dict[str, str]]:
    """The rows of one task, and by name of the others what they lack."""
    rows, lacking = [], {}
    for spec in specs:
        try:
            rows.append(row_for(spec, task, inventory, prompts))
        except Impossible as error:
            lacking[spec.name] = str(error)
    return rows, lacking
