"""Files of tensors: the reference files of a training side, and safetensors files of no particular kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecal_weights.files import parse_json
from edgecal_weights.quantize_report import FormatTotal, format_totals
from edgecal_weights.safetensors_file import SafetensorsFile


@dataclass(frozen=True)
class TensorFacts:
    """One tensor as it lies in its file."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int

    @property
    def weights(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class TensorsReport:
    """A safetensors file that is neither adapter nor calibration: perhaps one file of a model."""

    path: str
    nbytes: int
    metadata: dict[str, str]
    formats: dict[str, FormatTotal]
    hint: str
    tensors: list[TensorFacts] = field(repr=False)
    what: str = "tensors"

    def to_dict(self) -> dict[str, Any]:
        return {"what": self.what, **asdict(self)}


@dataclass(frozen=True)
class ReferenceReport:
    """Outputs of PyTorch that edgecal is compared with: prompts with their logits and greedy ids, and some dW."""

    path: str
    method: str
    adapters: list[str]
    calibration: str | None
    base_model: str
    dtype: str
    cases: list[str]
    deltas: list[str]
    nbytes: int
    tensors: list[TensorFacts] = field(repr=False)
    what: str = "reference"

    def to_dict(self) -> dict[str, Any]:
        return {"what": self.what, **asdict(self)}


def file_tensors(file: SafetensorsFile) -> list[TensorFacts]:
    """All tensors in the order of the file's header."""
    return [TensorFacts(n, (e := file.entry(n)).shape, e.dtype, e.nbytes) for n in file.names()]


def totals(tensors: list[TensorFacts]) -> dict[str, FormatTotal]:
    """Tensors, weights and bytes by number format."""
    return format_totals((t.type, t.weights, t.nbytes) for t in tensors)


def inspect_tensors(path: Path) -> TensorsReport:
    with SafetensorsFile(path) as file:
        tensors, metadata = file_tensors(file), dict(file.metadata)
    if (path.parent / "config.json").exists():
        hint = f"one file of a model; edgecal runs the directory: {path.parent}"
    else:
        hint = "edgecal runs directories with config.json and a tokenizer; there is none beside this file"
    return TensorsReport(str(path), sum(t.nbytes for t in tensors), metadata, totals(tensors), hint, tensors)


def inspect_reference(path: Path) -> ReferenceReport:
    """Its metadata is shown as far as it can be understood: nothing runs on it."""
    with SafetensorsFile(path) as file:
        tensors, metadata = file_tensors(file), file.metadata
    cases, adapters = _json(metadata.get("cases")), _json(metadata.get("adapters"))
    base = _json(metadata.get("base_model"))
    base_model = base.get("name") if isinstance(base, dict) else metadata.get("base_model")
    return ReferenceReport(
        path=str(path),
        method=metadata.get("method", "unknown"),
        adapters=[str(a.get("name", a)) if isinstance(a, dict) else str(a) for a in _as_list(adapters)],
        calibration=metadata.get("calibration") or None,
        base_model=str(base_model or "unknown"),
        dtype=metadata.get("dtype", "unknown"),
        cases=[str(case) for case in _as_list(cases)],
        deltas=[t.name.removeprefix("delta/") for t in tensors if t.name.startswith("delta/")],
        nbytes=sum(t.nbytes for t in tensors),
        tensors=tensors,
    )


def _json(text: str | None) -> Any:
    if text is None:
        return []
    try:
        return parse_json(text, unique=False)
    except ValueError:  # a plain name, as good as a list of one
        return [text]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, dict)) else [value]
