"""mergekit's spelling of a recipe, read as mergekit means it.

    merge_method: linear
    base_model: org/base
    models:
      - model: adapters/summarize
        parameters: {weight: 0.6}
      - model: org/base+adapters/formal
        parameters: {weight: 0.4}

mergekit merges whole models W + dW_i, this package the dW_i of one base. Where both come to the same, that is what the
recipe becomes; where they do not, it is refused or a note says so:

| mergekit (weights w_i) | is | here |
|---|---|---|
| `linear` | sum w_i (W + dW_i) / sum w_i | `concat`, weights w_i / sum w_i |
| `linear`, `normalize: false` | sum w_i (W + dW_i), the base too | `concat`; refused unless sum w_i = 1 |
| `task_arithmetic` | W + lambda sum w_i dW_i, over sum w_i with `normalize` | `concat`, with those weights |
| `ties`, `dare_ties`, `dare_linear`, `slerp` | on whole matrices | the variants on factors (PEFT's), noted |

`lambda` is a factor on the weights, `density` is 1 unless given, the base among the models has a dW of 0, and slerp's
base_model is the model at t = 0. Settings that change nothing here are passed over with a note. Methods that mergekit
does not have go by their names here. Source: mergekit's merge_methods/linear.py and generalized_task_arithmetic.py.

A model is a path when it has a slash in it, begins with "demo:" or exists beside the file, and otherwise the name of an
adapter that is loaded; BASE+ADAPTER is mergekit's way to name a LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .merge import Method, find_method
from .recipe_entries import Entries, all_or_none, beside, mapping, refuse_unknown

KEYS = ("merge_method", "models", "parameters", "base_model", "calibration")
_MODEL = ("model", "name", "parameters")
_SUMS = ("linear", "task_arithmetic")  # of whole changes: concat
_FLOAT32 = "merging is float32 here, and `edgecal merge --dtype` says what is written"
# Settings of mergekit's files without an effect on adapters ...
_HARMLESS = {
    "dtype": _FLOAT32,
    "out_dtype": _FLOAT32,
    "tokenizer_source": "adapters have no tokenizer",
    "int8_mask": "it saves mergekit memory",
}
# ... and those that ask for something else
_REFUSED = {
    "slices": "adapters are merged whole: list them under models",
    "modules": "adapters are merged whole: list them under models",
    "tokenizer": "adapters have no tokenizer, leave it out",
    "chat_template": "adapters have no chat template, leave it out",
}
_VARIANTS = {
    "ties": "ties is PEFT's here, on the factors; mergekit trims whole matrices and votes with the weights (nearest: "
    "ties_svd)",
    "dare_ties": "dare_ties is PEFT's here, on the factors; mergekit thins whole matrices and votes with the weights "
    "(nearest: dare_ties_svd)",
    "dare_linear": "dare_linear is PEFT's here, on the factors; mergekit thins whole matrices (nearest: "
    "dare_linear_svd)",
    "slerp": "slerp is between the factors of adapters here; mergekit's is between whole models (nearest: slerp_svd)",
}


def is_mergekit(values: Mapping[str, Any]) -> bool:
    return "merge_method" in values or "models" in values


def from_mergekit(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Arguments of `Recipe` (all but the calibration); relative paths are taken from `folder`. RecipeError names the
    key."""
    notes = _passed_over(values)
    theirs = values["merge_method"]
    if not isinstance(theirs, str):
        raise RecipeError(f"recipe key 'merge_method' is {theirs!r}, expected a name")
    entry = find_method("concat" if theirs in _SUMS else theirs)
    common = dict(mapping("parameters", values.get("parameters")))
    notes += _passed_over(common, "parameters")
    models = _Models(values, folder, entry)
    options, weights = models.parameters(common)
    weights = _Weights(theirs, entry, weights, models.base_weight).read(options, len(models.entries.names), notes)
    if theirs in _VARIANTS:
        notes.append(_VARIANTS[theirs])
        if any(option.name == "density" for option in entry.options):
            options.setdefault("density", 1.0)
    if theirs in _SUMS:
        shown = ", ".join(f"{weight:g}" for weight in weights) if weights else "1/N each"
        other = "; Eq. 5 is `method: linear` of the flat spelling" if theirs == "linear" else ""
        notes.append(f"mergekit's {theirs} is concat here, with the weights {shown}{other}")
    return {
        "method": entry.name,
        "adapters": models.entries.names,
        "paths": models.entries.paths,
        "weights": weights,
        "options": options,
        "base_model": models.base,
        "notes": notes,
    }


def _passed_over(values: Mapping[str, Any], inside: str = "") -> list[str]:
    """Notes on the keys that change nothing; RecipeError for keys that nobody knows or that would."""
    notes = []
    for key, value in values.items():
        where = f"recipe key {inside!r} has {key!r}" if inside else f"unknown recipe key {key!r}"
        if key in _REFUSED:
            raise RecipeError(f"{where}: {_REFUSED[key]}; a recipe has {', '.join(KEYS)}")
        if key in _HARMLESS:
            if key == "tokenizer_source" and value not in ("base", "union", values.get("base_model")):
                raise RecipeError(f"{where}: {_REFUSED['tokenizer']}; the base's is used")
            notes.append(f"{key} changes nothing here: {_HARMLESS[key]}")
        elif not inside and key not in KEYS:
            raise RecipeError(f"{where}; a recipe has {', '.join(KEYS)}")
    if not inside and "merge_method" not in values:
        raise RecipeError("recipe key 'merge_method' is missing")
    return notes


