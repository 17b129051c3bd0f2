"""config.json and generation_config.json of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

from edgecal.architecture import base_facts, expected_shapes
from edgecal.config import ModelConfig
from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.opening import open_checkpoint
from tests.tiny import FAMILIES, SIZES, write_tiny_hf

from ..mutate import json_text
from ..target import Target


def prepare(folder: Path) -> list[bytes]:
    write_tiny_hf(folder / "model", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    more = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}}
    more |= {"torch_dtype": "bfloat16", "layer_types": ["full_attention", "full_attention"]}
    return [json.dumps({"model_type": name, **SIZES, **own, **more}).encode() for name, own in FAMILIES.items()]


def run(data: bytes, folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        (folder / "model" / name).write_bytes(data)
    with open_checkpoint(folder / "model") as checkpoint:
        Tokenizer.from_checkpoint(checkpoint)
        config = ModelConfig.from_dict(checkpoint.config)
        base_facts(config)
        if config.n_layers < 1000:
            expected_shapes(config)


TARGET = Target(run, prepare, json_text)
