"""What do these adapters do to this model? Which modules they reach, how strongly, and what in them does nothing.

An adapter that fits by its shapes may still change nothing (a B that was never trained, a scaling of 0), change a tenth
of the layers, or overwhelm the base; two adapters may do the same, or undo each other. None of that raises an error.
`diagnose` measures it from the factors alone (adapters/factors.py: dW is never formed) and reads the base's weights
once, block by block, for |W|.

What does not fit is reported and not raised, because finding it is the purpose; a model that cannot be read raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.files import expand
from edgecal_weights.lora_file import EMBEDDING, HEAD

from ..adapters.calibration import Calibration, component
from ..adapters.gram import Factors, cosine
from ..adapters.lora import LoraAdapter
from ..architecture import Architecture, linear_shapes
from ..config import ModelConfig
from ..errors import AdapterError, EdgecalError
from ..text.counted import counted
from .adapter import inspect_adapter

_BLOCK = 1 << 22  # numbers of W in memory at a time
_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".lora_a", ".lora_b")
STRONG = 1.0  # |dW| / |W| from which on an adapter replaces the base rather than changing it


@dataclass(frozen=True)
class ModuleChange:
    """One module under one adapter. `norm` is |dW|_F, `ratio` |dW|_F / |W|_F (nan where W is zero)."""

    module: str
    component: str
    layer: int | None
    rank: int
    scaling: float
    norm: float
    ratio: float


@dataclass(frozen=True)
class AdapterDiagnosis:
    """`refusal` is what loading it says (then it has no modules), or why it does not fit the model.

    `missing`: its modules that the model does not have; `misshapen`: those of another shape there; `absent`: modules of
    the model that its configuration asks for and its file lacks; `untouched`: those of the model that it leaves alone;
    `ignored`: tensors of its file that have no part in its effect; `without_effect`: modules whose dW is zero.
    """

    name: str
    path: str
    base_model_name: str | None
    refusal: str | None
    changes: list[ModuleChange] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def without_effect(self) -> list[str]:
        return [change.module for change in self.changes if change.norm == 0]


@dataclass(frozen=True)
class Overlap:
    """Two adapters on one component, over all layers: the modules that both change, and the cosine between their dW
    (1: the same direction, 0: orthogonal, -1: one undoes the other; nan where one of them is zero)."""

    first: str
    second: str
    component: str
    modules: int
    cosine: float


@dataclass(frozen=True)
class CalibrationDiagnosis:
    """`terms`: by group of tensors (component, "{k}x{d}", or module) how strong they are."""

    path: str
    method: str | None
    refusal: str | None
    terms: dict[str, Term] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """`norm`: the Frobenius norm of p 1^T or P2 P1, scaling included, or of the scales of dam. `ratio`: to the median
    |W|_F of the modules that it is added to; nan for the methods that multiply (projection_merge, dam)."""

    norm: float
    ratio: float


@dataclass(frozen=True)
class Diagnosis:
    """`problems` mean that something does not fit or would have no effect, `notes` are worth knowing."""

    model: str
    n_modules: int
    adapters: list[AdapterDiagnosis]
    overlaps: list[Overlap]
    calibration: CalibrationDiagnosis | None
    problems: list[str]
    notes: list[str]

    @property
    def healthy(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON values: numbers that are not finite become null."""
        values = {"healthy": self.healthy, **asdict(self)}
        for row, adapter in zip(values["adapters"], self.adapters, strict=True):
            row["without_effect"] = adapter.without_effect
        plain: dict[str, Any] = _without_nan(values)
        return plain


