"""The same ids as transformers, for every kind of vocabulary, from the Hugging Face directory and from the GGUF of it.

The texts: ten and more languages, code, emoji, white space, special tokens in every place; real dialogues and
translations where they lie beside the project.
"""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, TokenizersBackend

from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.gguf_special_tokens import SpecialTokens
from edgecal_weights.gguf_tokenizer import build_tokenizer
from edgecal_weights.hf_tokenizer import read_tokenizer, tokenizer_config
from tests.texts import DECOMPOSED, TEXTS, UNSEEN, real_lines
from tests.vocabularies import (
    BYTE_LEVEL,
    GEMMA_TURNS,
    Vocabulary,
    gemma_metadata,
    gemma_model,
    llama3_file,
    llama3_metadata,
    metadata_of,
    qwen_file,
    save_gemma,
    save_llama5,
    save_qwen2,
    save_tinyllama,
    sentencepiece_model,
    tinyllama_metadata,
)


def tinyllama() -> Vocabulary:
    model = sentencepiece_model()
    return Vocabulary(tinyllama_metadata(model), lambda path: save_tinyllama(model, path), ("<s>", "</s>", "<tool>"))


def gemma() -> Vocabulary:
    model = gemma_model()
    marks = ("<bos>", "<eos>", *GEMMA_TURNS, "<table>", "\n\n\n")
    return Vocabulary(gemma_metadata(model), lambda path: save_gemma(model, path), marks, "gemma3_text")


def qwen25() -> Vocabulary:
    path = qwen_file()
    if path is None:
        pytest.skip("no GGUF of Qwen2.5 beside the project")
    metadata = metadata_of(path)
    marks = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>")
    return Vocabulary(metadata, lambda directory: save_qwen2(metadata, directory), marks, "qwen2")


def llama3() -> Vocabulary:
    path = llama3_file()
    if path is None:
        pytest.skip("no tokenizer.json of Llama 3 beside the project")
    marks = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return Vocabulary(llama3_metadata(path), lambda directory: shutil.copy(path, directory), marks)


KINDS = {
    "tinyllama": tinyllama,
    "gemma": gemma,
    "qwen2.5": qwen25,
    "llama 3": llama3,
    **{name: kind.trained for name, kind in BYTE_LEVEL.items()},
}


@lru_cache
def texts(marks: tuple[str, ...]) -> list[str]:
    first, last = marks[0], marks[-1]
    shapes = [f"{a}{mark}{b}" for mark in marks for a in ("", "x", " ", "\n") for b in ("", "y", " y", "\n", "  \n y")]
    turns = "".join(f"{mark}user\nHi  there, it's 12:30{last}\n" for mark in marks)
    mixed = [f"{first}{text}{last}\n{text}" for text in TEXTS.values()]
    return [*TEXTS.values(), *UNSEEN.values(), DECOMPOSED, *shapes, turns, *mixed, *real_lines()]


@pytest.fixture(scope="module", params=[*KINDS, "smollm2"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    if request.param != "smollm2":
        return KINDS[request.param]()
    metadata = metadata_of(request.getfixturevalue("smollm2_gguf"))
    return BYTE_LEVEL["smollm"].of(metadata, ("<|im_start|>", "<|im_end|>", "<repo_name>"))


@pytest.fixture(scope="module")
def directory(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabulary.directory(tmp_path_factory.mktemp("model") / "hf")


def from_directory(path: Path) -> Tokenizer:
    return Tokenizer(read_tokenizer(path, None, ""), tokenizer_config(path))


def from_metadata(vocabulary: Vocabulary) -> Tokenizer:
    path = Path("model.gguf")
    return Tokenizer(build_tokenizer(vocabulary.metadata, path), SpecialTokens(vocabulary.metadata, path).config())


def check(ours: Tokenizer, theirs: object, some: list[str]) -> None:
    for text in some:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, special) == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


def test_directory_equals_transformers(vocabulary: Vocabulary, directory: Path) -> None:
    check(from_directory(directory), AutoTokenizer.from_pretrained(directory), texts(vocabulary.marks))


def test_gguf_equals_transformers_on_the_directory(vocabulary: Vocabulary, directory: Path) -> None:
    check(from_metadata(vocabulary), AutoTokenizer.from_pretrained(directory), texts(vocabulary.marks))


@pytest.fixture(scope="module", params=["tinyllama", "gemma"])
def sentencepieces(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Tokenizer], object, list[str]]:
    """Both of ours, transformers', and what to make texts of."""
    vocabulary = KINDS[request.param]()
    path = vocabulary.directory(tmp_path_factory.mktemp(request.param) / "hf")
    parts = [" ", "  ", "   ", "\n", "\n\n", "\t", "a", "the", " the", "▁", "é", "12", " " * 31, *vocabulary.marks]
    return [from_directory(path), from_metadata(vocabulary)], AutoTokenizer.from_pretrained(path), parts


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_white_space_in_sentencepiece_from_both_files(
    sentencepieces: tuple[list[Tokenizer], object, list[str]], data: st.DataObject
) -> None:
    ours, theirs, parts = sentencepieces
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=12)))
    for tokenizer in ours:
        check(tokenizer, theirs, [text])


def test_directory_that_transformers_5_wrote_for_a_sentencepiece_model(tmp_path: Path) -> None:
    """Its LlamaTokenizer puts a space at the start of a text only, and so does the tokenizer.json that it writes."""
    model = sentencepiece_model()
    vocabulary = Vocabulary({}, lambda path: save_llama5(model, path), ("<s>", "</s>", "<tool>"))
    path = vocabulary.directory(tmp_path / "hf")
    check(from_directory(path), AutoTokenizer.from_pretrained(path), texts(vocabulary.marks))


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None])
def test_the_file_counts_not_the_name_of_a_class(name: str | None, tmp_path: Path) -> None:
    """Given "LlamaTokenizer", transformers 5 throws away what TinyLlama's tokenizer.json says about spaces."""
    path = tinyllama().directory(tmp_path / "hf")
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = name
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    check(from_directory(path), TokenizersBackend.from_pretrained(path), texts(("<s>", "</s>", "<tool>")))
