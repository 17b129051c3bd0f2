"""The two spellings of a recipe, and how they become the arguments of `Recipe`.

The flat one, with adapters as names or as {name, path, weight}:

    method: ties
    adapters: [{path: adapters/summarize, weight: 0.6}, {path: adapters/formal, weight: 0.4}]
    options: {density: 0.5}

and that of mergekit (`mergekit_spelling`), which has `merge_method` and `models`. In the flat one methods have the
names of this package, in mergekit's those of mergekit: `linear` is paper 1's Eq. 5 here and a weighted mean of models
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecal_weights.nearest import did_you_mean

from ..errors import RecipeError
from .mergekit_spelling import from_mergekit, is_mergekit
from .recipe_entries import Entries, all_or_none, beside, refuse_unknown

FLAT = ("method", "adapters", "weights", "calibration", "steps", "shots", "options", "base_model")
_ADAPTER = ("name", "path", "weight")


def arguments(values: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Arguments of `Recipe`; relative paths are taken from `folder`. RecipeError names the key."""
    made = from_mergekit(values, folder) if is_mergekit(values) else _from_flat(values, folder)
    if isinstance(values.get("calibration"), str):
        made["calibration"] = beside(values["calibration"], folder)
    elif "calibration" in values:
        made["calibration"] = values["calibration"]
    base = made.get("base_model")
    if base is not None:
        if not isinstance(base, str) or not base:
            raise RecipeError(f"recipe key 'base_model' is {base!r}, expected a path or a hub id")
        made["base_model"] = beside(base, folder) if folder is not None and (folder / base).exists() else base
    return made


def _from_flat(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    for key in values:
        if key not in FLAT:
            raise RecipeError(f"unknown recipe key {key!r}{did_you_mean(key, FLAT)}; a recipe has {', '.join(FLAT)}")
    if "method" not in values:
        raise RecipeError("recipe key 'method' is missing")
    made = {key: values[key] for key in FLAT if key in values and key != "calibration"}
    given = values.get("adapters")
    if not isinstance(given, (list, tuple)) or not any(isinstance(entry, Mapping) for entry in given):
        return made
    entries, weights = Entries(folder), []
    for entry in given:
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, Mapping):
            raise RecipeError(f"recipe key 'adapters' holds {entry!r}, expected a name or {{name, path, weight}}")
        refuse_unknown(entry, _ADAPTER, "an adapter")
        entries.add(entry.get("name"), entry.get("path"))
        weights.append(entry.get("weight"))
    # The steps of multi_step name its adapters: here they are only said to be where
    made["adapters"] = [] if values["method"] == "multi_step" else entries.names
    made["paths"] = entries.paths
    own = all_or_none("weight", weights)
    if own is not None:
        if "weights" in values:
            raise RecipeError("the recipe has 'weights' and a 'weight' of each adapter; give one of them")
        made["weights"] = own
    return made
