"""A tokenizer out of a GGUF's metadata.

A GGUF carries no tokenizer.json. It has the vocabulary, the type of every token, either merges (byte-level
BPE, `tokenizer.ggml.model = "gpt2"`) or scores (SentencePiece BPE, `"llama"`), and for the first kind only
the *name* of the regular expression that cuts text before merging. The rest (normalizer, decoder, what is
added in front) is knowledge about the family, and lives here. Where converters disagree, the ids of the
model's own Hugging Face tokenizer win, because the model was trained on those:

* `smollm` isolates every digit before the GPT-2 expression. Without it "\\n\\n12" becomes three pieces
  instead of two; transformers' GGUF conversion leaves the digits out.
* `qwen2` and `stablelm2` (the same expression) normalize to NFC first. transformers leaves that out too; it
  shows on decomposed accents only.
* `llama-bpe` takes a whole piece that is in the vocabulary without asking the merges (`ignore_merges`).
* a SentencePiece vocabulary has no merges. They are recovered by cutting every piece in two in every way
  whose halves are pieces as well, ranked by score, which is what transformers does. Nothing in the file
  says whether the space in front belongs to the start of the text or to every stretch between special
  tokens; the start is transformers' choice.

Traps: control tokens are stored as they are written ("<|im_end|>", also with characters outside the byte
alphabet), everything else in the byte alphabet; a merge is one string with a space between its halves, and a half may
itself hold a space in files made from vocabularies that have such tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .errors import FileFormatError, UnsupportedModelError

# llama.cpp's token types; normal (1), unused (5) and byte (6) need nothing beyond the vocabulary.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

# The expressions of the models' own tokenizer.json; GPT-2's is built into ByteLevel.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class _PreTokenizer:
    """What the name in `tokenizer.ggml.pre` stands for."""

    regex: str | None = None  # None: GPT-2's expression
    split_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False  # where the file does not say


_GPT2 = _PreTokenizer()
_STARCODER = _PreTokenizer(split_digits=True)
_LLAMA_BPE = _PreTokenizer(regex=_LLAMA3, ignore_merges=True, add_bos=True)
_PRE_TOKENIZERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": _PreTokenizer(regex=_QWEN2, nfc=True),
    "stablelm2": _PreTokenizer(regex=_QWEN2, nfc=True),
    "deepseek-r1-qwen": _PreTokenizer(regex=_QWEN2),
}

# Recovering merges looks at every cut of every piece, so its work grows with the squares of the lengths.
# Vocabularies made of words need a few million; one made of a few absurdly long pieces must not occupy the
# machine for hours.
_MAX_CUT_WORK = 200_000_000


def build_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Rebuild the tokenizer of a GGUF.

    Args:
        metadata: the file's key-value pairs. `tokenizer.ggml.tokens` is a list of V strings, `token_type` V
            integers, `scores` V floats, `merges` a list of strings "left right".
        path: the file, for messages.

    Raises:
        FileFormatError: a missing key, lengths that differ, duplicate tokens, merges of unknown tokens, ids
            outside the vocabulary.
        UnsupportedModelError: another kind of vocabulary or an unknown pre-tokenizer.
    """
    return _Builder(metadata, path).build()


