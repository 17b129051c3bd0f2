"""adapter_model.safetensors of a PEFT adapter, beside its configuration."""

from __future__ import annotations

from pathlib import Path

from ..mutate import safetensors
from ..target import Target
from . import _adapters


def prepare(folder: Path) -> list[bytes]:
    return [(_adapters.write(folder) / "adapter_model.safetensors").read_bytes()]


def run(data: bytes, folder: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(data)
    _adapters.look(folder / "adapter", folder)


TARGET = Target(run, prepare, safetensors)
