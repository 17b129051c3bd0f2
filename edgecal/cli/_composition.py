"""Which adapters a chat composes, and how: the recipe in the user's hands, one word at a time.

A recipe must be valid at every moment, but a person changes one part after the other. So the parts are remembered
even where the present method has no use for them (`/method zero_shot`, then back again), and where a new choice of
adapters does not go with the present method, the plain method for that number of adapters takes its place, with a
note that says why. Whatever is refused leaves everything as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecal_weights.nearest import did_you_mean

from ..adapters.calibration import Calibration
from ..adapters.merge import find_method
from ..adapters.recipe import Recipe
from ..conversation import Conversation
from ..errors import EdgecalError, RecipeError


@dataclass(frozen=True)
class Choice:
    """The parts of a recipe; all but the method count only if the method takes them."""

    method: str
    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    calibration: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def recipe(self) -> Recipe:
        method = find_method(self.method)
        if method.needs_calibration and self.calibration is None:
            raise RecipeError(f"{self.method} needs a calibration; give it with /calibration FILE (or demo:NAME)")
        return Recipe(
            self.method,
            () if method.max_adapters == 0 else self.adapters,
            self.weights if method.takes_weights else None,
            self.calibration if method.needs_calibration else None,
            options=tuple(item for item in self.options if item[0] in {option.name for option in method.options}),
        )


def plain_method(adapters: tuple[str, ...]) -> str:
    """The method that needs nothing but these adapters."""
    return ("zero_shot", "single")[len(adapters)] if len(adapters) < 2 else "linear"


class Composition:
    """The choice that `conversation` answers with. Methods return what to tell the user, or raise EdgecalError."""

    def __init__(self, conversation: Conversation, recipe: Recipe, loaded: tuple[str, ...]) -> None:
        self.conversation = conversation
        self._choice = Choice(
            recipe.method, recipe.adapters or loaded, recipe.weights, recipe.calibration, recipe.options
        )

    @property
    def method(self) -> str:
        return self._choice.method

    @property
    def adapters(self) -> tuple[str, ...]:
        """Those that the present method composes."""
        recipe = self.conversation.recipe
        return recipe.adapters if recipe is not None else ()

    def describe(self) -> str:
        """One line: method, adapters in order, calibration."""
        recipe = self._choice.recipe()
        weights = f" (weights {', '.join(f'{w:g}' for w in recipe.weights)})" if recipe.weights else ""
        calibration = f"   calibration: {Path(recipe.calibration).name}" if recipe.calibration else ""
        return f"method: {recipe.method}   adapters: {', '.join(recipe.adapters) or 'none'}{weights}{calibration}"

    def _take(self, choice: Choice) -> str:
        self.conversation.set_recipe(choice.recipe())
        self._choice = choice
        return self.describe()

    def _take_or_plain(self, choice: Choice) -> str:
        """`choice`, or its adapters with the plain method when its own does not go with them."""
        if choice.adapters and choice.method != "zero_shot":
            try:
                return self._take(choice)
            except EdgecalError as error:
                note = f"({choice.method} does not go with that: {error})\n"
        else:
            note = ""
        return note + self._take(replace(choice, method=plain_method(choice.adapters)))

    def set_method(self, name: str) -> str:
        if find_method(name).passes > 1:
            raise RecipeError(f"{name} makes a prompt of its own for each pass, so it is no chat: use generate --step")
        calibration = self._choice.calibration
        if find_method(name).needs_calibration and calibration is not None:
            trained = Calibration.load(calibration).method
            if trained != name:
                raise RecipeError(
                    f"{name} needs a calibration of its own; {Path(calibration).name} is one for {trained}; "
                    "give it with /calibration FILE (or demo:NAME)"
                )
        return self._take(replace(self._choice, method=name))

    def use(self, adapters: tuple[str, ...]) -> str:
        """Compose these, in this order."""
        loaded = self.conversation.engine.adapters
        for name in adapters:
            if name not in loaded:
                hint = did_you_mean(name, loaded)
                raise RecipeError(
                    f"no adapter {name!r} is loaded{hint}; loaded: {', '.join(loaded) or 'none'} (/adapter add PATH "
                    "loads it)"
                )
        return self._take_or_plain(replace(self._choice, adapters=adapters, weights=None))

    def set_calibration(self, path: str | None) -> str:
        """Its method becomes the present one; of the loaded adapters those that it was trained for are taken.

        Where tasks share it, that is the list that is composed now, else the first whose adapters are all loaded.
        """
        if path is None:
            choice = replace(self._choice, calibration=None)
            if find_method(choice.method).needs_calibration:
                choice = replace(choice, method=plain_method(choice.adapters))
            return self._take(choice)
        calibration = Calibration.load(path)
        by_hash = {adapter.sha256: name for name, adapter in self.conversation.engine.adapters.items()}
        lists = calibration.adapter_lists
        loaded = [
            tuple(by_hash[reference.sha256] for reference in references)
            for references in lists
            if all(reference.sha256 in by_hash for reference in references)
        ]
        if not loaded:
            nearest = min(lists, key=lambda references: sum(r.sha256 not in by_hash for r in references))
            missing = [reference.name for reference in nearest if reference.sha256 not in by_hash]
            others = " or ".join(", ".join(reference.name for reference in references) for references in lists)
            raise RecipeError(
                f"{path} was trained for the adapters {others}; not loaded: "
                f"{', '.join(missing)} (/adapter add PATH loads one; it must be the very file)"
            )
        present = self._choice.adapters
        adapters = max(loaded, key=lambda names: (names == present, set(names) == set(present)))
        return self._take(Choice(calibration.method, adapters, None, path))

    def added(self, name: str) -> str:
        """The engine has a new adapter of this name, perhaps in the place of another."""
        if name in self._choice.adapters:
            return self._take_or_plain(self._choice)
        if self._choice.adapters:
            return f"compose it with: /use {' '.join((*self._choice.adapters, name))}"
        return self._take_or_plain(replace(self._choice, adapters=(name,)))

    def removed(self, name: str) -> str:
        """The engine has lost this adapter."""
        if name not in self._choice.adapters:
            return self.describe()
        rest = tuple(other for other in self._choice.adapters if other != name)
        return self._take_or_plain(replace(self._choice, adapters=rest, weights=None))
