"""The reference file, version 1: outputs of another implementation (PyTorch), for `edgecal verify` to compare with.

A safetensors file. What the metadata says decides whether it can be compared at all (the method, the adapters by
sha256, the base), so every key is checked and an unknown one refused; a case without its tensors and a tensor without
its case are errors as well, because a comparison that quietly leaves something out would pass.

    delta/<module>              (d, k) float32     dW of a module, without any bias
    input/<module>/<case>       (T, k) float32     what the module is given, and
    output/<module>/<case>      (T, d) float32     what it gives: W x + bias + dW x (+ p)
    input_ids/<case>            (T,)  int64        the prompt
    logits_last4/<case>         (min(T, 4), V)     logits at its last positions
    greedy_ids/<case>           (n,)  int64        the greedy answer

With `thin` N, only every Nth row of a delta, column of an output and vocabulary id of the logits is stored, from the
first on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binary_file import BinaryFile
from .calibration_file import AdapterReference, BaseModelFacts
from .errors import FileFormatError, WeightsError
from .file_kind import describe_file
from .peft_config import unique_keys
from .safetensors_file import SafetensorsFile

FORMAT, VERSION = "edgecal-reference", "1"
KINDS = ("delta", "input", "output", "input_ids", "logits_last4", "greedy_ids")
DTYPES = ("float32", "float64")
_REQUIRED = ("format", "version", "method", "adapters", "base_model", "dtype", "cases")
_OPTIONAL = ("calibration", "calibration_sha256", "weights", "options", "thin", "made_with")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST = 1 << 20  # ids of one case


@dataclass(frozen=True)
class ReferenceMetadata:
    """`method` as the file spells it; `calibration` is a file name or None; `weights` and `options` are those of the
    recipe (None and empty where the method's defaults were taken); `cases` by name, of free content but for
    `n_new_tokens`, how many ids the greedy answer has."""

    method: str
    adapters: tuple[AdapterReference, ...]
    base_model: BaseModelFacts
    calibration: str | None
    calibration_sha256: str | None
    weights: tuple[float, ...] | None
    options: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    dtype: str
    thin: int
    made_with: str

    def answer_length(self, case: str) -> int | None:
        """How many ids the greedy answer of a case has, None where the file does not say."""
        return self.cases[case].get("n_new_tokens")


class ReferenceFile:
    """An opened reference file; a context manager. FileFormatError names the file and the key or tensor."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            self._file = SafetensorsFile(self.path)
        except WeightsError as error:
            found = describe_file(self.path)
            hint = f"; it is {found}" if found else ""
            raise type(error)(f"the reference cannot be read: {error}{hint}") from None
        try:
            self.metadata = _Reader(self.path, self._file.metadata).read()
            self._tensors: dict[str, list[str]] = {kind: [] for kind in KINDS}
            for name in self._file.names():
                kind, _, rest = name.partition("/")
                if kind not in KINDS or not rest:
                    raise FileFormatError(
                        f"{self.path}: tensor {name[:80]!r} is none of version {VERSION}: {', '.join(KINDS)}, each "
                        "with '/' and a module or case"
                    )
                self._tensors[kind].append(rest)
            self._check()
        except BaseException:
            self._file.close()
            raise

    def of(self, kind: str) -> list[str]:
        """What follows "kind/" in the names of its tensors, in the order of the file."""
        return self._tensors[kind]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.shape(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self._file.read_rows(name, start, stop)

    def read(self, name: str) -> NDArray[np.float32]:
        return self._file.read(name)

    def ids(self, name: str) -> list[int]:
        """Token ids of an integer tensor."""
        entry = self._file.entry(name)
        if entry.dtype not in ("I64", "I32") or len(entry.shape) != 1 or not 0 < entry.shape[0] <= _LONGEST:
            raise FileFormatError(
                f"{self.path}: {name} is {entry.dtype} {entry.shape}, expected a list of ids (int64)"
            )
        with BinaryFile(self.path) as file:
            raw = file.read(entry.offset, entry.nbytes, name)
        return [int(i) for i in raw.view("<i8" if entry.dtype == "I64" else "<i4")]

    def _check(self) -> None:
        if not any(self._tensors.values()):
            raise FileFormatError(f"{self.path} holds no tensors; there is nothing to compare with")
        cases = self.metadata.cases
        for kind in ("input_ids", "logits_last4", "greedy_ids"):
            for case in self._tensors[kind]:
                if case not in cases:
                    raise FileFormatError(f"{self.path}: {kind}/{case[:80]} has no case in the metadata key 'cases'")
        for case in cases:
            if case not in self._tensors["input_ids"]:
                raise FileFormatError(f"{self.path}: input_ids/{case} is missing; the metadata lists the case")
            if case not in self._tensors["logits_last4"] and case not in self._tensors["greedy_ids"]:
                raise FileFormatError(
                    f"{self.path}: case {case!r} has neither logits_last4/{case} nor greedy_ids/{case}"
                )
            if self.metadata.answer_length(case) and case not in self._tensors["greedy_ids"]:
                raise FileFormatError(f"{self.path}: greedy_ids/{case} is missing; the case says how long it is")
        for ours, other in (("input", "output"), ("output", "input")):
            for name in self._tensors[ours]:
                if name not in self._tensors[other]:
                    raise FileFormatError(f"{self.path}: {other}/{name[:120]} is missing, its partner is there")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ReferenceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reader:
    def __init__(self, path: Path, values: Mapping[str, str]) -> None:
        self.path, self.values = path, values

    def read(self) -> ReferenceMetadata:
        if self.values.get("format") != FORMAT:
            found = describe_file(self.path)
            raise self._wrong("format", FORMAT + (f" (this is {found})" if found else ""))
        if self.values.get("version") != VERSION:
            raise self._wrong("version", f"{VERSION}; write it again with the exporter of docs/export.md")
        for key in self.values:
            if key not in (*_REQUIRED, *_OPTIONAL):
                known = ", ".join((*_REQUIRED, *_OPTIONAL))
                raise FileFormatError(f"{self.path}: unknown metadata key {key[:80]!r}; version {VERSION} has {known}")
        for key in _REQUIRED:
            if not self.values.get(key):
                raise self._wrong(key, "a value")
        if self.values["dtype"] not in DTYPES:
            raise self._wrong("dtype", f"{' or '.join(DTYPES)}: lower precision is no reference")
        adapters = self._adapters()
        return ReferenceMetadata(
            method=self.values["method"],
            adapters=adapters,
            base_model=self._base(),
            calibration=self.values.get("calibration") or None,
            calibration_sha256=self._sha(),
            weights=self._weights(len(adapters)),
            options=self._object("options", "a JSON object, as in a recipe") if self.values.get("options") else {},
            cases=self._cases(),
            dtype=self.values["dtype"],
            thin=self._thin(),
            made_with=self.values.get("made_with", ""),
        )

    def _wrong(self, key: str, expected: str) -> FileFormatError:
        found = self.values.get(key)
        shown = "there is none" if found is None else f"found {found[:80]!r}"
        return FileFormatError(f"{self.path}: metadata key {key!r}: expected {expected}; {shown}")

    def _json(self, key: str, expected: str) -> Any:
        try:
            return json.loads(self.values[key], object_pairs_hook=unique_keys)
        except (KeyError, ValueError, RecursionError):
            raise self._wrong(key, expected) from None

    def _object(self, key: str, expected: str) -> dict[str, Any]:
        value = self._json(key, expected)
        if not isinstance(value, dict):
            raise self._wrong(key, expected)
        return value

    def _adapters(self) -> tuple[AdapterReference, ...]:
        expected = 'a JSON list of {"name", "sha256"}, one per adapter, sha256 as 64 lower-case hex digits'
        entries = self._json("adapters", expected)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict)
            and set(entry) == {"name", "sha256"}
            and isinstance(entry["name"], str)
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"])
            for entry in entries
        ):
            raise self._wrong("adapters", expected)
        return tuple(AdapterReference(**entry) for entry in entries)

    def _base(self) -> BaseModelFacts:
        names = [f.name for f in fields(BaseModelFacts)]
        expected = f"a JSON object with {', '.join(names)}"
        facts = self._object("base_model", expected)
        if set(facts) != set(names) or not all(
            isinstance(value, str) if name in ("name", "model_type") else type(value) is int
            for name, value in facts.items()
        ):
            raise self._wrong("base_model", expected)
        return BaseModelFacts(**facts)

    def _sha(self) -> str | None:
        value = self.values.get("calibration_sha256") or None
        if value is not None and not _SHA256.fullmatch(value):
            raise self._wrong("calibration_sha256", "64 lower-case hex digits")
        return value

    def _weights(self, count: int) -> tuple[float, ...] | None:
        if not self.values.get("weights"):
            return None
        expected = f"a JSON list of {count} numbers below 1e9, one per adapter"
        weights = self._json("weights", expected)
        if (
            not isinstance(weights, list)
            or len(weights) != count
            or not all(type(w) in (int, float) and abs(w) < 1e9 for w in weights)
        ):
            raise self._wrong("weights", expected)
        return tuple(float(w) for w in weights)

    def _cases(self) -> dict[str, dict[str, Any]]:
        cases = self._object("cases", "a JSON object of cases by name")
        if not all(name and isinstance(case, dict) for name, case in cases.items()):
            raise self._wrong("cases", "a JSON object whose values are objects")
        for name, case in cases.items():
            length = case.get("n_new_tokens")
            if length is not None and (type(length) is not int or length < 1):
                raise self._wrong("cases", f"n_new_tokens of {name[:40]!r} to be the number of its answer's ids")
        return cases

    def _thin(self) -> int:
        text = self.values.get("thin", "1")
        if not re.fullmatch(r"[1-9]\d{0,5}", text):
            raise self._wrong("thin", "a whole number of 1 or more: every how many rows are stored")
        return int(text)
