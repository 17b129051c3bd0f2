"""adapter_config.json of a PEFT adapter, beside its weights."""

from __future__ import annotations

from pathlib import Path

from ..mutate import json_text
from ..target import Target
from . import _adapters


def prepare(folder: Path) -> list[bytes]:
    plain = (_adapters.write(folder) / "adapter_config.json").read_bytes()
    more = b', "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"^model.*q_proj$": 8}, "layers_to_transform": [0], '
    more += b'"layers_pattern": ["layers"], "exclude_modules": "lm_head", "use_rslora": true}'
    return [plain, plain.rstrip()[:-1] + more]


def run(data: bytes, folder: Path) -> None:
    (folder / "adapter" / "adapter_config.json").write_bytes(data)
    _adapters.look(folder / "adapter", folder)


TARGET = Target(run, prepare, json_text)
