"""Ids in a GGUF that mean a token, ids that mean nothing, and the chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.errors import FileFormatError
from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.gguf_special_tokens import SpecialTokens
from edgecal_weights.gguf_tokenizer import build_tokenizer
from tests.backends import byte_level_backend
from tests.vocabularies import (
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    gguf_keys,
    sentencepiece_model,
    tinyllama_metadata,
)

PATH = Path("model.gguf")
KEYS = ("bos", "eos", "unknown", "padding")


@pytest.fixture(scope="module")
def byte_level() -> dict[str, Any]:
    return BYTE_LEVEL["qwen2"].trained().metadata


def with_ids(metadata: dict[str, Any], **ids: Any) -> dict[str, Any]:
    return {**metadata, **gguf_keys(**{f"{key}_token_id": value for key, value in ids.items()})}


def load(metadata: dict[str, Any]) -> Tokenizer:
    special = SpecialTokens(metadata, PATH)
    ends = {"eos_token_id": special.ends()}
    config = {"eos_token_id": metadata.get("tokenizer.ggml.eos_token_id")}
    return Tokenizer(build_tokenizer(metadata, PATH), special.config(), config, ends)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("index", [0, 1, 2, 40])
def test_an_ordinary_token_stays_one(key: str, index: int, byte_level: dict[str, Any]) -> None:
    """0, 1 and 2 are `!`, `"` and `#`: ids that converters copy from config.json's defaults."""
    none = dict.fromkeys(KEYS)
    tokenizer = load(with_ids(byte_level, **none | {key: index}))
    text = tokenizer.backend.id_to_token(index)
    assert tokenizer.decode([index]) == text, "it does not vanish from answers"
    assert tokenizer.named_tokens == {}, "and stands in front of no conversation"
    assert index not in tokenizer.eos_ids, "and ends nothing"
    assert tokenizer.encode(f"a{text}b", add_special_tokens=True) == tokenizer.encode(f"a{text}b")


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, UNKNOWN, NORMAL, None])
@pytest.mark.parametrize("text", ["<|im_end|>", "</s>", "[PAD]", "<｜end▁of▁sentence｜>", "<eos>"])
def test_a_token_that_is_marked_or_looks_like_one_counts(
    kind: int | None, text: str, byte_level: dict[str, Any]
) -> None:
    tokens = [*byte_level["tokenizer.ggml.tokens"], text]
    if text in byte_level["tokenizer.ggml.tokens"]:
        tokens = [token if token != text else f"other {text}" for token in tokens[:-1]] + [text]
    metadata = {**byte_level, "tokenizer.ggml.tokens": tokens}
    metadata["tokenizer.ggml.token_type"] = [*byte_level["tokenizer.ggml.token_type"], kind]
    if kind is None:
        del metadata["tokenizer.ggml.token_type"]
    tokenizer = load(with_ids(metadata, eos=len(tokens) - 1, bos=None))
    assert tokenizer.named_tokens == {"eos_token": text}
    assert len(tokens) - 1 in tokenizer.eos_ids
    assert tokenizer.encode(f"a{text}") == [*tokenizer.encode("a"), len(tokens) - 1]


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, UNKNOWN])
def test_a_marked_token_may_look_like_anything(kind: int, byte_level: dict[str, Any]) -> None:
    types = [kind if i == 40 else t for i, t in enumerate(byte_level["tokenizer.ggml.token_type"])]
    metadata = with_ids({**byte_level, "tokenizer.ggml.token_type": types}, eos=40)
    assert 40 in load(metadata).eos_ids


@pytest.mark.parametrize("value", [-1, 0xFFFFFFFF, 1003, np.int32(-1), np.uint32(1 << 31)])
@pytest.mark.parametrize("key", KEYS)
def test_an_id_without_a_token_is_none(key: str, value: Any, byte_level: dict[str, Any]) -> None:
    none = dict.fromkeys(KEYS)
    special = SpecialTokens(with_ids(byte_level, **none | {key: value}), PATH)
    assert special.token_id(key) is None
    assert special.config() == {}


