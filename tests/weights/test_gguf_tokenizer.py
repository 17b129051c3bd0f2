"""Tokenizers rebuilt from GGUF metadata against transformers' conversion of the same files, and against the truth.

The truth is the model's own pipeline where transformers' conversion departs from it: SmolLM's isolated digits, Qwen's
NFC, Llama 3's ignore_merges. Besides the real SmolLM2 the files are small ones written here, with vocabularies trained
on the texts themselves, so that merges of every script occur.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, Qwen2Tokenizer

from edgecal_weights.errors import FileFormatError, UnsupportedModelError
from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.gguf_tokenizer import build_tokenizer
from tests.texts import DECOMPOSED, TEXTS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PATH = Path("model.gguf")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = "<|im_start|>user\nhi  there<|im_end|>\n<|im_start|>assistant\n<tool>7</tool><|endoftext|> tail"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=special).ids


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.fixture(scope="module")
def byte_level() -> dict[str, Any]:
    """Metadata of a small byte-level vocabulary, as llama.cpp's converter writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS.values()] * 3, trainer)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    extra = [*SPECIALS, "<tool>", "</tool>", "[PAD]"]
    types = [NORMAL] * len(tokens) + [CONTROL] * 3 + [USER_DEFINED] * 2 + [UNUSED]
    merges = tokenizer_merges(tokenizer)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens + extra,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
    }


