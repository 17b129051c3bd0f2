"""ModelConfig: what the forward pass needs to know about a model, from a Hugging Face config dict.

How a family spells its configuration, and what it is made of, stands in its file in `edgecal_weights.families`; the
model reads the fields here and has no branch on the family's name. What the engine does not compute (parallel
residuals, soft caps, other rope scalings, other activations) is refused here by name, because a model that runs with an
ignored option answers wrongly without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.families import FAMILIES, Family
from edgecal_weights.families.family import Bias, no_windows

from .errors import FileFormatError, UnsupportedModelError

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Of the MLP: the names in config.json, and ours."""
_NULL = ("sliding_window", "rope_scaling")  # null is a value of theirs
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
    """Sizes and options of a decoder. `rotary_dim` is the part of head_dim that rope turns.

    `windows` has a number per layer: the positions that its attention sees, the token's own included; 0 is all of
    them, and () is 0 for all. Layers with a window take `local_rope_theta` for their rope where it is not None, without
    rope scaling. Scores are divided by the square root of `attention_scale` (0: head_dim). `norm_weight_offset` is
    added to the weights of all norms when they are loaded.
    """

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
    activation: str = "silu"
    windows: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    norm_weight_offset: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", self.windows or (0,) * self.n_layers)
        object.__setattr__(self, "attention_scale", self.attention_scale or float(self.head_dim))

    @property
    def spec(self) -> Family:
        """What the family is made of."""
        return FAMILIES[self.family]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelConfig:
        """Of a model's files. Errors as for `from_dict`, with the model's path."""
        try:
            return cls.from_dict(checkpoint.config)
        except (FileFormatError, UnsupportedModelError) as error:
            raise type(error)(f"{checkpoint.path}: {error}") from error

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From config.json's content, in the spelling of transformers 4 (the checkpoint translates 5's).

        Raises UnsupportedModelError for an architecture or option that is not served, FileFormatError for a
        missing or impossible value.
        """
        name = config.get("model_type")
        if not isinstance(name, str) or name not in FAMILIES:
            raise UnsupportedModelError(
                f"config.json: model_type {name!r} is not served; known architectures: {', '.join(FAMILIES)}"
            )
        family = FAMILIES[name]
        given = {key: value for key, value in config.items() if value is not None or key in _NULL}
        heads_of_all = "num_key_value_heads" in config and config["num_key_value_heads"] is None
        config = {**family.defaults, **given}
        if heads_of_all:  # null is as many as there are of queries, whatever a missing key means
            config.pop("num_key_value_heads", None)
        activation = _check_options(config, family)
        hidden_size, n_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        n_layers, n_kv_heads = _size(config, "num_hidden_layers"), _size(config, "num_key_value_heads", n_heads)
        if n_heads % n_kv_heads:
            raise FileFormatError(
                f"config.json: num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}"
            )
        head_dim = _size(config, "head_dim", hidden_size // n_heads)
        rotary_dim = int(head_dim * _number(config, "partial_rotary_factor", 1.0))
        if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
            raise FileFormatError(f"config.json: rope turns {rotary_dim} of {head_dim} dimensions, not an even part")
        windows = _windows(config, family, n_layers)
        local_rope = family.local_rope and any(windows)
        return cls(
            family=name,
            hidden_size=hidden_size,
            intermediate_size=_size(config, "intermediate_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            vocab_size=_size(config, "vocab_size"),
            norm_eps=_number(config, family.norm_eps_key),
            max_position_embeddings=_size(config, "max_position_embeddings"),
            rope_theta=_number(config, "rope_theta", 10000.0),
            rotary_dim=rotary_dim,
            rope_scaling=_rope_scaling(config.get("rope_scaling"), rotary_dim // 2),
            layer_norm=family.norm == "layer",
            qkv_bias=_bias(config, family.qkv_bias),
            o_bias=bool(config["o_bias"]) if "o_bias" in config else _bias(config, family.o_bias),
            mlp_bias=_bias(config, family.mlp_bias),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            activation=activation,
            windows=windows,
            local_rope_theta=_number(config, "rope_local_base_freq") if local_rope else None,
            attention_scale=_number(config, "query_pre_attn_scalar", head_dim),
            embedding_scale=float(np.sqrt(hidden_size)) if family.scales_embedding else 1.0,
            norm_weight_offset=float(config.get("norm_weight_offset", family.norm_weight_offset)),
        )

    @property
    def options(self) -> frozenset[str]:
        """What this model has beside the plain frame; a back end refuses what it does not know by these names."""
        norms = self.spec.norms
        has = {
            "layer_norm": self.layer_norm,
            "qk_norm": "q_norm" in norms,
            "output_norms": "attention_out" in norms,
            "sliding_window": any(self.windows),
            "local_rope": self.local_rope_theta is not None,
            "embedding_scale": self.embedding_scale != 1,
            self.activation: self.activation != "silu",
        }
        return frozenset(option for option, there in has.items() if there)

    @property
    def ropes(self) -> tuple[int, ...]:
        """Which of `inverse_frequencies` each layer takes."""
        return tuple(int(self.local_rope_theta is not None and window > 0) for window in self.windows)

    def inverse_frequencies(self) -> NDArray[np.float32]:
        """Angle per position of each rotated pair, float32 (n_ropes, rotary_dim / 2): after rope scaling, and where
        layers with a window have a rope of their own, theirs."""
        if self.local_rope_theta is None:
            return self._scaled(self._frequencies(self.rope_theta))[None]
        return np.stack([self._scaled(self._frequencies(self.rope_theta)), self._frequencies(self.local_rope_theta)])

    def _frequencies(self, theta: float) -> NDArray[np.float32]:
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        return (1.0 / (np.float32(theta) ** exponents)).astype(np.float32)

    def _scaled(self, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
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


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise FileFormatError(f"config.json: {key} must be a positive number, found {value!r}")
    return float(value)


def _bias(config: Mapping[str, Any], bias: Bias) -> bool:
    return bool(config.get(bias, False)) if isinstance(bias, str) else bias


def _check_options(config: Mapping[str, Any], family: Family) -> str:
    """Refuse what is not computed; the activation of the MLP by our name."""
    activation = config.get(family.activation_key)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"config.json: {family.activation_key} {activation!r} is not served for {family.model_type} models; known: "
            f"{', '.join(ACTIVATIONS)}"
        )
    for key, neutral in family.refused.items():
        if config.get(key, neutral) not in (neutral, None):
            raise UnsupportedModelError(
                f"config.json: {key} {config[key]!r} is not served for {family.model_type} models"
            )
    if config.get("rope_local_base_freq") and not family.local_rope:
        raise UnsupportedModelError(
            f"config.json: layers with a window have a rope of their own (rope_parameters by layer type, or "
            f"rope_local_base_freq), which is not served for {family.model_type} models"
        )
    if config.get("quantization_config"):
        raise UnsupportedModelError(
            "config.json: quantization_config is not served; load the unquantized checkpoint, or a GGUF"
        )
    return ACTIVATIONS[activation]


def _windows(config: Mapping[str, Any], family: Family, n_layers: int) -> tuple[int, ...]:
    """See ModelConfig.windows."""
    types = config.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, (list, tuple)) or len(types) != n_layers or any(t not in known for t in types):
            raise UnsupportedModelError(
                f"config.json: layer_types must be {' or '.join(known)} for each of {n_layers} layers, found {types!r}"
            )
        served = family.sliding is not no_windows and config.get("use_sliding_window", True)
        if not served and "sliding_attention" in types:
            raise UnsupportedModelError(
                f"config.json: layer_types with sliding_attention do not go with a {family.model_type} model"
                + (" whose use_sliding_window is false" if "use_sliding_window" in config else "")
            )
    sliding = family.sliding(config, n_layers) if types is None else [t == "sliding_attention" for t in types]
    if not any(sliding):
        return (0,) * n_layers
    return tuple(_size(config, "sliding_window") if slides else 0 for slides in sliding)


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