def diagnose(
    checkpoint: Checkpoint,
    adapters: Mapping[str, str | Path],
    calibration: str | Path | None = None,
    *,
    model: str = "",
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Look at adapters ({name: directory}) and a calibration for them, in this order, beside a model.

    `progress` gets the name of each module whose W is read. Raises only what reading the model raises.
    """
    architecture = Architecture.of(checkpoint)
    shapes, loaded, reports = architecture.shapes, {}, []
    for name, path in adapters.items():
        adapter, report = _look(name, path, architecture, model)
        reports.append(report)
        if adapter is not None:
            loaded[name] = adapter
    term, content = _calibration(calibration, list(loaded.values()), architecture) if calibration else (None, None)
    changed = _changed(shapes, loaded, content)
    bases: dict[str, float] = {}
    sums: dict[tuple[str, str, str], _Sums] = {}
    changes: dict[str, list[ModuleChange]] = {name: [] for name in loaded}
    for module in changed:
        if progress is not None:
            progress(module)
        bases[module] = base = weight_norm(checkpoint, _weight_of(module, architecture.config))
        shape = shapes[module]
        present = {n: a for n, a in loaded.items() if module in a.shapes and a.shapes[module][:2] == shape}
        factors = {}
        for name, adapter in present.items():
            pair = adapter.pairs[module]
            factors[name] = Factors.of(pair)
            norm = factors[name].norm()
            ratio = norm / base if base else math.nan
            layer = next((int(part) for part in module.split(".") if part.isdecimal()), None)
            changes[name].append(
                ModuleChange(module, component(module), layer, pair.shape.rank, pair.scaling, norm, ratio)
            )
        for first, second in combinations(factors, 2):
            total = sums.setdefault((first, second, component(module)), _Sums())
            total.add(factors[first].inner(factors[second]), changes[first][-1].norm, changes[second][-1].norm)
    for report in reports:
        report.changes.extend(changes.get(report.name, []))
    if term is not None and content is not None:
        term.terms.update(_terms(content, shapes, bases))
    problems, notes = _judge(reports, term)
    return Diagnosis(
        model=model or str(checkpoint.path),
        n_modules=len(linear_shapes(architecture.config)),
        adapters=reports,
        overlaps=[Overlap(*key, total.modules, total.cosine()) for key, total in sums.items()],
        calibration=term,
        problems=problems,
        notes=notes,
    )


def _weight_of(module: str, config: ModelConfig) -> str:
    """The tensor that a module is made of; a tied head is the embedding."""
    return f"{EMBEDDING if module == HEAD and config.tie_word_embeddings else module}.weight"


def weight_norm(checkpoint: Checkpoint, name: str) -> float:
    """|W|_F of a matrix of the checkpoint, read in blocks of rows."""
    d, k = checkpoint.shape(name)
    step, total = max(1, _BLOCK // k), 0.0
    for start in range(0, d, step):
        block = checkpoint.read_rows(name, start, min(d, start + step)).astype(np.float64)
        total += float(np.vdot(block, block))
    return math.sqrt(total)


@dataclass
class _Sums:
    product: float = 0.0
    first: float = 0.0
    second: float = 0.0
    modules: int = 0

    def add(self, product: float, first: float, second: float) -> None:
        self.product += product
        self.first += first * first
        self.second += second * second
        self.modules += 1

    def cosine(self) -> float:
        return cosine(self.product, math.sqrt(self.first), math.sqrt(self.second))


def _look(
    name: str, path: str | Path, architecture: Architecture, model: str
) -> tuple[LoraAdapter | None, AdapterDiagnosis]:
    try:
        adapter = LoraAdapter.load(path, name).on_base(architecture.facts)
        report = inspect_adapter(expand(path, AdapterError), architecture.config, model)
    except EdgecalError as error:
        return None, AdapterDiagnosis(name, str(path), None, str(error))
    match, refusal = report.match, None
    assert match is not None
    try:
        adapter.check_against(architecture.shapes)
    except AdapterError as error:
        refusal = str(error)
    return adapter, AdapterDiagnosis(
        name,
        str(path),
        adapter.base_model_name,
        refusal,
        missing=match.missing,
        misshapen=[module for module, *_shapes in match.misshapen],
        absent=match.absent,
        untouched=[module for module in linear_shapes(architecture.config) if module not in adapter.shapes],
        ignored=[t.name for t in report.tensors if not t.name.endswith((*_FACTORS, ".base_layer.weight"))],
    )


def _changed(
    shapes: Mapping[str, tuple[int, int]], adapters: Mapping[str, LoraAdapter], calibration: Calibration | None
) -> list[str]:
    """What is measured: what an adapter changes, or what a calibration without adapters does."""
    if not adapters and calibration is not None:
        return [module for module, (d, k) in shapes.items() if calibration.covers(module, d, k)]
    return [module for module in shapes if any(module in adapter.shapes for adapter in adapters.values())]


def _calibration(
    path: str | Path, adapters: list[LoraAdapter], architecture: Architecture
) -> tuple[CalibrationDiagnosis, Calibration | None]:
    try:
        calibration = Calibration.load(path)
    except EdgecalError as error:
        return CalibrationDiagnosis(str(path), None, str(error)), None
    shapes, refusal = architecture.shapes, None
    changed = _changed(shapes, {adapter.name: adapter for adapter in adapters}, calibration)
    try:
        calibration.check(adapters, architecture.facts)
        calibration.check_modules({module: shapes[module] for module in changed})
        for module in changed:
            calibration.for_module(module, *shapes[module])
    except EdgecalError as error:
        refusal = str(error)
    return CalibrationDiagnosis(str(path), calibration.method, refusal), calibration


def _terms(
    calibration: Calibration, shapes: Mapping[str, tuple[int, int]], bases: Mapping[str, float]
) -> dict[str, Term]:
    content, found = calibration.content, {}
    for group, tensors in content.groups.items():
        modules = [module for module in bases if group in (component(module), module)]
        doubles = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        if "P2" in doubles:
            norm = Factors(doubles["P1"], doubles["P2"]).norm()
        else:
            norm = math.sqrt(sum(float(np.vdot(tensor, tensor)) for tensor in doubles.values()))
            if "p" in doubles and content.bias_mode == "columns":
                norm *= math.sqrt(max((shapes[module][1] for module in modules), default=1))
        norm *= abs(content.calibration_scaling)
        adds = "p" in doubles or ("P2" in doubles and content.method != "projection_merge")
        base = median(bases[module] for module in modules) if modules and adds else 0.0
        found[group] = Term(norm, norm / base if base else math.nan)
    return found


def _judge(adapters: list[AdapterDiagnosis], calibration: CalibrationDiagnosis | None) -> tuple[list[str], list[str]]:
    problems, notes = [], []
    for adapter in adapters:
        if adapter.refusal is not None:
            problems.append(adapter.refusal)
        dead = adapter.without_effect
        if dead and len(dead) == len(adapter.changes):
            zero = all(change.scaling == 0 for change in adapter.changes)
            why = "its scaling is 0" if zero else "its factors are zero (was it trained?)"
            problems.append(f"adapter {adapter.name} has no effect at all: {why}")
        elif dead:
            problems.append(f"adapter {adapter.name} has no effect on {_some(dead)}: dW is zero there")
        strong = [change.module for change in adapter.changes if change.ratio >= STRONG]
        if strong:
            notes.append(f"adapter {adapter.name} is stronger than the base itself (|dW| >= |W|) at {_some(strong)}")
        if adapter.ignored:
            notes.append(f"adapter {adapter.name}: without a part in its effect: {_some(adapter.ignored)}")
        if adapter.changes and adapter.untouched and not adapter.absent:
            parts = sorted({component(module) for module in adapter.untouched})
            notes.append(
                f"adapter {adapter.name} leaves {counted(len(adapter.untouched), 'module')} of the model alone: "
                f"{_some(parts)}"
            )
    if calibration is not None:
        if calibration.refusal is not None:
            problems.append(calibration.refusal)
        dead = [group for group, term in calibration.terms.items() if term.norm == 0]
        if dead:
            multiplies = calibration.method in ("projection_merge", "dam")
            result = "the merged change is zero there" if multiplies else "it adds nothing there"
            problems.append(f"calibration {calibration.path} is zero for {_some(dead)}: {result}")
    return problems, notes


def _some(names: list[str], most: int = 7) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value
