"""SentencePiece tokenizers rebuilt from GGUF metadata: sentencepiece's own ids for every stretch of text.

So llama.cpp defines it: the text is cut at control and user-defined tokens, and each stretch is tokenized as if it
stood alone, space in front included. What transformers makes of the same files is compared where it agrees with that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from edgecal_weights.errors import FileFormatError
from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.gguf_tokenizer import build_tokenizer
from tests.texts import DECOMPOSED, TEXTS, UNSEEN
from tests.vocabularies import gemma_metadata, gemma_model, sentencepiece_model, tinyllama_metadata, write_gguf

PATH = Path("model.gguf")
PARTS = ["a", "b", " ", "  ", "\n", "\t", "the", " the", "▁", "é", "世", "12", "aa", "--", "</s>", "<s>", "<tool>"]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return tinyllama_metadata(sentencepiece_model())


@pytest.fixture(scope="module")
def ours(metadata: dict[str, Any]) -> Tokenizer:
    return build_tokenizer(metadata, PATH)


@pytest.fixture(scope="module")
def original() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


def ids(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=special).ids


def by_stretches(original: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """llama.cpp's rule in terms of sentencepiece, which puts its space in front of every text it is given."""
    found: list[int] = []
    for stretch in re.split(r"(<s>|</s>|<unk>|<tool>)", text):
        named = re.fullmatch(r"<.*>", stretch)
        found += [original.piece_to_id(stretch)] if named else original.encode(stretch)
    return found


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (" hello", ["▁▁", "he", "ll", "o"]),
        ("  hello", ["▁▁", "▁he", "ll", "o"]),
        ("a</s>\nb", ["▁a", "</s>", "▁", "<0x0A>", "b"]),
        ("a</s>b", ["▁a", "</s>", "▁b"]),
        ("a</s> b", ["▁a", "</s>", "▁▁", "b"]),
        ("<s> a", ["<s>", "▁▁", "a"]),
        ("<tool>a", ["<tool>", "▁a"]),
        ("", []),
        (" ", ["▁▁"]),
    ],
)
def test_a_space_in_front_of_every_stretch(
    text: str, pieces: list[str], ours: Tokenizer, original: sentencepiece.SentencePieceProcessor
) -> None:
    assert ours.encode(text, add_special_tokens=False).tokens == pieces
    assert ids(ours, text) == by_stretches(original, text)


@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join))
@settings(max_examples=400, deadline=None)
def test_equals_sentencepiece_whatever_the_white_space(
    ours: Tokenizer, original: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert ids(ours, text) == by_stretches(original, text)


def test_equals_sentencepiece_and_transformers(
    metadata: dict[str, Any], original: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", metadata)
    with GGUFFile(path) as file:
        ours = build_tokenizer(file.metadata, path)
    converted = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    special = {"special": "a</s> b<s>c <tool> d", "decomposed": DECOMPOSED}
    differs = set()
    for name, text in {**TEXTS, **UNSEEN, **special}.items():
        found = ids(ours, text)
        assert found == by_stretches(original, text), name
        if found != converted(text, add_special_tokens=False).input_ids:
            differs.add(name)
        for skip in (False, True):
            assert ours.decode(found, skip_special_tokens=skip) == converted.decode(found, skip_special_tokens=skip)
        if name not in ("special", "metaspace"):  # a "▁" that was written is a space afterwards
            assert ours.decode(found) == text, name
    # transformers puts its space before the first stretch only, and none if that begins with one or with "▁".
    assert differs == {"special", "leading space", "only spaces"}
    assert ids(ours, "x", special=True)[0] == 1, "SentencePiece models begin with BOS unless the file says no"


def test_without_space_prefix(metadata: dict[str, Any]) -> None:
    more = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer = build_tokenizer({**metadata, **more}, PATH)
    assert tokenizer.id_to_token(ids(tokenizer, "Send", special=True)[0]) != "▁"
    for text in TEXTS.values():
        assert tokenizer.decode(ids(tokenizer, text, special=True)) == text


def test_gemma_equals_sentencepiece_and_transformers(tmp_path: Path) -> None:
    metadata = gemma_metadata(gemma_model())
    path = write_gguf(tmp_path / "model.gguf", "gemma3", metadata)
    with GGUFFile(path) as file:
        ours = build_tokenizer(file.metadata, path)
    converted = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    original = sentencepiece.SentencePieceProcessor(model_proto=gemma_model())
    turns = "<start_of_turn>user\nHi  there<end_of_turn>\n<start_of_turn>model\n"
    for name, text in {**TEXTS, **UNSEEN, "turns": turns}.items():
        found = ids(ours, text, special=True)
        if name != "metaspace":  # "▁▁" as it is written is a token of its own in Gemma's tokenizer.json
            assert found == converted(text).input_ids, name
        assert ours.decode(found) == converted.decode(found, skip_special_tokens=True)
        # Runs longer than the longest token are cut in halves by merging, and into longest tokens by sentencepiece.
        if name not in ("turns", "whitespace", "metaspace"):
            assert found == [2, *original.encode(text)], name
    first = ours.encode(turns, add_special_tokens=True).tokens
    assert first[:2] == ["<bos>", "<start_of_turn>"] and "▁▁" in first
    assert ours.decode(ids(ours, turns)) == "user\nHi  there\nmodel\n"


def test_gemma_files_from_before_the_spaces_were_respelled() -> None:
    metadata = gemma_metadata(gemma_model())
    old = {**metadata, "tokenizer.ggml.tokens": [t.replace(" ", "▁") for t in metadata["tokenizer.ggml.tokens"]]}
    for text in [*TEXTS.values(), "a    b"]:
        assert ids(build_tokenizer(old, PATH), text) == ids(build_tokenizer(metadata, PATH), text)


def test_merges_in_the_file_win_over_scores(metadata: dict[str, Any]) -> None:
    tokenizer = build_tokenizer({**metadata, "tokenizer.ggml.merges": []}, PATH)
    pieces = tokenizer.encode("the report", add_special_tokens=False).tokens
    assert "".join(pieces) == "▁the▁report"
    assert all(len(piece) == 1 for piece in pieces)


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
def test_broken_metadata_is_named(change: dict[str, Any], message: str, metadata: dict[str, Any]) -> None:
    broken = {**metadata, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
    with pytest.raises(FileFormatError, match=message):
        build_tokenizer(broken, PATH)
