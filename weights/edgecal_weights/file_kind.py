"""What is this file, if not what was asked for? One sentence for a message.

A calibration, a reference file, an adapter's weights and a model's are all `.safetensors`, and a training side's first
export is often a torch pickle. Looking at the first bytes and at the names of the tensors tells them apart; nothing is
ever unpickled.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .errors import EdgecalError
from .gguf_adapter import is_gguf_adapter
from .safetensors_file import SafetensorsFile

_KNOWN = {
    "edgecal-calibration": "a calibration",
    "edgecal-reference": "a reference file (of `edgecal verify`)",
    "edgecal-packed": "a packed model of `edgecal quantize`",
}
_PICKLE = (
    "a torch pickle. Loading one runs whatever code is in it, so edgecal does not; load it with PyTorch where you "
    "trust it and write the tensors with safetensors.torch.save_file"
)


def describe_file(path: str | Path) -> str | None:
    """What the file is in a few words ("a PEFT adapter's weights"), None when nothing can be said."""
    path = Path(path).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            return f"the directory of {'an MLX' if (path / 'adapters.safetensors').exists() else 'a PEFT'} adapter"
        return "a directory"
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return None
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        return _PICKLE
    if start[:4] == b"GGUF":
        with suppress(EdgecalError):
            return "a LoRA adapter in GGUF" if is_gguf_adapter(path) else "a GGUF model"
        return "a damaged GGUF file"
    try:
        with SafetensorsFile(path) as opened:
            names, form = opened.names(), opened.metadata.get("format", "")
    except EdgecalError:
        return None
    if form in _KNOWN:
        return _KNOWN[form]
    if any(".lora_A." in name or ".lora_B." in name for name in names):
        return "a PEFT adapter's weights"
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return "an MLX adapter's weights"
    if any(name.startswith("model.layers.") for name in names):
        return "weights of a model"
    if not form:
        return "a safetensors file without the metadata key 'format'"
    return None
