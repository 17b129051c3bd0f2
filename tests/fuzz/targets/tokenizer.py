"""tokenizer.json, and a text encoded and decoded with what it says."""

from __future__ import annotations

import json
from pathlib import Path

from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.hf_tokenizer import read_tokenizer, tokenizer_config
from tests.tiny import tiny_tokenizer

from ..mutate import json_text
from ..target import Target

TEXT = "The 3 theories\nof <|im_start|> are éa 日本 in"


def prepare(folder: Path) -> list[bytes]:
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "extra_special_tokens": ["<a>"]}')
    values = json.loads(tiny_tokenizer().to_str())
    first = {"Sequence": {"id": "A", "type_id": 0}}
    rich = values | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "_"}]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, first],
            "pair": [first, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\d|\\s+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
    }
    return [json.dumps(values).encode(), json.dumps(rich).encode()]


def run(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    tokenizer = Tokenizer(read_tokenizer(folder, 300, "write one"), tokenizer_config(folder))
    ids = tokenizer.encode(TEXT, add_special_tokens=True)
    tokenizer.decode(ids)
    stream = tokenizer.stream()
    for index in ids:
        stream.push(index)


TARGET = Target(run, prepare, json_text, megabytes=128)
