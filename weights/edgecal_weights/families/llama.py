"""Llama 2 and 3, and everything that was trained in their form (SmolLM2, TinyLlama ...)."""

from __future__ import annotations

from .family import Family

LLAMA = Family(
    model_type="llama",
    hf_class="LlamaForCausalLM",
    gguf_architecture="llama",
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu"},
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    gguf_pairs_rows=True,
    refused={"sliding_window": None},
)
