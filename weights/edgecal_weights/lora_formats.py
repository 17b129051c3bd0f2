"""Which format a LoRA adapter has: PEFT's, llama.cpp's (GGUF) or mlx-lm's.

PEFT and mlx-lm both write an adapter_config.json; the weights beside it tell them apart, by their file name or by the
names of the tensors in it (see file_kind).
"""

from __future__ import annotations

from pathlib import Path

from .errors import AdapterError, WeightsError
from .file_kind import Kind, ggufs, identify, identify_adapter
from .files import expand
from .gguf_adapter import GGUFAdapter
from .lora_file import LoraFile
from .mlx_adapter import MLXAdapter
from .peft_adapter import PeftAdapter


def open_lora(path: str | Path) -> LoraFile:
    """Open a directory of PEFT or mlx-lm, a file of weights in one, a GGUF adapter, or a directory with just that.

    A model in the same directory is passed over. Raises AdapterError or FileFormatError.
    """
    path = expand(path, AdapterError)
    try:
        kind = identify_adapter(path) if path.is_dir() else identify(path)
    except WeightsError:
        return PeftAdapter(path)  # which says what is missing or broken
    if kind in (Kind.MLX_ADAPTER, Kind.MLX_WEIGHTS):
        return MLXAdapter(path)
    if kind in (Kind.GGUF_ADAPTER, Kind.GGUF, Kind.DAMAGED_GGUF):
        return GGUFAdapter(path)
    if kind is Kind.GGUF_ADAPTER_DIRECTORY:
        names = ggufs(path, adapters=True)
        if len(names) > 1:
            raise AdapterError(f"{path} holds several adapters in GGUF, name one of them: {', '.join(names)}")
        return GGUFAdapter(path / names[0])
    return PeftAdapter(path)
