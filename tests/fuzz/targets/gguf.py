"""A GGUF model: header, configuration, tokenizer, and a few rows of every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from edgecal.architecture import expected_shapes
from edgecal.config import ModelConfig
from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.file_kind import describe
from edgecal_weights.opening import open_checkpoint
from tests.weights.samples import FFN, HEAD_DIM, HIDDEN, KV_HEADS, weights, write_gguf

from ..mutate import behind
from ..target import Target

_KEYS = (
    b"general.architecture", b"general.alignment", b"llama.block_count", b"llama.embedding_length",
    b"llama.attention.head_count", b"llama.attention.head_count_kv", b"llama.context_length", b"llama.rope.freq_base",
    b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores", b"tokenizer.ggml.token_type", b"tokenizer.ggml.merges",
    b"tokenizer.ggml.eos_token_id", b"token_embd.weight", b"blk.0.attn_q.weight", b"output_norm.weight", b"GGUF",
)  # fmt: skip


_SMALLER = {HIDDEN: 32, FFN: 64, KV_HEADS * HEAD_DIM: 16, HEAD_DIM: 8}


def prepare(folder: Path) -> list[bytes]:
    return [_write(folder / f"{family}.gguf", family).read_bytes() for family in ("llama", "qwen2", "gemma3")]


def _write(path: Path, family: str) -> Path:
    """A model of one layer and some thousand weights, half of them in blocks."""
    tensors = {
        name: tensor[tuple(slice(_SMALLER.get(n, n)) for n in tensor.shape)].copy()
        for name, tensor in weights(family, np.random.default_rng(1)).items()
        if "layers.1" not in name
    }

    def stored(name: str, tensor: np.ndarray) -> tuple[np.ndarray, Any]:
        kind = GGMLQuantizationType.Q4_0 if "mlp" in name else None
        return (quantize(tensor, kind) if kind is not None else tensor), kind

    sizes = {"embedding_length": 32, "feed_forward_length": 64, "block_count": 1, "rope__dimension_count": 8}
    sizes |= {"attention__key_length": 8, "attention__value_length": 8}
    return write_gguf(path, family, tensors, stored=stored, **sizes)


def run(data: bytes, folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(data)
    describe(path)
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            rows = min(checkpoint.shape(name)[0], 4)
            if checkpoint.shape(name)[-1] < 1 << 20:
                checkpoint.read_rows(name, 0, rows)
        expected_shapes(ModelConfig.from_dict(checkpoint.config))
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        tokenizer.decode(tokenizer.encode("a text, t3 b"))


TARGET = Target(run, prepare, behind(_KEYS))