@pytest.mark.parametrize("value", ["2", 2.0, True, [2]])
def test_an_id_that_is_no_number_is_named(value: Any, byte_level: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match="model.gguf: tokenizer.ggml.eos_token_id is .*expected a token's number"):
        SpecialTokens(with_ids(byte_level, eos=value), PATH)


@pytest.mark.parametrize("value", [None, -1, 5000])
def test_sentencepiece_has_usual_ids(value: Any) -> None:
    """As in llama.cpp: <unk>, <s> and </s> are 0, 1 and 2 where the file names none, or none that there is."""
    metadata = with_ids(tinyllama_metadata(sentencepiece_model()), bos=value, eos=value, unknown=value)
    special = SpecialTokens(metadata, PATH)
    assert special.config() == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert special.ends() == [2]
    assert build_tokenizer(metadata, PATH).encode("a").tokens == ["<s>", "▁a"]


@pytest.mark.parametrize(("wanted", "added"), [(None, False), (False, False), (True, True)])
def test_what_looks_ordinary_is_added_only_when_asked(
    wanted: bool | None, added: bool, byte_level: dict[str, Any]
) -> None:
    """Llama 3 begins every text with BOS, the file need not say so; it must if BOS is `"`."""
    metadata = with_ids({**byte_level, "tokenizer.ggml.pre": "llama-bpe"}, bos=1)
    metadata |= {} if wanted is None else {"tokenizer.ggml.add_bos_token": wanted}
    ids = build_tokenizer(metadata, PATH).encode("a").ids
    assert (ids[0] == 1) == added


def test_ends_of_turns(byte_level: dict[str, Any]) -> None:
    tokens = byte_level["tokenizer.ggml.tokens"]
    end, endoftext, plain = tokens.index("<|im_end|>"), tokens.index("<|endoftext|>"), 40
    assert SpecialTokens(with_ids(byte_level, eos=endoftext), PATH).ends() == [endoftext, end]
    assert SpecialTokens(with_ids(byte_level, eos=1), PATH).ends() == [end]
    # Nobody copies an end of turn from config.json, so one that the file names is meant, whatever it looks like.
    assert SpecialTokens(with_ids(byte_level, eos=endoftext, eot=plain), PATH).ends() == [endoftext, plain]
    assert SpecialTokens(with_ids(byte_level, eos=1, eot=-1, eom=plain), PATH).ends() == [plain, end]


TEMPLATES = [
    {"name": "default", "template": "D"},
    {"name": "tool_use", "template": "T"},
    {"name": "rag", "template": "R"},
]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("one", {"default": "one"}),
        (TEMPLATES, {"default": "D", "tool_use": "T", "rag": "R"}),
        (TEMPLATES[1:], {"tool_use": "T", "rag": "R"}),
        (TEMPLATES[1:2], {"default": "T"}),  # the only one there is
    ],
    ids=["none", "one", "several", "no default", "only one"],
)
def test_chat_templates_that_gguf_writes(given: Any, expected: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_token_list(["a"])
    if given is not None:
        writer.add_chat_template(given)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile(path) as file:
        config = SpecialTokens(file.metadata, path).config()
    tokenizer = Tokenizer(byte_level_backend(), config)
    assert {name: tokenizer.apply_chat_template([], template=name) for name in tokenizer.template_names} == expected


def test_tool_use_is_taken_when_there_are_tools(byte_level: dict[str, Any]) -> None:
    templates = {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"}
    tokenizer = load({**byte_level, **templates})
    assert tokenizer.apply_chat_template([]) == "D"
    assert tokenizer.apply_chat_template([], tools=[{"type": "function"}]) == "T"


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.rag"])
def test_a_template_that_is_no_text_is_named(key: str, byte_level: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match="the chat template '(default|rag)' is 3, expected text"):
        SpecialTokens({**byte_level, key: 3}, PATH).config()
