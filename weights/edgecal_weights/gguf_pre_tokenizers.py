"""How a byte-level vocabulary cuts text before it merges bytes: the name in `tokenizer.ggml.pre`, and what it means.

A GGUF has the name of the regular expression only. The expression itself, and what else goes with it, is knowledge
about the family and lives here. Where converters disagree, the ids of the model's own Hugging Face tokenizer win,
because the model was trained on those:

* `smollm` isolates every digit before the GPT-2 expression. Without it "\\n\\n12" becomes three pieces instead of two;
  transformers' GGUF conversion leaves the digits out.
* `qwen2` and `stablelm2` (the same expression) normalize to NFC first. transformers leaves that out too; it shows on
  decomposed accents only.
* `llama-bpe` and `tekken` take a whole piece that is in the vocabulary without asking the merges (`ignore_merges`).

Files from before the key have no name, and careless converters write "default". llama.cpp then cuts as GPT-2 does and
warns. The vocabulary itself knows better, because merges never cross a cut: with Llama 3's and Qwen's expressions one
character of punctuation may stand before a word (".get" is a token, impossible for GPT-2), and the longest number says
how digits are grouped.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EdgecalWarning, UnsupportedModelError
from .plain_tokenizer.expressions import LLAMA3, QWEN2, TEKKEN


@dataclass(frozen=True)
class PreTokenizer:
    """What a name stands for. `add_bos`: whether a text begins with BOS where the file does not say."""

    regex: str | None = None  # None: GPT-2's expression
    split_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def fields(self) -> dict[str, Any]:
        """The normalizer and the pre-tokenizer, as tokenizer.json has them."""
        steps: list[dict[str, Any]] = []
        if self.split_digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.regex is not None:
            split = {"type": "Split", "pattern": {"Regex": self.regex}, "behavior": "Isolated", "invert": False}
            steps.append(split)
        no_regex = self.regex is None
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": no_regex})
        normalizer = {"type": "NFC"} if self.nfc else None
        return {"normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


_GPT2 = PreTokenizer()
_STARCODER = PreTokenizer(split_digits=True)
_LLAMA_BPE = PreTokenizer(regex=LLAMA3, ignore_merges=True, add_bos=True)
_NAMED = {
    "gpt-2": _GPT2,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "tekken": PreTokenizer(regex=TEKKEN, ignore_merges=True, add_bos=True),
    "qwen2": PreTokenizer(regex=QWEN2, nfc=True),
    "stablelm2": PreTokenizer(regex=QWEN2, nfc=True),
    "deepseek-r1-qwen": PreTokenizer(regex=QWEN2),
}

_JOINED = re.compile(r"[!-&(-/:-@\[-`{-~][A-Za-z]+")  # punctuation and a word in one token; no "'s"
_NUMBER = re.compile(r"(Ġ?)([0-9]+)")
_REAL_VOCABULARY = 10_000  # from here on, what a vocabulary lacks tells something


def find_pre_tokenizer(metadata: Mapping[str, Any], tokens: Sequence[str], path: Path) -> PreTokenizer:
    """What `tokenizer.ggml.pre` names; warns (EdgecalWarning) and looks at the tokens where it names nothing.

    UnsupportedModelError for a name that is not known.
    """
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name == "default":
        guess = guess_pre_tokenizer(tokens)
        said = "is 'default'" if "tokenizer.ggml.pre" in metadata else "is missing"
        warnings.warn(
            f"{path}: tokenizer.ggml.pre {said}, so the file does not say how to cut text into words; {guess!r} fits "
            "its vocabulary best and is used. If answers are poor, take a file from a newer converter",
            EdgecalWarning,
            stacklevel=2,
        )
        return _NAMED[guess]
    pre = _NAMED.get(name) if isinstance(name, str) else None
    if pre is None:
        raise UnsupportedModelError(
            f"{path}: unknown pre-tokenizer {name!r} in tokenizer.ggml.pre; known are {', '.join(_NAMED)}"
        )
    return pre


def guess_pre_tokenizer(tokens: Sequence[str]) -> str:
    """The name whose cuts a byte-level vocabulary (tokens in the byte alphabet) shows: GPT-2's in doubt."""
    joined = sum(_JOINED.fullmatch(token) is not None for token in tokens)
    numbers = [match.groups() for token in tokens if (match := _NUMBER.fullmatch(token))]
    longest = max((len(digits) for space, digits in numbers), default=0)
    spaced = any(space for space, _ in numbers)
    if joined >= max(3, len(tokens) // 1000) and not spaced:
        return "qwen2" if longest == 1 else "llama-bpe" if longest in (2, 3) else "gpt-2"
    return "smollm" if longest == 1 and not spaced and len(tokens) >= _REAL_VOCABULARY else "gpt-2"
