"""The list of methods: what each is called, where it comes from and what it needs.

`Method` describes, `method(...)` registers a merge function, `register(...)` a method that merges nothing.
The command line prints this list, recipes are checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecal_weights.nearest import did_you_mean

from ...errors import RecipeError
from ..compiled import CompiledPair
from ..lora import LoraPair
from .context import Context
from .options import Option, Value

MergeFunction = Callable[[Sequence[LoraPair], Sequence[float], Context], CompiledPair]
"""(pairs of one module, a weight for each, what else there is to know) -> the one pair.

Adapters that leave a module alone are not among its pairs; the others keep their weights.
"""

# What other tools call the same thing, for the message about an unknown method
_ELSEWHERE = {
    "cat": "concat",
    "task_arithmetic": "concat",
    "linear_svd": "svd",
    "multislerp": "slerp",
    "ziplora": "dam",
    "lora": "single",
}


@dataclass(frozen=True)
class Method:
    """One entry. `min_adapters`, `max_adapters` bound N (None: any); weights default to 1/N.

    `merge` is None for the methods that do not merge: zero_shot and multi_step. `alone` stands in for it in a recipe of
    one adapter, where there is nothing to resolve. `weigh` gives the weights from the options when the recipe has
    none; `weights_are_shares`: none negative, only their ratios count. `equal_ranks`: the adapters need the same rank
    at each module.
    """

    name: str
    title: str
    paper: str
    equation: str = ""
    merge: MergeFunction | None = None
    passes: int = 1
    needs_calibration: bool = False
    takes_weights: bool = False
    needs_weights: bool = False
    min_adapters: int = 1
    max_adapters: int | None = None
    equal_ranks: bool = False
    options: tuple[Option, ...] = ()
    alone: MergeFunction | None = None
    weigh: Callable[[Mapping[str, Any], int], tuple[float, ...]] | None = None
    weights_are_shares: bool = False

    def merge_of(self, count: int) -> MergeFunction | None:
        """What merges a recipe of `count` adapters."""
        return self.alone if count == 1 and self.alone is not None else self.merge

    def option(self, name: str) -> Option:
        """RecipeError with the known options when it has none of this name."""
        for option in self.options:
            if option.name == name:
                return option
        names = [option.name for option in self.options]
        known = f"its options are {', '.join(names)}" if names else "it takes none"
        raise RecipeError(f"{self.name} has no option {name!r}{did_you_mean(name, names)}; {known}")

    def check_options(self, values: Mapping[str, Any], count: int) -> dict[str, Value]:
        """`values` as a recipe of `count` adapters keeps them; RecipeError names what is wrong."""
        return {name: self.option(name).check(value, count) for name, value in values.items()}


_METHODS: dict[str, Method] = {}


def register(entry: Method) -> Method:
    """Add a method; names are unique."""
    if entry.name in _METHODS:
        raise ValueError(f"two methods are called {entry.name!r}")
    _METHODS[entry.name] = entry
    return entry


def method(name: str, *, title: str, paper: str, **facts: Any) -> Callable[[MergeFunction], MergeFunction]:
    """Decorate a merge function to register it; `facts` are the fields of `Method`."""

    def add(merge: MergeFunction) -> MergeFunction:
        register(Method(name, title, paper, merge=merge, **facts))
        return merge

    return add


def methods() -> tuple[Method, ...]:
    """All methods, those that need little first: passes, calibration, adapters."""

    def needs(entry: Method) -> tuple[int, bool, float, str]:
        most = math.inf if entry.max_adapters is None else entry.max_adapters
        return entry.passes, entry.needs_calibration, most, entry.name

    return tuple(sorted(_METHODS.values(), key=needs))


def method_names() -> tuple[str, ...]:
    return tuple(entry.name for entry in methods())


def find_method(name: str) -> Method:
    """RecipeError with the known names when there is none of this name."""
    try:
        return _METHODS[name]
    except KeyError:
        hint = f" (called {_ELSEWHERE[name]!r} here)" if name in _ELSEWHERE else did_you_mean(name, _METHODS)
        raise RecipeError(f"unknown method {name!r}{hint}; known methods: {', '.join(method_names())}") from None