class _Builder:
    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata = metadata
        self.path = path
        self.kind = metadata.get("tokenizer.ggml.model")
        if self.kind not in ("gpt2", "llama"):
            raise UnsupportedModelError(
                f"{path}: tokenizer.ggml.model is {self.kind!r}; served are 'gpt2' (byte-level BPE) and 'llama' "
                "(SentencePiece BPE)"
            )
        self.tokens: list[str] = self._strings("tokens")
        self.vocab = {token: index for index, token in enumerate(self.tokens)}
        if not self.tokens:
            self._fail("tokens", "holds no token")
        if len(self.vocab) != len(self.tokens):
            first = next(token for index, token in enumerate(self.tokens) if self.vocab[token] != index)
            self._fail("tokens", f"holds {first!r} more than once")

    def build(self) -> Tokenizer:
        tokenizer, add_bos = self._sentencepiece() if self.kind == "llama" else self._byte_level()
        self._add_tokens(tokenizer)
        self._add_template(tokenizer, add_bos)
        return tokenizer

    def _byte_level(self) -> tuple[Tokenizer, bool]:
        name = self.metadata.get("tokenizer.ggml.pre", "default")  # files older than the key have none
        pre = _PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
        if pre is None:
            raise UnsupportedModelError(
                f"{self.path}: unknown pre-tokenizer {name!r} in tokenizer.ggml.pre; known are "
                f"{', '.join(_PRE_TOKENIZERS)}"
            )
        tokenizer = Tokenizer(models.BPE(vocab=self.vocab, merges=self._merges(), ignore_merges=pre.ignore_merges))
        if pre.nfc:
            tokenizer.normalizer = normalizers.NFC()
        steps: list[pre_tokenizers.PreTokenizer] = []
        if pre.split_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if pre.regex is not None:
            steps.append(pre_tokenizers.Split(Regex(pre.regex), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.regex is None))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, pre.add_bos

    def _sentencepiece(self) -> tuple[Tokenizer, bool]:
        merges = self._merges() if "tokenizer.ggml.merges" in self.metadata else self._merges_from_scores()
        unknown = self._token_id("unknown", 0)
        tokenizer = Tokenizer(
            models.BPE(
                vocab=self.vocab,
                merges=merges,
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = bool(self.metadata.get("tokenizer.ggml.add_space_prefix", True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="first" if prefix else "never", split=False
        )
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if prefix:
            steps.append(decoders.Strip(content=" ", left=1, right=0))
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer, True

    def _merges(self) -> list[tuple[str, str]]:
        """The file's merges as pairs of the vocabulary's own strings, which costs a third of fresh ones."""
        pairs = []
        for index, merge in enumerate(self._strings("merges")):
            left, _, right = merge.partition(" ")
            if " " in right or left not in self.vocab or right not in self.vocab:
                left, right = self._resolve_merge(index, merge)
            if left + right not in self.vocab:
                self._fail("merges", f"entry {index} makes {left + right!r}, which is not in the vocabulary")
            pairs.append((self.tokens[self.vocab[left]], self.tokens[self.vocab[right]]))
        return pairs

    def _resolve_merge(self, index: int, merge: str) -> tuple[str, str]:
        """A merge whose halves hold spaces: the one cut that leaves two known tokens.

        Converters that meet such halves write the inner spaces as "Ġ" (space + 256), so both spellings are
        tried.
        """
        cuts = [(merge[:at], merge[at + 1 :]) for at, char in enumerate(merge) if char == " "]
        cuts += [(left.replace("Ġ", " "), right.replace("Ġ", " ")) for left, right in cuts]
        known = {cut for cut in cuts if cut[0] in self.vocab and cut[1] in self.vocab}
        if len(known) > 1:  # "a  b" can be cut twice; only one of them builds a token
            known = {cut for cut in known if cut[0] + cut[1] in self.vocab}
        if len(known) != 1:
            why = "can be read in several ways" if known else "names a token that is not in the vocabulary"
            self._fail("merges", f"entry {index}, {merge[:80]!r}, {why}")
        return known.pop()

    def _merges_from_scores(self) -> list[tuple[str, str]]:
        scores = self._numbers("scores")
        if not np.isfinite(scores).all():
            self._fail("scores", f"holds {int((~np.isfinite(scores)).sum())} values that are not finite")
        ranks = (-scores).tolist()
        if sum(len(token) ** 2 for token in self.tokens) > _MAX_CUT_WORK:
            self._fail("tokens", "holds pieces far longer than any SentencePiece vocabulary has")
        found = []
        for index, token in enumerate(self.tokens):
            for cut in range(1, len(token)):
                left = self.vocab.get(token[:cut])
                right = self.vocab.get(token[cut:])
                if left is not None and right is not None:
                    # Best score first; among equals the longer left half, then the order of the vocabulary.
                    found.append((ranks[index], -cut, cut - len(token), index, left, right))
        found.sort()
        return [(self.tokens[left], self.tokens[right]) for *_, left, right in found]

    def _add_tokens(self, tokenizer: Tokenizer) -> None:
        if "tokenizer.ggml.token_type" in self.metadata:
            types = self._numbers("token_type")
            special = np.flatnonzero((types == _CONTROL) | (types == _UNKNOWN)).tolist()
            plain = np.flatnonzero(types == _USER_DEFINED).tolist()
        else:
            ids = (self._token_id(name) for name in ("bos", "eos"))
            special, plain = sorted({index for index in ids if index is not None}), []
        for indices, is_special in ((special, True), (plain, False)):
            added = [AddedToken(self.tokens[i], normalized=False, special=is_special) for i in indices]
            if is_special:
                tokenizer.add_special_tokens(added)
            else:
                tokenizer.add_tokens(added)

    def _add_template(self, tokenizer: Tokenizer, add_bos_default: bool) -> None:
        pieces, special = ["$A"], []
        for name, default_id, default in (("bos", 1, add_bos_default), ("eos", 2, False)):
            wanted = self.metadata.get(f"tokenizer.ggml.add_{name}_token")
            index = self._token_id(name, default_id if self.kind == "llama" else None)
            if index is None and wanted:
                self._fail(f"add_{name}_token", f"is set, but there is no tokenizer.ggml.{name}_token_id")
            if index is None or not (default if wanted is None else wanted):
                continue
            special.append({"id": name, "ids": [index], "tokens": [self.tokens[index]]})
            pieces = [name, *pieces] if name == "bos" else [*pieces, name]
        if special:
            pair = [*pieces, *("$B:1" if piece == "$A" else f"{piece}:1" for piece in pieces)]
            tokenizer.post_processor = processors.TemplateProcessing(single=pieces, pair=pair, special_tokens=special)

    def _token_id(self, name: str, default: int | None = None) -> int | None:
        key = f"{name}_token_id"
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default if default is not None and default < len(self.tokens) else None
        if not isinstance(value, (int, np.integer)) or not 0 <= value < len(self.tokens):
            self._fail(key, f"is {value!r}; the vocabulary has {len(self.tokens)} tokens")
        return int(value)

    def _strings(self, key: str) -> list[str]:
        value = self._array(key)
        if not all(isinstance(item, str) for item in value):
            self._fail(key, "is not a list of strings")
        return value if isinstance(value, list) else list(value)

    def _numbers(self, key: str) -> np.ndarray:
        value = np.asarray(self._array(key))
        if value.shape != (len(self.tokens),):
            self._fail(key, f"has shape {value.shape}, but tokenizer.ggml.tokens has {len(self.tokens)} entries")
        if value.dtype.kind not in "iuf":
            self._fail(key, "is not a list of numbers")
        return value

    def _array(self, key: str) -> Sequence[Any]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            self._fail(key, "is missing, and the tokenizer cannot be built without it")
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
            self._fail(key, f"is a {type(value).__name__} instead of an array")
        return value  # type: ignore[return-value]

    def _fail(self, key: str, problem: str) -> NoReturn:
        raise FileFormatError(f"{self.path}: tokenizer.ggml.{key} {problem}")
