"""A LoRA adapter in a file, whoever wrote it: what the readers of all formats give, and what they check alike.

For each changed module of d outputs and k inputs there are A (r, k) and B (d, r); the change is scaling * B @ A. At
opening every number is looked at once (a NaN is found here, not in the third word of an answer), and then nothing is
kept: factors are read again when they are asked for, which costs a few milliseconds out of the file cache and saves
the 10 to 200 MB that a resident copy of each adapter would take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binary_file import Decode, decode_floats
from .errors import AdapterError
from .families import OUTSIDE
from .safetensors_file import SafetensorsFile

EMBEDDING, HEAD = OUTSIDE["embedding"][0], OUTSIDE["head"][0]
"""The two modules outside the layers. A LoRA of the embedding has A (r, vocabulary) and B (hidden, r), and adds
scaling * B A[:, token] to a token's vector."""
FLOATS = ("F32", "F16", "BF16")
LARGEST_RANK = 16_384


@dataclass(frozen=True)
class LoraModule:
    """One changed module: A is (rank, in_features), B is (out_features, rank), dW = scaling * B @ A."""

    rank: int
    scaling: float
    out_features: int
    in_features: int
    dtype: str
    nbytes: int


class StoredTensor(NamedTuple):
    """A tensor as it lies in the file, rows first."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


class LoraFile(ABC):
    """An opened adapter; `modules` maps module paths ("model.layers.0.self_attn.q_proj") to their facts.

    `path` is the file with the weights and `sha256` that file's. `home` is what a user calls the adapter: its
    directory, or the file where that is all.
    """

    format: ClassVar[str]
    path: Path
    modules: dict[str, LoraModule]
    sha256: str

    @property
    def home(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        """A name for an adapter that was given none."""
        return self.home.absolute().name

    @property
    @abstractmethod
    def base_model_name(self) -> str | None:
        """What the trainer called the base: a hub id, or a path of another machine. For messages only."""

    @abstractmethod
    def read(
        self,
        module: str,
        a: NDArray[np.float32] | None = None,
        b: NDArray[np.float32] | None = None,
        buffer: NDArray[np.uint8] | None = None,
        decode: Decode = decode_floats,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(lora_a (r, k), lora_b (d, r)), float32, owned by the caller; KeyError for a module it does not change.

        They are written into `a` and `b` where these are given, of just those shapes; `buffer` and `decode` are those
        of `SafetensorsFile.read`.
        """

    @abstractmethod
    def targets(self, module: str) -> bool:
        """Whether the adapter is said to change this module of the base, present in the file or not."""

    @abstractmethod
    def tensors(self) -> list[StoredTensor]:
        """All tensors of the file."""

    def on_base(self, base: Mapping[str, Any]) -> LoraFile:
        """The adapter for a base of these facts (model_type, head_dim ...); AdapterError when it is for another.

        Only a format that says something of the base, or needs to know something, has more to do than give itself.
        """
        return self

    @abstractmethod
    def close(self) -> None: ...


class WithTiedHead(LoraFile):
    """An adapter of a base whose head is its embedding, and of both: the head has the embedding's LoRA transposed.

    (E + s A^T B^T) x for the head is E x + s A^T (B^T x), so that its A is B^T and its B is A^T.
    """

    def __init__(self, file: LoraFile, scaling: float) -> None:
        self._file = file
        self.path, self.sha256 = file.path, file.sha256
        table = file.modules[EMBEDDING]
        head = replace(table, scaling=scaling, out_features=table.in_features, in_features=table.out_features, nbytes=0)
        self.modules = {**file.modules, HEAD: head}

    @property
    def format(self) -> str:  # type: ignore[override]
        return self._file.format

    @property
    def home(self) -> Path:
        return self._file.home

    @property
    def base_model_name(self) -> str | None:
        return self._file.base_model_name

    def read(
        self,
        module: str,
        a: NDArray[np.float32] | None = None,
        b: NDArray[np.float32] | None = None,
        buffer: NDArray[np.uint8] | None = None,
        decode: Decode = decode_floats,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if module != HEAD:
            return self._file.read(module, a, b, buffer, decode)
        of_a, of_b = self._file.read(EMBEDDING, None, None, buffer, decode)
        return transposed_into(a, of_b), transposed_into(b, of_a)

    def targets(self, module: str) -> bool:
        return self._file.targets(module)

    def tensors(self) -> list[StoredTensor]:
        return self._file.tensors()

    def close(self) -> None:
        self._file.close()


def check_finite(path: Path, name: str, values: NDArray[np.float32]) -> None:
    """AdapterError that names the first number of a matrix that is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        row, column = (int(i) for i in bad[0])
        raise AdapterError(
            f"{path}: {name} has {len(bad)} numbers that are not finite, the first "
            f"({values[row, column]}) "
            f"at row {row}, column {column}; the training diverged or the file is damaged"
        )


def stored_tensors(file: SafetensorsFile) -> list[StoredTensor]:
    """All tensors of a safetensors file."""
    entries = ((name, file.entry(name)) for name in file.names())
    return [StoredTensor(name, entry.shape, entry.dtype, entry.nbytes) for name, entry in entries]


def transposed_into(out: NDArray[np.float32] | None, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values` transposed, in C order, in `out` if that is given."""
    if out is None:
        return np.ascontiguousarray(values.T)
    out[...] = values.T
    return out
