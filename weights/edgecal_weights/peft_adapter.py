"""A LoRA adapter as PEFT writes it: adapter_config.json beside adapter_model.safetensors.

For each changed linear module of d outputs and k inputs the file holds
`base_model.model.<module>.lora_A.weight` (r, k) and `.lora_B.weight` (d, r); the change is scaling * B @ A. For the
embedding they are called `lora_embedding_A` and `lora_embedding_B`, without a `.weight`, and PEFT puts the base's own
matrix beside the factors of embedding and head (`.base_layer.weight`): a copy, frozen, which is not read.
Every tensor must be of this kind and belong to a module that the configuration targets, because PEFT passes
over the others with a warning at most, and an adapter half of which has no effect looks like a bad adapter
rather than a bad file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binary_file import Decode, decode_floats
from .errors import AdapterError, ModelNotFoundError
from .file_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MLX_WEIGHTS, PICKLE_ENDINGS, PICKLE_RISK, Kind, describe
from .files import expand, file_sha256, path_hint
from .lora_file import (
    EMBEDDING,
    FLOATS,
    HEAD,
    LARGEST_RANK,
    LoraFile,
    LoraModule,
    StoredTensor,
    WithTiedHead,
    check_finite,
    stored_tensors,
)
from .peft_config import PeftConfig
from .safetensors_file import SafetensorsFile

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_MODULE = r"base_model\.model\.([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)"
_FACTOR = re.compile(rf"{_MODULE}\.lora_(?:(A|B)\.weight|embedding_(A|B))")
_COPY = re.compile(rf"{_MODULE}\.base_layer\.weight")
_LONGEST_NAME = 256

# Endings of tensors that belong to something else than plain LoRA, for a message that says to what.
_FOREIGN = {
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_B.bias": "a bias in lora_B (lora_bias)",
    ".lora_A.bias": "a bias in lora_A",
    ".lora_diag": "KaSA",
    ".token_adapter.trainable_tokens_delta": "trained rows of the embedding (trainable_token_indices)",
    ".bias": "trained biases of the base",
    ".weight": "a module of the base that was trained in full (modules_to_save)",
}
# VeLoRA keeps a vector for its backward pass; its forward pass is plain LoRA.
_TRAINING_ONLY = ".lora_velora_embed"


class PeftAdapter(LoraFile):
    """`path` is the directory, or the .safetensors file itself (adapter_config.json lies beside it). Raises
    AdapterError or FileFormatError naming the file and the tensor or key.
    """

    format = "PEFT"

    def __init__(self, path: str | Path) -> None:
        self.path = weights = _weights_path(expand(path, AdapterError))
        self.config = PeftConfig(weights.with_name(ADAPTER_CONFIG))
        try:
            self._file = SafetensorsFile(weights)
        except ModelNotFoundError as error:
            raise AdapterError(f"the adapter's weights cannot be read: {error}") from error
        try:
            self.modules = self._modules()
            for name in self._factor_names():
                check_finite(self.path, name, self._file.read(name))
            self.sha256 = file_sha256(weights)
        except BaseException:
            self._file.close()
            raise

    @property
    def base_model_name(self) -> str | None:
        return self.config.base_model_name

    def read(
        self,
        module: str,
        a: NDArray[np.float32] | None = None,
        b: NDArray[np.float32] | None = None,
        buffer: NDArray[np.uint8] | None = None,
        decode: Decode = decode_floats,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if module not in self.modules:
            raise KeyError(module)
        lora_a = self._file.read(tensor_name(module, "A"), a, buffer, decode)
        return lora_a, self._file.read(tensor_name(module, "B"), b, buffer, decode)

    def targets(self, module: str) -> bool:
        return self.config.targets(module)

    def tensors(self) -> list[StoredTensor]:
        return stored_tensors(self._file)

    def on_base(self, base: Mapping[str, Any]) -> LoraFile:
        tied = base.get("tie_word_embeddings")
        if tied is False and HEAD in self.modules and not self.config.targets(HEAD):
            raise AdapterError(
                f"{self.path} was trained on a base whose head is its embedding (ensure_weight_tying); this base has a "
                "head of its own, which PEFT would leave alone. Give the base that it was trained on"
            )
        if tied and self.config.ties_head and HEAD not in self.modules:
            return WithTiedHead(self, self.config.scaling(HEAD))
        return self

    def close(self) -> None:
        self._file.close()

    def _factor_names(self) -> list[str]:
        return [tensor_name(module, factor) for module in self.modules for factor in "AB"]

    def _modules(self) -> dict[str, LoraModule]:
        found: dict[str, set[str]] = {}
        copies = []
        for name in self._file.names():
            if name.endswith(_TRAINING_ONLY):
                continue
            short = name if len(name) <= _LONGEST_NAME else ""
            if (copy := _COPY.fullmatch(short)) is not None and copy[1] in (EMBEDDING, HEAD):
                copies.append(copy[1])
                continue
            match = _FACTOR.fullmatch(short)
            if match is None or (match[3] is not None) != (match[1] == EMBEDDING):
                raise AdapterError(f"{self.path}: {_describe_foreign(name)}")
            found.setdefault(match[1], set()).add(match[2] or match[3])
        if not found:
            raise AdapterError(f"{self.path} holds no LoRA tensors; it would have no effect")
        for module, factors in found.items():
            if factors != {"A", "B"}:
                missing = tensor_name(module, "A" if "B" in factors else "B")
                raise AdapterError(f"{self.path}: {missing} is missing, its partner is there")
        modules = {module: self._module(module) for module in found}
        for module in copies:
            self._check_copy(module, modules.get(module))
        return modules

    def _check_copy(self, module: str, lora: LoraModule | None) -> None:
        """A copy of the base's matrix means nothing, but only beside a LoRA of it and in its shape."""
        name = f"base_model.model.{module}.base_layer.weight"
        shape = self._file.shape(name)
        if lora is None:
            raise AdapterError(f"{self.path}: {_describe_foreign(name)}")
        wanted = (lora.in_features, lora.out_features)[:: 1 if module == EMBEDDING else -1]
        if shape != wanted:
            raise AdapterError(f"{self.path}: {name} has shape {shape}, the LoRA beside it is for {wanted}")

    def _module(self, module: str) -> LoraModule:
        if not self.config.targets(module) and not (module == HEAD and self.config.ties_head):
            raise AdapterError(
                f"{self.path} holds tensors for {module}, which the target_modules of {self.config.path} do "
                "not select; PEFT would ignore them. Are the two files of one adapter?"
            )
        a, b = (self._file.entry(tensor_name(module, factor)) for factor in "AB")
        for name, entry in ((tensor_name(module, "A"), a), (tensor_name(module, "B"), b)):
            if entry.dtype not in FLOATS:
                raise AdapterError(f"{self.path}: {name} has type {entry.dtype}; edgecal reads F32, F16 and BF16")
            if len(entry.shape) != 2 or 0 in entry.shape:
                raise AdapterError(
                    f"{self.path}: {name} has shape {entry.shape}, expected a matrix; shards of DeepSpeed or "
                    "FSDP have to be gathered before saving"
                )
        (rank, k), (d, rank_b) = a.shape, b.shape
        if rank != rank_b or rank > LARGEST_RANK:
            raise AdapterError(
                f"{self.path}: {module} has lora_A {a.shape} and lora_B {b.shape}, whose ranks must be equal "
                f"and at most {LARGEST_RANK}"
            )
        wanted = self.config.rank(module)
        if rank != wanted:
            raise AdapterError(
                f"{self.path}: {tensor_name(module, 'A')} has rank {rank}, {self.config.path} says {wanted}; its "
                "scaling would be wrong"
            )
        return LoraModule(rank, self.config.scaling(module), d, k, a.dtype, a.nbytes + b.nbytes)


