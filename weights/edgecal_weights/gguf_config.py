"""GGUF's names and metadata in the words of Hugging Face.

GGUF describes a model by keys under its architecture's name ("llama.embedding_length") and by which tensors
exist; Hugging Face by a config.json. A family's file has its names in both spellings; the rest of the translation is
here. What would change the computation and is not served (experts, YaRN, soft caps ...) is refused by the name of its
key, never ignored; so is a tensor without a place in the model.

Llama 3's rope scaling never appears as such: the converter of llama.cpp has already worked it out and
stores one divisor per frequency in a tensor `rope_freqs.weight`. It becomes rope_scaling {"rope_type":
"frequency_factors", "factors": [...]}. A plain linear scaling becomes {"rope_type": "linear", "factor": f};
a file with both (none is known) gets their product, which is what llama.cpp computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import FileFormatError, UnsupportedModelError
from .families import BY_ARCHITECTURE, LINEARS, OUTSIDE, Family

_GGUF_NAME = re.compile(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias)")
_HF_NAME = re.compile(r"(?:model\.layers\.(0|[1-9]\d{0,5})\.)?([\w.]+)\.(weight|bias)")

ROPE_FACTORS = "rope_freqs.weight"
_GEMMA3_27B_LAYERS = 62
_NO_TOKEN = (-1, 0xFFFFFFFF)  # as the id of a token
# Keys whose mere presence with a value other than the neutral one makes another model of it.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
}


def hf_name(gguf: str, family: Family) -> str | None:
    """Hugging Face's name of a GGUF tensor; None for one that has no place in the family."""
    match = _GGUF_NAME.fullmatch(gguf)
    if match is None:
        return None
    layer, stem, kind = match.groups()
    names = {theirs: ours for ours, theirs in _names(family, outside=layer is None)}
    if stem not in names:
        return None
    return f"{names[stem]}.{kind}" if layer is None else f"model.layers.{layer}.{names[stem]}.{kind}"


def gguf_name(hf: str, family: Family) -> str | None:
    """GGUF's name of a Hugging Face tensor; the inverse of `hf_name`."""
    match = _HF_NAME.fullmatch(hf)
    if match is None:
        return None
    layer, stem, kind = match.groups()
    names = dict(_names(family, outside=layer is None))
    if stem not in names:
        return None
    return f"{names[stem]}.{kind}" if layer is None else f"blk.{layer}.{names[stem]}.{kind}"


def _names(family: Family, *, outside: bool) -> Iterable[tuple[str, str]]:
    """(Hugging Face, GGUF) of the parts outside the layers, or of those within one."""
    return OUTSIDE.values() if outside else {**LINEARS, **family.norms}.values()


