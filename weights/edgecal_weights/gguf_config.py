"""GGUF's names and metadata in the words of Hugging Face.

GGUF describes a model by keys under its architecture's name ("llama.embedding_length") and by which tensors
exist; Hugging Face by a config.json. The tables below are the whole translation. What would change the
computation and is not served (experts, sliding windows, YaRN, soft caps ...) is refused by the name of its
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

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "stablelm": "StableLmForCausalLM"}

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE_BACK = {hf: gguf for gguf, hf in _OUTSIDE.items()}
_IN_LAYER_BACK = {hf: gguf for gguf, hf in _IN_LAYER.items()}
_GGUF_NAME = re.compile(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias)")
_HF_NAME = re.compile(r"(?:model\.layers\.(0|[1-9]\d{0,5})\.)?([\w.]+)\.(weight|bias)")

ROPE_FACTORS = "rope_freqs.weight"
# Keys whose mere presence with a value other than the neutral one makes another model of it.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.sliding_window": (0,),
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


def hf_name(gguf: str) -> str | None:
    """Hugging Face's name of a GGUF tensor; None for one that has no place in the three families."""
    match = _GGUF_NAME.fullmatch(gguf)
    if match is None:
        return None
    layer, stem, kind = match.groups()
    if layer is None:
        return f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else None
    return f"model.layers.{layer}.{_IN_LAYER[stem]}.{kind}" if stem in _IN_LAYER else None


def gguf_name(hf: str) -> str | None:
    """GGUF's name of a Hugging Face tensor; the inverse of `hf_name`."""
    match = _HF_NAME.fullmatch(hf)
    if match is None:
        return None
    layer, stem, kind = match.groups()
    if layer is None:
        return f"{_OUTSIDE_BACK[stem]}.{kind}" if stem in _OUTSIDE_BACK else None
    return f"blk.{layer}.{_IN_LAYER_BACK[stem]}.{kind}" if stem in _IN_LAYER_BACK else None


class _Keys:
    """Typed access to the keys of one architecture; FileFormatError names the key and what it holds."""

    def __init__(self, metadata: Mapping[str, Any], path: Path, arch: str) -> None:
        self._metadata, self._path, self._arch = metadata, path, arch

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"{self._arch}.{key}", default)
        if value is None:
            raise FileFormatError(f"{self._path} lacks the metadata {self._arch}.{key}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, list) and value:
            # Some converters write one value per layer; edgecal's layers are all alike.
            if any(other != value[0] for other in value):
                raise UnsupportedModelError(f"{self._path}: {self._arch}.{key} differs between layers")
            value = value[0]
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise FileFormatError(
                f"{self._path}: {self._arch}.{key} is {value!r}, expected a positive integer"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not (0 < value < math.inf):
            raise FileFormatError(
                f"{self._path}: {self._arch}.{key} is {value!r}, expected a positive number"
            )
        return float(value)

    def refuse_unserved(self) -> None:
        for key, neutral in _NEUTRAL.items():
            value = self._metadata.get(f"{self._arch}.{key}")
            if value is not None and value not in neutral:
                raise UnsupportedModelError(
                    f"{self._path}: {self._arch}.{key} is {value!r}; models that need it are not served"
                )

    def linear_factor(self) -> float:
        kind = self._metadata.get(f"{self._arch}.rope.scaling.type")
        if kind in (None, "none"):
            # Files from before rope.scaling.type spell linear scaling as scale_linear.
            return self.number("rope.scale_linear", 1.0)
        if kind != "linear":
            raise UnsupportedModelError(
                f"{self._path}: rope scaling {kind!r} is not served; known: linear, and rope_freqs.weight"
            )
        return self.number("rope.scaling.factor")


def architecture(metadata: Mapping[str, Any], path: Path) -> str:
    """`general.architecture`, one of ARCHITECTURES; UnsupportedModelError lists the known ones."""
    kind = metadata.get("general.type", "model")  # "adapter", "mmproj" and others exist
    if kind != "model":
        raise UnsupportedModelError(f"{path} holds {kind!r} (general.type), not a model")
    arch = metadata.get("general.architecture")
    if arch is None:
        raise FileFormatError(f"{path} lacks the metadata general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise UnsupportedModelError(f"{path} is of architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")
    return arch


def token_id(metadata: Mapping[str, Any], key: str, path: Path) -> int | None:
    """`tokenizer.ggml.{key}_token_id`, None when the file does not say."""
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
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
    arch = architecture(metadata, path)
    keys = _Keys(metadata, path, arch)
    keys.refuse_unserved()
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None or len(embedding) != 2:
        raise FileFormatError(f"{path} has no matrix token_embd.weight, so it is not a whole model")
    hidden_size, n_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    n_layers = keys.integer("block_count")
    _check_layers(shapes, n_layers, path)
    head_dim = keys.integer("attention.key_length", hidden_size // n_heads or None)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{path}: keys and values of different length are not served")
    if metadata.get(f"{arch}.vocab_size", embedding[0]) != embedding[0]:
        raise FileFormatError(
            f"{path}: token_embd.weight has {embedding[0]} rows, {arch}.vocab_size is "
            f"{metadata[f'{arch}.vocab_size']}"
        )
    has_qkv_bias = "model.layers.0.self_attn.q_proj.bias" in shapes
    config: dict[str, Any] = {
        "_name_or_path": str(metadata.get("general.name", path.stem)),
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": embedding[0],
        "hidden_size": hidden_size,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": keys.integer("context_length"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys.linear_factor(), rope_factors, path),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }
    rope_dim = keys.integer("rope.dimension_count", head_dim)
    if rope_dim > head_dim:
        raise FileFormatError(f"{path}: rope.dimension_count rotates {rope_dim} of {head_dim} dimensions")
    if arch == "llama":
        if rope_dim != head_dim:
            raise UnsupportedModelError(
                f"{path}: a llama model that rotates {rope_dim} of {head_dim} dimensions"
            )
        config["attention_bias"] = has_qkv_bias
        config["mlp_bias"] = "model.layers.0.mlp.gate_proj.bias" in shapes
    else:
        config["partial_rotary_factor"] = _ratio(rope_dim, head_dim)
    if arch == "stablelm":
        config["layer_norm_eps"] = keys.number("attention.layer_norm_epsilon")
        config["use_qkv_bias"] = has_qkv_bias
        config["qk_layernorm"] = False
        # As in llama.cpp, the second norm tells, not the flag in the metadata.
        config["use_parallel_residual"] = "model.layers.0.post_attention_layernorm.weight" not in shapes
    else:
        config["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon")
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        token = token_id(metadata, key, path)
        if token is not None:
            config[f"{name}_token_id"] = token
    return config


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
