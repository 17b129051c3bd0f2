"""Mistral 7B: Llama with a sliding window in every layer (4,096 positions in its first version, none later).

llama.cpp writes it as `llama` and without the window, so a GGUF file of the first version sees the whole context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Family


def all_layers(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """`sliding_window` null is none."""
    return [config.get("sliding_window") is not None] * n_layers


MISTRAL = Family(
    model_type="mistral",
    hf_class="MistralForCausalLM",
    gguf_architecture=None,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "sliding_window": 4096,
    },
    sliding=all_layers,
)