class _Keys:
    """Typed access to the keys of one architecture; FileFormatError names the key and what it holds."""

    def __init__(self, metadata: Mapping[str, Any], path: Path, arch: str) -> None:
        self._metadata, self.path, self.arch = metadata, path, arch

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise FileFormatError(f"{self.path} lacks the metadata {self.arch}.{key}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, list) and value:
            # Some converters write one value per layer; edgecal's layers are all alike.
            if any(other != value[0] for other in value):
                raise UnsupportedModelError(f"{self.path}: {self.arch}.{key} differs between layers")
            value = value[0]
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise FileFormatError(
                f"{self.path}: {self.arch}.{key} is {value!r}, expected a positive integer"
            )
        return value

    def integer_or_none(self, key: str) -> int | None:
        """None where the key is missing or 0, which says that there is no such thing."""
        return self.integer(key) if self._metadata.get(f"{self.arch}.{key}") not in (None, 0) else None

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not (0 < value < math.inf):
            raise FileFormatError(
                f"{self.path}: {self.arch}.{key} is {value!r}, expected a positive number"
            )
        return float(value)

    def refuse_unserved(self) -> None:
        for key, neutral in _NEUTRAL.items():
            value = self._metadata.get(f"{self.arch}.{key}")
            if value is not None and value not in neutral:
                raise UnsupportedModelError(
                    f"{self.path}: {self.arch}.{key} is {value!r}; models that need it are not served"
                )

    def linear_factor(self) -> float:
        """As llama.cpp reads it: linear where the file does not say how, and no factor, or 0, is 1."""
        kind = self._metadata.get(f"{self.arch}.rope.scaling.type", "linear")
        if kind == "none":
            return 1.0
        if kind != "linear":
            raise UnsupportedModelError(
                f"{self.path}: rope scaling {kind!r} is not served; known: linear, and rope_freqs.weight"
            )
        key = "rope.scaling.factor"
        if f"{self.arch}.{key}" not in self._metadata:
            key = "rope.scale_linear"  # its name in older files
        return 1.0 if self._get(key, 0) == 0 else self.number(key)


def family_of(metadata: Mapping[str, Any], path: Path) -> Family:
    """By `general.architecture`; UnsupportedModelError lists the known ones."""
    kind = metadata.get("general.type", "model")  # "adapter", "mmproj" and others exist
    if kind != "model":
        advice = "; give it with its base model" if kind == "adapter" else ""
        raise UnsupportedModelError(f"{path} holds {kind!r} (general.type), not a model{advice}")
    arch = metadata.get("general.architecture")
    if arch is None:
        raise FileFormatError(f"{path} lacks the metadata general.architecture")
    if not isinstance(arch, str) or arch not in BY_ARCHITECTURE:
        raise UnsupportedModelError(f"{path} is of architecture {arch!r}; known: {', '.join(BY_ARCHITECTURE)}")
    return BY_ARCHITECTURE[arch]


def token_id(metadata: Mapping[str, Any], key: str, path: Path) -> int | None:
    """`tokenizer.ggml.{key}_token_id`, None when the file does not say or says -1, signed or not."""
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if type(value) is int and value in _NO_TOKEN:
        return None
    if value is not None and (type(value) is not int or value < 0):
        raise FileFormatError(
            f"{path}: tokenizer.ggml.{key}_token_id is {value!r}, expected a token's number"
        )
    return value


def model_config(
    metadata: Mapping[str, Any],
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Iterable[float] | None,
) -> dict[str, Any]:
    """The config.json that the metadata amounts to.

    `shapes` are the tensors by their Hugging Face names: the vocabulary, biases and a tied head show only
    there. `rope_factors` is the content of ROPE_FACTORS, if the file has it.
    """
    family = family_of(metadata, path)
    arch = str(family.gguf_architecture)
    keys = _Keys(metadata, path, arch)
    keys.refuse_unserved()
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None or len(embedding) != 2:
        raise FileFormatError(f"{path} has no matrix token_embd.weight, so it is not a whole model")
    if metadata.get(f"{arch}.vocab_size", embedding[0]) != embedding[0]:
        raise FileFormatError(
            f"{path}: token_embd.weight has {embedding[0]} rows, {arch}.vocab_size is "
            f"{metadata[f'{arch}.vocab_size']}"
        )
    hidden_size, n_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    n_layers = keys.integer("block_count")
    _check_layers(shapes, n_layers, path)
    head_dim = keys.integer("attention.key_length", hidden_size // n_heads or None)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{path}: keys and values of different length are not served")
    config: dict[str, Any] = {
        "_name_or_path": str(metadata.get("general.name", path.stem)),
        "architectures": [family.hf_class],
        "model_type": family.model_type,
        "vocab_size": embedding[0],
        "hidden_size": hidden_size,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        family.activation_key: family.defaults[family.activation_key],
        "max_position_embeddings": keys.integer("context_length"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys.linear_factor(), rope_factors, path),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        **_rotary(family, keys, head_dim, path),
        **_biases(family, shapes),
        **_window(family, keys),
    }
    epsilon = "layer_norm_epsilon" if family.norm == "layer" else "layer_norm_rms_epsilon"
    config[family.norm_eps_key] = keys.number(f"attention.{epsilon}")
    if "query_pre_attn_scalar" in family.defaults:  # llama.cpp knows the largest model by its layers
        config["query_pre_attn_scalar"] = hidden_size // n_heads if n_layers == _GEMMA3_27B_LAYERS else head_dim
    if family.norm_weight_offset:
        config["norm_weight_offset"] = 0.0  # the converter has added it
    if "qk_layernorm" in family.refused:
        config["qk_layernorm"] = False
    if "use_parallel_residual" in family.refused:
        # As in llama.cpp, the second norm tells, not the flag in the metadata.
        config["use_parallel_residual"] = "model.layers.0.post_attention_layernorm.weight" not in shapes
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        token = token_id(metadata, key, path)
        if token is not None:
            config[f"{name}_token_id"] = token
    return config


def _rotary(family: Family, keys: _Keys, head_dim: int, path: Path) -> dict[str, Any]:
    rope_dim = keys.integer("rope.dimension_count", head_dim)
    if rope_dim > head_dim:
        raise FileFormatError(f"{path}: rope.dimension_count rotates {rope_dim} of {head_dim} dimensions")
    if family.gguf_pairs_rows and rope_dim != head_dim:
        raise UnsupportedModelError(
            f"{path}: a {family.model_type} model that rotates {rope_dim} of {head_dim} dimensions"
        )
    return {} if family.gguf_pairs_rows else {"partial_rotary_factor": _ratio(rope_dim, head_dim)}


def _biases(family: Family, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, bool]:
    """The keys of config.json that say which modules have a bias, by the tensors that are there."""
    there = {role: f"model.layers.0.{name}.bias" in shapes for role, (name, _) in LINEARS.items()}
    found = {}
    for key, role in ((family.mlp_bias, "gate"), (family.o_bias, "o"), (family.qkv_bias, "q")):
        if isinstance(key, str):
            found[key] = there[role]
    if isinstance(family.o_bias, str) and there["o"] != there["q"]:
        found["o_bias"] = there["o"]  # Hugging Face has one key for all four
    return found


def _window(family: Family, keys: _Keys) -> dict[str, Any]:
    """The window of the layers that have one, and their rope."""
    if not family.local_rope:
        window = keys.integer_or_none("attention.sliding_window")
        if window is not None:
            raise UnsupportedModelError(
                f"{keys.path}: {keys.arch}.attention.sliding_window is {window}; models that need it are not served"
            )
        return {}
    config = {
        "sliding_window": keys.integer("attention.sliding_window"),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", family.defaults["rope_local_base_freq"]),
    }
    pattern = keys.integer_or_none("attention.sliding_window_pattern")
    return config if pattern is None else {**config, "sliding_window_pattern": pattern}


def _check_layers(shapes: Mapping[str, tuple[int, ...]], n_layers: int, path: Path) -> None:
    found = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    if found != set(range(min(n_layers, len(found) + 1))):
        raise FileFormatError(f"{path}: block_count is {n_layers}, but {len(found)} blocks are in the file")


def _rope_scaling(linear: float, factors: Iterable[float] | None, path: Path) -> dict[str, Any] | None:
    if factors is None:
        return None if linear == 1.0 else {"rope_type": "linear", "factor": linear}
    values = [float(factor) * linear for factor in factors]
    if not all(0 < value < math.inf for value in values):
        raise FileFormatError(f"{path}: {ROPE_FACTORS} holds a factor that is not a positive number")
    return {"rope_type": "frequency_factors", "factors": values}


def _ratio(part: int, whole: int) -> float:
    """part / whole, nudged so that int(whole * ratio), which is how the part is computed back, gives it."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, math.inf)
