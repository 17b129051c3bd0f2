"""Writes Hugging Face model directories without transformers: any weights, any float type, one shard or many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from .samples import FFN, HEADS, HIDDEN, KV_HEADS, LAYERS, TOKENS, VOCAB


def raw(values: NDArray[np.float32], dtype: str) -> bytes:
    """The numbers as a safetensors file has them; bf16 truncates."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> None:
    """One tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, w in tensors.items():
        nbytes = w.size * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(w.shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for w in tensors.values():
            file.write(raw(w, dtype))


def write_hf(
    directory: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    dtype: str = "F32",
    shards: int = 1,
    tokenizer: bool = True,
    **config: Any,
) -> Path:
    """A llama directory; sizes are those of `samples`, overridden by `config`."""
    directory.mkdir(parents=True)
    sizes = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    (directory / "config.json").write_text(json.dumps({**sizes, **config}))
    (directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    if tokenizer:
        words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        (directory / "tokenizer.json").write_text(words.to_str())
        settings = {"eos_token": "</s>", "chat_template": "{{ messages[0].content }}"}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    names = list(tensors)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return directory
    weight_map = {}
    for i in range(shards):
        file, part = f"model-{i + 1:05}-of-{shards:05}.safetensors", names[i::shards]
        write_safetensors(directory / file, {name: tensors[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
