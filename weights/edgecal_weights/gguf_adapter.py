"""A LoRA adapter as llama.cpp's convert_lora_to_gguf.py writes it: one GGUF file.

    general.type "adapter", adapter.type "lora", adapter.lora.alpha, general.architecture of the base
    <name of the base's tensor>.lora_a (r, k) and .lora_b (d, r), in floats or Q8_0

The change is alpha / r * B @ A with the r of each module, or B @ A where alpha is 0 or missing, as in llama.cpp; what
PEFT's configuration says beside lora_alpha (rsLoRA, alpha_pattern) the converter does not keep. For the embedding A is
stored transposed.

For some architectures (`llama`) the rows of q_proj and k_proj are in llama.cpp's order (see `gguf_checkpoint`), and
with them those of their B. How many rows a head has, the file does not say: the base does (`on_base`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import gguf_blocks
from .binary_file import Decode, decode_floats
from .errors import AdapterError, ModelNotFoundError
from .families import BY_ARCHITECTURE, FAMILIES, Family
from .files import expand, file_sha256
from .gguf_config import hf_name
from .gguf_file import GGUFFile, GGUFTensor
from .lora_file import EMBEDDING, LARGEST_RANK, LoraFile, LoraModule, StoredTensor, check_finite, transposed_into

_KNOWN_KEYS = ("adapter.type", "adapter.lora.alpha")


class GGUFAdapter(LoraFile):
    """Raises AdapterError or FileFormatError naming the file and the key or tensor.

    `read` gives Hugging Face's order of rows; where the file has another it needs a base.
    """

    format = "GGUF"

    def __init__(self, path: str | Path) -> None:
        self.path = expand(path, AdapterError)
        try:
            self._file = GGUFFile(self.path)
        except ModelNotFoundError as error:
            raise AdapterError(f"the adapter cannot be read: {error}") from error
        try:
            self.family = self._check_metadata()
            self._alpha = self._number("adapter.lora.alpha")
            self._places = self._find_factors()
            self.modules = {module: self._module(module) for module in self._places}
            self._head_dim: int | None = None
            for a, b in self._places.values():
                for tensor in (a, b):
                    check_finite(self.path, tensor.name, self._decode(tensor))
            self.sha256 = file_sha256(self.path)
        except BaseException:
            self._file.close()
            raise

    @property
    def home(self) -> Path:
        return self.path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def base_model_name(self) -> str | None:
        for key in ("repo_url", "name"):
            name = self._file.metadata.get(f"general.base_model.0.{key}")
            if isinstance(name, str) and name:
                return name.removeprefix("https://huggingface.co/")
        return None

    def read(
        self,
        module: str,
        a: NDArray[np.float32] | None = None,
        b: NDArray[np.float32] | None = None,
        buffer: NDArray[np.uint8] | None = None,
        decode: Decode = decode_floats,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        stored_a, stored_b = (self._decode(tensor) for tensor in self._places[module])
        lora_a = transposed_into(a, stored_a) if module == EMBEDDING else _into(a, stored_a)
        return lora_a, _into(b, self._in_order(module, stored_b))

    def targets(self, module: str) -> bool:
        """A GGUF does not say what it was meant to change."""
        return module in self.modules

    def tensors(self) -> list[StoredTensor]:
        return [StoredTensor(t.name, t.shape, t.type, t.nbytes) for t in self._file.tensors.values()]

    def on_base(self, base: Mapping[str, Any]) -> GGUFAdapter:
        name, head_dim = base.get("model_type"), base.get("head_dim")
        theirs = FAMILIES[name].gguf_architecture if name in FAMILIES else None
        if theirs not in (None, self.family.gguf_architecture):
            raise AdapterError(
                f"{self.path} is an adapter for {self.family.gguf_architecture} models, the base is {name}"
            )
        if head_dim is None or not any(map(self._is_reordered, self.modules)):
            return self
        for module in filter(self._is_reordered, self.modules):
            rows = self.modules[module].out_features
            if head_dim % 2 or rows % head_dim:
                raise AdapterError(
                    f"{self.path}: {self._places[module][1].name} has {rows} rows, which are no heads of {head_dim}; "
                    "it is for another base"
                )
        bound = object.__new__(GGUFAdapter)
        bound.__dict__.update(self.__dict__)
        bound._head_dim = head_dim
        return bound

    def close(self) -> None:
        self._file.close()

    def _check_metadata(self) -> Family:
        metadata = self._file.metadata
        for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
            if metadata.get(key) != wanted:
                raise AdapterError(
                    f"{self.path} is no LoRA adapter: its {key} is {metadata.get(key)!r}, expected {wanted!r}"
                )
        for key in metadata:
            if key.startswith("adapter.") and key not in _KNOWN_KEYS:
                raise AdapterError(f"{self.path}: {key} asks for something that is not supported (activated LoRA?)")
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in BY_ARCHITECTURE:
            raise AdapterError(
                f"{self.path} is for the architecture {architecture!r}; edgecal runs {', '.join(BY_ARCHITECTURE)}"
            )
        return BY_ARCHITECTURE[architecture]

    def _number(self, key: str) -> float:
        value = self._file.metadata.get(key, 0.0)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise AdapterError(f"{self.path}: {key} is {value!r}, expected a number")
        return float(value)

    def _find_factors(self) -> dict[str, tuple[GGUFTensor, GGUFTensor]]:
        found: dict[str, dict[str, GGUFTensor]] = {}
        for tensor in self._file.tensors.values():
            base, _, factor = tensor.name.rpartition(".")
            name = hf_name(base, self.family) if factor in ("lora_a", "lora_b") else None
            if name is None or not name.endswith(".weight") or "norm" in name:
                meaning = "a norm that was trained in full" if "norm" in tensor.name else "nothing that edgecal knows"
                raise AdapterError(f"{self.path}: tensor {tensor.name[:200]!r} is {meaning}; it would have no effect")
            found.setdefault(name.removesuffix(".weight"), {})[factor] = tensor
        if not found:
            raise AdapterError(f"{self.path} holds no LoRA tensors; it would have no effect")
        for factors in found.values():
            if len(factors) == 1:
                (there,) = factors.values()
                raise AdapterError(f"{self.path}: {there.name} has no partner (lora_a and lora_b go together)")
        return {module: (factors["lora_a"], factors["lora_b"]) for module, factors in found.items()}

    def _module(self, module: str) -> LoraModule:
        a, b = self._places[module]
        for tensor in (a, b):
            if tensor.type not in gguf_blocks.DECODED_TYPES:
                known = ", ".join(gguf_blocks.DECODED_TYPES)
                raise AdapterError(f"{self.path}: {tensor.name} has type {tensor.type}; edgecal reads {known}")
            if len(tensor.shape) != 2:
                raise AdapterError(f"{self.path}: {tensor.name} has shape {tensor.shape}, expected a matrix")
        (rank, k), (d, rank_b) = a.shape[::-1] if module == EMBEDDING else a.shape, b.shape
        if rank != rank_b or rank > LARGEST_RANK:
            raise AdapterError(
                f"{self.path}: {a.name} has shape {a.shape} and {b.name} {b.shape}, whose ranks must be equal and at "
                f"most {LARGEST_RANK}"
            )
        return LoraModule(rank, self._alpha / rank if self._alpha else 1.0, d, k, a.type, a.nbytes + b.nbytes)

    def _decode(self, tensor: GGUFTensor) -> NDArray[np.float32]:
        return gguf_blocks.dequantize(self._file.raw_rows(tensor.name, 0, tensor.shape[0]), tensor.type)

    def _is_reordered(self, module: str) -> bool:
        return self.family.gguf_pairs_rows and module.endswith((".q_proj", ".k_proj"))

    def _in_order(self, module: str, b: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._is_reordered(module):
            return b
        if self._head_dim is None:
            raise AdapterError(
                f"{self.path}: the rows of {module} are in llama.cpp's order, which depends on the size of the base's "
                "heads; say which model the adapter is for (--base or --model)"
            )
        heads = b.reshape(-1, self._head_dim // 2, 2, b.shape[1])
        return heads.swapaxes(1, 2).reshape(b.shape)


def _into(out: NDArray[np.float32] | None, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if out is None:
        return np.ascontiguousarray(values)
    out[...] = values
    return out
