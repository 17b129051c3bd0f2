"""What the targets of adapters have in common: a tiny base with a PEFT adapter, and a look at all of it."""

from __future__ import annotations

from pathlib import Path

from edgecal.adapters import LoraAdapter, Recipe, compile_recipe
from edgecal.architecture import base_facts
from tests.tiny import linear_shapes, model_config, write_tiny_adapter, write_tiny_hf

BASE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write(folder: Path) -> Path:
    write_tiny_hf(folder / "base", **BASE)
    return write_tiny_adapter(folder / "adapter", folder / "base", components=("q_proj", "down_proj"), rank=2)


def look(path: Path, folder: Path) -> None:
    """Open the adapter, and compile it for the base as an engine does."""
    adapter = LoraAdapter.load(path, "a")
    config = model_config(folder / "base")
    shapes = linear_shapes(config)
    adapter.check_against(shapes)
    compile_recipe(Recipe("single", ("a",)), {"a": adapter}, None, shapes, base_facts(config))
