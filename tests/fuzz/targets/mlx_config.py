"""adapter_config.json of an mlx-lm adapter, beside its weights."""

from __future__ import annotations

from pathlib import Path

from tests.adapter_formats import write_mlx_adapter

from ..mutate import json_text
from ..target import Target
from . import _adapters


def prepare(folder: Path) -> list[bytes]:
    write_mlx_adapter(folder / "mlx", _adapters.write(folder))
    return [(folder / "mlx" / "adapter_config.json").read_bytes()]


def run(data: bytes, folder: Path) -> None:
    (folder / "mlx" / "adapter_config.json").write_bytes(data)
    _adapters.look(folder / "mlx", folder)


TARGET = Target(run, prepare, json_text)
