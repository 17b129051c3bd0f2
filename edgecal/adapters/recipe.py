"""A recipe says what to compose; compiling it gives what the engine runs.

A `Recipe` is data: method, names of adapters, weights, options, path of a calibration, or the steps of a pipeline. It
can be written down as JSON or YAML (`recipe_spelling` has the spellings), compared, hashed (`key`), and made from
command line options. Names are looked up when it is compiled, against the adapters that are loaded; `compile_recipe` is
the only place where adapters, calibration and the model's shapes meet, so all checks of one against the other are here.

    {"method": "learnable_calibration_pp", "adapters": ["summarize", "professional"],
     "calibration": "learnable_calibration_pp.safetensors"}
    {"method": "multi_step", "steps": [{"adapter": "summarize", "instruction": "Summarize ..."},
                                       {"adapter": "professional", "instruction": "Change the tone ..."}]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecal_kernels import cpu
from edgecal_weights.files import expand

from ..errors import AdapterError, CalibrationError, RecipeError
from ..text.counted import counted
from .calibration import Calibration
from .compiled import CompiledAdapter, CompiledPair
from .lora import LoraAdapter, LoraPair, find_adapter
from .merge import Context, Method, blas, find_method
from .merge.workspace import Arena, scratch
from .merge_kernels import Kernels
from .recipe_file import read_recipe
from .recipe_spelling import arguments


class Step(NamedTuple):
    """One pass of multi_step: the adapter's name (None: the base alone) and the instruction of its prompt."""

    adapter: str | None
    instruction: str


class Shot(NamedTuple):
    """An example of in_context: a whole message of the user, instruction included, and the answer to it."""

    input: str
    output: str


