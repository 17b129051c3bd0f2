"""Which format a LoRA adapter has: PEFT's, llama.cpp's (GGUF) or mlx-lm's.

PEFT and mlx-lm both write an adapter_config.json; the weights beside it tell them apart, by their file name or by the
names of the tensors in it.
"""

from __future__ import annotations

from pathlib import Path

from . import mlx_adapter
from .gguf_adapter import GGUFAdapter, is_gguf_adapter
from .lora_file import LoraFile
from .mlx_adapter import MLXAdapter
from .peft_adapter import WEIGHTS_FILE, PeftAdapter
from .safetensors_file import SafetensorsFile


def open_lora(path: str | Path) -> LoraFile:
    """Open a directory of PEFT or mlx-lm, a file of weights in one, a GGUF adapter, or a directory with just that.

    Raises AdapterError or FileFormatError.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_directory(path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return GGUFAdapter(path)
    if path.suffix == ".safetensors" and path.is_file() and holds_mlx_factors(path):
        return MLXAdapter(path)
    return PeftAdapter(path)


def holds_mlx_factors(path: Path) -> bool:
    """Whether a safetensors file has mlx-lm's names of factors; FileFormatError when it is none."""
    with SafetensorsFile(path) as file:
        return any(name.endswith((".lora_a", ".lora_b")) for name in file.names())


def _open_directory(path: Path) -> LoraFile:
    if (path / WEIGHTS_FILE).exists():
        return PeftAdapter(path)
    if (path / mlx_adapter.WEIGHTS_FILE).exists():
        return MLXAdapter(path)
    ggufs = [file for file in sorted(path.glob("*.gguf")) if is_gguf_adapter(file)]
    if len(ggufs) == 1:
        return GGUFAdapter(ggufs[0])
    return PeftAdapter(path)  # which says what is missing
