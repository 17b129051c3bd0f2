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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binary_file import BinaryFile
from .errors import FileFormatError, WeightsError
from .export_metadata import SHA256, AdapterReference, BaseModelFacts, MetadataReader
from .file_kind import describe
from .files import expand
from .safetensors_file import SafetensorsFile

FORMAT, VERSION = "edgecal-reference", "1"
KINDS = ("delta", "input", "output", "input_ids", "logits_last4", "greedy_ids")
DTYPES = ("float32", "float64")
_REQUIRED = ("format", "version", "method", "adapters", "base_model", "dtype", "cases")
_OPTIONAL = ("calibration", "calibration_sha256", "weights", "options", "thin", "made_with")
_LONGEST = 1 << 20  # ids of one case
_THINNEST = 999_999


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
        self.path = expand(path, FileFormatError)
        try:
            self._file = SafetensorsFile(self.path)
        except WeightsError as error:
            found = describe(self.path)
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


class _Reader(MetadataReader):
    def __init__(self, path: Path, values: Mapping[str, str]) -> None:
        super().__init__(path, values, FileFormatError)

    def read(self) -> ReferenceMetadata:
        known = (*_REQUIRED, *_OPTIONAL)
        self.check_format(FORMAT, VERSION, "write it again with the exporter of docs/export.md", known)
        for key in _REQUIRED:
            if not self.values.get(key):
                raise self.wrong(key, "a value")
        if self.values["dtype"] not in DTYPES:
            raise self.wrong("dtype", f"{' or '.join(DTYPES)}: lower precision is no reference")
        adapters = self.adapters()
        return ReferenceMetadata(
            method=self.values["method"],
            adapters=adapters,
            base_model=self.base_model(),
            calibration=self.values.get("calibration") or None,
            calibration_sha256=self._sha256(),
            weights=self.weights(len(adapters)) if self.values.get("weights") else None,
            options=self.object("options", "a JSON object, as in a recipe") if self.values.get("options") else {},
            cases=self._cases(),
            dtype=self.values["dtype"],
            thin=self.whole("thin", _THINNEST, "1"),
            made_with=self.values.get("made_with", ""),
        )

    def _sha256(self) -> str | None:
        value = self.values.get("calibration_sha256") or None
        if value is not None and not SHA256.fullmatch(value):
            raise self.wrong("calibration_sha256", "64 lower-case hex digits")
        return value

    def _cases(self) -> dict[str, dict[str, Any]]:
        cases = self.object("cases", "a JSON object of cases by name")
        if not all(name and isinstance(case, dict) for name, case in cases.items()):
            raise self.wrong("cases", "a JSON object whose values are objects")
        for name, case in cases.items():
            length = case.get("n_new_tokens")
            if length is not None and (type(length) is not int or length < 1):
                raise self.wrong("cases", f"n_new_tokens of {name[:40]!r} to be the number of its answer's ids")
        return cases
