"""Results to JSON and back, by the types of their fields.

A profile may come from anybody, so nothing in it is believed: every value is checked against the field it is for, and
the message names the place ("methods[1].decodes[0].new"). Fields that this version does not know are refused as well,
for a figure that is silently ignored may be the one that mattered; the computed ones under "summary" are the exception.
"""

from __future__ import annotations

import json
import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import FileFormatError
from .results import SCHEMA, VERSION, Report

LARGEST_FILE = 256 << 20
_DIGITS = 10  # of seconds after the point: the clock's own are nine


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


def decode_report(values: Any, source: str) -> Report:
    """See `Report.from_dict`."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise FileFormatError(
            f'{source} is no profile: expected an object with "schema": "{SCHEMA}", as `edgecal profile --json` '
            "writes it"
        )
    version = values.get("schema_version")
    if version != VERSION:
        raise FileFormatError(
            f"{source} has version {version!r} of the profile's schema, this edgecal reads version {VERSION}: "
            "measure again, or use the edgecal that wrote it"
        )
    rest = {key: item for key, item in values.items() if key not in ("schema", "schema_version", "summary")}
    report: Report = _decode(Report, rest, source, "")
    return report


def load(path: str | Path) -> Report:
    """Read a profile; FileFormatError names the file."""
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise FileFormatError(f"{path} is larger than {LARGEST_FILE >> 20} MiB: no profile is")
        text = path.read_text("utf-8")
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no profile: not UTF-8 text") from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is no profile: not JSON ({error})") from error
    return decode_report(values, str(path))


def _decode(kind: Any, value: Any, source: str, place: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _decode(inner[0], value, source, place)
    if origin is list:
        _require(isinstance(value, list), "a list", value, source, place)
        (item,) = typing.get_args(kind)
        return [_decode(item, v, source, f"{place}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        _require(isinstance(value, dict), "an object", value, source, place)
        item = typing.get_args(kind)[1]
        return {key: _decode(item, v, source, f"{place}.{key}") for key, v in value.items()}
    if is_dataclass(kind):
        return _decode_object(kind, value, source, place)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        _require(number and value >= 0, "a number of at least 0", value, source, place)
        return float(value)
    if kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= 0, "a whole number of at least 0", value, source, place)
        return value
    _require(isinstance(value, kind), {"str": "text", "bool": "true or false"}[kind.__name__], value, source, place)
    return value


def _decode_object(kind: Any, value: Any, source: str, place: str) -> Any:
    _require(isinstance(value, dict), "an object", value, source, place)
    types_of = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in value:
        if key not in known:
            raise FileFormatError(f"{source}: {_at(place, key)} is no part of a profile")
    found = {}
    for name, entry in known.items():
        if name in value:
            found[name] = _decode(types_of[name], value[name], source, _at(place, name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise FileFormatError(f"{source}: {_at(place, name)} is missing")
    return kind(**found)


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _require(holds: bool, wanted: str, value: Any, source: str, place: str) -> None:
    if not holds:
        shown = json.dumps(value)[:60] if isinstance(value, (str, int, float, bool)) else type(value).__name__
        raise FileFormatError(f"{source}: {place or 'the profile'} is {shown}, expected {wanted}")
