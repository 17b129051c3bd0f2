"""ModelConfig: what the forward pass needs to know about a model, from a Hugging Face config dict.

The three families differ by a few fields only; model.py reads them and has no branch on the family's name. What the
engine does not compute (sliding windows, parallel residuals, other rope scalings, other activations) is refused here
by name, because a model that runs with an ignored option answers wrongly without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError, UnsupportedModelError

FAMILIES = ("llama", "qwen2", "stablelm")
_MAX = {"hidden_size": 1 << 17, "num_hidden_layers": 1024, "vocab_size": 1 << 22, "intermediate_size": 1 << 20}


@dataclass(frozen=True)
class RopeScaling:
    """`linear` (factor), `llama3` (Llama 3.1's smooth interpolation) or `frequency_factors` (given divisors)."""

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Llama-like decoder. `rotary_dim` is the part of head_dim that rope turns."""

    family: str
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rotary_dim: int = 0
    rope_scaling: RopeScaling | None = None
    layer_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From config.json's content, in the spelling of transformers 4 (the checkpoint translates 5's).

        Raises UnsupportedModelError for an architecture or option that is not served, FileFormatError for a
        missing or impossible value.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            raise UnsupportedModelError(
                f"config.json: model_type {family!r} is not served; known architectures: {', '.join(FAMILIES)}"
            )
        _refuse_options(config, family)
        hidden_size, n_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        n_kv_heads = _size(config, "num_key_value_heads", n_heads)
        if n_heads % n_kv_heads:
            raise FileFormatError(
                f"config.json: num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}"
            )
        head_dim = _size(config, "head_dim", hidden_size // n_heads)
        partial = _number(config, "partial_rotary_factor", 0.25 if family == "stablelm" else 1.0)
        rotary_dim = int(head_dim * partial)
        if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
            raise FileFormatError(f"config.json: rope turns {rotary_dim} of {head_dim} dimensions, not an even part")
        attention_bias = bool(config.get("attention_bias", False))
        return cls(
            family=family,
            hidden_size=hidden_size,
            intermediate_size=_size(config, "intermediate_size"),
            n_layers=_size(config, "num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            vocab_size=_size(config, "vocab_size"),
            norm_eps=_number(config, "layer_norm_eps" if family == "stablelm" else "rms_norm_eps", 1e-5),
            max_position_embeddings=_size(config, "max_position_embeddings", 2048),
            rope_theta=_number(config, "rope_theta", 10000.0),
            rotary_dim=rotary_dim,
            rope_scaling=_rope_scaling(config.get("rope_scaling"), rotary_dim // 2),
            layer_norm=family == "stablelm",
            qkv_bias=family == "qwen2" or bool(config.get("use_qkv_bias", False)) or attention_bias,
            o_bias=attention_bias and family == "llama",
            mlp_bias=bool(config.get("mlp_bias", False)) and family == "llama",
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )

    def inverse_frequencies(self) -> NDArray[np.float32]:
        """Angle per position of each rotated pair, float32 (rotary_dim / 2,), after rope scaling."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        frequencies = (1.0 / (np.float32(self.rope_theta) ** exponents)).astype(np.float32)
        scaling = self.rope_scaling
        if scaling is None:
            return frequencies
        if scaling.rope_type == "linear":
            return (frequencies / np.float32(scaling.factor)).astype(np.float32)
        if scaling.rope_type == "frequency_factors":
            return (frequencies / np.asarray(scaling.factors, np.float32)).astype(np.float32)
        # llama3: long wavelengths are divided by the factor, short ones kept, those between interpolated
        turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
        smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        smooth = np.clip(smooth, 0, 1)
        return (frequencies * (smooth + (1 - smooth) / scaling.factor)).astype(np.float32)


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    limit = _MAX.get(key, 1 << 24)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        raise FileFormatError(f"config.json: {key} must be a whole number from 1 to {limit}, found {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise FileFormatError(f"config.json: {key} must be a positive number, found {value!r}")
    return float(value)


def _refuse_options(config: Mapping[str, Any], family: str) -> None:
    activation = config.get("hidden_act", "silu")
    refusals = {
        f"hidden_act {activation!r} (only silu)": activation not in ("silu", "swish"),
        "use_sliding_window (sliding window attention)": bool(config.get("use_sliding_window", False)),
        "sliding_window (sliding window attention)": family != "qwen2" and config.get("sliding_window") is not None,
        "layer_types with sliding_attention": any(t != "full_attention" for t in config.get("layer_types") or ()),
        "use_parallel_residual": bool(config.get("use_parallel_residual", False)),
        "qk_layernorm": bool(config.get("qk_layernorm", False)),
        "quantization_config (load the unquantized checkpoint, or a GGUF)": bool(config.get("quantization_config")),
    }
    for option, found in refusals.items():
        if found:
            raise UnsupportedModelError(f"config.json: {option} is not served for {family} models")


def _rope_scaling(scaling: Any, pairs: int) -> RopeScaling | None:
    if not scaling:
        return None
    if not isinstance(scaling, Mapping):
        raise FileFormatError(f"config.json: rope_scaling must be an object, found {scaling!r}")
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type == "linear":
        return RopeScaling("linear", factor=_number(scaling, "factor", 1.0))
    if rope_type == "frequency_factors":
        factors = tuple(float(f) for f in scaling.get("factors", ()))
        if len(factors) != pairs or not all(f > 0 for f in factors):
            raise FileFormatError(f"rope frequency factors: {pairs} positive numbers expected, found {len(factors)}")
        return RopeScaling("frequency_factors", factors=factors)
    if rope_type == "llama3":
        result = RopeScaling(
            "llama3",
            factor=_number(scaling, "factor", 8.0),
            low_freq_factor=_number(scaling, "low_freq_factor", 1.0),
            high_freq_factor=_number(scaling, "high_freq_factor", 4.0),
            original_max_position_embeddings=_size(scaling, "original_max_position_embeddings", 8192),
        )
        if result.high_freq_factor <= result.low_freq_factor:
            raise FileFormatError("config.json: rope_scaling.high_freq_factor must exceed low_freq_factor")
        return result
    raise UnsupportedModelError(
        f"config.json: rope_scaling type {rope_type!r} is not served; known: default, linear, llama3, frequency_factors"
    )
