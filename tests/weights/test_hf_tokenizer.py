"""Hugging Face directories whose files disagree about tokens, bos and eos, and templates: what transformers 5 makes of
them is what counts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from transformers import AutoTokenizer

from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.errors import FileFormatError, ModelNotFoundError
from edgecal_weights.hf_tokenizer import read_tokenizer, tokenizer_config
from tests.backends import byte_level_backend

MESSAGES = [{"role": "user", "content": "x"}]
NEW = ("<new>", "[PAD]", "<mask>", "<image>")


def write(folder: Path, backend: Backend | None = None, **files: Any) -> Path:
    """A directory; `files` are JSON by name without the ending. tokenizer_config names no class of transformers."""
    folder.mkdir(exist_ok=True)
    (backend or byte_level_backend()).save(str(folder / "tokenizer.json"))
    files.setdefault("config", {"model_type": "llama"})
    files["tokenizer_config"] = {"tokenizer_class": "PreTrainedTokenizerFast", **files.get("tokenizer_config", {})}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def load(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    return Tokenizer(read_tokenizer(folder, vocab_size, "advice"), tokenizer_config(folder))


def record(content: str, **flags: Any) -> dict[str, Any]:
    usual = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, **usual, "special": True, **flags}


def typed(content: str, **flags: Any) -> dict[str, Any]:
    return {"__type": "AddedToken", **record(content, **flags)}


# What the files say -> the ids that "<new>" and "[PAD]" must not fall apart into are transformers'.
NAMES: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": {"602": record("<new>")}}},
    "ordinary token": {"tokenizer_config": {"added_tokens_decoder": {"602": record("<new>", special=False)}}},
    "flags": {"tokenizer_config": {"added_tokens_decoder": {"602": record("<new>", lstrip=True, rstrip=True)}}},
    "single word": {"tokenizer_config": {"added_tokens_decoder": {"602": record("<new>", single_word=True)}}},
    "other ids and order": {
        "tokenizer_config": {"added_tokens_decoder": {"900": record("<new>"), "700": record("[PAD]")}}
    },
    "flags of a known token": {
        "tokenizer_config": {"added_tokens_decoder": {"600": record("<tool>", lstrip=True), "9": record("th")}}
    },
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": ["<new>", typed("[PAD]")]}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": ["<new>", "<|im_end|>", "<tool>"]}},
    "both": {
        "tokenizer_config": {"extra_special_tokens": ["<new>"], "additional_special_tokens": ["[PAD]"]},
    },
    "extra, empty": {"tokenizer_config": {"extra_special_tokens": [], "additional_special_tokens": ["[PAD]"]}},
    "names of its own": {
        "tokenizer_config": {"extra_special_tokens": {"image_token": "<image>", "boi_token": "<new>"}}
    },
    "key of its own": {"tokenizer_config": {"image_token": "<image>"}},
    "new pad_token": {"tokenizer_config": {"pad_token": "[PAD]"}},
    "new tokens in one order": {
        "tokenizer_config": {"mask_token": "<mask>", "pad_token": "[PAD]", "bos_token": "<new>"}
    },
    "pad_token as a record": {"tokenizer_config": {"pad_token": typed("[PAD]", lstrip=True)}},
    "known tokens": {"tokenizer_config": {"pad_token": "<|im_end|>", "eos_token": "</s>", "unk_token": None}},
    "a piece of text": {"tokenizer_config": {"eos_token": "th"}},
    "a token that is added but not special": {"tokenizer_config": {"eos_token": "<tool>"}},
    "special_tokens_map": {"special_tokens_map": {"pad_token": record("[PAD]", lstrip=True), "bos_token": "<s>"}},
    "special_tokens_map over tokenizer_config": {
        "tokenizer_config": {"pad_token": "<mask>"},
        "special_tokens_map": {"pad_token": "[PAD]"},
    },
    "special_tokens_map beside added_tokens_decoder": {
        "tokenizer_config": {"added_tokens_decoder": {"602": record("<new>")}, "pad_token": "<mask>"},
        "special_tokens_map": {"pad_token": "[PAD]", "additional_special_tokens": ["<image>"]},
    },
    "added_tokens": {"added_tokens": {"<new>": 602, "[PAD]": 603}},
    "added_tokens with names": {
        "added_tokens": {"<new>": 603, "[PAD]": 602},
        "tokenizer_config": {"pad_token": "[PAD]"},
    },
    "added_tokens that tokenizer.json has": {"added_tokens": {"<tool>": 600, "<s>": 0}},
    "added_tokens beside added_tokens_decoder": {
        "added_tokens": {"<new>": 602},
        "tokenizer_config": {"added_tokens_decoder": {"602": record("[PAD]")}},
    },
    "nothing": {},
}


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_only_the_files_beside_it_name(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", **NAMES[name])
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    words = (*NEW, "<tool>", "<|im_end|>", "</s>", "th")
    for text in [*words, "".join(words), "a " + " b  ".join(words) + " c", *(f"x{word}y" for word in words)]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text
    assert ours.named_tokens == {key: str(token) for key, token in theirs.special_tokens_map.items()}
    assert ours.vocab_size == len(theirs)


def test_names_reach_templates_as_in_transformers(tmp_path: Path) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ messages[0].content }}"
    named = {"eos_token": "<|im_end|>", "image_token": "<image>", "bos_token": None, "chat_template": template}
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 7}
    folder = write(tmp_path / "model", tokenizer_config=named, config=config)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=False)
    assert load(folder).apply_chat_template(MESSAGES) == theirs


@pytest.mark.parametrize(("vocab_size", "known"), [(None, 2), (604, 2), (603, 1), (602, 0), (300, 0)])
def test_a_token_for_which_the_model_has_no_row_is_left_out(vocab_size: int | None, known: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer_config={"bos_token": "<new>", "pad_token": "[PAD]"})
    ours = load(folder, vocab_size)
    assert [len(ours.encode(token)) == 1 for token in ("<new>", "[PAD]")] == [i < known for i in range(2)]
    assert vocab_size in (None, 300) or max(ours.encode("<new>[PAD]<tool>")) < vocab_size


# ------------------------------------------------------------------------------------------- around a raw text

BOS, EOS = ("<s>", 0), ("</s>", 1)
POST_PROCESSORS: dict[str, Any] = {
    "none": lambda: None,
    "byte level": lambda: processors.ByteLevel(trim_offsets=False),
    "bos": lambda: processors.TemplateProcessing(single="<s> $A", special_tokens=[BOS]),
    "eos": lambda: processors.TemplateProcessing(single="$A </s>", special_tokens=[EOS]),
    "bos and eos": lambda: processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[BOS, EOS]),
    "sequence": lambda: processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[BOS]),
        ]
    ),
    "bert": lambda: processors.BertProcessing(EOS, BOS),
}
ABSENT = object()
ADD_BOS, ADD_EOS, NAMED = (ABSENT, None, False, True), (ABSENT, False, True), (False, True)
COMBINATIONS = list(itertools.product(POST_PROCESSORS, ADD_BOS, ADD_EOS, NAMED))


def test_add_bos_and_add_eos_mean_nothing_beside_a_tokenizer_json(tmp_path: Path) -> None:
    assert len(COMBINATIONS) == 168
    told = 0
    for number, (processor, add_bos, add_eos, named) in enumerate(COMBINATIONS):
        backend = byte_level_backend()
        made = POST_PROCESSORS[processor]()
        if made is not None:
            backend.post_processor = made
        config = {"add_bos_token": add_bos, "add_eos_token": add_eos}
        config |= {"bos_token": "<s>", "eos_token": "</s>"} if named else {}
        given = {key: value for key, value in config.items() if value is not ABSENT}
        folder = write(tmp_path / str(number), backend, tokenizer_config=given)
        ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
        plain, around = (theirs.encode("Hello", add_special_tokens=special) for special in (False, True))
        assert ours.encode("Hello") == plain, (processor, given)
        assert ours.encode("Hello", add_special_tokens=True) == around, (processor, given)
        told += plain != around
    assert told == 5 * 24, "all but two of the processors add something, whatever the flags say"


# --------------------------------------------------------------------------------------------------- templates

NAMED_TEMPLATES = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
PLACES: dict[str, dict[str, Any]] = {
    "one": {"inline": "I"},
    "list": {"inline": NAMED_TEMPLATES},
    "list without default": {"inline": [*NAMED_TEMPLATES[1:], {"name": "rag", "template": "R"}]},
    "object": {"inline": {"default": "D", "rag": "R"}},
    "file": {"file": "F", "inline": NAMED_TEMPLATES},
    "file and others": {"file": "F", "others": {"tool_use": "T", "rag": "R"}},
    "others over the list": {"others": {"tool_use": "T2", "rag": "R"}, "inline": NAMED_TEMPLATES},
    "file and others over the list": {"file": "F", "others": {"tool_use": "T2"}, "inline": NAMED_TEMPLATES},
    "a name with a dot": {"file": "F", "others": {"v1.5": "V"}},
}


@pytest.mark.parametrize("place", PLACES)
def test_several_templates_as_in_transformers(place: str, tmp_path: Path) -> None:
    given = PLACES[place]
    config = {"chat_template": given["inline"]} if "inline" in given else {}
    folder = write(tmp_path / "model", tokenizer_config=config)
    if "file" in given:
        (folder / "chat_template.jinja").write_text(given["file"])
    for name, text in given.get("others", {}).items():
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    names = sorted(theirs.chat_template) if isinstance(theirs.chat_template, dict) else ["default"]
    assert ours.template_names == names
    for tools in (None, [], [{"type": "function", "function": {"name": "f"}}]):
        if "default" in names or (tools is not None and "tool_use" in names):
            expected = theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False)
            assert ours.apply_chat_template(MESSAGES, tools=tools) == expected
    for name in names:
        assert ours.apply_chat_template(MESSAGES, template=name) == theirs.get_chat_template(
            name if isinstance(theirs.chat_template, dict) else None
        )


def test_chat_template_json_is_the_last_place(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", chat_template={"chat_template": "J"})
    assert tokenizer_config(folder)["chat_template"] == "J"
    (folder / "chat_template.jinja").write_text("F")
    assert tokenizer_config(folder)["chat_template"] == "F"


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder is \\[\\], expected an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": record("a")}}}, "expected an object from id to token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": 5}}}, r"added_tokens_decoder\[1\] is 5, expected"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": {"content": 5}}}}, r"added_tokens_decoder\[1\]"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": record("a", lstrip="x")}}}, r"added_tokens_decoder\[1\]"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": {}}}}, r"added_tokens_decoder\[1\]"),
        ({"tokenizer_config": {"pad_token": 5}}, "pad_token is 5, expected a string or the record of a token"),
        ({"tokenizer_config": {"pad_token": ["a"]}}, "pad_token is \\['a'\\]"),
        ({"tokenizer_config": {"pad_token": "\ud800"}}, "pad_token is '.ud800'"),
        ({"tokenizer_config": {"extra_special_tokens": "<a>"}}, "extra_special_tokens is '<a>', expected a list"),
        ({"tokenizer_config": {"additional_special_tokens": [1]}}, "additional_special_tokens is 1"),
        ({"special_tokens_map": {"pad_token": 5}}, "pad_token is 5"),
        ({"added_tokens": {"<a>": "5"}}, "added_tokens.json: '<a>' has the id '5', expected a token id"),
        ({"added_tokens": {"<a>": -1}}, "added_tokens.json: '<a>' has the id -1"),
    ],
)
def test_nonsense_is_named(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(write(tmp_path / "model", **files))


def test_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="tokenizer.json cannot be read: No such file or directory; advice"):
        load(tmp_path)
