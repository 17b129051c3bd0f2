"""Which tokens of a GGUF are more than pieces of text, what its keys call them, and its chat templates.

`tokenizer.ggml.bos_token_id` and its like are not always meant: where a tokenizer names no such token, the converter
takes the id out of config.json, and 1 and 2, LlamaConfig's defaults, are `"` and `#` in a byte-level vocabulary; 0, `!`
there, is a common padding id. Taken at its word, such an id would make an ordinary character special: gone from
answers, written in front of conversations, ending them. So an id counts only if its token is marked as control, unknown
or user-defined, or looks like one ("<|im_end|>"; some converters mark those as ordinary text).

Chat templates: `tokenizer.chat_template` is the default one, `tokenizer.chat_template.NAME` are others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .errors import FileFormatError
from .files import kind_of

# llama.cpp's token types; normal (1), unused (5) and byte (6) need nothing beyond the vocabulary.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

_LOOKS_SPECIAL = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
_SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # where a SentencePiece file does not say, as in llama.cpp
# Hugging Face's name -> GGUF's key
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_TEMPLATE = "tokenizer.chat_template"
# How chat models end their turn; llama.cpp looks for the same texts where a file does not say.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")


class SpecialTokens:
    """The special tokens of one file, checked.

    Attributes:
        tokens: the vocabulary, V texts.
        types: llama.cpp's type of each, V integers; None in files from before the key.
        named: id by GGUF's key ("bos", "eos", "unknown", "padding"), only those that count.

    Raises FileFormatError for arrays of the wrong kind or length and ids that are no numbers.
    """

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata, self.path = metadata, path
        self.tokens = self.strings("tokens")
        if not self.tokens:
            self.fail("tokens", "holds no token")
        self.types = self.numbers("token_type") if "tokenizer.ggml.token_type" in metadata else None
        ids = {key: self.token_id(key) for key in _NAMES.values()}
        self.named = {key: index for key, index in ids.items() if index is not None and self.counts(index)}

    def counts(self, index: int) -> bool:
        """Whether the token is more than a piece of text."""
        if self.types is not None and int(self.types[index]) in (UNKNOWN, CONTROL, USER_DEFINED):
            return True
        return _LOOKS_SPECIAL.fullmatch(self.tokens[index]) is not None

    def token_id(self, key: str) -> int | None:
        """`tokenizer.ggml.{key}_token_id`, whatever token that is; None where there is none.

        An id without a token counts as not given, as in llama.cpp.
        """
        value = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            self.fail(f"{key}_token_id", f"is {value!r}, expected a token's number")
        if value is None or not 0 <= value < len(self.tokens):
            value = _SENTENCEPIECE_IDS.get(key) if self.metadata.get("tokenizer.ggml.model") == "llama" else None
        return int(value) if value is not None and value < len(self.tokens) else None

    def ends(self) -> list[int]:
        """Ids that end a text: eos, and the ends of a turn, named by the file or found in its vocabulary."""
        eos, eot, eom = self.named.get("eos"), self.token_id("eot"), self.token_id("eom")
        found = [index for index in (eos, eot, eom) if index is not None]
        if eot is None and self.types is not None:
            found += [int(i) for i in np.flatnonzero(self.types == CONTROL) if self.tokens[i] in _TURN_ENDS]
        return list(dict.fromkeys(found))

    def config(self) -> dict[str, Any]:
        """What a tokenizer_config.json would say: the named tokens, and the chat template or templates."""
        config: dict[str, Any] = {
            name: self.tokens[self.named[key]] for name, key in _NAMES.items() if key in self.named
        }
        keys = [key for key in self.metadata if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")]
        templates = {key.removeprefix(_TEMPLATE)[1:] or "default": self.metadata[key] for key in sorted(keys)}
        for name, template in templates.items():
            if not isinstance(template, str):
                raise FileFormatError(f"{self.path}: the chat template {name!r} is {template!r:.80}, expected text")
        if len(templates) == 1:
            config["chat_template"] = next(iter(templates.values()))
        elif templates:
            config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        return config

    def strings(self, key: str) -> list[str]:
        """The array `tokenizer.ggml.{key}` of texts."""
        value = self._array(key)
        if not all(isinstance(item, str) for item in value):
            self.fail(key, "is not a list of strings")
        return value if isinstance(value, list) else list(value)

    def numbers(self, key: str) -> np.ndarray:
        """The array `tokenizer.ggml.{key}` of numbers, one for each token."""
        value = np.asarray(self._array(key))
        if value.shape != (len(self.tokens),):
            self.fail(key, f"has shape {value.shape}, but tokenizer.ggml.tokens has {len(self.tokens)} entries")
        if value.dtype.kind not in "iuf":
            self.fail(key, "is not a list of numbers")
        return value

    def _array(self, key: str) -> Sequence[Any]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            self.fail(key, "is missing, and the tokenizer cannot be built without it")
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
            self.fail(key, f"is {kind_of(value)} instead of an array")
        return value  # type: ignore[return-value]

    def fail(self, key: str, problem: str) -> NoReturn:
        """FileFormatError about `tokenizer.ggml.{key}`."""
        raise FileFormatError(f"{self.path}: tokenizer.ggml.{key} {problem}")
