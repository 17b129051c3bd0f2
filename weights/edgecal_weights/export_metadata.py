"""The metadata that a training side writes into its files, read key by key.

Calibrations and reference files are safetensors whose metadata says what the tensors mean and what they were made with:
the adapters by sha256, in order; the base; the weights. Applied to anything else they still give numbers, only wrong
ones, so nothing is guessed: a missing, unknown or foreign key is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import EdgecalError
from .file_kind import describe
from .files import parse_json

REFERENCES = 'a JSON list of {"name", "sha256"}, one per adapter, sha256 as 64 lower-case hex digits'
SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 80  # characters of what a file says


@dataclass(frozen=True)
class AdapterReference:
    """An adapter that a file was made with: `sha256` of its adapter_model.safetensors, lower case hex."""

    name: str
    sha256: str


@dataclass(frozen=True)
class BaseModelFacts:
    """The base it was made on. The name is for messages; the other facts have to agree."""

    name: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int


class MetadataReader:
    """The keys of one file, each read by a method that raises `error` naming file and key when it is wrong."""

    def __init__(self, path: Path, values: Mapping[str, str], error: type[EdgecalError]) -> None:
        self.path, self.values, self.error = path, values, error

    def wrong(self, key: str, expected: str) -> EdgecalError:
        """The error to raise for `key`."""
        found = self.values.get(key)
        shown = "there is none" if found is None else f"found {found[:_SHOWN]!r}"
        return self.error(f"{self.path}: metadata key {key!r}: expected {expected}; {shown}")

    def check_format(self, format: str, version: str, advice: str, keys: Collection[str]) -> None:
        """The file is of this format and version and has none but these keys; `advice` is for another version."""
        if self.values.get("format") != format:
            found = describe(self.path)
            raise self.wrong("format", format + (f" (this is {found})" if found else ""))
        if self.values.get("version") != version:
            raise self.wrong("version", f"{version}; {advice}")
        for key in self.values:
            if key not in keys:
                raise self.error(
                    f"{self.path}: unknown metadata key {key[:_SHOWN]!r}; version {version} has {', '.join(keys)}"
                )

    def json(self, key: str, expected: str) -> Any:
        try:
            return parse_json(self.values[key])
        except (KeyError, ValueError):
            raise self.wrong(key, expected) from None

    def object(self, key: str, expected: str) -> dict[str, Any]:
        value = self.json(key, expected)
        if not isinstance(value, dict):
            raise self.wrong(key, expected)
        return value

    def whole(self, key: str, largest: int, default: str | None = None) -> int:
        """A whole number from 1 to `largest`."""
        text = self.values.get(key, default)
        if text is None or not re.fullmatch(r"[1-9]\d{0,8}", text) or int(text) > largest:
            raise self.wrong(key, f"a whole number from 1 to {largest}")
        return int(text)

    def adapters(self, key: str = "adapters") -> tuple[AdapterReference, ...]:
        """May be empty."""
        return self.references(key, self.json(key, REFERENCES), REFERENCES)

    def references(self, key: str, entries: Any, expected: str) -> tuple[AdapterReference, ...]:
        """A list out of the JSON under `key`."""
        if not isinstance(entries, list) or not all(_is_reference(entry) for entry in entries):
            raise self.wrong(key, expected)
        return tuple(AdapterReference(**entry) for entry in entries)

    def weights(self, count: int, key: str = "weights") -> tuple[float, ...]:
        """As many finite numbers."""
        expected = f"a JSON list of {count} numbers below 1e9, one per adapter"
        weights = self.json(key, expected)
        if not isinstance(weights, list) or len(weights) != count or not all(_is_finite(w) for w in weights):
            raise self.wrong(key, expected)
        return tuple(float(w) for w in weights)

    def base_model(self, key: str = "base_model") -> BaseModelFacts:
        names = [f.name for f in fields(BaseModelFacts)]
        expected = f"a JSON object with {', '.join(names)}"
        facts = self.object(key, expected)
        if set(facts) != set(names):
            raise self.wrong(key, expected)
        for name, value in facts.items():
            is_text = name in ("name", "model_type")
            if not isinstance(value, str) if is_text else type(value) is not int or value < 1:
                raise self.wrong(key, f"{expected}; {name!r} as {'text' if is_text else 'a whole number'}")
        return BaseModelFacts(**facts)


def _is_reference(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"name", "sha256"}
        and all(isinstance(value, str) for value in entry.values())
        and SHA256.fullmatch(entry["sha256"]) is not None
    )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9
