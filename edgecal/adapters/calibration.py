"""A calibration: the few shared parameters that make a merge of adapters do both tasks at once.

Learnable Calibration (paper 1, Eq. 6), Learnable Calibration++ (Eq. 7) and projection merge (paper 2, Eq. 2)
train tensors that all layers share, for one list of adapters in one order on one base. `Calibration.check`
compares all three, because nothing else would show the mistake: the shapes fit any adapters of that base.

The papers' parameter counts follow from the shapes alone and are computed here; they decide what is shared.
Eq. 6 has one p in R^d per component (23,552 numbers for Llama-3.2-1B, "24K"), Eq. 7 one P1, P2 per component
(176,128), the projection one P1, P2 per distinct shape (102,400). The scales of `dam` belong to a module each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecal_weights.calibration_file import CalibrationFile, read_calibration
from edgecal_weights.export_metadata import AdapterReference, BaseModelFacts

from ..errors import CalibrationError
from ..text.counted import counted
from .lora import Array, LoraAdapter

BASE_FACTS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True, eq=False)
class ModuleCalibration:
    """The tensors of one module by short name (p, P1, P2, m1 ...), and the two choices that no tensor shows.

    `scaling` multiplies the calibration term; `bias_mode` is "columns" (p added to every column of dW) or
    "output" (p added to h), for learnable_calibration only.
    """

    tensors: Mapping[str, Array]
    scaling: float = 1.0
    bias_mode: str = "columns"


class Calibration:
    """The content of a calibration file (`Calibration.load`), asked for by module."""

    def __init__(self, content: CalibrationFile) -> None:
        self.content = content
        # In the order that a CompiledPair wants, so that all modules share one array
        self._groups = {
            group: {name: np.asfortranarray(t) if name == "P2" else t for name, t in tensors.items()}
            for group, tensors in content.groups.items()
        }

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises CalibrationError naming file and key or tensor, FileFormatError, or ModelNotFoundError."""
        return cls(read_calibration(path))

    @property
    def method(self) -> str:
        return self.content.method

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple(reference.name for reference in self.content.adapters)

    @property
    def adapter_lists(self) -> tuple[tuple[AdapterReference, ...], ...]:
        """Each list of adapters that it was trained for; several where tasks share it."""
        return (self.content.adapters, *self.content.shared_with)

    @property
    def weights(self) -> tuple[float, ...]:
        return self.content.weights

    @property
    def n_parameters(self) -> int:
        return self.content.n_parameters

    @property
    def nbytes(self) -> int:
        return self.content.nbytes

    def check(self, adapters: Sequence[LoraAdapter], base: Mapping[str, Any]) -> None:
        """CalibrationError unless it was trained for these adapters, in this order, on this base.

        `base` has model_type, hidden_size, num_hidden_layers and vocab_size, as in the model's config.json.
        """
        self._check_base(self.content.base_model, base)
        self.check_adapters(adapters)

    def check_adapters(self, adapters: Sequence[LoraAdapter]) -> None:
        """CalibrationError unless it was trained for these adapters, in this order."""
        found = [adapter.sha256 for adapter in adapters]
        lists = self.adapter_lists
        if any(found == [reference.sha256 for reference in references] for references in lists):
            return
        # Of several lists, complain about the one that is nearest to what was given
        wanted = max(lists, key=lambda references: len({r.sha256 for r in references} & set(found)))
        expected = [reference.sha256 for reference in wanted]
        order = ", ".join(reference.name for reference in wanted)
        if sorted(found) == sorted(expected):
            given = ", ".join(adapter.name for adapter in adapters)
            raise CalibrationError(
                f"{self._origin} was trained for the adapters in the order {order}; given: {given}. Swap them"
            )
        if len(found) != len(expected):
            raise CalibrationError(
                f"{self._origin} was trained for {counted(len(expected), 'adapter')} ({order}); given: {len(found)}"
            )
        i = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
        raise CalibrationError(
            f"{self._origin} was trained for other weights: adapter {i + 1} is {wanted[i].name!r} with "
            f"sha256 {expected[i][:12]}..., given is {adapters[i].name!r} with "
            f"{found[i][:12] + '...' if found[i] else 'no file'}; use the adapters it was trained with, or "
            "train a calibration for these"
        )

    def _check_base(self, wanted: BaseModelFacts, base: Mapping[str, Any]) -> None:
        for fact in BASE_FACTS:
            if fact not in base:
                raise CalibrationError(f"{self._origin}: the base's {fact} is not known, so it cannot be compared")
            if base[fact] != getattr(wanted, fact):
                raise CalibrationError(
                    f"{self._origin} was trained on {wanted.name}, whose {fact} is "
                    f"{getattr(wanted, fact)!r}; this "
                    f"model has {base[fact]!r}. Load that base, or train a calibration for this one"
                )

    def check_modules(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """CalibrationError when it has tensors that none of these modules ({path: (d, k)}) would use."""
        used = {self.group_of(module, d, k) for module, (d, k) in shapes.items()}
        unused = [group for group in self.content.groups if group not in used]
        if unused:
            raise CalibrationError(
                f"{self._origin} has tensors for {', '.join(unused)}, which none of the adapters changes; it "
                "was trained for others"
            )

    def for_module(self, module: str, d: int, k: int) -> ModuleCalibration:
        """The tensors of a (d, k) module; CalibrationError when they are missing or of other shapes."""
        group = self.group_of(module, d, k)
        tensors = self._groups.get(group)
        if tensors is None:
            raise CalibrationError(f"{self._origin} has no tensors '{group}.*' for {module}, which the adapters change")
        wanted = {"p": (d,), "P1": (self.content.rank, k), "P2": (d, self.content.rank)}
        if self.method == "projection_merge":
            wanted["P1"] = (self.content.rank, d)
        for name, tensor in tensors.items():
            shape = wanted.get(name, (k,))  # m1, m2 ...
            if tensor.shape != shape:
                raise CalibrationError(
                    f"{self._origin}: tensor '{group}.{name}' has shape {tensor.shape}, {module} needs {shape}"
                )
        return ModuleCalibration(tensors, self.content.calibration_scaling, self.content.bias_mode)

    def covers(self, module: str, d: int, k: int) -> bool:
        """Whether it has tensors for this module."""
        return self.group_of(module, d, k) in self.content.groups

    def group_of(self, module: str, d: int, k: int) -> str:
        """The name of the tensors that a (d, k) module uses, whether the file has them or not."""
        if self.method == "projection_merge":
            return f"{k}x{d}"
        return module if module in self.content.groups else component(module)

    @property
    def _origin(self) -> str:
        return f"calibration {self.content.path or self.method}"

    def __repr__(self) -> str:
        return f"Calibration({self.method}, for {', '.join(self.adapter_names)}, {self.n_parameters} parameters)"


def component(module: str) -> str:
    """The last name of a module path: "q_proj" of "model.layers.0.self_attn.q_proj"."""
    return module.rsplit(".", 1)[-1]


def lora_parameters(shapes: Mapping[str, tuple[int, int]], rank: int) -> int:
    """Parameters of a LoRA on all modules of `shapes` ({path: (d, k)})."""
    return sum(rank * (d + k) for d, k in shapes.values())


def calibration_parameters(method: str, shapes: Mapping[str, tuple[int, int]], rank: int = 4) -> int:
    """Extra parameters of a calibration for the modules of `shapes`; `rank` is s (4 in both papers).

    The calibrations without LoRAs have as many. CalibrationError for another method (the scales of `dam` depend on the
    number of adapters), or when one component differs between layers and cannot be shared.
    """
    if method == "projection_merge":
        return sum(rank * 2 * d for d, _k in set(shapes.values()))
    shared: dict[str, tuple[int, int]] = {}
    for module, shape in shapes.items():
        if shared.setdefault(component(module), shape) != shape:
            raise CalibrationError(
                f"{module} is {shape}, other layers have {shared[component(module)]}: they cannot share a calibration"
            )
    kind = method.removesuffix("_only")
    if kind == "learnable_calibration":
        return sum(d for d, _k in shared.values())
    if kind == "learnable_calibration_pp":
        return sum(rank * (d + k) for d, k in shared.values())
    raise CalibrationError(f"{method!r} has no calibration parameters")
