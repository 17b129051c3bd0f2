"""Dataclasses to JSON and back, by the types of their fields.

A file may come from anybody, so nothing in it is believed: every value is checked against the field it is for, and the
message names the place ("methods[1].decodes[0].new"). Keys that no field has are refused as well, for a figure that is
silently ignored may be the one that mattered.
"""

from __future__ import annotations

import json
import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from edgecal_weights.files import is_number, kind_of

from ..errors import FileFormatError

T = TypeVar("T")
_DIGITS = 10  # of seconds after the point: the clock's own are nine
_LARGEST = 10**18  # seconds, bytes or counts of anything: what is made of them, squares too, is far from a float's end
_RANGE = f"from 0 to {_LARGEST:.0e}"
_WORDS = {"str": "text", "bool": "true or false"}


def encode(value: Any) -> Any:
    """Dataclasses as dicts; numbers that are not finite as null."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value


def decode(kind: type[T], values: Any, source: str, noun: str) -> T:
    """The dataclass `kind` from JSON values; numbers are 0 to 1e18. FileFormatError names `source` and the place in it.

    `noun` is what the whole is called in messages, "profile" say.
    """
    found: T = _Decoder(source, noun).value(kind, values, "")
    return found


class _Decoder:
    def __init__(self, source: str, noun: str) -> None:
        self.source, self.noun = source, noun

    def value(self, kind: Any, value: Any, place: str) -> Any:
        origin = typing.get_origin(kind)
        if kind is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            inner = [k for k in typing.get_args(kind) if k is not type(None)]
            return None if value is None else self.value(inner[0], value, place)
        if origin is list:
            self._require(isinstance(value, list), "a list", value, place)
            (item,) = typing.get_args(kind)
            return [self.value(item, v, f"{place}[{i}]") for i, v in enumerate(value)]
        if origin is dict:
            self._require(isinstance(value, dict), "an object", value, place)
            item = typing.get_args(kind)[1]
            return {key: self.value(item, v, f"{place}.{key}") for key, v in value.items()}
        if is_dataclass(kind):
            return self._object(kind, value, place)
        if kind is float:
            self._require(is_number(value) and 0 <= value <= _LARGEST, f"a number {_RANGE}", value, place)
            return float(value)
        if kind is int:
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._require(whole and 0 <= value <= _LARGEST, f"a whole number {_RANGE}", value, place)
            return value
        self._require(isinstance(value, kind), _WORDS[kind.__name__], value, place)
        return value

    def _object(self, kind: Any, value: Any, place: str) -> Any:
        self._require(isinstance(value, dict), "an object", value, place)
        types_of = typing.get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}
        for key in value:
            if key not in known:
                raise FileFormatError(f"{self.source}: {_at(place, key)} is no part of a {self.noun}")
        found = {}
        for name, entry in known.items():
            if name in value:
                found[name] = self.value(types_of[name], value[name], _at(place, name))
            elif entry.default is MISSING and entry.default_factory is MISSING:
                raise FileFormatError(f"{self.source}: {_at(place, name)} is missing")
        return kind(**found)

    def _require(self, holds: bool, wanted: str, value: Any, place: str) -> None:
        if not holds:
            shown = json.dumps(value)[:60] if isinstance(value, (str, int, float, bool)) else kind_of(value)
            raise FileFormatError(f"{self.source}: {place or f'the {self.noun}'} is {shown}, expected {wanted}")


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
