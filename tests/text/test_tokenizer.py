"""Text to ids and back as transformers does it, and the conventions about special tokens around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

from edgecal.errors import FileFormatError, PromptError
from edgecal.text.tokenizer import Tokenizer
from tests.backends import byte_level_backend, from_directory
from tests.texts import TEXTS

CONVERSATION = [
    {"role": "system", "content": "Answer politely."},
    {"role": "user", "content": "Grüße <b>&</b> 'x' \"y\" 👍🏽\n\n  two lines  "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "{{ not a template }} {% raw %}"},
]


def test_encode_and_decode_equal_transformers(smollm2_hf: Path) -> None:
    tokenizer = from_directory(smollm2_hf)
    theirs = AutoTokenizer.from_pretrained(smollm2_hf)
    for text in [*TEXTS.values(), "<|im_start|>user\nhi<|im_end|>"]:
        for special in (False, True):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
        for skip in (False, True):
            assert tokenizer.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert tokenizer.eos_ids == {2}
    assert tokenizer.bos_id == 1
    assert tokenizer.vocab_size == 49152
    conversation = CONVERSATION[:3]
    for start in (False, True):
        prompt = theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=start)
        assert tokenizer.apply_chat_template(conversation, start) == prompt
        expected = theirs.apply_chat_template(conversation, add_generation_prompt=start)["input_ids"]
        assert tokenizer.encode_chat(conversation, start) == expected


@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}], ids=str
)
def test_only_the_post_processor_says_what_is_put_around_a_text(flags: dict[str, Any]) -> None:
    options = {"bos_token": "<s>", "eos_token": "</s>", **flags}
    plain = Tokenizer(byte_level_backend(), options)
    assert plain.encode("Hello", add_special_tokens=True) == plain.encode("Hello")
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert Tokenizer(backend, options).encode("Hello", add_special_tokens=True) == [0, *plain.encode("Hello")]


def test_beginning_of_text_is_not_doubled_in_a_conversation() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    options = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "chat_template": template}
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = Tokenizer(backend, options)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert ids == [0, *tokenizer.encode("Hi"), 1]
    assert tokenizer.encode("Hi", add_special_tokens=True) == [0, *tokenizer.encode("Hi")]


def test_truncation_and_padding_of_the_file_do_not_apply() -> None:
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    assert Tokenizer(backend).decode(Tokenizer(backend).encode(TEXTS["german"])) == TEXTS["german"]
    assert len(Tokenizer(backend).encode("x")) == 1


@pytest.mark.parametrize(
    ("generation", "config", "options", "expected"),
    [
        ({"eos_token_id": [2, 3]}, {"eos_token_id": 1}, {}, {1, 2, 3}),
        ({}, {"eos_token_id": [1]}, {}, {1}),
        (None, None, {"eos_token": "<|im_end|>"}, {3}),
        ({"eos_token_id": 1}, {"eos_token_id": None}, {"eos_token": {"content": "<|im_end|>"}}, {1, 3}),
        (None, None, {"eos_token": "not in the vocabulary"}, set()),
        (None, None, None, set()),
        ({"eos_token_id": -1}, {"eos_token_id": -1}, {}, set()),
        ({"eos_token_id": [3, -1]}, {"eos_token_id": [-1, 1]}, {}, {1, 3}),
        ({}, {"eos_token_id": 9000}, {}, {9000}),  # a row of the model that stands for no text
    ],
)
def test_end_of_generation_from_every_place(generation: Any, config: Any, options: Any, expected: set[int]) -> None:
    assert Tokenizer(byte_level_backend(), options, config, generation).eos_ids == expected


ORDINARY = 40  # a letter in the vocabulary of byte_level_backend


@pytest.mark.parametrize("index", [ORDINARY, [ORDINARY], [ORDINARY, 3]])
@pytest.mark.parametrize("place", ["config", "generation_config", "both"])
@pytest.mark.parametrize("options", [{}, {"eos_token": "<|im_end|>"}, {"eos_token": None, "bos_token": None}], ids=str)
def test_ids_of_config_json_that_are_ordinary_text_mean_nothing(
    index: Any, place: str, options: dict[str, Any]
) -> None:
    """LlamaConfig's defaults, 1 and 2, are `"` and `#` in a byte-level vocabulary."""
    config = {f"{name}_token_id": index for name in ("bos", "eos", "pad")}
    generation = {**config, "_from_model_config": True}  # as transformers marks what it copied
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ messages[0].content }}"
    tokenizer = Tokenizer(
        byte_level_backend(),
        {**options, "chat_template": template},
        config if place != "generation_config" else {"eos_token_id": 2},
        generation if place != "config" else {},
    )
    letter = tokenizer.backend.id_to_token(ORDINARY)
    assert letter is not None and tokenizer.decode([ORDINARY]) == letter
    assert ORDINARY not in tokenizer.eos_ids
    assert tokenizer.eos_ids == {
        *([3] if options.get("eos_token") or index == [ORDINARY, 3] else []),
        *([2] if place == "generation_config" else []),
    }
    named = options.get("eos_token") or ""
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == f"{named}x"


def test_what_a_person_wrote_into_generation_config_counts() -> None:
    """transformers ends there as well; only what was copied from config.json is doubted."""
    assert Tokenizer(byte_level_backend(), {}, {}, {"eos_token_id": [ORDINARY, 3]}).eos_ids == {ORDINARY, 3}


def test_names_come_from_the_tokenizers_files_only() -> None:
    options = {"bos_token": "<s>", "pad_token": {"content": "</s>"}, "image_token": "<tool>", "add_bos_token": True}
    tokenizer = Tokenizer(byte_level_backend(), options, {"eos_token_id": 3}, {"eos_token_id": 3, "bos_token_id": 2})
    assert tokenizer.named_tokens == {"bos_token": "<s>", "pad_token": "</s>", "image_token": "<tool>"}
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, {3})


@pytest.mark.parametrize("bad", ["2", [1, "2"], 1.0, True, {"a": 1}])
def test_nonsense_end_ids_are_named(bad: Any) -> None:
    with pytest.raises(FileFormatError, match="m: eos_token_id must be a token id or a list"):
        Tokenizer(byte_level_backend(), config={"eos_token_id": bad}, origin="m")


def test_named_tokens_are_special_even_if_the_file_forgot() -> None:
    backend = Backend(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(backend, {"eos_token": "<end>"})
    assert tokenizer.encode("a<end>") == [0, 1]
    assert tokenizer.decode([0, 1]) == "a"
    assert tokenizer.eos_ids == {1}


def test_text_that_is_not_unicode_is_an_error() -> None:
    with pytest.raises(PromptError, match="not valid Unicode at character 2"):
        Tokenizer(byte_level_backend()).encode("ab\udce9")
