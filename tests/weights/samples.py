"""Tiny models on disk for the tests of the readers: random weights by their Hugging Face names, and as GGUF.

The GGUF files are written by llama.cpp's own `gguf` package with its own table of tensor names, so that
they are a reference and not a mirror of the reader. The row order of llama's q and k is that of llama.cpp's
converter.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

HIDDEN, FFN, VOCAB, LAYERS, HEADS, KV_HEADS = 256, 512, 48, 2, 4, 2
HEAD_DIM = HIDDEN // HEADS
TOKENS = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), *(f"t{i}" for i in range(VOCAB - 29))]
ARCH = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}


def weights(
    family: str, rng: np.random.Generator, *, tied: bool = False, bias: bool | None = None
) -> Weights:
    """Everything that a checkpoint of the family holds, float32."""

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    kv = KV_HEADS * HEAD_DIM
    bias = family in ("qwen2", "stablelm") if bias is None else bias
    layer_norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN}
    if family in ("qwen3", "gemma3"):
        layer_norms |= {"self_attn.q_norm": HEAD_DIM, "self_attn.k_norm": HEAD_DIM}
    if family == "gemma3":
        layer_norms |= {"pre_feedforward_layernorm": HIDDEN, "post_feedforward_layernorm": HIDDEN}
    norms = ("weight", "bias") if family == "stablelm" else ("weight",)
    w = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for norm, size in layer_norms.items():
            w |= {f"{layer}.{norm}.{kind}": 1 + normal(size) for kind in norms}
        for module, rows in (("q_proj", HIDDEN), ("k_proj", kv), ("v_proj", kv)):
            w[f"{layer}.self_attn.{module}.weight"] = normal(rows, HIDDEN)
            if bias:
                w[f"{layer}.self_attn.{module}.bias"] = normal(rows)
        w[f"{layer}.self_attn.o_proj.weight"] = normal(HIDDEN, HIDDEN)
        w[f"{layer}.mlp.gate_proj.weight"] = normal(FFN, HIDDEN)
        w[f"{layer}.mlp.up_proj.weight"] = normal(FFN, HIDDEN)
        w[f"{layer}.mlp.down_proj.weight"] = normal(HIDDEN, FFN)
    w |= {f"model.norm.{kind}": 1 + normal(HIDDEN) for kind in norms}
    has_head = gguf.MODEL_TENSOR.OUTPUT in gguf.MODEL_TENSORS[ARCH[family]]  # some families are always tied
    if has_head and not tied:
        w["lm_head.weight"] = normal(VOCAB, HIDDEN)
    return w


def permuted(name: str, w: NDArray) -> NDArray:
    """Rows as llama.cpp wants them: neighbouring pairs of a head rotate together."""
    if not name.rpartition(".")[0].endswith((".q_proj", ".k_proj")):
        return w
    heads = HEADS if "q_proj" in name else KV_HEADS
    return w.reshape(heads, 2, len(w) // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def write_gguf(
    path: Path,
    family: str,
    tensors: Mapping[str, NDArray],
    *,
    stored: Callable[[str, NDArray], tuple[NDArray, gguf.GGMLQuantizationType | None]] | None = None,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
    eos: int = 2,
    **overrides: Any,
) -> Path:
    """Write a model file.

    `stored` turns a tensor into (bytes, type), float32 by default. `overrides` replace metadata, None drops
    it.
    """
    keys: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.dimension_count": HEAD_DIM // 4 if family == "stablelm" else HEAD_DIM,
        "rope.freq_base": 12345.0,
    }
    if family == "gemma3":
        keys["attention.sliding_window"] = 16
    epsilon = "layer_norm_epsilon" if family == "stablelm" else "layer_norm_rms_epsilon"
    keys[f"attention.{epsilon}"] = 2.0**-16
    keys |= {key.replace("__", "."): value for key, value in overrides.items()}
    writer = gguf.GGUFWriter(path, family)
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(f"{family}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{family}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{family}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{family}.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
    writer.add_token_scores([-float(i) for i in range(VOCAB)])
    for kind, index in (("bos", 1), ("eos", eos), ("unk", 0)):
        getattr(writer, f"add_{kind}_token_id")(index)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    if extra:
        extra(writer)
    table = gguf.get_tensor_name_map(ARCH[family], LAYERS)
    for name, w in tensors.items():
        gguf_name = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None
        w = permuted(name, w) if family == "llama" else w
        data, kind = stored(name, w) if stored else (w, None)
        writer.add_tensor(gguf_name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(type_name: str, rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random bytes whose fp16 fields are finite and of ordinary size: every code and scale pattern occurs."""
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    raw = rng.integers(0, 256, (rows, k // block, nbytes), dtype=np.uint8)
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(
        type_name, (0,)
    )
    for at in halves:
        values = rng.uniform(-0.02, 0.02, (rows, k // block)).astype(np.float16)
        raw[..., at : at + 2] = values[..., None].view(np.uint8)
    if type_name == "Q8_0":
        codes = raw[..., 2:]
        codes[codes == 0x80] = 0x7F  # ggml never writes -128
    return raw.reshape(rows, -1)


def gguf_of(path, tensors, types, rng):
    """A GGUF whose matrices are random blocks of types[name] or types[""]."""

    def stored(name, w):
        kind = types.get(name, types[""])
        if w.ndim == 1 or kind == "F32":
            return w, None
        return random_blocks(kind, *w.shape, rng), gguf.GGMLQuantizationType[kind]

    return write_gguf(path, "llama", tensors, stored=stored)


def gguf_header(
    n_tensors: int, n_keys: int, body: bytes = b"", *, magic: bytes = b"GGUF", version: int = 3
) -> bytes:
    """A header by hand, for files that no writer would write."""
    return magic + struct.pack("<IQQ", version, n_tensors, n_keys) + body


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
