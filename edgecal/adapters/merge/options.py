"""Options of methods: density, seed, t ... declared beside the method that reads them.

An `Option` knows its name, kind, range and default, so that recipe files, the command line and the table of methods
all say the same about it, and a wrong value is refused before anything is merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import RecipeError
from ...text.counted import counted

Value = float | int | str | tuple[float, ...]
_LARGEST = 2**63 - 1
Kind = Literal["number", "whole", "choice"]


@dataclass(frozen=True)
class Option:
    """One option. `low` and `high` are inclusive unless `above_low`; `default` None: absent unless given.

    `several`: "never" one value, "may" one value or a list with one per adapter, "always" such a list.
    `instead_of_weights`: the weights follow from it, so that a recipe cannot have both.
    """

    name: str
    help: str
    kind: Kind = "number"
    default: Value | None = None
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    choices: tuple[str, ...] = ()
    several: Literal["never", "may", "always"] = "never"
    instead_of_weights: bool = False

    def check(self, value: Any, count: int) -> Value:
        """`value` as it is kept, for a recipe of `count` adapters; RecipeError names the option and what it takes."""
        if isinstance(value, (list, tuple)):
            if self.several == "never":
                raise self._wrong(value)
            if len(value) != count:
                raise RecipeError(
                    f"option {self.name!r} has {counted(len(value), 'number')} for "
                    f"{counted(count, 'adapter')}; one each is needed"
                )
            return tuple(float(self._one(item)) for item in value)
        if self.several == "always":
            raise self._wrong(value)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if self.kind == "choice":
            if value not in self.choices:
                raise self._wrong(value)
            return value
        if type(value) not in ((int,) if self.kind == "whole" else (int, float)):
            raise self._wrong(value)
        if not self.low <= value <= self.high or abs(value) > _LARGEST or (self.above_low and value == self.low):
            raise self._wrong(value)
        return int(value) if self.kind == "whole" else float(value)

    def parse(self, text: str) -> Any:
        """What a recipe file would hold, of `text` from the command line: 0.5, or 0.5,0.7 where a list may stand."""
        if self.kind == "choice":
            return text
        try:
            numbers: list[Any] = [int(word) if self.kind == "whole" else float(word) for word in text.split(",")]
        except ValueError:
            raise self._wrong(text) from None
        return numbers[0] if len(numbers) == 1 and self.several != "always" else numbers

    def of(self, values: Mapping[str, Any]) -> Any:
        """Its value among those of a recipe, or the default."""
        return values.get(self.name, self.default)

    def each(self, values: Mapping[str, Any], positions: tuple[int, ...]) -> list[float]:
        """One number per adapter at `positions`, for an option that may be a list."""
        value = self.of(values)
        return [value[i] for i in positions] if isinstance(value, tuple) else [value] * len(positions)

    @property
    def values(self) -> str:
        """What it takes, in words: "a number in (0, 1]"."""
        if self.kind == "choice":
            return " or ".join(self.choices)
        bounds = f"in {'(' if self.above_low else '['}{self.low:g}, {self.high:g}]"
        if math.isinf(self.high):
            bounds = f"{'above' if self.above_low else 'from'} {self.low:g}"
        if math.isinf(self.low):
            bounds = ""
        noun = "a whole number" if self.kind == "whole" else "a number"
        one = f"{noun} {bounds}".strip()
        return {"never": one, "may": f"{one}, or one per adapter", "always": f"{one} per adapter"}[self.several]

    def _wrong(self, value: Any) -> RecipeError:
        return RecipeError(f"option {self.name!r} is {str(value)[:60]!r}, expected {self.values}")
