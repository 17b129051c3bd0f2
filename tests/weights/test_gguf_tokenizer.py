"""Byte-level tokenizers rebuilt from GGUF metadata against transformers' conversion of the same files, and against the
truth; and what is refused.

The truth is the model's own pipeline where transformers' conversion departs from it: SmolLM's isolated digits, Qwen's
NFC, Llama 3's ignore_merges. Besides the real SmolLM2 the files are small ones written here, with vocabularies trained
on the texts themselves, so that merges of every script occur.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, Qwen2Tokenizer

from edgecal_weights.errors import EdgecalWarning, FileFormatError, UnsupportedModelError
from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.gguf_tokenizer import build_tokenizer
from tests.texts import DECOMPOSED, TEXTS
from tests.vocabularies import BYTE_LEVEL, CONTROL, NORMAL, USER_DEFINED, ByteLevel, write_gguf

PATH = Path("model.gguf")
CHAT = "<|im_start|>user\nhi  there<|im_end|>\n<|im_start|>assistant\n<tool>7</tool><|endoftext|> tail"


def ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=special).ids


@pytest.fixture(scope="module")
def byte_level() -> dict[str, Any]:
    """Metadata of a small byte-level vocabulary, as llama.cpp's converter writes it."""
    return BYTE_LEVEL["gpt-2"].trained().metadata


def with_pre(metadata: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    return {**metadata, "tokenizer.ggml.pre": name, **{f"tokenizer.ggml.{k}": v for k, v in more.items()}}


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
    [("qwen2", "qwen2"), ("llama-bpe", "llama"), ("tekken", "llama"), ("default", "llama"), (None, "llama")],
)
def test_written_files_equal_transformers(
    pre: str | None, architecture: str, byte_level: dict[str, Any], tmp_path: Path
) -> None:
    metadata = {key: value for key, value in byte_level.items() if pre is not None or key != "tokenizer.ggml.pre"}
    path = write_gguf(tmp_path / "model.gguf", architecture, metadata if pre is None else with_pre(metadata, pre))
    with GGUFFile(path) as file, pytest.warns(EdgecalWarning) if pre in (None, "default") else nullcontext():
        ours = build_tokenizer(file.metadata, path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for name, text in {**TEXTS, "chat": CHAT}.items():
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ids(ours, text) == expected, name
        assert ours.decode(expected, skip_special_tokens=True) == theirs.decode(expected, skip_special_tokens=True)


def saved(kind: ByteLevel, metadata: dict[str, Any], folder: Path) -> Tokenizer:
    """The tokenizer.json that describes the vocabulary with this pipeline."""
    kind.save(metadata, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


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
def test_llama3_is_the_models_own_pipeline(name: str, byte_level: dict[str, Any], tmp_path: Path) -> None:
    metadata = with_pre(byte_level, name)
    # A whole word of the vocabulary that no merge builds: found only when merges are not asked first.
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "ĠVisitors"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], NORMAL]
    ours = build_tokenizer(metadata, PATH)
    theirs = saved(BYTE_LEVEL["llama-bpe"], metadata, tmp_path)
    for text in [*TEXTS.values(), CHAT, DECOMPOSED, "two Visitors"]:
        assert ids(ours, text) == ids(theirs, text)
    assert ids(ours, "two Visitors")[-1] == len(metadata["tokenizer.ggml.tokens"]) - 1
    bos = metadata["tokenizer.ggml.bos_token_id"]
    assert ids(ours, "x", special=True) == [bos, *ids(ours, "x")], "Llama 3 starts every text, the file need not say"


@pytest.mark.parametrize("name", ["smollm", "starcoder", "refact"])
def test_digits_are_isolated(name: str, byte_level: dict[str, Any], tmp_path: Path) -> None:
    ours = build_tokenizer(with_pre(byte_level, name), PATH)
    theirs = saved(BYTE_LEVEL["smollm"], byte_level, tmp_path)
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
        "tokenizer.ggml.pre": "gpt-2",
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, r"model\.gguf: tokenizer\.ggml\.tokens is missing"),
        ({"tokens": []}, "tokens holds no token"),
        ({"tokens": "abc"}, "tokens is a text instead of an array"),
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
        ({"eos_token_id": "2"}, "eos_token_id is '2', expected a token's number"),
        ({"bos_token_id": 2.0}, "bos_token_id is 2.0"),
        ({"padding_token_id": True}, "padding_token_id is True"),
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


def test_unknown_kinds_are_refused_with_the_known_ones(byte_level: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="unknown pre-tokenizer 'deepseek-coder'.*smollm.*qwen2"):
        build_tokenizer(with_pre(byte_level, "deepseek-coder"), PATH)
    with pytest.raises(UnsupportedModelError, match="tokenizer.ggml.model is 'bert'"):
        build_tokenizer({**byte_level, "tokenizer.ggml.model": "bert"}, PATH)
    with pytest.raises(UnsupportedModelError, match="tokenizer.ggml.model is None"):
        build_tokenizer({}, PATH)
