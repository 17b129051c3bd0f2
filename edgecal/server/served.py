"""What is served: one engine, and the names by which requests call the base, adapters, recipes and calibrations.

Adapters and calibrations may come and go at run time, out of one folder that was allowed at the start. That happens in
the engine's thread between two tokens, whole or not at all; answers that run keep what they began with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import demo
from ..adapters.calibration import Calibration
from ..adapters.merge import find_method
from ..adapters.recipe import Recipe
from ..async_engine import AsyncEngine
from ..benchmark.methods import Inventory
from ..completion import Pass
from ..engine import Engine
from ..errors import RecipeError
from ..memory import resident
from .errors import HttpError

_MOST_PASSES = 8


class Served:
    """`name` is the base's. `recipes` and `calibrations` (paths) are called by their names in requests."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        recipes: Mapping[str, Recipe] | None = None,
        calibrations: Mapping[str, str] | None = None,
        folder: Path | None = None,
        batch_size: int = 8,
        max_waiting: int = 64,
    ) -> None:
        self.engine, self.name, self.folder = engine, name, folder.resolve() if folder is not None else None
        self.running = AsyncEngine(engine, batch_size=batch_size, max_waiting=max_waiting)
        self.recipes = dict(recipes or {})
        self.calibrations = {label: demo.find(path) for label, path in (calibrations or {}).items()}
        self.notes: list[str] = []  # for who started it: what is loaded and can do nothing
        for label, path in self.calibrations.items():
            if (recipe := self._calibrated(path)) is not None:
                self.recipes.setdefault(label, recipe)
            else:
                wanted = ", ".join(one.name for one in Calibration.load(path).content.adapters)
                self.notes.append(
                    f"the calibration {label} is of no use: it was trained for {wanted}, and the adapters here are "
                    f"{', '.join(engine.adapters) or 'none'}"
                )
        for recipe in self.recipes.values():
            engine.compile(recipe)  # what does not fit is refused now, and the first request need not wait
        self.scales: dict[str, float] = {}  # of adapters on every request that asks for nothing else
        self.started = int(time.time())
        self.idle_bytes = resident()

    def _calibrated(self, path: str) -> Recipe | None:
        """The recipe of a calibration's own adapters, found among those that are loaded by what they are; None without
        them."""
        calibration = Calibration.load(path)
        by_content = {adapter.sha256: name for name, adapter in self.engine.adapters.items()}
        names = tuple(by_content.get(one.sha256, one.name) for one in calibration.content.adapters)
        if not all(name in self.engine.adapters for name in names):
            return None
        return Recipe(calibration.method, names, calibration=path)

    # ------------------------------------------------------------------------------------------------- names

    @property
    def adapter_names(self) -> list[str]:
        return list(self.engine.adapters)

    @property
    def model_names(self) -> list[str]:
        """What `model` may be in a request: the base, then adapters, then recipes."""
        return list(dict.fromkeys([self.name, *self.adapter_names, *self.recipes]))

    def recipe_named(self, model: str) -> Recipe | None:
        """What the `model` of a request stands for; HttpError 404 for an unknown name."""
        if model in self.recipes:
            return self.recipes[model]
        if model in self.engine.adapters:
            return Recipe("single", (model,))
        if model in (self.name, "default"):
            return self._scaled(self.scales)
        raise HttpError(
            404, f"there is no model {model!r}; there are {', '.join(self.model_names)}", "model_not_found"
        )

    def recipe_asked(self, value: Any) -> Recipe | None:
        """The `recipe` of a request: the name of one, of a method (of all adapters in their order), or an object as in
        a recipe file, with adapters and calibrations by the names that they have here."""
        if isinstance(value, str):
            if value in self.recipes or value in self.engine.adapters or value == self.name:
                return self.recipe_named(value)
            if value == "zero_shot":
                return None
            find_method(value)  # or it says which there are
            return Recipe(value, tuple(self.adapter_names))
        if not isinstance(value, Mapping):
            raise HttpError(400, "recipe must be a name, or an object as in a recipe file")
        recipe = Recipe.from_dict(value)
        if recipe.paths or recipe.base_model:
            raise HttpError(400, "a recipe names what is loaded here: without paths and base_model")
        if recipe.passes > _MOST_PASSES or len(recipe.shots) > _MOST_PASSES:
            raise HttpError(400, f"a recipe has at most {_MOST_PASSES} steps or shots here")
        if recipe.calibration is not None:
            if recipe.calibration not in self.calibrations:
                known = ", ".join(self.calibrations) or "none"
                raise HttpError(400, f"no calibration {recipe.calibration!r:.80} is loaded; loaded: {known}")
            recipe = replace(recipe, calibration=self.calibrations[recipe.calibration])
        return recipe

    def recipe_of_scales(self, value: Any) -> Recipe | None:
        """The `lora` of a request, [{id, scale}] as llama.cpp numbers its adapters; those not named are off."""
        return self._scaled(self.scales_of(value))

    def scales_of(self, value: Any) -> dict[str, float]:
        names, scales = self.adapter_names, {}
        if not isinstance(value, list):
            raise HttpError(400, "lora must be a list of {id, scale}")
        for entry in value:
            number = entry.get("id") if isinstance(entry, Mapping) else None
            scale = entry.get("scale", 1.0) if isinstance(entry, Mapping) else None
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(names):
                raise HttpError(400, f"lora: no adapter has the id {number!r:.40}; there are {len(names)}, from 0")
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= 100:
                raise HttpError(400, f"lora: the scale of {number} must be a number up to 100, found {scale!r:.40}")
            scales[names[number]] = float(scale)
        return scales

    @staticmethod
    def _scaled(scales: Mapping[str, float]) -> Recipe | None:
        used = {name: scale for name, scale in scales.items() if scale}
        if not used:
            return None
        if list(used.values()) == [1.0]:
            return Recipe("single", tuple(used))
        return Recipe("linear", tuple(used), tuple(used.values()))

    def inventory(self) -> Inventory:
        """What there is to compose, as the benchmark's methods look for it."""
        found = {}
        for label, path in self.calibrations.items():
            try:
                found[path] = Calibration.load(path)
            except OSError as error:  # it has vanished since
                raise RecipeError(f"the calibration {label} cannot be read any more: {error}") from error
        return Inventory(self.engine.adapters, {}, found)

    # --------------------------------------------------------------------------------------------- run time

    async def load_adapter(self, name: str, path: str) -> None:
        self._check_new(name)
        await self.running.call(self.engine.add_adapter, self._allowed(path), name)

    async def unload_adapter(self, name: str) -> None:
        if name not in self.engine.adapters:
            raise HttpError(404, f"no adapter {name!r} is loaded", "not_found_error")
        using = [label for label, recipe in self.recipes.items() if name in recipe.adapter_names]
        if using:
            raise HttpError(400, f"the adapter {name!r} is part of the recipe {using[0]!r}")
        await self.running.call(self.engine.remove_adapter, name)
        self.scales.pop(name, None)

    async def load_calibration(self, name: str, path: str) -> None:
        self._check_new(name)
        allowed = self._allowed(path)
        recipe = await self.running.call(self._calibrated, str(allowed))
        if recipe is None:
            raise HttpError(400, f"the adapters of the calibration {path!r:.80} are not loaded")
        await self.running.call(self.engine.compile, recipe)
        self.calibrations[name], self.recipes[name] = str(allowed), recipe

    def unload_calibration(self, name: str) -> None:
        if name not in self.calibrations:
            raise HttpError(404, f"no calibration {name!r} is loaded", "not_found_error")
        path = self.calibrations.pop(name)
        self.recipes = {label: one for label, one in self.recipes.items() if one.calibration != path}

    def _check_new(self, name: str) -> None:
        taken = name in self.model_names and name not in self.engine.adapters
        if not name or len(name) > 100 or not name.isprintable() or "/" in name or taken:
            raise HttpError(400, f"{name!r:.80} cannot be the name of an adapter or a calibration here")

    def _allowed(self, path: str) -> Path:
        """A path in the allowed folder, wherever links lead."""
        if self.folder is None:
            raise HttpError(403, "nothing may be loaded at run time: start with --folder DIR", "forbidden_error")
        try:
            found = (self.folder / path).resolve()
            exists = found.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise HttpError(400, f"{path!r:.80} is no path") from error
        if not found.is_relative_to(self.folder) or found == self.folder:
            raise HttpError(403, f"{path!r:.80} is not in the folder that may be loaded from", "forbidden_error")
        if not exists:
            raise HttpError(404, f"there is no {path!r:.80} in the folder", "not_found_error")
        return found


def timings(passes: list[Pass]) -> dict[str, Any]:
    """What the passes of an answer took, in llama.cpp's words; the tokens of a prompt are those that were read."""
    cached = sum(one.reused_tokens for one in passes)
    prompt_n = sum(one.prompt_tokens for one in passes) - cached
    predicted_n = sum(one.new_tokens for one in passes)
    prompt_ms = 1000 * sum(one.first_token_s for one in passes)
    predicted_ms = 1000 * sum(one.total_s - one.first_token_s for one in passes)
    later = predicted_n - len(passes)  # the first token of a pass comes with its prompt
    return {
        "cache_n": cached,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else None,
        "prompt_per_second": 1000 * prompt_n / prompt_ms if prompt_ms else None,
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / later if later else None,
        "predicted_per_second": 1000 * later / predicted_ms if predicted_ms else None,
        "draft_n": sum(one.drafted_tokens for one in passes),
        "draft_n_accepted": sum(one.accepted_tokens for one in passes),
    }
