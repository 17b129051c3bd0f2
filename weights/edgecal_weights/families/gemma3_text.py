"""Gemma 3 for text (270M, 1B).

Norms with weights 1 + w around both halves of a layer and on every head's query and key, GELU in the MLP, an embedding
times sqrt(hidden_size), and five layers with a sliding window and a rope of their own to each one that sees everything.

Gemma 2's soft caps, which this family's configuration can name, are not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import QK_NORMS, Family

_PATTERN = 6


def all_but_every_sixth(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """`sliding_window_pattern` says which ones see everything: every n-th."""
    pattern = config.get("sliding_window_pattern", _PATTERN)
    return [(layer + 1) % pattern != 0 for layer in range(n_layers)]


GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    hf_class="Gemma3ForCausalLM",
    gguf_architecture="gemma3",
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    norms={
        "attention_in": ("input_layernorm", "attn_norm"),
        "attention_out": ("post_attention_layernorm", "post_attention_norm"),
        "mlp_in": ("pre_feedforward_layernorm", "ffn_norm"),
        "mlp_out": ("post_feedforward_layernorm", "post_ffw_norm"),
        **QK_NORMS,
    },
    norm_weight_offset=1.0,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    activation_key="hidden_activation",
    scales_embedding=True,
    sliding=all_but_every_sixth,
    local_rope=True,
    refused={
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
)
