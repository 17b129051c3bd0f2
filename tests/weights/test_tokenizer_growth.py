"""A tokenizer whose steps make a text longer and longer, with the library and without."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgecal_weights.errors import FileFormatError
from edgecal_weights.hf_tokenizer import read_tokenizer
from edgecal_weights.plain_tokenizer.tokenizer import Tokenizer
from tests.tiny import tiny_tokenizer

DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BOMBS: dict[str, dict[str, Any]] = {
    "normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 50},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 50},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [DOUBLE] * 5}] * 10},
}


@pytest.mark.parametrize("part", BOMBS)
def test_a_text_that_doubles_fifty_times_is_refused(tmp_path, part):
    content = json.dumps(json.loads(tiny_tokenizer().to_str()) | {part: BOMBS[part]}).encode()
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FileFormatError, match="more than 256 times as long"):
        read_tokenizer(tmp_path, None, "write one")
    with pytest.raises(FileFormatError, match="more than 256 times as long"):
        Tokenizer.from_bytes(content, tmp_path / "tokenizer.json")


def test_what_real_tokenizers_do_is_taken(tmp_path):
    """Gemma's and Llama 2's steps, an expression, and one doubling."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    squeeze = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    fields = json.loads(tiny_tokenizer().to_str())
    fields["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, squeeze, space, DOUBLE]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    assert read_tokenizer(tmp_path, None, "write one").encode("a").ids
