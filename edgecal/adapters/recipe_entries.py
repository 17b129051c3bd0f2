"""What all spellings of a recipe have in common: names and paths of adapters, and values for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecal_weights.nearest import did_you_mean

from ..errors import RecipeError


class Entries:
    """The adapters of a recipe as they are read: `names` in order, `paths` of those whose place is given."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.paths: dict[str, str] = {}

    def add(self, name: Any, path: Any) -> None:
        """One more; the name defaults to the last part of the path. RecipeError for two of one name."""
        if path is not None:
            if not isinstance(path, str) or not path or "\0" in path:
                raise RecipeError(f"recipe key 'adapters': 'path' is {path!r}, expected a path")
            if name is None:
                name = path.removeprefix("demo:") if path.startswith("demo:") else Path(path).name.removesuffix(".gguf")
            path = beside(path, self.folder)
        if not isinstance(name, str) or not name:
            raise RecipeError(f"recipe key 'adapters': an adapter needs a 'name' or a 'path'; its name is {name!r}")
        if path is not None and self.paths.setdefault(name, path) != path:
            raise RecipeError(f"two adapters are called {name!r}: {self.paths[name]} and {path}; give them a 'name'")
        self.names.append(name)


def beside(path: str, folder: Path | None) -> str:
    """A relative path is relative to the file, demo:NAME is what it is."""
    if "\0" in path or len(path) > 4096:
        raise RecipeError(f"{path[:40]!r} ... is not a path")
    if folder is None or path.startswith("demo:"):
        return path
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError as error:  # ~nobody
        raise RecipeError(f"{path!r}: {error}") from error


def all_or_none(key: str, values: list[Any]) -> list[Any] | None:
    """`values`, None where no adapter has one; RecipeError when only some have."""
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if missing:
        given = len(values) - missing
        raise RecipeError(f"recipe key {key!r} is given for {given} of {len(values)} adapters; all or none")
    return values


def mapping(key: str, value: Any) -> Mapping[str, Any]:
    """`value`, empty for None; RecipeError unless it is a mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"recipe key {key!r} is {value!r}, expected a mapping")
    return value


def refuse_unknown(entry: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """RecipeError for a key that is not known."""
    for key in entry:
        if key not in known:
            hint = did_you_mean(key, known)
            raise RecipeError(f"unknown key {key!r}{hint} of {what} in the recipe; known: {', '.join(known)}")
