"""The models of a comparison, one file per engine and format, made once and kept in the work folder.

`--model`: a GGUF file, and if it is there the Hugging Face directory of the same weights unrounded (`--hf`). Each
engine rounds the best source there is with its own quantizer to its own format: edgecal int4 beside llama.cpp Q4_0,
int8 beside Q8_0. "native" is the GGUF as it is: llama.cpp reads the file, edgecal its codes taken over unrounded.

`--shape`: random weights. A GGUF is written from random bytes (no float weights are ever rounded) with the tensor types
that llama.cpp's quantizer gives a model with a tied head: Q4_0 with a Q6_K embedding, or Q8_0. edgecal takes the codes
of Q8_0 over as they are, and those of Q4_0 for int4_f16; int4 rounds Q4_0's weights again, int6 those of the
embedding.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint

from . import lora

RANK = 32
N_TEXTS, TEXT_TOKENS = 16, 128
GGML_FORMATS = {"int4": "Q4_0", "int4_f16": "Q4_0", "int8": "Q8_0"}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
    },
    "qwen2.5-1.5b": {  # its sizes, without the biases
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 8192,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
    },
}


@dataclass
class Row:
    """One engine with one file. `against` is the label of the llama.cpp row that it is compared with, `missing` why
    there is no model to measure."""

    engine: str
    detail: str
    model: dict[str, Any]
    against: str | None = None
    format: str = ""
    missing: str = ""

    @property
    def label(self) -> str:
        return f"{self.engine} {self.detail}".strip()


@dataclass
class Material:
    """What all engines get: the same prompt, the same adapters, and a row per engine and file."""

    name: str
    ids: list[int]
    texts: list[str]
    adapters: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def from_files(gguf: Path, hf: Path | None, formats: list[str], work: Path, n_ids: int) -> Material:
    folder = work / gguf.stem
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(gguf) as original:
        material = _material(original, gguf.stem, folder, n_ids)
        stored = _file_type(original, gguf)
    for format in formats:
        packed, theirs = folder / f"edgecal-{format}", gguf
        if format != "native":
            theirs = folder / f"{GGML_FORMATS[format]}.gguf"
            if not theirs.exists():
                _quantize_ggml(gguf, hf, theirs, GGML_FORMATS[format])
        if not packed.exists():
            with open_checkpoint(gguf if format == "native" or hf is None else hf) as checkpoint:
                quantize_checkpoint(checkpoint, packed, format="keep" if format == "native" else format)
        kind = stored if format == "native" else GGML_FORMATS[format]
        _add_pair(material, format, packed, theirs, kind)
        if format in ("int4", "int8"):
            _add_converted(material, format, folder)
    source = {"hf": str(hf)} if hf is not None else {"gguf": str(gguf)}
    _add_others(material, source)
    return material


def from_shape(name: str, tokenizer_gguf: Path, formats: list[str], work: Path, n_ids: int) -> Material:
    """Random weights in the shape `name`, with the tokenizer of `tokenizer_gguf` filled up to its vocabulary."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    formats = [format for format in formats if format != "native"]
    material = None
    for format in formats:
        kind = GGML_FORMATS[format]
        theirs, packed = folder / f"{kind}.gguf", folder / f"edgecal-{format}"
        if not theirs.exists():
            partial = theirs.with_suffix(".partial")
            write_random(partial, SHAPES[name], kind, tokenizer_gguf)
            partial.replace(theirs)
        with open_checkpoint(theirs) as checkpoint:
            if not packed.exists():
                quantize_checkpoint(checkpoint, packed, format=format)
            if material is None:
                material = _material(checkpoint, name, folder, n_ids)
        _add_pair(material, format, packed, theirs, kind)
    if material is None:
        raise SystemExit("--shape has no native format; choose --formats int4, int8 or both")
    _add_others(material, {"config": SHAPES[name]})
    return material


def by_back_end(rows: list[Row], names: list[str]) -> list[Row]:
    """The same rows, edgecal's once for each of these back ends."""
    found: list[Row] = []
    for row in rows:
        if row.engine != "edgecal":
            found.append(row)
        else:
            found += [
                replace(row, detail=f"{row.detail}, {name}", model={**row.model, "backend": name}) for name in names
            ]
    return found


def _file_type(checkpoint: Checkpoint, path: Path) -> str:
    """What the file's name says, as Q4_K_M; else the commonest type of its matrices."""
    named = re.search(r"[.-](I?Q\d[A-Z0-9_]*)$", path.stem, re.IGNORECASE)
    if named:
        return named[1].upper()
    types = Counter(checkpoint.stored_type(name) for name in checkpoint.names() if name.endswith("proj.weight"))
    return types.most_common(1)[0][0]


def _add_pair(material: Material, format: str, packed: Path, gguf: Path, kind: str) -> None:
    tokenizer = str(packed / "tokenizer.json")
    detail = format if format != "native" else f"native ({kind})"
    peer = Row("llama.cpp", kind, {"gguf": str(gguf)}, None, format)
    material.rows.append(Row("edgecal", detail, {"packed": str(packed), "tokenizer": tokenizer}, peer.label, format))
    material.rows.append(peer)
    if format in ("int4", "int8"):
        material.rows.append(Row("ik_llama.cpp", kind, dict(peer.model), peer.label, format))


