"""The fields of a request's JSON object, each taken once and checked; what nobody took is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecal_kernels.errors import shown
from edgecal_weights.files import is_number

from .errors import HttpError

IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
    "verbosity", "prompt_cache_retention", "cache_prompt", "background",
)  # fmt: skip
"""Fields that change no answer here: bookkeeping of OpenAI's own service, and what is always so."""


class Fields:
    """`take`s fields out of an object; `finish` refuses what is left. HttpError 400 names the field."""

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, Mapping):
            raise HttpError(400, f"{where or 'the body'} must be a JSON object, found {shown(values)}")
        self._values, self._where = dict(values), f"{where}." if where else ""

    def any(self, *names: str) -> Any:
        """The value of the first of these spellings that is there; None for null, or for nothing."""
        found = [value for name in names if (value := self._values.pop(name, None)) is not None]
        return found[0] if found else None

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.any(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        return default if value is None else value

    def flag(self, name: str) -> bool:
        value = self.any(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return bool(value)

    def whole(self, *names: str, least: int = 0, most: int = 1 << 53) -> int | None:
        value = self.any(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(names[0], f"a whole number from {least} to {most}", value)
        return value

    def number(self, *names: str) -> float | None:
        value = self.any(*names)
        if value is None:
            return None
        if not is_number(value):
            raise self._wrong(names[0], "a number", value)
        return float(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """One text, or a list of at most `most`."""
        value = self.any(name)
        values = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(values, list) or len(values) > most or not all(isinstance(one, str) for one in values):
            raise self._wrong(name, f"a text or a list of at most {most} texts", value)
        return tuple(values)

    def only(self, name: str, allowed: Sequence[Any], why: str) -> None:
        """A field that may say nothing but what is so anyway."""
        value = self.any(name)
        if value is not None and value not in allowed:
            raise HttpError(400, f"{self._where}{name} is {shown(value)}: {why}")

    def finish(self, *, ignored: Sequence[str] = IGNORED) -> None:
        left = [name for name, value in self._values.items() if value is not None and name not in ignored]
        if left:
            raise HttpError(400, f"there is no field {self._where + left[0]!r} here, or it is not supported")

    def _wrong(self, name: str, expected: str, found: Any) -> HttpError:
        return HttpError(400, f"{self._where}{name} must be {expected}, found {shown(found)}")
