"""The list of methods: what each is called, where it comes from and what it needs.

`Method` describes, `method(...)` registers a merge function, `register(...)` a method that merges nothing.
The command line prints this list, recipes are checked against it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import RecipeError
from ..calibration import ModuleCalibration
from ..lora import CompiledPair, LoraPair

MergeFunction = Callable[[Sequence[LoraPair], Sequence[float], "ModuleCalibration | None"], CompiledPair]
"""(pairs of one module, a weight for each, the module's calibration if the method has one) -> the one pair.

Adapters that leave a module alone are not among its pairs; the others keep their weights.
"""


@dataclass(frozen=True)
class Method:
    """One entry. `min_adapters`, `max_adapters` bound N (None: any); weights default to 1/N.

    `merge` is None for the methods that do not merge: zero_shot and multi_step.
    """

    name: str
    title: str
    paper: str
    equation: str = ""
    merge: MergeFunction | None = None
    passes: int = 1
    needs_calibration: bool = False
    takes_weights: bool = False
    min_adapters: int = 1
    max_adapters: int | None = None


_METHODS: dict[str, Method] = {}


def register(entry: Method) -> Method:
    """Add a method; names are unique."""
    if entry.name in _METHODS:
        raise ValueError(f"two methods are called {entry.name!r}")
    _METHODS[entry.name] = entry
    return entry


def method(
    name: str,
    *,
    title: str,
    paper: str,
    equation: str = "",
    needs_calibration: bool = False,
    takes_weights: bool = False,
    max_adapters: int | None = None,
) -> Callable[[MergeFunction], MergeFunction]:
    """Decorate a merge function to register it."""

    def add(merge: MergeFunction) -> MergeFunction:
        register(
            Method(
                name,
                title,
                paper,
                equation,
                merge,
                needs_calibration=needs_calibration,
                takes_weights=takes_weights,
                max_adapters=max_adapters,
            )
        )
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
        close = difflib.get_close_matches(name, _METHODS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise RecipeError(f"unknown method {name!r}{hint}; known methods: {', '.join(method_names())}") from None
