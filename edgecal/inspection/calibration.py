"""A calibration: what it was trained for, how large it is, and whether a model is the base it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecal_weights.export_metadata import AdapterReference, BaseModelFacts
from edgecal_weights.safetensors_file import SafetensorsFile

from ..adapters.calibration import BASE_FACTS, Calibration
from ..architecture import base_facts, linear_shapes
from ..config import ModelConfig
from ..errors import CalibrationError
from .tensors import TensorFacts, file_tensors


@dataclass(frozen=True)
class Difference:
    """A fact of the base that differs: what the calibration was trained on, and what the model has."""

    field: str
    calibration: str | int
    model: str | int


@dataclass(frozen=True)
class CalibrationMatch:
    """The calibration beside a model; `problems` are tensors that no module of the model could use."""

    model: str
    differences: list[Difference]
    problems: list[str]

    @property
    def fits(self) -> bool:
        return not self.differences and not self.problems


@dataclass(frozen=True)
class CalibrationReport:
    """`bias_mode` is for learnable_calibration only, `rank` for the others; `shared_with` are further lists of adapters
    that it was trained for."""

    path: str
    method: str
    rank: int | None
    bias_mode: str | None
    calibration_scaling: float
    adapters: list[AdapterReference]
    weights: list[float]
    base_model: BaseModelFacts
    groups: list[str]
    parameters: int
    nbytes: int
    match: CalibrationMatch | None
    tensors: list[TensorFacts] = field(repr=False)
    shared_with: list[list[AdapterReference]] = field(default_factory=list)
    what: str = "calibration"

    def to_dict(self) -> dict[str, Any]:
        values = {"what": self.what, **asdict(self)}
        if self.match is not None:
            values["match"]["fits"] = self.match.fits
        return values


def inspect_calibration(path: Path, config: ModelConfig | None, model: str) -> CalibrationReport:
    """`config` is of the model to compare it with, `model` that one's name. Raises CalibrationError or
    FileFormatError."""
    calibration = Calibration.load(path)
    content = calibration.content
    with SafetensorsFile(path) as file:
        tensors = file_tensors(file)
    return CalibrationReport(
        path=str(path),
        method=content.method,
        rank=content.rank,
        bias_mode=content.bias_mode if content.method == "learnable_calibration" else None,
        calibration_scaling=content.calibration_scaling,
        adapters=list(content.adapters),
        weights=list(content.weights),
        base_model=content.base_model,
        groups=list(content.groups),
        parameters=content.n_parameters,
        nbytes=content.nbytes,
        match=_match(calibration, config, model) if config is not None else None,
        tensors=tensors,
        shared_with=[list(references) for references in content.shared_with],
    )


def _match(calibration: Calibration, config: ModelConfig, model: str) -> CalibrationMatch:
    wanted = calibration.content.base_model
    found = base_facts(config)
    differences = [
        Difference(fact, getattr(wanted, fact), found[fact])
        for fact in BASE_FACTS
        if found[fact] != getattr(wanted, fact)
    ]
    return CalibrationMatch(model, differences, _problems(calibration, linear_shapes(config)))


def _problems(calibration: Calibration, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    problems = []
    for group in calibration.content.groups:
        uses = {(d, k): module for module, (d, k) in shapes.items() if calibration.group_of(module, d, k) == group}
        if not uses:
            problems.append(f"the model has no module for the tensors of {group}")
        for (d, k), module in uses.items():
            try:
                calibration.for_module(module, d, k)
            except CalibrationError:
                problems.append(f"the tensors of {group} do not fit {module}, which is {(d, k)}")
    return problems
