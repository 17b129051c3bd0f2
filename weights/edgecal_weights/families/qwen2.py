"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V; sliding windows in the upper layers where config.json asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Family


def upper_layers(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """With `use_sliding_window`, the layers from `max_window_layers` on."""
    first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else n_layers
    return [layer >= first for layer in range(n_layers)]


QWEN2 = Family(
    model_type="qwen2",
    hf_class="Qwen2ForCausalLM",
    gguf_architecture="qwen2",
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    qkv_bias=True,
    sliding=upper_layers,
)
