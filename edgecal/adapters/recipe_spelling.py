"""The two spellings of a recipe, and how they become the arguments of `Recipe`.

The flat one, with adapters as names or as {name, path, weight}:

    method: ties
    adapters: [{path: adapters/summarize, weight: 0.6}, {path: adapters/formal, weight: 0.4}]
    options: {density: 0.5}

and that of mergekit, where what is said of a model and what is said of all stand apart:

    merge_method: ties
    models:
      - model: adapters/summarize
        parameters: {weight: 0.6, density: 0.5}
      - model: adapters/formal
        parameters: {weight: 0.4, density: 0.7}
    parameters: {majority_sign_method: frequency}

Methods have the names of this package in both; in particular `linear` is Eq. 5, and mergekit's linear is `concat`.
A model is a path when it has a slash in it, begins with "demo:" or exists beside the file, and otherwise the name of an
adapter that is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError

FLAT = ("method", "adapters", "weights", "calibration", "steps", "options", "base_model")
MERGEKIT = ("merge_method", "models", "parameters", "base_model", "calibration")
# What mergekit's files have beside these, and what there is here in its place
_ELSEWHERE = {
    "dtype": "the type of the written numbers is `edgecal merge --dtype`",
    "out_dtype": "the type of the written numbers is `edgecal merge --dtype`",
    "slices": "adapters are merged whole: list them under models",
    "tokenizer_source": "adapters have no tokenizer, leave it out",
    "tokenizer": "adapters have no tokenizer, leave it out",
    "chat_template": "adapters have no chat template, leave it out",
    "normalize": "weights are taken as they are, give them so that they sum to what you want and leave it out",
    "int8_mask": "it saves mergekit memory and changes no result, leave it out",
}
_ADAPTER = ("name", "path", "weight")
_MODEL = ("model", "name", "parameters")


def arguments(values: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Arguments of `Recipe`; relative paths are taken from `folder`. RecipeError names the key."""
    like_mergekit = "merge_method" in values or "models" in values
    keys = MERGEKIT if like_mergekit else FLAT
    for key in values:
        if key not in keys:
            hint = f": {_ELSEWHERE[key]}" if like_mergekit and key in _ELSEWHERE else ""
            raise RecipeError(f"unknown recipe key {key!r}{hint}; a recipe has {', '.join(keys)}")
    name = "merge_method" if like_mergekit else "method"
    if name not in values:
        raise RecipeError(f"recipe key {name!r} is missing")
    made = _from_mergekit(values, folder) if like_mergekit else _from_flat(values, folder)
    made["method"] = values[name]
    if isinstance(values.get("calibration"), str):
        made["calibration"] = _beside(values["calibration"], folder)
    elif "calibration" in values:
        made["calibration"] = values["calibration"]
    base = values.get("base_model")
    if base is not None:
        if not isinstance(base, str) or not base:
            raise RecipeError(f"recipe key 'base_model' is {base!r}, expected a path or a hub id")
        made["base_model"] = _beside(base, folder) if folder is not None and (folder / base).exists() else base
    return made


def _from_flat(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    made = {key: values[key] for key in ("adapters", "weights", "steps", "options") if key in values}
    entries = values.get("adapters")
    if not isinstance(entries, (list, tuple)) or not any(isinstance(entry, Mapping) for entry in entries):
        return made
    names: list[str] = []
    paths: dict[str, str] = {}
    weights = []
    for entry in entries:
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, Mapping):
            raise RecipeError(f"recipe key 'adapters' holds {entry!r}, expected a name or {{name, path, weight}}")
        _refuse_unknown(entry, _ADAPTER, "an adapter")
        name, path = _name_and_path(entry.get("name"), entry.get("path"), folder)
        _add(name, path, names, paths)
        weights.append(entry.get("weight"))
    if values["method"] == "multi_step":  # whose steps name them: here they are only said to be where
        names = []
    made["adapters"], made["paths"] = names, paths
    given = _all_or_none("weight", weights)
    if given is not None:
        if "weights" in values:
            raise RecipeError("the recipe has 'weights' and a 'weight' of each adapter; give one of them")
        made["weights"] = given
    return made


def _from_mergekit(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    common = _mapping("parameters", values.get("parameters"))
    models = values.get("models") or []
    if not isinstance(models, (list, tuple)) or not all(isinstance(model, Mapping) for model in models):
        raise RecipeError("recipe key 'models' has to be a list of {model, parameters}")
    names: list[str] = []
    paths: dict[str, str] = {}
    own = []
    for model in models:
        _refuse_unknown(model, _MODEL, "a model")
        where = model.get("model")
        if not isinstance(where, str) or not where:
            raise RecipeError(f"recipe key 'models' holds {dict(model)!r}, whose 'model' is not a path or a name")
        is_path = "/" in where or where.startswith("demo:") or Path(_beside(where, folder)).exists()
        name, path = _name_and_path(model.get("name", None if is_path else where), where if is_path else None, folder)
        _add(name, path, names, paths)
        own.append(_mapping("parameters", model.get("parameters")))
    made: dict[str, Any] = {"adapters": names, "paths": paths}
    options = dict(common)
    for key in dict.fromkeys(key for parameters in own for key in parameters):
        numbers = _all_or_none(key, [parameters.get(key, common.get(key)) for parameters in own])
        assert numbers is not None
        if key == "weight":
            made["weights"] = numbers
        else:
            options[key] = numbers
    if "weight" in common:
        raise RecipeError("recipe key 'parameters': 'weight' belongs to the parameters of a model")
    for key in options:
        if key in _ELSEWHERE:
            raise RecipeError(f"recipe key 'parameters' has {key!r}: {_ELSEWHERE[key]}")
    made["options"] = options
    return made


def _add(name: str, path: str | None, names: list[str], paths: dict[str, str]) -> None:
    if path is not None and paths.setdefault(name, path) != path:
        raise RecipeError(f"two adapters are called {name!r}: {paths[name]} and {path}; give them a 'name'")
    names.append(name)


def _name_and_path(name: Any, path: Any, folder: Path | None) -> tuple[str, str | None]:
    if path is not None:
        if not isinstance(path, str) or not path or "\0" in path:
            raise RecipeError(f"recipe key 'adapters': 'path' is {path!r}, expected a path")
        name = (path.removeprefix("demo:") if path.startswith("demo:") else Path(path).name) if name is None else name
        path = _beside(path, folder)
    if not isinstance(name, str) or not name:
        raise RecipeError(f"recipe key 'adapters': an adapter needs a 'name' or a 'path'; its name is {name!r}")
    return name, path


def _beside(path: str, folder: Path | None) -> str:
    """A relative path is relative to the file, demo:NAME is what it is."""
    if "\0" in path or len(path) > 4096:
        raise RecipeError(f"{path[:40]!r} ... is not a path")
    if folder is None or path.startswith("demo:"):
        return path
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError as error:  # ~nobody
        raise RecipeError(f"{path!r}: {error}") from error


def _all_or_none(key: str, values: list[Any]) -> list[Any] | None:
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        given = len(values) - missing
        raise RecipeError(f"recipe key {key!r} is given for {given} of {len(values)} adapters; all or none")
    return values


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected a mapping")
    return value


def _refuse_unknown(entry: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in entry:
        if key not in known:
            raise RecipeError(f"unknown key {key!r} of {what} in the recipe; known: {', '.join(known)}")