def tensor_name(module: str, factor: str) -> str:
    """What PEFT calls factor "A" or "B" of a module."""
    kind = f"lora_embedding_{factor}" if module == EMBEDDING else f"lora_{factor}.weight"
    return f"base_model.model.{module}.{kind}"


def _describe_foreign(name: str) -> str:
    shown = name if len(name) <= _LONGEST_NAME else name[:80] + "..."
    if not name.startswith("base_model.model."):
        return f"unknown tensor {shown!r}; PEFT's names begin with 'base_model.model.', and PEFT would ignore it"
    if re.search(r"\.lora_[AB]\.[^.]+\.weight$", shown):
        return f"tensor {shown!r} carries an adapter name, as a raw state dict does; use PEFT's save_pretrained"
    for ending, meaning in _FOREIGN.items():
        if name.endswith(ending):
            return f"tensor {shown!r} belongs to {meaning}, which is not supported"
    return f"unknown tensor {shown!r}; edgecal knows lora_A.weight and lora_B.weight"


def _weights_path(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix in PICKLE_ENDINGS and path.exists():
            raise AdapterError(_pickle_advice(path))
        if path.suffix == ".safetensors" and path.exists():
            return path
        if path.exists():
            found = f"it is {describe(path) or 'something else'}"
        else:
            found = f"there is no such path{path_hint(path)}"
        raise AdapterError(
            f"{path} is not an adapter: expected a directory with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} (PEFT) or "
            f"{MLX_WEIGHTS} (MLX), or a GGUF adapter; {found}"
        )
    if not (path / ADAPTER_WEIGHTS).exists():
        for name in _PICKLES:
            if (path / name).exists():
                raise AdapterError(_pickle_advice(path / name))
        missing = ADAPTER_WEIGHTS if (path / ADAPTER_CONFIG).exists() else f"{ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}"
        kind = describe(path)
        instead = "" if kind in (None, Kind.DIRECTORY.value) else f"; it is {kind}"
        raise AdapterError(f"{path} holds no adapter: there is no {missing}{instead}")
    return path / ADAPTER_WEIGHTS


def _pickle_advice(path: Path) -> str:
    return (
        f"{path} is a pickle. {PICKLE_RISK}; load it with PEFT where you trust it and "
        "save_pretrained(DIR, safe_serialization=True)"
    )