class _Models:
    """The `models` of a recipe: its adapters in `entries`, their parameters, and the base if it is among them."""

    def __init__(self, values: Mapping[str, Any], folder: Path | None, entry: Method) -> None:
        given = values.get("models") or []
        if not isinstance(given, (list, tuple)) or not all(isinstance(model, Mapping) for model in given):
            raise RecipeError("recipe key 'models' has to be a list of {model, parameters}")
        self.base = values.get("base_model")
        self.base_weight: Any = 0.0
        self.entries = Entries(folder)
        self._own: list[Mapping[str, Any]] = []
        if entry.weights_are_shares and any(model.get("model") == self.base for model in given):
            # slerp's base_model is one of the two models, the one at t = 0
            given = sorted(given, key=lambda model: model.get("model") != self.base)
            self.base = None
        for model in given:
            self._add(model)

    def _add(self, model: Mapping[str, Any]) -> None:
        refuse_unknown(model, _MODEL, "a model")
        where, parameters = model.get("model"), mapping("parameters", model.get("parameters"))
        if not isinstance(where, str) or not where:
            raise RecipeError(f"recipe key 'models' holds {dict(model)!r}, whose 'model' is not a path or a name")
        if where == self.base:
            self.base_weight = parameters.get("weight", 0.0)
            return
        exists = Path(beside(where, self.entries.folder)).exists()
        if "+" in where and not exists:
            base, _, where = where.partition("+")
            if self.base not in (None, base):
                raise RecipeError(f"recipe key 'models' has an adapter of {base} beside others of {self.base}")
            self.base = base
            exists = Path(beside(where, self.entries.folder)).exists()
        is_path = "/" in where or where.startswith("demo:") or exists
        self.entries.add(model.get("name", None if is_path else where), where if is_path else None)
        self._own.append(parameters)

    def parameters(self, common: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any] | None]:
        """(options, weights); what is said of all holds for the models that say nothing themselves."""
        if "weight" in common:
            raise RecipeError("recipe key 'parameters': 'weight' belongs to the parameters of a model")
        options = {key: value for key, value in common.items() if key not in _HARMLESS}
        weights = None
        for key in dict.fromkeys(key for parameters in self._own for key in parameters):
            if key in ("normalize", "lambda", "rescale", *_HARMLESS):
                raise RecipeError(f"recipe key 'parameters' of a model has {key!r}, which belongs to those of all")
            values = all_or_none(key, [parameters.get(key, common.get(key)) for parameters in self._own])
            if key == "weight":
                weights = values
            else:
                options[key] = values
        return options, weights


class _Weights:
    """What `normalize`, `lambda` and `rescale` make of the weights; `base` is the weight of the base itself."""

    def __init__(self, theirs: str, entry: Method, weights: list[Any] | None, base: Any) -> None:
        self.theirs, self.entry = theirs, entry
        self.weights = None if weights is None else [_number("weight", weight) for weight in weights]
        self.base = _number("weight", base)

    def read(self, options: dict[str, Any], count: int, notes: list[str]) -> list[float] | None:
        """The weights of the recipe. Takes the three out of `options`, and adds to `notes` where one has no effect."""
        normalize, rescale = _switch(options, "normalize"), _switch(options, "rescale")
        factor = _number("lambda", options.pop("lambda", 1))
        self._check_rescale(rescale, notes)
        sums = self.entry.takes_weights and not self.entry.weights_are_shares and not self._has("majority_sign_method")
        if sums:
            self._normalize(self.theirs == "linear" if normalize is None else normalize)
        elif normalize is not None:
            if not normalize and self.entry.takes_weights:
                raise RecipeError(f"recipe key 'parameters' has 'normalize': {self.entry.name} always averages")
            notes.append(f"normalize changes nothing here: {self.entry.name} averages of itself")
        if factor == 1:
            return self.weights
        if not self.entry.takes_weights or self.entry.weights_are_shares:
            raise RecipeError(f"recipe key 'parameters' has 'lambda': {self.entry.name} has no weights to multiply")
        return [factor * weight for weight in self.weights or [1 / count] * count]

    def _normalize(self, divide: bool) -> None:
        if self.weights is None:
            return
        total = math.fsum([*self.weights, self.base if self.theirs == "linear" else 0.0])
        if divide and abs(total) < 1e-8:
            raise RecipeError("the weights sum to 0, so that they cannot be normalized; give 'normalize: false'")
        if divide:
            self.weights = [weight / total for weight in self.weights]
        elif self.theirs == "linear" and abs(total - 1) > 1e-6:
            raise RecipeError(
                f"recipe key 'parameters' has 'normalize: false', with which mergekit's linear multiplies the base by "
                f"{total:g} as well; give weights that sum to 1, or task_arithmetic"
            )

    def _check_rescale(self, rescale: bool | None, notes: list[str]) -> None:
        if rescale is None:
            return
        does = self._has("seed")  # DARE, which draws at random and divides by the density
        if self._has("density") and rescale != does:
            raise RecipeError(
                f"recipe key 'parameters' has 'rescale': {self.entry.name} {'always' if does else 'never'} rescales"
            )
        notes.append(f"rescale changes nothing here: {self.entry.name} {'always' if does else 'never'} rescales")

    def _has(self, name: str) -> bool:
        return any(option.name == name for option in self.entry.options)


def _switch(options: dict[str, Any], key: str) -> bool | None:
    value = options.pop(key, None)
    if value is not None and not isinstance(value, bool):
        raise RecipeError(f"recipe key 'parameters': {key!r} is {value!r}, expected true or false")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, (list, tuple, Mapping)):
        raise RecipeError(f"recipe key {key!r} is {value!r}: expected one number for all layers, no gradient or filter")
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected numbers")
    return float(value)
