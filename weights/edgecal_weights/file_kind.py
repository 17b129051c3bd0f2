"""What is at this path? One answer for every command, for opening and for messages.

A calibration, a reference file, an adapter's weights and a model's are all `.safetensors`; a training side's first
export is often a torch pickle; a GGUF out of another program's cache has no ending. So files are known by their first
bytes, by their metadata and by the names of their tensors, and only where these say nothing by the name; directories by
the names of what is in them. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from enum import Enum
from pathlib import Path

from .binary_file import BinaryFile
from .errors import EdgecalError, ModelNotFoundError
from .files import expand, read_object, reason
from .gguf_file import general_type
from .safetensors_file import SafetensorsFile

MODEL_CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PACKED_FILE = "edgecal-packed.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"
PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)  # of a GGUF model in several files
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".pkl")
PICKLE_RISK = "Loading a pickle runs whatever code is in it, so edgecal does not"
_LARGEST_CONFIG = 4 << 20


class Kind(Enum):
    """The value says it in a message: "PATH is ..."."""

    # directories
    HUGGINGFACE = "a model of Hugging Face"
    PACKED = "a packed model of `edgecal quantize`"
    GGUF_DIRECTORY = "a directory with a GGUF model"
    PICKLED_MODEL = "a model whose weights are pickles"
    WITHOUT_WEIGHTS = "the configuration of a model without its weights"
    ADAPTER = "the directory of a PEFT adapter"
    MLX_ADAPTER = "the directory of an MLX adapter"
    GGUF_ADAPTER_DIRECTORY = "a directory with a LoRA adapter in GGUF"
    MODEL_AND_ADAPTER = "a model and a PEFT adapter in one directory"
    DIRECTORY = "a directory"
    # files
    GGUF = "a GGUF model"
    GGUF_ADAPTER = "a LoRA adapter in GGUF"
    DAMAGED_GGUF = "a damaged GGUF file"
    MODEL_CONFIG = "the configuration of a model"
    MODEL_WEIGHTS = "weights of a model"
    PACKED_WEIGHTS = "the weights of a packed model of `edgecal quantize`"
    ADAPTER_CONFIG = "the configuration of an adapter"
    ADAPTER_WEIGHTS = "a PEFT adapter's weights"
    MLX_WEIGHTS = "an MLX adapter's weights"
    CALIBRATION = "a calibration"
    REFERENCE = "a reference file (of `edgecal verify`)"
    TENSORS = "a safetensors file of no kind that edgecal has a name for"
    PICKLE = "a pickle"
    UNKNOWN = "nothing that edgecal knows"


MODELS = (Kind.HUGGINGFACE, Kind.PACKED, Kind.GGUF_DIRECTORY)
"""Directories that can be opened."""
ADAPTERS = (Kind.ADAPTER, Kind.MLX_ADAPTER, Kind.GGUF_ADAPTER_DIRECTORY, Kind.GGUF_ADAPTER)
"""What can be opened as an adapter; so can the weights in it."""
_BY_FORMAT = {
    "edgecal-calibration": Kind.CALIBRATION,
    "edgecal-reference": Kind.REFERENCE,
    "edgecal-packed": Kind.PACKED_WEIGHTS,
}
_BY_NAME = {MODEL_CONFIG: Kind.MODEL_CONFIG, ADAPTER_CONFIG: Kind.ADAPTER_CONFIG}


def identify(path: str | Path) -> Kind:
    """Reads names, a few bytes, and headers of safetensors and GGUF files.

    Raises ModelNotFoundError for what is not there or may not be read, FileFormatError for a damaged safetensors file
    and for what is neither file nor directory.
    """
    path = expand(path, ModelNotFoundError)
    if not os.path.isdir(path):
        return _file(path)
    names = _names(path)
    model, adapter = _model(path, names), _adapter(path, names)
    if model not in MODELS:
        return model if adapter is Kind.DIRECTORY else adapter
    # As transformers: what makes an adapter is its configuration. mlx-lm is told where one is
    applied = adapter is Kind.ADAPTER and ADAPTER_CONFIG in names
    whole = applied and any(name.startswith("adapter_model.") for name in names)
    return Kind.MODEL_AND_ADAPTER if whole else model


def identify_model(directory: Path) -> Kind:
    """As `identify` of a directory, passing over an adapter in it."""
    return _model(directory, _names(directory))


def identify_adapter(directory: Path) -> Kind:
    """As `identify` of a directory, passing over a model in it; DIRECTORY where there is no adapter."""
    return _adapter(directory, _names(directory))


def describe(path: str | Path) -> str | None:
    """What there is in a few words ("a PEFT adapter's weights"), for a message; None when nothing can be said."""
    try:
        kind = identify(path)
    except EdgecalError:
        return None
    if kind is Kind.PICKLE:
        advice = "load it with PyTorch where you trust it and write the tensors with safetensors.torch.save_file"
        return f"{kind.value}. {PICKLE_RISK}; {advice}"
    return None if kind is Kind.UNKNOWN else kind.value


def ggufs(directory: Path, *, adapters: bool = False) -> list[str]:
    """The names of the GGUF files in a directory that are models, or with `adapters` those that are adapters."""
    return _ggufs(directory, _names(directory), adapters)


def is_model_weights(name: str) -> bool:
    """Whether a file of this name in a model's directory holds weights of the model, not of an adapter."""
    adapters = name in (ADAPTER_WEIGHTS, MLX_WEIGHTS) or name.endswith(f"_{MLX_WEIGHTS}")
    return name.endswith(".safetensors") and not adapters


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError as error:
        raise ModelNotFoundError(f"{directory} cannot be listed: {reason(error)}") from error


