"""The files around tokenizer.json: its configuration, the tokens that they add, the templates that they name."""

from __future__ import annotations

import json
from pathlib import Path

from edgecal.errors import PromptError
from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.hf_tokenizer import read_tokenizer, tokenizer_config
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

from ..mutate import json_text
from ..target import Target

_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")


def prepare(folder: Path) -> list[bytes]:
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    token = {"content": "<x>", "single_word": False, "lstrip": True, "special": True}
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": "{{ tools }}"}]
    many = {"eos_token": token, "bos_token": "<|im_start|>", "additional_special_tokens": ["<a>", token]}
    many |= {"added_tokens_decoder": {"270": token, "271": {"content": "<y>"}}}
    many |= {"chat_template": named, "own_token": "z"}
    few = {"eos_token": "<|im_end|>", "extra_special_tokens": {"image_token": "<i>"}, "chat_template": CHAT_TEMPLATE}
    return [json.dumps(x).encode() for x in (many, few, {"<a>": 270, "<b>": 271}, {"chat_template": "{{ messages }}"})]


def run(data: bytes, folder: Path) -> None:
    for name in _FILES:
        (folder / name).write_bytes(data)
    try:
        _look(folder)
    finally:
        for name in _FILES[1:]:
            (folder / name).write_text("{}")
    (folder / _FILES[0]).write_bytes(data)
    _look(folder)


def _look(folder: Path) -> None:
    tokenizer = Tokenizer(read_tokenizer(folder, 300, "write one"), tokenizer_config(folder))
    tokenizer.decode(tokenizer.encode("the <x><a> end", add_special_tokens=True))
    if tokenizer.template_names:
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
        except PromptError as error:
            str(error)


TARGET = Target(run, prepare, json_text)
