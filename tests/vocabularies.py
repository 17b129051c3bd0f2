"""Vocabularies of the kinds that the served models have, each as the GGUF that a converter makes of it and as a Hugging
Face directory.

Small ones are trained here on the tests' own texts. The large ones of real models are used where they are at hand.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer
from transformers.tokenization_utils_base import generate_merges

from edgecal_weights.gguf_file import GGUFFile
from tests.texts import TEXTS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BESIDE = Path(__file__).parents[2]  # models and data that lie beside the project, where they do
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Vocabulary:
    """`metadata` of a GGUF; `save` writes tokenizer.json and its companions; `marks` are special tokens to try."""

    metadata: dict[str, Any]
    save: Callable[[Path], object]
    marks: tuple[str, ...]
    architecture: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)

    def directory(self, path: Path) -> Path:
        """What AutoTokenizer and `read_tokenizer` need of a model directory."""
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": self.architecture, **self.config}))
        self.save(path)
        return path


def gguf_keys(**values: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def write_gguf(path: Path, architecture: str, metadata: Mapping[str, Any]) -> Path:
    """A GGUF with this metadata and next to nothing else."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(1)
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        add[type(value)](key, value)
    writer.add_tensor("output_norm.weight", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ------------------------------------------------------------------------------------------------------ SentencePiece


@lru_cache
def sentencepiece_model(**options: Any) -> bytes:
    """Llama 2's recipe on the texts: BPE, identity normalization, byte fallback, split digits, dummy prefix."""
    symbols = options.pop("user_defined_symbols", ("<tool>",))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS.values() for line in text.splitlines() if line.strip()]),
        model_writer=model,
        **{
            "model_type": "bpe",
            "vocab_size": 700,
            "byte_fallback": True,
            "character_coverage": 0.98,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "split_digits": True,
            "user_defined_symbols": list(symbols),
            "minloglevel": 2,
            **options,
        },
    )
    return model.getvalue()


GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")


@lru_cache
def gemma_model() -> bytes:
    """Gemma's recipe: other ids for the named tokens, no dummy prefix, runs of spaces and newlines user-defined."""
    runs = ["▁" * n for n in range(2, 32)] + ["\n" * n for n in range(1, 9)]
    return sentencepiece_model(
        vocab_size=900,
        add_dummy_prefix=False,
        user_defined_symbols=("<mask>", *GEMMA_TURNS, *runs, "<table>", "</b>"),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
    )


def pieces(model: bytes, control: Iterable[str] = ()) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types, which GGUF took over; `control`: what the model's config marks as special."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model).pieces
    types = [CONTROL if piece.piece in control else piece.type for piece in proto]
    return [piece.piece for piece in proto], [piece.score for piece in proto], types


def tinyllama_metadata(model: bytes) -> dict[str, Any]:
    tokens, scores, types = pieces(model)
    arrays = gguf_keys(model="llama", tokens=tokens, scores=scores, token_type=types)
    return arrays | gguf_keys(bos_token_id=1, eos_token_id=2, unknown_token_id=0)


def gemma_metadata(model: bytes) -> dict[str, Any]:
    """Spelled as llama.cpp's converter does: spaces in user-defined tokens, -1000 as the score of added ones."""
    tokens, scores, types = pieces(model, GEMMA_TURNS)
    added = [kind in (CONTROL, USER_DEFINED) for kind in types]
    arrays = gguf_keys(
        model="llama",
        tokens=[t.replace("▁", " ") if kind == USER_DEFINED else t for t, kind in zip(tokens, types, strict=True)],
        scores=[-1000.0 if mark else score for score, mark in zip(scores, added, strict=True)],
        token_type=types,
    )
    ids = gguf_keys(bos_token_id=2, eos_token_id=1, unknown_token_id=3, padding_token_id=0)
    return arrays | ids | gguf_keys(add_space_prefix=False, add_bos_token=True, add_eos_token=False)


def save_tinyllama(model: bytes, directory: Path) -> None:
    """tokenizer.json as Llama 2 and TinyLlama have it, with the space in front put there by the normalizer."""
    tokens, scores, types = pieces(model)
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = generate_merges(vocab, dict(zip(tokens, scores, strict=True)))
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for token, kind in zip(tokens, types, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, normalized=False, special=kind != USER_DEFINED)])
    backend.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(named))


def save_llama5(model: bytes, directory: Path) -> None:
    """What transformers 5 writes for a tokenizer.model."""
    source = directory / "source"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(model)
    LlamaTokenizer.from_pretrained(source).save_pretrained(directory)


