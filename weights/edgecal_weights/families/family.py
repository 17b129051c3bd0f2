"""What a family of decoders is made of, as data.

All families share the frame: embedding, layers of attention and a gated MLP with residuals around both, a norm, a head.
A family says how its files spell that (names of tensors, keys of config.json, defaults of keys that are not there) and
which of the options it has: biases, the kind of norm and where norms stand, rope on a part of the head, sliding
windows, the activation, a scaled embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Bias = bool | str
"""Always, never, or the key of config.json that says so (absent: as `defaults` say, else no)."""

LINEARS = {
    "q": ("self_attn.q_proj", "attn_q"),
    "k": ("self_attn.k_proj", "attn_k"),
    "v": ("self_attn.v_proj", "attn_v"),
    "o": ("self_attn.o_proj", "attn_output"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
}
"""The linear modules of a layer, in the order in which a token meets them: Hugging Face's name and GGUF's."""

OUTSIDE = {
    "embedding": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
}
"""What stands outside the layers."""

PRE_NORMS = {
    "attention_in": ("input_layernorm", "attn_norm"),
    "mlp_in": ("post_attention_layernorm", "ffn_norm"),
}
"""The norms of a layer that norms what goes into attention and MLP, and nothing else."""

QK_NORMS = {
    "q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "k_norm": ("self_attn.k_norm", "attn_k_norm"),
}
"""RMSNorm of every head's query and key, before rope."""


def no_windows(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """Every layer sees the whole context."""
    return [False] * n_layers


@dataclass(frozen=True)
class Family:
    """See the module. Roles of norms: attention_in and mlp_in, attention_out and mlp_out (before the residual is
    added), q_norm and k_norm.

    `defaults` are the values that transformers gives to keys that config.json lacks. `sliding` says of each layer
    whether its attention is limited to `sliding_window` positions, where config.json has no `layer_types`.
    """

    model_type: str
    hf_class: str
    gguf_architecture: str | None  # None: its GGUF files call themselves by another family's name
    defaults: Mapping[str, Any] = field(default_factory=dict)
    norms: Mapping[str, tuple[str, str]] = field(default_factory=lambda: PRE_NORMS)
    norm: Literal["rms", "layer"] = "rms"
    norm_eps_key: str = "rms_norm_eps"
    norm_weight_offset: float = 0.0  # added to the weights of every norm in a Hugging Face checkpoint
    qkv_bias: Bias = False
    o_bias: Bias = False
    mlp_bias: Bias = False
    activation_key: str = "hidden_act"
    scales_embedding: bool = False  # by the square root of hidden_size
    sliding: Callable[[Mapping[str, Any], int], list[bool]] = no_windows
    local_rope: bool = False  # layers with a window have a rope of their own, rope_local_base_freq
    gguf_pairs_rows: bool = False  # GGUF has the rows of q and k in rope's pairs
    refused: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json whose value, other than these, would make it a model that edgecal does not compute."""
