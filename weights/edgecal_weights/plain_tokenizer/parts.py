"""Parts of a tokenizer.json: how one is looked up in a table by its `type`, and refused where it is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..errors import FileFormatError, UnsupportedModelError

Made = TypeVar("Made")
Value = TypeVar("Value")
_SHORT = 64
_GROWTH, _ALLOWANCE = 64, 4096  # times the length of a text, and characters, that a sequence may make of it


class Part:
    """A part's fields, and whose they are, for messages: `read` checks what it gives."""

    def __init__(self, fields: Any, kind: str, path: Path) -> None:
        if not isinstance(fields, Mapping) or not isinstance(fields.get("type"), str):
            raise FileFormatError(f"{path}: a {kind} is {fields!r:.80}, expected an object with a type")
        self.fields, self.kind, self.path = fields, kind, path
        self.type: str = fields["type"]

    def read(self, key: str, kind: type, default: Any = None) -> Any:
        """The field `key`, `default` where it is absent or null; FileFormatError if it is of another kind."""
        value = self.fields.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            self.fail(f"{key} is {value!r:.80}, expected {kind.__name__}")
        return value

    def parts(self, key: str) -> list[Part]:
        """The parts that this one is a sequence of."""
        return [Part(fields, self.kind, self.path) for fields in self.read(key, list)]

    def short_text(self, key: str) -> str:
        """The field `key`, a text of a few characters."""
        text: str = self.read(key, str)
        if len(text) > _SHORT:
            self.fail(f"{key} has {len(text):,} characters, at most {_SHORT} are served")
        return text

    def text_pattern(self) -> str | None:
        """The string that a pattern stands for; None if it is an expression."""
        value = self.fields.get("pattern")
        text = value.get("String") if isinstance(value, Mapping) else None
        return text if isinstance(text, str) and text else None

    def fail(self, problem: str) -> NoReturn:
        raise FileFormatError(f"{self.path}: the {self.kind} {self.type}: {problem}")

    def refuse(self, what: str = "") -> NoReturn:
        """UnsupportedModelError: not served without the library."""
        raise UnsupportedModelError(
            f"{self.path}: the {self.kind} {self.type:.40}{what} needs the package tokenizers, which is not installed"
        )


def make(fields: Any, kind: str, path: Path, makers: Mapping[str, Callable[[Part], Made]]) -> Made | None:
    """What the maker for the part's type makes of it; None for null."""
    if fields is None:
        return None
    part = Part(fields, kind, path)
    if part.type not in makers:
        part.refuse()
    return makers[part.type](part)


def chosen(part: Part, makers: Mapping[str, Callable[[Part], Made]]) -> Made:
    """As `make`, for a part that is there."""
    if part.type not in makers:
        part.refuse()
    return makers[part.type](part)


def chain(
    part: Part, steps: Sequence[Callable[[Value], Value]], length: Callable[[Value], int]
) -> Callable[[Value], Value]:
    """All steps, one after another. FileFormatError where they make far more than there was: a few replacements out of
    an untrusted file would else fill any memory. For the same reason no step may be a sequence itself."""

    def run(value: Value) -> Value:
        before = length(value)
        most = _GROWTH * before + _ALLOWANCE
        for step in steps:
            value = step(value)
            if length(value) > most:
                part.fail(f"its steps make more than {most:,} characters of a text of {before:,}")
        return value

    return run
