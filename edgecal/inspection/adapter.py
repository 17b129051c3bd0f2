"""An adapter: what it changes, how strongly, and how it goes with a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecal_weights.lora_file import EMBEDDING, HEAD, LoraFile, LoraModule
from edgecal_weights.lora_formats import open_lora

from ..adapters.calibration import component
from ..adapters.lora import LoraAdapter, LoraShape
from ..architecture import adaptable_shapes, base_facts
from ..config import ModelConfig
from ..errors import AdapterError
from .tensors import TensorFacts


@dataclass(frozen=True)
class ModuleGroup:
    """Modules of one component that are alike in all the layers given: dW is (d, k), its effective factor `scaling`."""

    component: str
    layers: str
    n_modules: int
    d: int
    k: int
    rank: int
    scaling: float


@dataclass(frozen=True)
class AdapterMatch:
    """The adapter beside a model. `of_the_model`: its linear modules, and embedding and head if they are changed.
    `missing`: modules that the model does not have; `misshapen`: module, its (d, k) in the model and in the adapter;
    `absent`: modules of the model that the configuration asks for and the file lacks.

    `refusal` is what loading it would say, None when it fits.
    """

    model: str
    matched: int
    of_the_model: int
    missing: list[str]
    misshapen: list[tuple[str, tuple[int, int], tuple[int, int]]]
    absent: list[str]
    refusal: str | None

    @property
    def fits(self) -> bool:
        return self.refusal is None


@dataclass(frozen=True)
class AdapterReport:
    """`format`: "PEFT", "GGUF" (llama.cpp) or "MLX" (mlx-lm)."""

    path: str
    format: str
    base_model_name: str | None
    sha256: str
    ranks: dict[int, int]
    scalings: dict[float, int]
    groups: list[ModuleGroup]
    n_modules: int
    n_layers: int
    parameters: int
    nbytes: int
    dtypes: dict[str, int]
    match: AdapterMatch | None
    tensors: list[TensorFacts] = field(repr=False)
    what: str = "adapter"

    def to_dict(self) -> dict[str, Any]:
        values = {"what": self.what, **asdict(self)}
        if self.match is not None:
            values["match"]["fits"] = self.match.fits
        return values


def inspect_adapter(path: Path, config: ModelConfig | None, model: str) -> AdapterReport:
    """`config` is of the model to compare it with, `model` that one's name. Raises AdapterError or FileFormatError."""
    file = open_lora(path)
    try:
        modules = file.modules
        return AdapterReport(
            path=str(file.home),
            format=file.format,
            base_model_name=file.base_model_name,
            sha256=file.sha256,
            ranks=_count(modules, "rank"),
            scalings=_count(modules, "scaling"),
            groups=_groups(modules),
            n_modules=len(modules),
            n_layers=len({layer for module in modules if (layer := _layer(module)) is not None}),
            parameters=sum(m.rank * (m.in_features + m.out_features) for m in modules.values()),
            nbytes=sum(m.nbytes for m in modules.values()),
            dtypes=_count(modules, "dtype"),
            match=_match(file, config, model) if config is not None else None,
            tensors=[TensorFacts(*tensor) for tensor in file.tensors()],
        )
    finally:
        file.close()


def _count(modules: Mapping[str, LoraModule], fact: str) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for module in modules.values():
        value = getattr(module, fact)
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))


def _layer(module: str) -> int | None:
    """The number of the layer in a module path: the first part that is one."""
    return next((int(part) for part in module.split(".") if part.isdecimal()), None)


def _groups(modules: Mapping[str, LoraModule]) -> list[ModuleGroup]:
    found: dict[tuple[Any, ...], list[str]] = {}
    for path, m in modules.items():
        key = component(path), m.out_features, m.in_features, m.rank, m.scaling
        found.setdefault(key, []).append(path)
    groups = []
    for (name, d, k, rank, scaling), paths in found.items():
        layers = [layer for path in paths if (layer := _layer(path)) is not None]
        groups.append(ModuleGroup(name, ranges(layers), len(paths), d, k, rank, scaling))
    return groups


def ranges(numbers: list[int]) -> str:
    """ "0-3, 7" for [0, 1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _match(file: LoraFile, config: ModelConfig, model: str) -> AdapterMatch:
    shapes = adaptable_shapes(config)
    own = {path: (m.out_features, m.in_features) for path, m in file.modules.items()}
    misshapen = [(path, shapes[path], shape) for path, shape in own.items() if shapes.get(path, shape) != shape]
    adapter = LoraAdapter(
        file.name,
        {},
        shapes={path: LoraShape(m.out_features, m.in_features, m.rank) for path, m in file.modules.items()},
        path=file.home,
        base_model_name=file.base_model_name,
        targets=file.targets,
    )
    refusal = None
    try:
        file.on_base(base_facts(config))
        adapter.check_against(shapes)
    except AdapterError as error:
        refusal = str(error)
    return AdapterMatch(
        model=model,
        matched=sum(shapes.get(path) == shape for path, shape in own.items()),
        of_the_model=len(shapes) - sum(module in shapes and module not in own for module in (EMBEDDING, HEAD)),
        missing=[path for path in own if path not in shapes],
        misshapen=misshapen,
        absent=[path for path in shapes if path not in own and file.targets(path)],
        refusal=refusal,
    )
