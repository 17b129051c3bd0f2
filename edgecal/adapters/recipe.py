"""A recipe says what to compose; compiling it gives what the engine runs.

A `Recipe` is data: method, names of adapters, weights, path of a calibration, or the steps of a pipeline. It
can be written down as JSON, compared, hashed (`key`), and made from command line options. Names are looked up
when it is compiled, against the adapters that are loaded; `compile_recipe` is the only place where adapters,
calibration and the model's shapes meet, so all checks of one against the other are here.

    {"method": "learnable_calibration_pp", "adapters": ["summarize", "professional"],
     "calibration": "learnable_calibration_pp.safetensors"}
    {"method": "multi_step", "steps": [{"adapter": "summarize", "instruction": "Summarize ..."},
                                       {"adapter": "professional", "instruction": "Change the tone ..."}]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from edgecal_weights.peft_config import unique_keys

from ..errors import AdapterError, CalibrationError, RecipeError
from .calibration import Calibration
from .lora import CompiledAdapter, CompiledPair, LoraAdapter
from .merge import Method, find_method

_KEYS = ("method", "adapters", "weights", "calibration", "steps")
_LARGEST_FILE = 1 << 20


class Step(NamedTuple):
    """One pass of multi_step: the adapter's name (None: the base alone) and the instruction of its prompt."""

    adapter: str | None
    instruction: str


