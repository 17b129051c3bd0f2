"""A report of `edgecal profile --json`, as `--compare` and the page read it."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from edgecal.profile.compare import compare
from edgecal.profile.page import to_html
from edgecal.profile.results import SCHEMA, VERSION, ProfileReport, load

from ..mutate import json_text
from ..target import Target


def prepare(folder: Path) -> list[bytes]:
    return [json.dumps({"schema": SCHEMA, "schema_version": VERSION, **_example(ProfileReport)}).encode()]


def _example(kind: Any) -> Any:
    """JSON of some value of a type."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: _example(hints[field.name]) for field in fields(kind)}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _example(inner[0])
    if origin is list:
        return [_example(inner[0])] * 3
    if origin is dict:
        return {"a": _example(inner[1])}
    return {int: 2, float: 0.5, str: "text", bool: False}.get(kind)


def run(data: bytes, folder: Path) -> None:
    path = folder / "profile.json"
    path.write_bytes(data)
    report = load(path)
    json.dumps(report.to_dict(), allow_nan=False)
    to_html(report)
    compare(report, report)


TARGET = Target(run, prepare, json_text)
