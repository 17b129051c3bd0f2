"""What the quantizer tells about its work: sizes, how faithful each tensor is, and measured errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LossKind = Literal["exact", "near", "rounded"]


@dataclass(frozen=True)
class TensorError:
    """Packed minus source over a tensor; `relative` is its root mean square over that of the source."""

    mean_absolute: float
    largest: float
    relative: float


@dataclass(frozen=True)
class OutputError:
    """Squared error of a module's outputs by their squared size, on the inputs of a calibration: of plain rounding into
    the same form, and of what was written (of a sample of outputs)."""

    rounded: float
    calibrated: float


@dataclass(frozen=True)
class FormatTotal:
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class QuantizeReport:
    """What was written. `fidelity` counts tensors: "exact" (every value unchanged), "near" (codes taken over
    or re-rounded once from blocks), "rounded" (quantized from floats). `output_errors` are of calibrated ones."""

    path: Path
    source: str
    source_bytes: int
    packed_bytes: int
    n_weights: int
    formats: dict[str, FormatTotal]
    fidelity: dict[str, int]
    seconds: float
    errors: dict[str, TensorError]
    output_errors: dict[str, OutputError] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Over all weights, vectors included."""
        return 8 * self.packed_bytes / self.n_weights

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "bits_per_weight": self.bits_per_weight}


def format_totals(tensors: Iterable[tuple[str, int, int]]) -> dict[str, FormatTotal]:
    """Totals by format of (format, weights, bytes) per tensor."""
    totals: dict[str, FormatTotal] = {}
    for format, weights, nbytes in tensors:
        before = totals.get(format, FormatTotal(0, 0, 0))
        totals[format] = FormatTotal(before.tensors + 1, before.weights + weights, before.bytes + nbytes)
    return totals


def source_name(path: Path) -> str:
    """The name by which a person knows a source: "org/name" for what lies in the hub's cache under its commit."""
    for part in path.parts:
        if part.startswith("models--"):
            repo = part.removeprefix("models--").replace("--", "/", 1)
            return f"{repo}/{path.name}" if path.suffix else repo
    return path.resolve().name


class ErrorSum:
    """Accumulates a TensorError in float64."""

    def __init__(self) -> None:
        self.n, self.absolute, self.square, self.own, self.largest = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, source: NDArray[np.float32], packed: NDArray[np.float32]) -> None:
        difference = np.abs(packed.astype(np.float64) - source)
        self.n += difference.size
        self.absolute += float(difference.sum())
        self.square += float(np.square(difference).sum())
        self.own += float(np.square(source.astype(np.float64)).sum())
        self.largest = max(self.largest, float(difference.max()))

    def result(self) -> TensorError:
        relative = (self.square / self.own) ** 0.5 if self.own else 0.0
        return TensorError(self.absolute / self.n, self.largest, relative)
