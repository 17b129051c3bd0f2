"""The calibration file, version 1: what a training side writes and edgecal reads.

A safetensors file whose metadata says what the tensors mean: for which adapters they were trained (by the
sha256 of each adapter_model.safetensors, in order), on which base, by which method. A calibration applied to
other adapters or another base still gives fluent text, only a worse one, so the checks stand here and nothing
is guessed: a missing, unknown or foreign key is an error that names it.

Tensors (float32), shared by all layers; d = out_features and k = in_features of the module, s = `rank`:

    learnable_calibration      {component}.p (d,)
    learnable_calibration_pp   {component}.P1 (s, k)   {component}.P2 (d, s)
    projection_merge           {k}x{d}.P1 (s, d)       {k}x{d}.P2 (d, s)
    dam                        {module}.m1 (k,) ... {module}.mN (k,), one per adapter in their order

`component` is the last name of the module's path (q_proj ... down_proj). DAM and ZipLoRA train their scales per module,
so `module` is a whole path ("model.layers.0.self_attn.q_proj"); a file whose scales all layers share names components
instead, and one file does not mix the two. The scales are the weights: `weights` and `calibration_scaling` are not
keys of such a file.

learnable_calibration_only and learnable_calibration_pp_only have the tensors of the methods without `_only` and were
trained without adapters: their `adapters` is an empty list.

A calibration that was trained for several compositions at once (paper 1's calibrations shared over tasks) names one of
them in `adapters` and all others in `shared_with`, a JSON list of such lists, each of the same length.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CalibrationError, ModelNotFoundError, WeightsError
from .export_metadata import REFERENCES, AdapterReference, BaseModelFacts, MetadataReader
from .file_kind import Kind, describe
from .files import expand, path_hint
from .safetensors_file import SafetensorsFile, write_safetensors

FORMAT, VERSION = "edgecal-calibration", "1"
COMPONENTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BIAS_MODES = ("columns", "output")
_VECTOR = re.compile(rf"({'|'.join(COMPONENTS)})\.(p)")
_MATRICES = re.compile(rf"({'|'.join(COMPONENTS)})\.(P1|P2)")
_TENSORS = {
    "learnable_calibration": _VECTOR,
    "learnable_calibration_pp": _MATRICES,
    "projection_merge": re.compile(r"([1-9]\d{0,6}x[1-9]\d{0,6})\.(P1|P2)"),
    "learnable_calibration_only": _VECTOR,
    "learnable_calibration_pp_only": _MATRICES,
    "dam": re.compile(rf"((?:[A-Za-z0-9_-]{{1,64}}\.){{0,15}}(?:{'|'.join(COMPONENTS)}))\.(m[1-9]\d{{0,2}})"),
}
METHODS = tuple(_TENSORS)
WITHOUT_ADAPTERS = ("learnable_calibration_only", "learnable_calibration_pp_only")
_WITH_VECTOR = ("learnable_calibration", "learnable_calibration_only")
_WITH_MATRICES = ("learnable_calibration_pp", "learnable_calibration_pp_only", "projection_merge")
_KEYS = (
    "format",
    "version",
    "method",
    "adapters",
    "shared_with",
    "weights",
    "rank",
    "calibration_scaling",
    "bias_mode",
    "base_model",
)
_LARGEST_RANK = 4096


@dataclass(frozen=True, eq=False)
class CalibrationFile:
    """The content of one file.

    `rank` is None where there are no P1, P2; `weights` has one number per adapter. `groups` maps component ("{k}x{d}",
    module) to its tensors by short name: {"q_proj": {"P1": ..., "P2": ...}}. `shared_with` are the other lists of
    adapters that it was trained for at the same time.
    """

    method: str
    adapters: tuple[AdapterReference, ...]
    weights: tuple[float, ...]
    base_model: BaseModelFacts
    groups: Mapping[str, Mapping[str, NDArray[np.float32]]]
    rank: int | None = None
    calibration_scaling: float = 1.0
    bias_mode: str = "columns"
    path: Path | None = field(default=None)
    shared_with: tuple[tuple[AdapterReference, ...], ...] = ()

    @property
    def n_parameters(self) -> int:
        return sum(tensor.size for group in self.groups.values() for tensor in group.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for group in self.groups.values() for tensor in group.values())


def read_calibration(path: str | Path) -> CalibrationFile:
    """Raises CalibrationError naming the file and the key or tensor, FileFormatError when it is no safetensors."""
    path = expand(path, CalibrationError)
    try:
        with SafetensorsFile(path) as file:
            metadata = _Metadata(path, file.metadata)
            metadata.check()  # before tensors, which in a file of another kind may be of any size
            tensors = {name: _read_tensor(file, name) for name in file.names()}
    except ModelNotFoundError as error:
        raise type(error)(f"the calibration cannot be read: {error}{path_hint(path)}") from error
    except WeightsError as error:
        found = describe(path)
        hint = f"; it is {found}" if found and found != Kind.CALIBRATION.value else ""
        raise type(error)(f"the calibration cannot be read: {error}{hint}") from error
    return metadata.build(tensors)


def write_calibration(path: str | Path, calibration: CalibrationFile) -> None:
    """Write what `read_calibration` reads, complete or not at all.

    The content is checked first (CalibrationError). Raises StorageError when the disk does not take it.
    """
    path = Path(path)
    tensors = {
        f"{group}.{name}": np.ascontiguousarray(tensor, np.float32)
        for group, members in calibration.groups.items()
        for name, tensor in members.items()
    }
    metadata = _to_metadata(calibration)
    _Metadata(path, metadata).build(tensors)
    write_safetensors(path, tensors, metadata)


def _to_metadata(calibration: CalibrationFile) -> dict[str, str]:
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "method": calibration.method,
        "adapters": json.dumps([asdict(reference) for reference in calibration.adapters]),
        "base_model": json.dumps(asdict(calibration.base_model)),
    }
    if calibration.shared_with:
        metadata["shared_with"] = json.dumps([[asdict(r) for r in others] for others in calibration.shared_with])
    if calibration.method not in (*WITHOUT_ADAPTERS, "dam") or set(calibration.weights) - {1.0}:
        metadata["weights"] = json.dumps(list(calibration.weights))
    if calibration.method != "dam" or calibration.calibration_scaling != 1:
        metadata["calibration_scaling"] = repr(float(calibration.calibration_scaling))
    if calibration.rank is not None:
        metadata["rank"] = str(calibration.rank)
    if calibration.method in _WITH_VECTOR:
        metadata["bias_mode"] = calibration.bias_mode
    return metadata


def _read_tensor(file: SafetensorsFile, name: str) -> NDArray[np.float32]:
    dtype = file.dtype(name)
    if dtype != "F32":
        raise CalibrationError(f"{file.path}: tensor {name!r} has type {dtype}, version 1 has F32")
    tensor = file.read(name)
    if not np.isfinite(tensor).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(tensor))[0])
        raise CalibrationError(f"{file.path}: tensor {name!r} is {tensor[where]} at index {where}")
    return tensor


class _Metadata(MetadataReader):
    """The keys of a calibration, and its tensors checked by what they say."""

    def __init__(self, path: Path, values: Mapping[str, str]) -> None:
        super().__init__(path, values, CalibrationError)

    def check(self) -> None:
        self.check_format(FORMAT, VERSION, "a later version needs a later edgecal", _KEYS)

    def build(self, tensors: Mapping[str, NDArray[np.float32]]) -> CalibrationFile:
        self.check()
        method = self.values.get("method", "")
        if method not in METHODS:
            raise self.wrong("method", f"one of {', '.join(METHODS)}")
        adapters = self._adapters(method)
        rank = self._rank(method)
        return CalibrationFile(
            method=method,
            adapters=adapters,
            weights=self._weights(method, len(adapters)),
            base_model=self.base_model(),
            groups=self._groups(method, rank, len(adapters), tensors),
            rank=rank,
            calibration_scaling=self._scaling(method),
            bias_mode=self._bias_mode(method),
            path=self.path,
            shared_with=self._shared_with(len(adapters)),
        )

    def _adapters(self, method: str) -> tuple[AdapterReference, ...]:
        if method in WITHOUT_ADAPTERS:
            if self.json("adapters", "[]") != []:
                raise self.wrong("adapters", f"[], since {method} is trained without adapters")
            return ()
        found = self.adapters()
        if not found:
            raise self.wrong("adapters", REFERENCES)
        return found

    def _shared_with(self, count: int) -> tuple[tuple[AdapterReference, ...], ...]:
        if "shared_with" not in self.values:
            return ()
        expected = f"a JSON list of further lists of adapters, each of {count} {{name, sha256}}"
        lists = self.json("shared_with", expected)
        if not isinstance(lists, list) or not lists or not count:
            raise self.wrong("shared_with", expected)
        read = tuple(self.references("shared_with", entries, expected) for entries in lists)
        if any(len(references) != count for references in read):
            raise self.wrong("shared_with", expected)
        return read

    def _weights(self, method: str, count: int) -> tuple[float, ...]:
        if method in (*WITHOUT_ADAPTERS, "dam"):
            if "weights" in self.values:
                raise self.wrong("weights", f"no such key for {method}")
            return (1.0,) * count
        equal = (1 / count,) * count
        if "weights" not in self.values:
            return equal
        weights = self.weights(count)
        if method != "projection_merge" and not np.allclose(weights, equal, rtol=0, atol=1e-6):
            raise self.wrong("weights", f"1/{count} for each adapter ({method} corrects the plain mean, Eq. 5)")
        return weights if method == "projection_merge" else equal

    def _rank(self, method: str) -> int | None:
        if method in _WITH_MATRICES:
            return self.whole("rank", _LARGEST_RANK)
        if "rank" in self.values:
            raise self.wrong("rank", f"no such key for {method}, which has vectors")
        return None

    def _scaling(self, method: str) -> float:
        text = self.values.get("calibration_scaling", "1.0")
        if method == "dam" and "calibration_scaling" in self.values:
            raise self.wrong("calibration_scaling", "no such key for dam, whose scales stand for themselves")
        try:
            scaling = float(text)
        except ValueError:
            scaling = math.nan
        if not math.isfinite(scaling):
            raise self.wrong("calibration_scaling", "a finite number")
        return scaling

    def _bias_mode(self, method: str) -> str:
        mode = self.values.get("bias_mode")
        if method not in _WITH_VECTOR:
            if mode is not None:
                raise self.wrong("bias_mode", f"no such key for {method}")
            return "columns"
        if mode is not None and mode not in BIAS_MODES:
            raise self.wrong("bias_mode", f"one of {', '.join(BIAS_MODES)}")
        return mode or "columns"

    def _groups(
        self, method: str, rank: int | None, count: int, tensors: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, dict[str, NDArray[np.float32]]]:
        groups: dict[str, dict[str, NDArray[np.float32]]] = {}
        for name, tensor in tensors.items():
            match = _TENSORS[method].fullmatch(name)
            if match is None:
                raise CalibrationError(f"{self.path}: tensor {name[:80]!r} is not one of {method} in version 1")
            shapes = {"P1": (rank, "columns"), "P2": ("d", rank), "p": ("d",)}
            wanted: tuple[Any, ...] = shapes.get(match[2], ("k",))
            if tensor.ndim != len(wanted) or any(
                type(size) is int and size != found for size, found in zip(wanted, tensor.shape, strict=True)
            ):
                shown = ", ".join(str(size) for size in wanted) + ("," if len(wanted) == 1 else "")
                raise CalibrationError(f"{self.path}: tensor {name!r} has shape {tensor.shape}, expected ({shown})")
            groups.setdefault(match[1], {})[match[2]] = tensor
        if not groups:
            raise CalibrationError(f"{self.path} holds no tensors; it would have no effect")
        complete = {"p"} if method in _WITH_VECTOR else {"P1", "P2"}
        if method == "dam":
            complete = {f"m{i + 1}" for i in range(count)}
            self._refuse_mixture(groups)
        for group, members in groups.items():
            for missing in sorted(complete - set(members)):
                raise CalibrationError(f"{self.path}: tensor '{group}.{missing}' is missing")
            for surplus in sorted(set(members) - complete):
                raise CalibrationError(f"{self.path}: tensor '{group}.{surplus}' is for an adapter beyond the {count}")
            if method == "projection_merge":
                d = int(group.split("x")[1])
                if members["P1"].shape[1] != d or members["P2"].shape[0] != d:
                    raise CalibrationError(
                        f"{self.path}: '{group}.P1' {members['P1'].shape} and '{group}.P2' "
                        f"{members['P2'].shape}: expected ({rank}, {d}) and ({d}, {rank})"
                    )
        return groups

    def _refuse_mixture(self, groups: Mapping[str, Any]) -> None:
        shared = [group for group in groups if group in COMPONENTS]
        if shared and len(shared) < len(groups):
            module = next(group for group in groups if group not in COMPONENTS)
            raise CalibrationError(
                f"{self.path} has scales for the component {shared[0]} and for the module {module}; name all of them "
                "one way"
            )
