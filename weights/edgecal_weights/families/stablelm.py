"""StableLM 2: LayerNorm, rope on a quarter of each head."""

from __future__ import annotations

from .family import Family

STABLELM = Family(
    model_type="stablelm",
    hf_class="StableLmForCausalLM",
    gguf_architecture="stablelm",
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "hidden_act": "silu",
    },
    norm="layer",
    norm_eps_key="layer_norm_eps",
    qkv_bias="use_qkv_bias",
    refused={"sliding_window": None, "use_parallel_residual": False, "qk_layernorm": False},
)
