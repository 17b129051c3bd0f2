"""Which recipes `edgecal profile` measures: words behind the model, or the options that the other commands have.

A word is a recipe file, a calibration file (or demo:NAME), the name of a method, the name of an adapter that --adapter
gives, or `demo`: everything that the demo data allows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EdgecalError, RecipeError
from .options import recipe_of_file

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from .options import RecipeOptions


_RECIPE_ENDINGS = (".yaml", ".yml", ".json")  # such a file is called by its name, not by its method


def gather(words: tuple[str, ...], chosen: RecipeOptions) -> tuple[dict[str, Recipe], dict[str, str]]:
    """({name: recipe}, {adapter: path}); RecipeError says what a word could have been."""
    from .. import demo

    paths = chosen.paths()
    if not words:
        recipe = chosen.recipe()
        return {Path(chosen.recipe_file).stem if chosen.recipe_file else _name(recipe): recipe}, paths
    for option in chosen.given():
        raise RecipeError(f"{option} makes a recipe, and so does {words[0]!r}: give recipes as words or as options")
    found: dict[str, Recipe] = {}
    for word in words:
        if word == "demo" and not Path(word).exists():
            paths = {**{name: demo.find(f"demo:{name}") for name in demo.PAIR}, **paths}
            recipes = demo.recipes()
        else:
            recipe = _recipe(word, paths)
            is_file = Path(word).suffix.lower() in _RECIPE_ENDINGS
            recipes = {Path(word).stem if is_file else _name(recipe): recipe}
        for name, recipe in recipes.items():
            if recipe in found.values():
                raise RecipeError(f"{word!r} is given twice: each recipe is measured once")
            found[_free(name, found)] = recipe
    return found, paths


def _recipe(word: str, paths: dict[str, str]) -> Recipe:
    from ..adapters.calibration import Calibration
    from ..adapters.merge import find_method
    from ..adapters.recipe import Recipe
    from ..demo import find

    names = tuple(paths)
    file = Path(find(word)).expanduser()
    if file.suffix == ".safetensors" and file.exists():
        return Recipe(Calibration.load(file).method, names, calibration=str(file))
    if file.is_file():
        recipe = recipe_of_file(file)
        for name, path in recipe.paths:
            if paths.setdefault(name, find(path)) != find(path):
                raise RecipeError(f"{file} has {name!r} at {path}, and --adapter or another recipe at {paths[name]}")
        return recipe
    if word in paths:
        return Recipe("single", (word,))
    try:
        entry = find_method(word)
    except EdgecalError as error:
        raise RecipeError(
            f"{word!r} is no recipe: there is no such file, --adapter gives no adapter of this name, and {error}"
        ) from error
    return Recipe(word, () if entry.max_adapters == 0 else names)


def _name(recipe: Recipe) -> str:
    return f"{recipe.method} ({recipe.adapters[0]})" if recipe.method == "single" else recipe.method


def _free(name: str, taken: dict[str, Recipe]) -> str:
    """The name, with a number where another recipe has it."""
    number = 2
    wanted = name
    while name in taken:
        name, number = f"{wanted} #{number}", number + 1
    return name


def gather_or_demo(
    model: str, words: tuple[str, ...], chosen: RecipeOptions
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """As `gather`; of the demo model all that the demo data allows, unless something else is asked for."""
    if not words and model == "demo" and not chosen.adapters and not chosen.given():
        words = ("demo",)
    return gather(words, chosen)
