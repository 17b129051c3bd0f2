"""A GGUF model: header, configuration, tokenizer, and a few rows of every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecal.architecture import expected_shapes
from edgecal.config import ModelConfig
from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.file_kind import describe
from edgecal_weights.opening import open_checkpoint
from tests.weights.samples import weights, write_gguf

from ..mutate import behind
from ..target import Target

_KEYS = (
    b"general.architecture", b"general.alignment", b"llama.block_count", b"llama.embedding_length",
    b"llama.attention.head_count", b"llama.attention.head_count_kv", b"llama.context_length", b"llama.rope.freq_base",
    b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores", b"tokenizer.ggml.token_type", b"tokenizer.ggml.merges",
    b"tokenizer.ggml.eos_token_id", b"token_embd.weight", b"blk.0.attn_q.weight", b"output_norm.weight", b"GGUF",
)  # fmt: skip


def prepare(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(1)
    return [write_gguf(folder / f"{x}.gguf", x, weights(x, rng)).read_bytes()[:60_000] for x in ("llama", "qwen2")]


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