def tokenizer_merges(tokenizer: Tokenizer) -> list[str]:
    import json

    return [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def with_pre(metadata: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    return {**metadata, "tokenizer.ggml.pre": name, **{f"tokenizer.ggml.{k}": v for k, v in more.items()}}


def write_gguf(path: Path, architecture: str, metadata: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(1)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    if "tokenizer.ggml.pre" in metadata:
        writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    if "tokenizer.ggml.merges" in metadata:
        writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    if "tokenizer.ggml.scores" in metadata:
        writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_tensor("output_norm.weight", np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_smollm2_file_equals_transformers(smollm2_gguf: Path) -> None:
    with GGUFFile(smollm2_gguf) as file:
        ours = build_tokenizer(file.metadata, smollm2_gguf)
    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    texts = {**TEXTS, "chat": CHAT, "special": "<|im_start|>system\nx<|im_end|><repo_name>a<file_sep>"}
    # Isolating digits shows where several spaces, or one space and a numeral like "½", stand together.
    same = {name for name, text in texts.items() if ids(ours, text) == theirs.encode(text, add_special_tokens=False)}
    assert texts.keys() - same == {"digits after space", "numbers"}
    # With the digits that the model was trained with put back, nothing differs at all.
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    for name, text in texts.items():
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ids(ours, text) == expected, name
        for skip in (False, True):
            assert ours.decode(expected, skip_special_tokens=skip) == theirs.decode(expected, skip_special_tokens=skip)
    assert ours.decode(ids(ours, TEXTS["emoji"])) == TEXTS["emoji"]
    assert [ours.id_to_token(i) for i in ids(ours, "\n\n12")] == ["ĊĊ", "1", "2"]
    assert ours.get_vocab_size() == 49152


@pytest.mark.parametrize(
    ("pre", "architecture"),
    [("qwen2", "qwen2"), ("llama-bpe", "llama"), ("default", "llama"), (None, "llama")],
)
def test_written_files_equal_transformers(
    pre: str | None, architecture: str, byte_level: dict[str, Any], tmp_path: Path
) -> None:
    metadata = byte_level if pre is None else with_pre(byte_level, pre)
    path = write_gguf(tmp_path / "model.gguf", architecture, metadata)
    with GGUFFile(path) as file:
        ours = build_tokenizer(file.metadata, path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for name, text in {**TEXTS, "chat": CHAT}.items():
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ids(ours, text) == expected, name
        assert ours.decode(expected, skip_special_tokens=True) == theirs.decode(expected, skip_special_tokens=True)


def reference(metadata: dict[str, Any], pre_tokenizer: Any, **model: Any) -> Tokenizer:
    """A tokenizer put together by hand, as the models' tokenizer.json describe theirs."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, **model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.add_tokens(["<tool>", "</tool>"])
    return tokenizer


@pytest.mark.parametrize("name", ["qwen2", "stablelm2"])
def test_qwen2_is_the_models_own_pipeline(name: str, byte_level: dict[str, Any]) -> None:
    ours = build_tokenizer(with_pre(byte_level, name), PATH)
    tokens = byte_level["tokenizer.ggml.tokens"]
    theirs = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in byte_level["tokenizer.ggml.merges"]],
    )
    for text in [*TEXTS.values(), DECOMPOSED]:
        assert ids(ours, text) == theirs(text, add_special_tokens=False).input_ids
    assert ids(ours, DECOMPOSED) == ids(ours, normalizers.NFC().normalize_str(DECOMPOSED))


@pytest.mark.parametrize("name", ["llama-bpe", "llama3", "llama-v3"])
def test_llama3_is_the_models_own_pipeline(name: str, byte_level: dict[str, Any]) -> None:
    metadata = with_pre(byte_level, name)
    # A whole word of the vocabulary that no merge builds: found only when merges are not asked first.
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "ĠVisitors"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], NORMAL]
    ours = build_tokenizer(metadata, PATH)
    theirs = reference(metadata, split(LLAMA3), ignore_merges=True)
    for text in [*TEXTS.values(), CHAT, DECOMPOSED, "two Visitors"]:
        assert ids(ours, text) == ids(theirs, text)
    assert ids(ours, "two Visitors")[-1] == len(metadata["tokenizer.ggml.tokens"]) - 1
    bos = metadata["tokenizer.ggml.bos_token_id"]
    assert ids(ours, "x", special=True) == [bos, *ids(ours, "x")], "Llama 3 starts every text, the file need not say"


@pytest.mark.parametrize("name", ["smollm", "starcoder", "refact"])
def test_digits_are_isolated(name: str, byte_level: dict[str, Any]) -> None:
    ours = build_tokenizer(with_pre(byte_level, name), PATH)
    pipeline = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs = reference(byte_level, pipeline)
    for text in [*TEXTS.values(), CHAT]:
        assert ids(ours, text) == ids(theirs, text)


def test_bos_and_eos_are_added_when_asked(byte_level: dict[str, Any]) -> None:
    bos, eos = byte_level["tokenizer.ggml.bos_token_id"], byte_level["tokenizer.ggml.eos_token_id"]
    for add_bos in (None, False, True):
        for add_eos in (None, False, True):
            flags = {"add_bos_token": add_bos, "add_eos_token": add_eos}
            given = {k: v for k, v in flags.items() if v is not None}
            tokenizer = build_tokenizer(with_pre(byte_level, "qwen2", **given), PATH)
            plain = ids(tokenizer, "Hello")
            assert ids(tokenizer, "Hello", special=True) == [bos] * bool(add_bos) + plain + [eos] * bool(add_eos)


def test_older_file_without_token_types(byte_level: dict[str, Any]) -> None:
    metadata = {k: v for k, v in byte_level.items() if not k.endswith("token_type")}
    tokenizer = build_tokenizer(metadata, PATH)
    eos = metadata["tokenizer.ggml.eos_token_id"]
    assert ids(tokenizer, "a<|im_end|>")[-1] == eos
    assert tokenizer.decode([eos]) == ""


def test_arrays_may_be_numpy(byte_level: dict[str, Any]) -> None:
    metadata = {**byte_level, "tokenizer.ggml.token_type": np.array(byte_level["tokenizer.ggml.token_type"])}
    assert ids(build_tokenizer(metadata, PATH), CHAT) == ids(build_tokenizer(byte_level, PATH), CHAT)


def test_control_tokens_outside_the_byte_alphabet() -> None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<｜User｜>", "two words"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-r1-qwen",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 256 + [CONTROL, USER_DEFINED],
        "tokenizer.ggml.merges": [],
    }
    tokenizer = build_tokenizer(metadata, PATH)
    encoded = ids(tokenizer, "<｜User｜>two words")
    assert encoded == [256, 257]
    assert tokenizer.decode(encoded) == "two words"
    assert tokenizer.decode(encoded, skip_special_tokens=False) == "<｜User｜>two words"


def test_merges_of_tokens_with_spaces() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "a ", "a b", " b", " ", "x y"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a  ", "a  b", "xĠ y"],
    }
    # "a  " is ("a", " "); "a  b" could be ("a", " b") or ("a ", "b") and is refused; a half may hold the space as "Ġ".
    with pytest.raises(FileFormatError, match=r"merges entry 1, 'a  b', can be read in several ways"):
        build_tokenizer(metadata, PATH)
    metadata["tokenizer.ggml.merges"] = ["a  "]
    build_tokenizer(metadata, PATH)
    metadata["tokenizer.ggml.tokens"] = [*tokens, "x "]
    metadata["tokenizer.ggml.merges"] = ["xĠ y"]
    build_tokenizer(metadata, PATH)


@pytest.fixture(scope="module")
def sentencepiece_model() -> bytes:
    """Llama 2's recipe on the texts: BPE, identity normalization, byte fallback, split digits, dummy prefix."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS.values() for line in text.splitlines() if line.strip()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    return model.getvalue()


def spm_metadata(model: bytes) -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    types = []
    for index in range(processor.get_piece_size()):
        kinds = [
            (processor.is_unknown(index), UNKNOWN),
            (processor.is_control(index), CONTROL),
            (processor.id_to_piece(index) == "<tool>", USER_DEFINED),
            (processor.is_byte(index), BYTE),
            (True, NORMAL),
        ]
        types.append(next(kind for holds, kind in kinds if holds))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(processor.get_piece_size())],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in range(processor.get_piece_size())],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentencepiece_equals_transformers_and_sentencepiece(sentencepiece_model: bytes, tmp_path: Path) -> None:
    metadata = spm_metadata(sentencepiece_model)
    path = write_gguf(tmp_path / "model.gguf", "llama", metadata)
    with GGUFFile(path) as file:
        ours = build_tokenizer(file.metadata, path)
    converted = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(sentencepiece_model)
    from_model = LlamaTokenizer.from_pretrained(tmp_path / "hf")
    original = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    for name, text in {**TEXTS, "special": "a</s> b<s>c <tool> d", "decomposed": DECOMPOSED}.items():
        found = ids(ours, text)
        assert found == converted(text, add_special_tokens=False).input_ids, name
        assert found == from_model(text, add_special_tokens=False).input_ids, name
        if name not in ("special", "leading space"):
            assert found == original.encode(text), name
        for skip in (False, True):
            assert ours.decode(found, skip_special_tokens=skip) == converted.decode(found, skip_special_tokens=skip)
        if name != "special":
            assert ours.decode(found) == text.removeprefix(" "), name
    assert ids(ours, "x", special=True)[0] == 1, "SentencePiece models begin with BOS unless the file says no"


def test_sentencepiece_without_space_prefix(sentencepiece_model: bytes) -> None:
    metadata = {
        **spm_metadata(sentencepiece_model),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = build_tokenizer(metadata, PATH)
    assert tokenizer.id_to_token(ids(tokenizer, "Send", special=True)[0]) != "▁"
    for text in TEXTS.values():
        assert tokenizer.decode(ids(tokenizer, text, special=True)) == text


def test_merges_in_the_file_win_over_scores(sentencepiece_model: bytes) -> None:
    metadata = spm_metadata(sentencepiece_model)
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.merges"] = []
    pieces = [tokens[i] for i in ids(build_tokenizer(metadata, PATH), "the report")]
    assert "".join(pieces) == "▁the▁report"
    assert all(len(piece) == 1 for piece in pieces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, r"model\.gguf: tokenizer\.ggml\.tokens is missing"),
        ({"tokens": []}, "tokens holds no token"),
        ({"tokens": "abc"}, "tokens is a str instead of an array"),
        ({"tokens": [1, 2]}, "tokens is not a list of strings"),
        (
            {"token_type": [1, 2, 3]},
            r"token_type has shape \(3,\), but tokenizer\.ggml\.tokens has 1003 entries",
        ),
        ({"merges": None}, "merges is missing"),
        (
            {"merges": ["a b", "qq rr"]},
            "merges entry 1, 'qq rr', names a token that is not in the vocabulary",
        ),
        ({"merges": ["nospace"]}, "merges entry 0, 'nospace', names a token"),
        ({"merges": ["a ÿ"]}, "merges entry 0 makes 'aÿ', which is not in the vocabulary"),
        ({"bos_token_id": 1003}, "bos_token_id is 1003; the vocabulary has 1003 tokens"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"bos_token_id": None, "add_bos_token": True}, "add_bos_token is set, but there is no"),
    ],
)
def test_broken_metadata_is_named(change: dict[str, Any], message: str, byte_level: dict[str, Any]) -> None:
    metadata = dict(byte_level)
    for key, value in change.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(FileFormatError, match=message):
        build_tokenizer(metadata, PATH)


def test_duplicate_token_is_named(byte_level: dict[str, Any]) -> None:
    metadata = dict(byte_level)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "<tool>"]
    with pytest.raises(FileFormatError, match="tokens holds '<tool>' more than once"):
        build_tokenizer(metadata, PATH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, "scores is missing"),
        ({"scores": [0.0]}, r"scores has shape \(1,\)"),
        ({"scores": ["a"] * 700}, "scores is not a list of numbers"),
        ({"scores": [float("nan")] * 700}, "scores holds 700 values that are not finite"),
        ({"tokens": ["x" * 20_000, *map(str, range(699))]}, "tokens holds pieces far longer"),
    ],
)
def test_broken_sentencepiece_metadata_is_named(
    change: dict[str, Any], message: str, sentencepiece_model: bytes
) -> None:
    metadata = spm_metadata(sentencepiece_model)
    for key, value in change.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(FileFormatError, match=message):
        build_tokenizer(metadata, PATH)


def test_unknown_kinds_are_refused_with_the_known_ones(byte_level: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="unknown pre-tokenizer 'deepseek-coder'.*smollm.*qwen2"):
        build_tokenizer(with_pre(byte_level, "deepseek-coder"), PATH)
    with pytest.raises(UnsupportedModelError, match="tokenizer.ggml.model is 'bert'"):
        build_tokenizer({**byte_level, "tokenizer.ggml.model": "bert"}, PATH)
    with pytest.raises(UnsupportedModelError, match="tokenizer.ggml.model is None"):
        build_tokenizer({}, PATH)