def _add_converted(material: Material, format: str, folder: Path) -> None:
    """The engines that read neither GGUF nor Hugging Face's form; conversions.py makes their models."""
    against = f"llama.cpp {GGML_FORMATS[format]}"
    onnx = {"onnx": str(folder / f"onnx-{format}"), "onnx_lora": str(folder / f"onnx-{format}-lora")}
    material.rows.append(Row("openvino", format, {"ir": str(folder / f"openvino-{format}")}, against, format))
    material.rows.append(Row("onnxruntime", format, onnx, against, format))


def _add_others(material: Material, source: dict[str, str] | dict[str, Any]) -> None:
    """transformers on the float weights and mistral.rs on llama.cpp's first file; both compared with that."""
    ours, theirs = material.rows[0], material.rows[1]
    tokenizer = ours.model["tokenizer"]
    material.rows.append(Row("transformers", "", {**source, "tokenizer": tokenizer}, theirs.label))
    material.rows.append(Row("mistral.rs", theirs.detail, {**theirs.model, "tokenizer": tokenizer}, theirs.label))


def _material(checkpoint: Checkpoint, name: str, folder: Path, n_ids: int) -> Material:
    tokenizer = checkpoint.tokenizer()
    licence = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
    ids = tokenizer.encode(licence, add_special_tokens=False).ids
    ids = (ids * (n_ids // len(ids) + 1))[:n_ids]
    # Another text each time: an engine that remembers a prompt must not gain by it
    starts = [61 * i % (n_ids - TEXT_TOKENS) for i in range(N_TEXTS)]
    texts = [tokenizer.decode(ids[start : start + TEXT_TOKENS]) for start in starts]
    return Material(name, ids, texts, _adapters(checkpoint, folder / "lora"))


def _adapters(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    c = checkpoint.config
    shapes = {
        n.removesuffix(".weight"): (checkpoint.shape(n)[0], checkpoint.shape(n)[1])
        for n in checkpoint.names()
        if n.startswith("model.layers.") and len(checkpoint.shape(n)) == 2
    }
    peft, theirs = [folder / f"rank{RANK}-{i}" for i in range(2)], folder / f"rank{RANK}-0.gguf"
    if not theirs.exists():
        first, second = (lora.random_pairs(shapes, RANK, seed) for seed in range(2))
        lora.write_peft(peft[0], first, RANK)
        lora.write_peft(peft[1], second, RANK)
        partial = theirs.with_suffix(".partial")
        heads = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"])
        lora.write_gguf(partial, first, RANK, c["model_type"], *heads)
        partial.replace(theirs)
    return {"rank": RANK, "peft": [str(path) for path in peft], "gguf": str(theirs)}


def _quantize_ggml(gguf: Path, hf: Path | None, out: Path, kind: str) -> None:
    """llama.cpp's own quantizer, from the float weights where they are to be had."""
    import llama_cpp

    from ..llama_formats import silence, write_bf16_gguf

    silence()
    source = gguf
    if hf is not None:
        source = out.with_name("bf16.gguf")
        write_bf16_gguf(hf, gguf, source)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = hf is None
    partial = out.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not quantize {source} to {kind}")
    partial.replace(out)
    if hf is not None:
        source.unlink()


# ------------------------------------------------------------------------------------------- random weights


def write_random(path: Path, config: dict[str, Any], kind: str, tokenizer: Path) -> None:
    import gguf

    c, rng = config, np.random.default_rng(0)
    hidden, ffn, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.parent.name + " (random weights)")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_dimension_count(c["head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_vocab_size(c["vocab_size"])
    _copy_tokenizer(writer, tokenizer, c["vocab_size"])

    def matrix(name: str, d: int, k: int, kind: str = kind) -> None:
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", _random_blocks(rng, d, k, kind), raw_dtype=type_)

    matrix("token_embd", c["vocab_size"], hidden, "Q6_K" if kind == "Q4_0" else kind)
    for i in range(c["num_hidden_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(hidden, np.float32))
        matrix(f"blk.{i}.attn_q", hidden, hidden)
        matrix(f"blk.{i}.attn_k", kv, hidden)
        matrix(f"blk.{i}.attn_v", kv, hidden)
        matrix(f"blk.{i}.attn_output", hidden, hidden)
        matrix(f"blk.{i}.ffn_gate", ffn, hidden)
        matrix(f"blk.{i}.ffn_up", ffn, hidden)
        matrix(f"blk.{i}.ffn_down", hidden, ffn)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# name: weights per block, bytes before the scale, bytes after it, scale such that weights have a deviation near 0.02
_BLOCKS = {"Q4_0": (32, 0, 16, 0.0045), "Q8_0": (32, 0, 32, 0.00027), "Q6_K": (256, 208, 0, 0.00002)}


def _random_blocks(rng: np.random.Generator, d: int, k: int, kind: str) -> np.ndarray:
    """(d, bytes per row) of random codes with one fp16 scale per block."""
    weights, before, after, scale = _BLOCKS[kind]
    blocks = rng.integers(0, 256, (d * k // weights, before + 2 + after), np.uint8)
    blocks[:, before : before + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(d, -1)


def _copy_tokenizer(writer: Any, source: Path, vocab_size: int) -> None:
    """The tokenizer of a GGUF file, its token list filled up with unused ones."""
    import gguf

    for name, item in gguf.GGUFReader(source).fields.items():
        if not name.startswith("tokenizer."):
            continue
        value, kind = item.contents(), item.types[0]
        if name == "tokenizer.ggml.tokens":
            value = value + [f"<|unused_{i}|>" for i in range(len(value), vocab_size)]
        elif name == "tokenizer.ggml.token_type":
            value = value + [int(gguf.TokenType.UNUSED)] * (vocab_size - len(value))
        writer.add_key_value(name, value, kind, sub_type=item.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
