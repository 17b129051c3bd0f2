"""Tiny random models, adapters and calibrations on disk: whole and well-formed, made in milliseconds without torch.

The tokenizer is byte-level BPE with a handful of merges, so any text can be encoded, and what a model says token by
token is often encoded in fewer tokens when it is read back: the case that a cached conversation must survive. The
head keeps to printable ASCII, so that answers can be compared and shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgecal.architecture import expected_shapes
from edgecal.config import ModelConfig
from edgecal_weights.calibration_file import (
    AdapterReference,
    BaseModelFacts,
    CalibrationFile,
    write_calibration,
)
from edgecal_weights.hf_config import normalize_config

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("e", "r"))
VOCAB_SIZE = 272  # a few rows more than the tokenizer has ids, as in real models
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "silu",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "stablelm": {
        "architectures": ["StableLmForCausalLM"],
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": True,
        "tie_word_embeddings": False,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 24, "tie_word_embeddings": False},
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 32,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 20,
    },
}
COMPONENTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny_tokenizer() -> Tokenizer:
    """Ids: the special tokens, the 256 bytes, the merges."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return tokenizer


def write_tiny_hf(
    path: Path, family: str = "llama", seed: int = 0, *, dtype: str = "F32", chat_template: bool = True, **config: Any
) -> Path:
    """A Hugging Face directory with random weights; `config` overrides SIZES. `dtype` is "F32" or "F16"."""
    path.mkdir(parents=True, exist_ok=True)
    values = {"model_type": family, **SIZES, **FAMILIES[family], **config}
    tokenizer = tiny_tokenizer()
    (path / "config.json").write_text(json.dumps(values))
    tokenizer.save(str(path / "tokenizer.json"))
    settings: dict[str, Any] = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "add_bos_token": False}
    if chat_template:
        settings["chat_template"] = CHAT_TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [2, 0]}))
    weights = tiny_weights(model_config(path), tokenizer, seed)
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    tensors = {name: np.ascontiguousarray(w, dtype=kind) for name, w in weights.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def model_config(path: Path) -> ModelConfig:
    """The configuration of a model directory."""
    file = path / "config.json"
    return ModelConfig.from_dict(normalize_config(json.loads(file.read_text()), file))


def tiny_weights(config: ModelConfig, tokenizer: Tokenizer, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Every tensor, float32, large enough that attention is peaked and every bias and norm matters.

    The embedding is small beside what the layers add, or a tied head would repeat its last token forever.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if "norm" in name and name.endswith(".weight"):
            weights[name] = np.float32(1 - config.norm_weight_offset) + np.float32(0.2) * values
        else:
            size = 0.3 if name.endswith(".bias") else 0.05 if "embed" in name else 0.2
            weights[name] = values * np.float32(size)
    head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    for i in range(len(head)):
        token = tokenizer.id_to_token(i)
        printable = token is not None and token not in SPECIAL and token.replace("Ġ", " ").isascii()
        head[i] *= 1 if printable else 0.05
    return weights


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(d, k) of every module that an adapter may address, in the order of the layers."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in expected_shapes(config).items()
        if name.endswith("_proj.weight")
    }


def write_tiny_adapter(
    path: Path,
    model_path: Path,
    rank: int = 4,
    seed: int = 1,
    *,
    components: Sequence[str] = COMPONENTS,
    dtype: type[np.floating[Any]] = np.float32,
    **config: Any,
) -> Path:
    """A PEFT directory that fits the model, strong enough to change what it says; `config` overrides its options."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (d, k) in linear_shapes(model_config(model_path)).items():
        if module.rsplit(".", 1)[1] not in components:
            continue
        for factor, shape in (("A", (rank, k)), ("B", (d, rank))):
            name = f"base_model.model.{module}.lora_{factor}.weight"
            tensors[name] = (rng.standard_normal(shape) * 0.25).astype(dtype)
    options: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_path.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(components),
    }
    (path / "adapter_config.json").write_text(json.dumps(options | config))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def write_tiny_calibration(
    path: Path,
    model_path: Path,
    adapters: Mapping[str, Path],
    method: str = "learnable_calibration_pp",
    rank: int = 2,
    seed: int = 2,
    shared_with: Sequence[Mapping[str, Path]] = (),
) -> Path:
    """A calibration of random numbers for these adapters ({name: directory}, in order) on this model, and for those of
    `shared_with`."""
    config, rng = model_config(model_path), np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    groups: dict[str, dict[str, NDArray[np.float32]]] = {}
    for module, (d, k) in linear_shapes(config).items():
        component = module.rsplit(".", 1)[1]
        if method == "learnable_calibration":
            groups.setdefault(component, {"p": normal(d)})
        elif method == "learnable_calibration_pp":
            groups.setdefault(component, {"P1": normal(rank, k), "P2": normal(d, rank)})
        else:
            groups.setdefault(f"{k}x{d}", {"P1": normal(rank, d), "P2": normal(d, rank)})
    references, *others = [
        tuple(
            AdapterReference(name, hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest())
            for name, folder in folders.items()
        )
        for folders in (adapters, *shared_with)
    ]
    facts = BaseModelFacts(model_path.name, config.family, config.hidden_size, config.n_layers, config.vocab_size)
    content = CalibrationFile(
        method=method,
        adapters=references,
        shared_with=tuple(others),
        weights=(1 / len(references),) * len(references),
        base_model=facts,
        groups=groups,
        rank=None if method == "learnable_calibration" else rank,
    )
    write_calibration(path, content)
    return path
