"""Files that do not say how their text was cut: a warning, and the cut that the vocabulary shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecal_weights.errors import EdgecalWarning, UnsupportedModelError
from edgecal_weights.gguf_pre_tokenizers import find_pre_tokenizer, guess_pre_tokenizer
from edgecal_weights.gguf_tokenizer import build_tokenizer
from tests.texts import TEXTS, UNSEEN
from tests.vocabularies import BYTE_LEVEL, llama3_file, llama3_metadata, metadata_of, qwen_file

PATH = Path("folder/model.gguf")
# A thousand tokens do not show that digits were isolated: there may be no number among them.
SHOWN = {"gpt-2": "gpt-2", "llama-bpe": "llama-bpe", "qwen2": "qwen2", "smollm": "gpt-2"}


def unsaid(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The metadata without the name of the cut, and with "default"."""
    without = {key: value for key, value in metadata.items() if key != "tokenizer.ggml.pre"}
    return [without, {**without, "tokenizer.ggml.pre": "default"}]


@pytest.mark.parametrize(("name", "shown"), SHOWN.items())
def test_trained_vocabularies_show_their_cut(name: str, shown: str) -> None:
    metadata = BYTE_LEVEL[name].trained().metadata
    assert guess_pre_tokenizer(metadata["tokenizer.ggml.tokens"]) == shown
    expected = build_tokenizer({**metadata, "tokenizer.ggml.pre": shown}, PATH)
    for given, said in zip(unsaid(metadata), ("is missing", "is 'default'"), strict=True):
        with pytest.warns(EdgecalWarning, match=f"model.gguf: tokenizer.ggml.pre {said}.*'{shown}' fits"):
            ours = build_tokenizer(given, PATH)
        for text in [*TEXTS.values(), *UNSEEN.values()]:
            assert ours.encode(text).ids == expected.encode(text).ids


def test_smollm2_shows_isolated_digits(smollm2_gguf: Path) -> None:
    metadata = metadata_of(smollm2_gguf)
    for given in unsaid(metadata):
        with pytest.warns(EdgecalWarning, match="'smollm' fits its vocabulary best"):
            ours = build_tokenizer(given, PATH)
        assert ours.to_str() == build_tokenizer(metadata, PATH).to_str()


@pytest.mark.parametrize("model", ["qwen2", "llama-bpe"])
def test_real_vocabularies_show_their_cut(model: str) -> None:
    path = qwen_file() if model == "qwen2" else llama3_file()
    if path is None:
        pytest.skip("not beside the project")
    metadata = metadata_of(path) if model == "qwen2" else llama3_metadata(path)
    with pytest.warns(EdgecalWarning, match=f"'{model}' fits its vocabulary best"):
        found = find_pre_tokenizer(unsaid(metadata)[0], metadata["tokenizer.ggml.tokens"], PATH)
    assert found == find_pre_tokenizer({"tokenizer.ggml.pre": model}, [], PATH)


LETTERS = [chr(code) for code in range(97, 123)]
WORDS = [f"Ġ{a}{b}{c}" for a in LETTERS for b in LETTERS for c in LETTERS]  # 17,576: as large as a real vocabulary
DIGITS = [*"0123456789"]


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([], "gpt-2"),
        (WORDS, "gpt-2"),  # no number: nothing tells
        ([*WORDS, *DIGITS], "smollm"),
        ([*DIGITS, *LETTERS], "gpt-2"),  # too small to tell by what is not there
        ([*WORDS, *DIGITS, "Ġ1"], "gpt-2"),
        ([*WORDS, *DIGITS, "2024"], "gpt-2"),
        ([*LETTERS, *DIGITS, ".get", "_x"], "gpt-2"),  # two could be names that someone added
        ([*LETTERS, *DIGITS, ".get", "_x", "(self"], "qwen2"),
        ([*LETTERS, *DIGITS, "10", "100", ".get", "_x", "(self"], "llama-bpe"),
        ([*LETTERS, *DIGITS, "1000", ".get", "_x", "(self"], "gpt-2"),  # nothing that is served
        ([*LETTERS, *DIGITS, "'s", "'re", "'ll", "'ve"], "gpt-2"),  # contractions stand in GPT-2's expression too
    ],
)
def test_what_tells(tokens: list[str], guess: str) -> None:
    assert guess_pre_tokenizer(tokens) == guess


@pytest.mark.parametrize("name", ["nonsense", 3, ["qwen2"], ""])
def test_unknown_names_are_refused(name: object) -> None:
    with pytest.raises(UnsupportedModelError, match="unknown pre-tokenizer.*known are gpt-2.*tekken"):
        find_pre_tokenizer({"tokenizer.ggml.pre": name}, [], PATH)