def _ggufs(directory: Path, names: Collection[str], adapters: bool) -> list[str]:
    found = sorted(name for name in names if name.lower().endswith(".gguf"))
    return [name for name in found if (_gguf(directory / name) is Kind.GGUF_ADAPTER) == adapters]


def _model(directory: Path, names: Collection[str]) -> Kind:
    if PACKED_FILE in names:
        return Kind.PACKED
    if MODEL_CONFIG in names and (INDEX in names or any(map(is_model_weights, names))):
        return Kind.HUGGINGFACE
    if _ggufs(directory, names, adapters=False):
        return Kind.GGUF_DIRECTORY
    if any(name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json")) for name in names):
        return Kind.PICKLED_MODEL
    return Kind.WITHOUT_WEIGHTS if MODEL_CONFIG in names else Kind.DIRECTORY


def _adapter(directory: Path, names: Collection[str]) -> Kind:
    if ADAPTER_WEIGHTS in names:
        return Kind.ADAPTER
    if MLX_WEIGHTS in names:
        return Kind.MLX_ADAPTER
    if _ggufs(directory, names, adapters=True):
        return Kind.GGUF_ADAPTER_DIRECTORY
    return Kind.ADAPTER if ADAPTER_CONFIG in names else Kind.DIRECTORY


def _file(path: Path) -> Kind:
    with BinaryFile(path) as file:
        start, size = file.read(0, min(file.size, 9), "the first bytes").tobytes(), file.size
    ending = path.suffix.lower()
    if ending == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8):
        return _safetensors(path)  # before pickles: the length of a header may look like the beginning of one
    if start[:4] == b"GGUF" or ending == ".gguf":
        return _gguf(path)
    if ending == ".json":
        return _BY_NAME.get(path.name) or _json(path)
    is_pickle = start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05")
    return Kind.PICKLE if is_pickle or ending in PICKLE_ENDINGS else Kind.UNKNOWN


def _gguf(path: Path) -> Kind:
    try:
        return Kind.GGUF_ADAPTER if general_type(path) == "adapter" else Kind.GGUF
    except EdgecalError:
        return Kind.DAMAGED_GGUF


def _json(path: Path) -> Kind:
    try:
        keys = set(read_object(path, _LARGEST_CONFIG, unique=False))
    except EdgecalError:
        return Kind.UNKNOWN
    if keys & {"peft_type", "lora_parameters"}:
        return Kind.ADAPTER_CONFIG
    return Kind.MODEL_CONFIG if "model_type" in keys else Kind.UNKNOWN


def _safetensors(path: Path) -> Kind:
    with SafetensorsFile(path) as opened:
        names, form = opened.names(), opened.metadata.get("format", "")
    if form in _BY_FORMAT:
        return _BY_FORMAT[form]
    if any(".lora_A." in name or ".lora_B." in name for name in names):
        return Kind.ADAPTER_WEIGHTS
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return Kind.MLX_WEIGHTS
    return Kind.MODEL_WEIGHTS if any(name.startswith("model.layers.") for name in names) else Kind.TENSORS