@dataclass(frozen=True)
class Recipe:
    """What to compose. Raises RecipeError when the method is unknown or does not take what is given.

    `weights` None means 1/N for each adapter. `calibration` is a path (relative ones in a recipe file are
    relative to that file). `steps` belong to multi_step, which names its adapters there and nowhere else.
    """

    method: str
    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    calibration: str | None = None
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for key, kind in (("adapters", str), ("weights", float), ("steps", Step)):
            object.__setattr__(self, key, _as_tuple(key, getattr(self, key), kind))
        if self.calibration is not None:
            if not isinstance(self.calibration, (str, Path)):
                raise RecipeError(f"recipe key 'calibration' is {self.calibration!r}, expected a path")
            object.__setattr__(self, "calibration", str(self.calibration))
        if not isinstance(self.method, str):
            raise RecipeError(f"recipe key 'method' is {self.method!r}, expected a name")
        self._check_adapters(self.entry)
        self._check_options(self.entry)

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
                "multi_step needs 'steps', a list of {adapter, instruction}"
                if not self.steps
                else f"'steps' belong to multi_step, not to {self.method}"
            )

    def _check_options(self, entry: Method) -> None:
        if self.weights is not None:
            if not entry.takes_weights:
                raise RecipeError(f"{self.method} takes no weights")
            if len(self.weights) != len(self.adapters):
                raise RecipeError(
                    f"{self.method}: {len(self.weights)} weights for {len(self.adapters)} adapters; one each is needed"
                )
        if entry.needs_calibration and not self.calibration:
            raise RecipeError(f"{self.method} needs a calibration file that was trained for {', '.join(self.adapters)}")
        if self.calibration is not None and not entry.needs_calibration:
            raise RecipeError(f"{self.method} takes no calibration; given: {self.calibration}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """From what `to_dict` gives; RecipeError names the key."""
        for key in values:
            if key not in _KEYS:
                raise RecipeError(f"unknown recipe key {key!r}; a recipe has {', '.join(_KEYS)}")
        if "method" not in values:
            raise RecipeError("recipe key 'method' is missing")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """From a JSON file; RecipeError names the file and the key."""
        path = Path(path).expanduser()
        try:
            if path.is_file() and path.stat().st_size > _LARGEST_FILE:
                raise RecipeError(f"{path} is too large for a recipe")
            values = json.loads(path.read_text("utf-8"), object_pairs_hook=unique_keys)
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"{path} holds a JSON {type(values).__name__}, expected an object")
        try:
            if isinstance(values.get("calibration"), str):
                values["calibration"] = str(path.parent / Path(values["calibration"]).expanduser())
            return cls.from_dict(values)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; keys that say nothing are left out."""
        values: dict[str, Any] = {"method": self.method}
        if self.adapters:
            values["adapters"] = list(self.adapters)
        if self.weights is not None:
            values["weights"] = list(self.weights)
        if self.calibration is not None:
            values["calibration"] = self.calibration
        if self.steps:
            values["steps"] = [step._asdict() for step in self.steps]
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


def compile_recipe(
    recipe: Recipe,
    adapters: Mapping[str, LoraAdapter],
    calibration: Calibration | None,
    shapes: Mapping[str, tuple[int, int]],
    base: Mapping[str, Any],
) -> CompiledAdapter | None:
    """One low-rank pair per module, or None for zero_shot.

    `adapters` are the loaded ones by name, `calibration` is the recipe's (loaded), `shapes` the (d, k) of the
    model's linear modules by path, `base` its model_type, hidden_size, num_hidden_layers and vocab_size.
    Raises RecipeError for a name that is not loaded (and for multi_step: see `compile_steps`), AdapterError
    and CalibrationError when the parts do not fit each other. Modules that no adapter changes stay as they
    are.
    """
    entry = recipe.entry
    if recipe.steps:
        raise RecipeError("multi_step is a pipeline; compile its steps")
    if entry.merge is None:
        return None
    chosen = [_find_adapter(name, adapters) for name in recipe.adapters]
    for adapter in chosen:
        adapter.check_against(shapes)
    changed = {m: shapes[m] for m in shapes if any(m in adapter.shapes for adapter in chosen)}
    weights = recipe.weights or (1 / len(chosen),) * len(chosen)
    if entry.needs_calibration:
        calibration = _check_calibration(recipe, calibration, chosen, changed, base)
        weights = calibration.weights
    else:
        calibration = None
    pairs: dict[str, CompiledPair] = {}
    for module, (d, k) in changed.items():
        present = [(a.pairs[module], w) for a, w in zip(chosen, weights, strict=True) if module in a.shapes]
        term = calibration.for_module(module, d, k) if calibration else None
        try:
            pairs[module] = entry.merge([pair for pair, _ in present], [w for _, w in present], term)
        except AdapterError as error:
            raise AdapterError(f"{recipe.method} of {', '.join(recipe.adapters)} at {module}: {error}") from error
    return CompiledAdapter(
        recipe.method,
        pairs,
        recipe.key,
        extra_parameters=calibration.n_parameters if calibration else 0,
        extra_bytes=calibration.nbytes if calibration else 0,
    )


def compile_steps(
    recipe: Recipe,
    adapters: Mapping[str, LoraAdapter],
    shapes: Mapping[str, tuple[int, int]],
    base: Mapping[str, Any],
) -> list[CompiledAdapter | None]:
    """One compiled adapter per step of a multi_step recipe; a step without an adapter gives None.

    Arguments and errors as for `compile_recipe`. Steps with the same adapter share what it compiles to.
    """
    if not recipe.steps:
        raise RecipeError(f"{recipe.method} has no steps")
    compiled = {
        name: compile_recipe(Recipe("single", (name,)), adapters, None, shapes, base) for name in recipe.adapter_names
    }
    return [None if step.adapter is None else compiled[step.adapter] for step in recipe.steps]


def _find_adapter(name: str, adapters: Mapping[str, LoraAdapter]) -> LoraAdapter:
    if name not in adapters:
        raise RecipeError(f"no adapter {name!r} is loaded; loaded: {', '.join(adapters) or 'none'}")
    return adapters[name]


def _check_calibration(
    recipe: Recipe,
    calibration: Calibration | None,
    adapters: Sequence[LoraAdapter],
    changed: Mapping[str, tuple[int, int]],
    base: Mapping[str, Any],
) -> Calibration:
    if calibration is None:
        raise RecipeError(f"the calibration {recipe.calibration} of this recipe was not loaded")
    if calibration.method != recipe.method:
        raise CalibrationError(
            f"{recipe.calibration} is a calibration for {calibration.method}, the recipe's method is {recipe.method}"
        )
    calibration.check(adapters, base)
    calibration.check_modules(changed)
    return calibration


def _as_tuple(key: str, value: Any, kind: type) -> tuple[Any, ...] | None:
    """JSON lists to tuples of `kind`, with a message that names the key."""
    if value is None and key == "weights":
        return None
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected a list")
    if kind is Step:
        return tuple(_as_step(item) for item in value)
    if kind is float:
        if not all(type(item) in (int, float) and abs(item) < 1e9 for item in value):
            raise RecipeError(f"recipe key {key!r} is {list(value)!r}, expected numbers")
        return tuple(float(item) for item in value)
    if not all(isinstance(item, str) and item for item in value):
        raise RecipeError(f"recipe key {key!r} is {list(value)!r}, expected names")
    return tuple(value)


def _as_step(item: Any) -> Step:
    if isinstance(item, Mapping) and set(item) == {"adapter", "instruction"}:
        item = (item["adapter"], item["instruction"])
    if isinstance(item, (list, tuple)) and len(item) == 2:
        adapter, instruction = item
        if (adapter is None or (isinstance(adapter, str) and adapter)) and isinstance(instruction, str) and instruction:
            return Step(adapter, instruction)
    raise RecipeError(f"recipe key 'steps' holds {item!r}, expected {{adapter, instruction}}")