@dataclass(frozen=True)
class Recipe:
    """What to compose. Raises RecipeError when the method is unknown or does not take what is given.

    `weights` None means 1/N for each adapter, or what follows from the options. `calibration` is a path. `steps` belong
    to multi_step, which names its adapters there and nowhere else; `shots` to in_context. `options` may be given as a
    mapping. `paths` says where adapters are, for those who load them ({name: path}, kept as pairs); `base_model` names
    the model that the recipe is for. In a recipe file, relative paths are relative to that file.

    `notes` are for whoever wrote the recipe: what was read otherwise than it is spelled, what has no effect. They are
    no part of it: equal recipes may have different notes.
    """

    method: str
    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    calibration: str | None = None
    steps: tuple[Step, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    paths: tuple[tuple[str, str], ...] = ()
    base_model: str | None = None
    shots: tuple[Shot, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for key, kind in (("adapters", str), ("weights", float), ("steps", Step), ("shots", Shot)):
            object.__setattr__(self, key, _as_tuple(key, getattr(self, key), kind))
        if self.calibration is not None:
            if not isinstance(self.calibration, (str, Path)):
                raise RecipeError(f"recipe key 'calibration' is {self.calibration!r}, expected a path")
            object.__setattr__(self, "calibration", str(self.calibration))
        if not isinstance(self.method, str):
            raise RecipeError(f"recipe key 'method' is {self.method!r}, expected a name")
        options = self.entry.check_options(_as_dict("options", self.options), len(self.adapters))
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        object.__setattr__(self, "paths", tuple(sorted(_as_dict("paths", self.paths).items())))
        self._check_adapters(self.entry)
        self._check_weights(self.entry)
        self._check_calibration(self.entry)
        object.__setattr__(self, "notes", tuple(dict.fromkeys((*self.notes, *self._own_notes()))))

    @property
    def entry(self) -> Method:
        """The method's entry in the registry."""
        return find_method(self.method)

    def _check_adapters(self, entry: Method) -> None:
        count, most = len(self.adapters), entry.max_adapters
        if count < entry.min_adapters or (most is not None and count > most):
            wanted = {0: "no adapters", 1: "one adapter", None: "one adapter or more"}[most]
            advice = "; they are named in its steps" if self.method == "multi_step" else ""
            raise RecipeError(f"{self.method} takes {wanted}{advice}; given: {', '.join(self.adapters) or 'none'}")
        if (self.method == "multi_step") != bool(self.steps):
            raise RecipeError(
                "multi_step needs 'steps', a list of {adapter, instruction} (--step NAME:INSTRUCTION)"
                if not self.steps
                else f"'steps' belong to multi_step, not to {self.method}"
            )
        if (self.method == "in_context") != bool(self.shots):
            raise RecipeError(
                "in_context needs 'shots', a list of {input, output}"
                if not self.shots
                else f"'shots' belong to in_context, not to {self.method}"
            )
        for name, _path in self.paths:
            if name not in self.adapter_names:
                raise RecipeError(f"the recipe says where {name!r} is and does not use it")

    def _check_weights(self, entry: Method) -> None:
        if self.weights is None:
            if entry.needs_weights:
                raise RecipeError(f"{self.method} needs weights, one per adapter; `edgecal search` finds them")
            if entry.weigh is not None:
                entry.weigh(dict(self.options), len(self.adapters))
            return
        if not entry.takes_weights:
            raise RecipeError(f"{self.method} takes no weights")
        if len(self.weights) != len(self.adapters):
            raise RecipeError(
                f"{self.method}: {counted(len(self.weights), 'weight')} for "
                f"{counted(len(self.adapters), 'adapter')}; one each is needed"
            )
        for option in entry.options:
            if option.instead_of_weights and option.name in dict(self.options):
                raise RecipeError(f"{self.method}: the weights follow from {option.name!r}; give one of the two")
        if entry.weights_are_shares and (min(self.weights) < 0 or sum(self.weights) == 0):
            raise RecipeError(f"{self.method}: weights are shares here, none negative and not all 0")

    def _check_calibration(self, entry: Method) -> None:
        if entry.needs_calibration and not self.calibration:
            trained = f" that was trained for {', '.join(self.adapters)}" if self.adapters else ""
            raise RecipeError(f"{self.method} needs a calibration file{trained}")
        if self.calibration is not None and not entry.needs_calibration:
            raise RecipeError(f"{self.method} takes no calibration; given: {self.calibration}")

    def _own_notes(self) -> list[str]:
        if len(self.adapters) != 1 or self.entry.alone is None:
            return []
        return [
            f"{name} changes nothing here: {self.method} leaves one adapter alone whole, as PEFT does"
            for name, _value in self.options
        ]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """From what `to_dict` gives, or from mergekit's spelling; RecipeError names the key."""
        return cls(**arguments(values))

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """From a YAML or JSON file; RecipeError names the file and the key."""
        path = expand(path, RecipeError)
        values = read_recipe(path)
        try:
            return cls(**arguments(values, path.parent))
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; keys that say nothing are left out."""
        values: dict[str, Any] = {"method": self.method}
        paths = dict(self.paths)
        names = self.adapters or (self.adapter_names if paths else ())
        if names:
            values["adapters"] = [{"name": name, "path": paths[name]} if name in paths else name for name in names]
        if self.weights is not None:
            values["weights"] = list(self.weights)
        if self.calibration is not None:
            values["calibration"] = self.calibration
        if self.steps:
            values["steps"] = [step._asdict() for step in self.steps]
        if self.shots:
            values["shots"] = [shot._asdict() for shot in self.shots]
        if self.options:
            values["options"] = {name: list(v) if isinstance(v, tuple) else v for name, v in self.options}
        if self.base_model is not None:
            values["base_model"] = self.base_model
        return values

    @cached_property
    def key(self) -> str:
        """16 hex digits, equal for equal recipes on every machine: names a compiled recipe in caches."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def passes(self) -> int:
        """How often the model answers: the number of steps, else 1."""
        return len(self.steps) or 1

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """All adapters that it needs, in order, each once."""
        named = (*self.adapters, *(step.adapter for step in self.steps if step.adapter is not None))
        return tuple(dict.fromkeys(named))

    @property
    def merge_weights(self) -> tuple[float, ...]:
        """One per adapter: as given, as they follow from the options, or 1/N."""
        if self.weights is not None:
            return self.weights
        if self.entry.weigh is not None:
            return self.entry.weigh(dict(self.options), len(self.adapters))
        return (1 / len(self.adapters),) * len(self.adapters) if self.adapters else ()


def compile_recipe(
    recipe: Recipe,
    adapters: Mapping[str, LoraAdapter],
    calibration: Calibration | None,
    shapes: Mapping[str, tuple[int, int]],
    base: Mapping[str, Any] | None,
    kernels: Kernels = None,
) -> CompiledAdapter | None:
    """One low-rank pair per module, or None for zero_shot.

    `adapters` are the loaded ones by name, `calibration` is the recipe's (loaded), `shapes` the (d, k) of the
    model's linear modules by path, `base` its facts (`architecture.base_facts`); None when the model is not at hand and
    only the adapters can be compared with the calibration. `kernels` are the compiled ones of merging (a back end's
    `merging`), worth it where they are loaded anyway; without them NumPy merges.
    Raises RecipeError for a name that is not loaded (and for multi_step: see `compile_steps`), AdapterError
    and CalibrationError when the parts do not fit each other. Modules that no adapter changes stay as they
    are. Modules are merged in parallel; of several that cannot be, the first in the model's order is named.
    """
    entry = recipe.entry
    if recipe.steps:
        raise RecipeError("multi_step is a pipeline; compile its steps")
    merge = entry.merge_of(len(recipe.adapters))
    if merge is None:
        return None
    chosen = [find_adapter(name, adapters).on_base(base) for name in recipe.adapters]
    for adapter in chosen:
        adapter.check_against(shapes)
    weights = recipe.merge_weights
    if entry.needs_calibration:
        calibration = _needed_calibration(recipe, calibration)
        changed = _changed(shapes, chosen, calibration)
        _check_calibration(calibration, chosen, changed, base)
        weights = calibration.weights
    else:
        calibration = None
        changed = _changed(shapes, chosen, None)
    options = dict(recipe.options)
    largest_rank = max((rank for adapter in chosen for rank in adapter.ranks), default=None)
    arena = Arena(sum(adapter.n_parameters for adapter in chosen))

    def merge_module(module: str) -> CompiledPair:
        d, k = changed[module]
        positions = tuple(i for i, adapter in enumerate(chosen) if module in adapter.shapes)
        term = calibration.for_module(module, d, k) if calibration else None
        context = Context(term, options, module, (d, k), recipe.adapters, positions, largest_rank, arena, kernels)

        def read(i: int) -> LoraPair:
            return chosen[i].pair(module, lambda factor, shape: scratch(f"adapter {i} {factor}", shape), kernels)

        pairs = [read(i) for i in positions]
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by whoever runs or writes it
                return merge(pairs, [weights[i] for i in positions], context)
        except AdapterError as error:
            raise AdapterError(f"{recipe.method} of {', '.join(recipe.adapters)} at {module}: {error}") from error

    return CompiledAdapter(
        recipe.method,
        dict(zip(changed, _in_parallel(merge_module, list(changed)), strict=True)),
        recipe.key,
        extra_parameters=calibration.n_parameters if calibration else 0,
        extra_bytes=calibration.nbytes if calibration else 0,
    )


def compile_steps(
    recipe: Recipe,
    adapters: Mapping[str, LoraAdapter],
    shapes: Mapping[str, tuple[int, int]],
    base: Mapping[str, Any] | None,
    kernels: Kernels = None,
) -> list[CompiledAdapter | None]:
    """One compiled adapter per step of a multi_step recipe; a step without an adapter gives None.

    Arguments and errors as for `compile_recipe`. Steps with the same adapter share what it compiles to.
    """
    if not recipe.steps:
        raise RecipeError(f"{recipe.method} has no steps")
    compiled = {
        name: compile_recipe(Recipe("single", (name,)), adapters, None, shapes, base, kernels)
        for name in recipe.adapter_names
    }
    return [None if step.adapter is None else compiled[step.adapter] for step in recipe.steps]


def _in_parallel(function: Callable[[str], CompiledPair], modules: list[str]) -> list[CompiledPair]:
    """NumPy computes without the interpreter's lock, so threads are enough; results and errors in order."""
    with blas.one_thread(), ThreadPoolExecutor(max(1, min(cpu.usable_cores(), 8, len(modules)))) as pool:
        try:
            return list(pool.map(function, modules))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _changed(
    shapes: Mapping[str, tuple[int, int]], adapters: Sequence[LoraAdapter], calibration: Calibration | None
) -> dict[str, tuple[int, int]]:
    """The modules that the adapters change, or the calibration where it stands alone."""
    if not adapters and calibration is not None:
        return {module: (d, k) for module, (d, k) in shapes.items() if calibration.covers(module, d, k)}
    return {module: shapes[module] for module in shapes if any(module in adapter.shapes for adapter in adapters)}


def _needed_calibration(recipe: Recipe, calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise RecipeError(f"the calibration {recipe.calibration} of this recipe was not loaded")
    if calibration.method != recipe.method:
        raise CalibrationError(
            f"{recipe.calibration} is a calibration for {calibration.method}, the recipe's method is {recipe.method}"
        )
    return calibration


def _check_calibration(
    calibration: Calibration,
    adapters: Sequence[LoraAdapter],
    changed: Mapping[str, tuple[int, int]],
    base: Mapping[str, Any] | None,
) -> None:
    if base is None:
        calibration.check_adapters(adapters)
    else:
        calibration.check(adapters, base)
    calibration.check_modules(changed)


def _as_dict(key: str, value: Any) -> dict[str, Any]:
    """A mapping, or the pairs that one was kept as."""
    if isinstance(value, tuple) and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        value = dict(value)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected a mapping")
    if key == "paths" and not all(isinstance(path, (str, Path)) for path in value.values()):
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected paths")
    return {name: str(item) if key == "paths" else item for name, item in value.items()}


def _as_tuple(key: str, value: Any, kind: type) -> tuple[Any, ...] | None:
    """JSON lists to tuples of `kind`, with a message that names the key."""
    if value is None and key == "weights":
        return None
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected a list")
    if kind is Step:
        return tuple(_as_step(item) for item in value)
    if kind is Shot:
        return tuple(_as_shot(item) for item in value)
    if kind is float:
        if not all(type(item) in (int, float) and abs(item) < 1e9 for item in value):
            raise RecipeError(f"recipe key {key!r} is {list(value)!r}, expected numbers")
        return tuple(float(item) for item in value)
    if not all(isinstance(item, str) and item for item in value):
        raise RecipeError(f"recipe key {key!r} is {list(value)!r}, expected names")
    return tuple(value)


def _as_shot(item: Any) -> Shot:
    if isinstance(item, Mapping) and set(item) == {"input", "output"}:
        item = (item["input"], item["output"])
    if isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(x, str) and x.strip() for x in item):
        return Shot(*item)
    raise RecipeError(f"recipe key 'shots' holds {item!r:.200}, expected {{input, output}}, both text")


def _as_step(item: Any) -> Step:
    if isinstance(item, Mapping) and set(item) == {"adapter", "instruction"}:
        item = (item["adapter"], item["instruction"])
    if isinstance(item, (list, tuple)) and len(item) == 2:
        adapter, instruction = item
        if (adapter is None or (isinstance(adapter, str) and adapter)) and isinstance(instruction, str) and instruction:
            return Step(adapter, instruction)
    raise RecipeError(f"recipe key 'steps' holds {item!r}, expected {{adapter, instruction}}")