def save_gemma(model: bytes, directory: Path) -> None:
    tokens, _, types = pieces(model, GEMMA_TURNS)
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=generate_merges(vocab), add_bos_token=True)
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)])
    tokenizer.save_pretrained(directory)


# --------------------------------------------------------------------------------------------------------- byte level


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def isolated_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


@dataclass(frozen=True)
class ByteLevel:
    """A pipeline by GGUF's name, as the models' own tokenizer.json spell it."""

    name: str
    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False
    bos: bool = False

    def trained(self) -> Vocabulary:
        """A vocabulary of a thousand tokens, cut as the name says."""
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = self.pre_tokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=1200,
            min_frequency=1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator([*TEXTS.values()] * 3, trainer)
        model = json.loads(backend.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        extra = [*CHATML, "<tool>", "</tool>", "[PAD]"]
        types = [NORMAL] * len(tokens) + [CONTROL] * 3 + [USER_DEFINED] * 2 + [UNUSED]
        arrays = gguf_keys(
            model="gpt2",
            tokens=tokens + extra,
            token_type=types,
            merges=[" ".join(merge) for merge in model["merges"]],
        )
        ids = gguf_keys(bos_token_id=len(tokens), eos_token_id=len(tokens) + 2)
        return self.of(arrays | ids, (*CHATML, "<tool>"))

    def of(self, metadata: dict[str, Any], marks: tuple[str, ...], **more: Any) -> Vocabulary:
        named = metadata | gguf_keys(pre=self.name)
        return Vocabulary(named, lambda directory: self.save(named, directory), marks, **more)

    def save(self, metadata: Mapping[str, Any], directory: Path) -> None:
        """tokenizer.json put together by hand, as the model's own describes its pipeline."""
        tokens = metadata["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        vocab = {token: index for index, token in enumerate(tokens)}
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=self.ignore_merges))
        if self.normalizer is not None:
            backend.normalizer = self.normalizer
        backend.pre_tokenizer = self.pre_tokenizer()
        backend.decoder = decoders.ByteLevel()
        for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
            if kind in (CONTROL, USER_DEFINED):
                backend.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)])
        bos = tokens[metadata["tokenizer.ggml.bos_token_id"]]
        if self.bos:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])]
            )
        backend.save(str(directory / "tokenizer.json"))
        named = {"eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]], "bos_token": bos if self.bos else None}
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
        (directory / "tokenizer_config.json").write_text(json.dumps(named))


NFC = normalizers.NFC()
BYTE_LEVEL = {
    "gpt-2": ByteLevel("gpt-2", lambda: pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": ByteLevel("smollm", isolated_digits),
    "llama-bpe": ByteLevel("llama-bpe", lambda: split(LLAMA3), ignore_merges=True, bos=True),
    "qwen2": ByteLevel("qwen2", lambda: split(QWEN2), NFC),
    "tekken": ByteLevel("tekken", lambda: split(TEKKEN), ignore_merges=True, bos=True),
}


def save_qwen2(metadata: Mapping[str, Any], directory: Path) -> None:
    """With transformers' own class, whose pipeline is not written here."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
    )
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)])
    tokenizer.save_pretrained(directory)


# --------------------------------------------------------------------------------------------------------- real models


def metadata_of(path: Path) -> dict[str, Any]:
    """The tokenizer's keys of a GGUF."""
    with GGUFFile(path) as file:
        return {key: file.metadata[key] for key in file.metadata if key.startswith("tokenizer.ggml.")}


def llama3_file() -> Path | None:
    path = BESIDE / "shared" / "data" / "tokenizers" / "llama-3" / "tokenizer.json"
    return path if path.is_file() else None


def qwen_file() -> Path | None:
    return next(iter(sorted((BESIDE / "models").glob("qwen2.5*.gguf"))), None)


def llama3_metadata(path: Path) -> dict[str, Any]:
    """What llama.cpp's converter makes of Llama 3's tokenizer.json."""
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {token["id"] for token in content["added_tokens"]}
    arrays = gguf_keys(
        model="gpt2",
        pre="llama-bpe",
        tokens=sorted(vocab, key=vocab.__getitem__),
        token_type=[CONTROL if index in special else NORMAL for index in range(len(vocab))],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]],
    )
    return arrays | gguf_keys(bos_token_id=vocab["<|begin_of_text|>"], eos_token_id=vocab["<|eot_id|>"])
