"""A LoRA adapter as mlx-lm writes it: adapter_config.json beside adapters.safetensors.

    {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}
    model.layers.0.self_attn.q_proj.lora_a (k, r) and .lora_b (r, d)

Both factors are transposed to PEFT's, and the change is scale * (lora_a @ lora_b)^T: `scale` is the whole factor, it is
not divided by the rank. Until June 2024 mlx-lm multiplied by alpha / rank as well; then `alpha` was in its files for
another year, unused. A file with an alpha that says by no newer key (num_layers, fine_tune_type) that it is not of the
first kind could mean two things and is refused, unless both come to the same.

`num_layers` counts from the last layer, and `keys` of lora_parameters are the modules of a layer (without them, those
that the file has in any layer), so that an incomplete file is noticed. Every tensor must be a factor; mlx-lm refuses
others as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binary_file import Decode, decode_floats
from .errors import AdapterError, ModelNotFoundError
from .file_kind import ADAPTER_CONFIG, MLX_WEIGHTS
from .files import expand, file_sha256
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
    transposed_into,
)
from .peft_config import read_adapter_config
from .safetensors_file import SafetensorsFile

_FACTOR = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.(lora_a|lora_b)")
_IN_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
_LONGEST_NAME = 256
_TYPES = {"dora": "DoRA, which rescales the rows of the base weights", "full": "a base that was trained in full"}


class MLXAdapter(LoraFile):
    """`path` is the directory, or a file of weights in it (a checkpoint of the training, 0000100_adapters.safetensors).

    Raises AdapterError or FileFormatError naming the file and the key or tensor.
    """

    format = "MLX"

    def __init__(self, path: str | Path) -> None:
        path = expand(path, AdapterError)
        self.path = path / MLX_WEIGHTS if path.is_dir() else path
        self._config_path = self.path.with_name(ADAPTER_CONFIG)
        self._config = read_adapter_config(self._config_path)
        self._parameters = self._lora_parameters()
        try:
            self._file = SafetensorsFile(self.path)
        except ModelNotFoundError as error:
            raise AdapterError(f"the adapter's weights cannot be read: {error}") from error
        try:
            self.modules = {module: self._module(module) for module in self._find_modules()}
            for module in self.modules:
                for factor in ("lora_a", "lora_b"):
                    name = f"{module}.{factor}"
                    check_finite(self.path, name, self._file.read(name))
            self._targeted = self._layers_and_keys()
            self.sha256 = file_sha256(self.path)
        except BaseException:
            self._file.close()
            raise

    @property
    def base_model_name(self) -> str | None:
        name = self._config.get("model")
        return name if isinstance(name, str) and name else None

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
        stored_a, stored_b = (self._file.read(f"{module}.{f}", None, buffer, decode) for f in ("lora_a", "lora_b"))
        return transposed_into(a, stored_a), transposed_into(b, stored_b)

    def targets(self, module: str) -> bool:
        first_layer, keys = self._targeted
        match = _IN_LAYER.fullmatch(module)
        if match is None:
            return module in keys
        return int(match[1]) >= first_layer and match[2] in keys

    def tensors(self) -> list[StoredTensor]:
        return stored_tensors(self._file)

    def on_base(self, base: Mapping[str, Any]) -> LoraFile:
        """mlx-lm multiplies with the changed embedding where it is the head as well."""
        if base.get("tie_word_embeddings") and EMBEDDING in self.modules and HEAD not in self.modules:
            return WithTiedHead(self, self.modules[EMBEDDING].scaling)
        return self

    def close(self) -> None:
        self._file.close()

    def _wrong(self, key: str, value: Any, expected: str) -> AdapterError:
        return AdapterError(f"{self._config_path}: {key} is {str(value)[:80]!r}, expected {expected}")

    def _lora_parameters(self) -> dict[str, Any]:
        kind = self._config.get("fine_tune_type", "lora")
        if kind != "lora":
            meaning = _TYPES.get(kind, "which edgecal does not know") if isinstance(kind, str) else "no name"
            raise AdapterError(f"{self._config_path}: fine_tune_type is {kind!r} ({meaning}); edgecal serves 'lora'")
        parameters = self._config.get("lora_parameters")
        if not isinstance(parameters, dict):
            raise self._wrong("lora_parameters", parameters, "an object with rank and scale")
        rank, scale = parameters.get("rank"), parameters.get("scale")
        if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
            raise self._wrong("lora_parameters.rank", rank, f"a whole number from 1 to {LARGEST_RANK}")
        if not isinstance(scale, (int, float)) or scale is True or not math.isfinite(scale) or scale == 0:
            raise self._wrong("lora_parameters.scale", scale, "a number other than 0")
        alpha = parameters.get("alpha", rank)
        if alpha != rank and not {"num_layers", "fine_tune_type"} & set(self._config):
            raise AdapterError(
                f"{self._config_path}: lora_parameters has alpha {alpha!r} beside scale {scale!r}. mlx-lm before June "
                "2024 multiplied by scale * alpha / rank, later ones by scale: write the one that it was trained with "
                "as scale, and take alpha out"
            )
        return parameters

    def _find_modules(self) -> list[str]:
        found: dict[str, set[str]] = {}
        for name in self._file.names():
            match = _FACTOR.fullmatch(name) if len(name) <= _LONGEST_NAME else None
            if match is None:
                meaning = "belongs to DoRA, which is" if name.endswith(".m") else "is no lora_a or lora_b and"
                raise AdapterError(f"{self.path}: tensor {name[:200]!r} {meaning} not supported")
            found.setdefault(match[1], set()).add(match[2])
        if not found:
            raise AdapterError(f"{self.path} holds no LoRA tensors; it would have no effect")
        for module, factors in found.items():
            if len(factors) == 1:
                missing = "lora_a" if "lora_b" in factors else "lora_b"
                raise AdapterError(f"{self.path}: {module}.{missing} is missing, its partner is there")
        return list(found)

    def _module(self, module: str) -> LoraModule:
        a, b = (self._file.entry(f"{module}.{factor}") for factor in ("lora_a", "lora_b"))
        for factor, entry in (("lora_a", a), ("lora_b", b)):
            if entry.dtype not in FLOATS:
                raise AdapterError(
                    f"{self.path}: {module}.{factor} has type {entry.dtype}; edgecal reads {', '.join(FLOATS)}"
                )
            if len(entry.shape) != 2 or 0 in entry.shape:
                raise AdapterError(
                    f"{self.path}: {module}.{factor} has shape {entry.shape}, expected a matrix; experts are not served"
                )
        (k, rank), (rank_b, d) = a.shape, b.shape
        if rank != rank_b or rank != self._parameters["rank"]:
            raise AdapterError(
                f"{self.path}: {module} has lora_a {a.shape} and lora_b {b.shape}, {self._config_path} says rank "
                f"{self._parameters['rank']}"
            )
        scale = float(self._parameters["scale"])
        return LoraModule(rank, scale, d, k, a.dtype, a.nbytes + b.nbytes)

    def _layers_and_keys(self) -> tuple[int, frozenset[str]]:
        """The first layer that is changed, and the modules of each layer from there on."""
        keys = self._parameters.get("keys")
        if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
            raise self._wrong("lora_parameters.keys", keys, "a list of names of modules")
        count = self._config.get("num_layers", self._config.get("lora_layers", -1))
        if type(count) is not int:
            raise self._wrong("num_layers", count, "a whole number")
        places = [match for match in map(_IN_LAYER.fullmatch, self.modules) if match is not None]
        layers = [int(match[1]) for match in places]
        first = min(layers, default=0)
        if layers and 0 < count <= max(layers) - first:
            raise AdapterError(
                f"{self._config_path}: num_layers is {count}, and {self.path.name} changes the layers {first} to "
                f"{max(layers)}. Are the two files of one adapter?"
            )
        return first if count > 0 else 0, frozenset(keys if keys is not None else (match[2] for match in places))
