"""A LoRA adapter in llama.cpp's GGUF."""

from __future__ import annotations

from pathlib import Path

from tests.adapter_formats import write_gguf_adapter
from tests.tiny import model_config

from ..mutate import behind
from ..target import Target
from . import _adapters

_KEYS = (b"general.type", b"adapter.type", b"adapter.lora.alpha", b"lora_a", b"lora_b", b"general.architecture")


def prepare(folder: Path) -> list[bytes]:
    peft = _adapters.write(folder)
    return [write_gguf_adapter(folder / "good.gguf", peft, model_config(folder / "base")).read_bytes()]


def run(data: bytes, folder: Path) -> None:
    (folder / "adapter.gguf").write_bytes(data)
    _adapters.look(folder / "adapter.gguf", folder)


TARGET = Target(run, prepare, behind(_KEYS))
