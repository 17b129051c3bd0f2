"""Qwen3 (dense): no biases, and a norm of every head's query and key; head_dim is its own number."""

from __future__ import annotations

from .family import PRE_NORMS, QK_NORMS, Family
from .qwen2 import upper_layers

QWEN3 = Family(
    model_type="qwen3",
    hf_class="Qwen3ForCausalLM",
    gguf_architecture="qwen3",
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    norms={**PRE_NORMS, **QK_NORMS},
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    sliding=upper_layers,
)
