"""JSON lines: an object a line, of which a command wants some keys. Blank lines are passed over."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgecal_weights.files import kind_of, parse_json, read_bytes

from ..errors import EdgecalError, PromptError

T = TypeVar("T")
_LARGEST_FILE = 1 << 30


def read_input(path: str | Path) -> tuple[str, bytes]:
    """What a file is called and what it holds; - is standard input. PromptError names it."""
    if str(path) != "-":
        return str(path), read_bytes(path, _LARGEST_FILE, error=PromptError, pipe=True)
    raw = sys.stdin.buffer.read(_LARGEST_FILE + 1)
    if len(raw) > _LARGEST_FILE:
        raise PromptError(f"standard input is larger than {_LARGEST_FILE >> 30} GiB; split it")
    return "standard input", raw


def each_object(raw: bytes, name: str, make: Callable[[int, dict[str, Any]], T], most: int | None = None) -> list[T]:
    """`make` of the number, from 1, and the object of each line, of `most` lines at most.

    PromptError names the file (`name`) and the line that holds no object, or of which `make` raises an EdgecalError.
    """
    made: list[T] = []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if len(made) == most:
            break
        if line.strip():
            try:
                made.append(make(number, _object(line)))
            except EdgecalError as error:
                raise PromptError(f"{name}, line {number}: {error}") from error
    return made


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise PromptError(f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptError(f"{kind_of(values)}, expected an object")
    return values


def one_key(values: dict[str, Any], keys: Sequence[str]) -> str:
    """The only one of `keys` that is there; PromptError for none and for several."""
    found = [key for key in keys if key in values]
    if len(found) != 1:
        raise PromptError(f"expected one of the keys {', '.join(map(repr, keys))}; its keys are {names(values)}")
    return found[0]


def text_at(values: dict[str, Any], key: str) -> str:
    """The text under `key`; PromptError for anything else, and for an empty one."""
    text = values[key]
    if not isinstance(text, str) or not text.strip():
        found = "an empty one" if isinstance(text, str) else kind_of(text)
        raise PromptError(f"{key!r} must be a text and not empty, found {found}")
    return text


def names(values: dict[str, Any]) -> str:
    """The first of an object's keys, for a message."""
    return ", ".join(map(repr, list(values)[:8])) or "none"
