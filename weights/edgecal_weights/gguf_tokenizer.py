"""A tokenizer out of a GGUF's metadata.

A GGUF carries no tokenizer.json. It has the vocabulary, the type of every token, either merges (byte-level BPE,
`tokenizer.ggml.model = "gpt2"`) or scores (SentencePiece BPE, `"llama"`). How a byte-level one cuts text is in
gguf_pre_tokenizers, which tokens are special in gguf_special_tokens. About SentencePiece:

* it has no merges. They are recovered by cutting every piece in two in every way whose halves are pieces as well,
  ranked by score, which is what transformers does.
* a space goes in front of every stretch of text between special tokens, also of one that begins with a space, as
  sentencepiece does for each text it is given and llama.cpp for each stretch: "</s>\n" has a "▁" in the middle and
  " hello" begins with two. So has the tokenizer.json of Llama 2 (its `Prepend`). transformers puts one at the very
  start of a text only, if there is no space.
* Gemma (`add_space_prefix` is false) has no such space, and tokens for runs of spaces, user-defined and spelled with
  spaces. In its tokenizer.json they are merged like any other piece, before all others.

Traps: control tokens are stored as they are written ("<|im_end|>", also with characters outside the byte alphabet),
everything else in the byte alphabet; a merge is one string with a space between its halves, and a half may itself hold
a space in files made from vocabularies that have such tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UnsupportedModelError
from .gguf_pre_tokenizers import find_pre_tokenizer
from .gguf_special_tokens import CONTROL, UNKNOWN, USER_DEFINED, SpecialTokens
from .tokenizer_backend import AddedToken, Tokenizer
from .tokenizer_backend import build as build_backend

# Recovering merges looks at every cut of every piece, so its work grows with the squares of the lengths.
# Vocabularies made of words need a few million; one made of a few absurdly long pieces must not occupy the
# machine for hours.
_MAX_CUT_WORK = 200_000_000


def build_tokenizer(
    metadata: Mapping[str, Any], path: Path, special: Callable[[], SpecialTokens] | None = None
) -> Tokenizer:
    """Rebuild the tokenizer of a GGUF.

    Args:
        metadata: the file's key-value pairs. `tokenizer.ggml.tokens` is a list of V strings, `token_type` V
            integers, `scores` V floats, `merges` a list of strings "left right".
        path: the file, for messages.
        special: its special tokens, where they are known already.

    Raises:
        FileFormatError: a missing key, lengths that differ, duplicate tokens, merges of unknown tokens.
        UnsupportedModelError: another kind of vocabulary or an unknown pre-tokenizer.
    """
    return _Builder(metadata, path, special or (lambda: SpecialTokens(metadata, path))).build()


class _Builder:
    def __init__(self, metadata: Mapping[str, Any], path: Path, special: Callable[[], SpecialTokens]) -> None:
        self.metadata = metadata
        self.path = path
        self.kind = metadata.get("tokenizer.ggml.model")
        if self.kind not in ("gpt2", "llama"):
            raise UnsupportedModelError(
                f"{path}: tokenizer.ggml.model is {self.kind!r}; served are 'gpt2' (byte-level BPE) and 'llama' "
                "(SentencePiece BPE)"
            )
        self.special = special()
        self.fail = self.special.fail
        self.tokens = list(self.special.tokens)
        self.space_runs = self._spell_space_runs() if self.kind == "llama" else set()
        self.vocab = {token: index for index, token in enumerate(self.tokens)}
        if len(self.vocab) != len(self.tokens):
            first = next(token for index, token in enumerate(self.tokens) if self.vocab[token] != index)
            self.fail("tokens", f"holds {first!r} more than once")

    def build(self) -> Tokenizer:
        fields, add_bos = self._sentencepiece() if self.kind == "llama" else self._byte_level()
        return build_backend(fields | {"post_processor": self._template(add_bos)}, self._added_tokens(), self.path)

    def _byte_level(self) -> tuple[dict[str, Any], bool]:
        pre = find_pre_tokenizer(self.metadata, self.tokens, self.path)
        model = self._model(self._merges(), ignore_merges=pre.ignore_merges)
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        return {**pre.fields(), "model": model, "decoder": decoder}, pre.add_bos

    def _sentencepiece(self) -> tuple[dict[str, Any], bool]:
        merges = self._merges() if "tokenizer.ggml.merges" in self.metadata else self._merges_from_scores()
        unknown = self.special.token_id("unknown")
        token = None if unknown is None else self.tokens[unknown]
        model = self._model(merges, unk_token=token, fuse_unk=True, byte_fallback=True)
        normalizer: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
        steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if self.metadata.get("tokenizer.ggml.add_space_prefix", True):
            prepend = {"type": "Prepend", "prepend": "▁"}
            normalizer = {"type": "Sequence", "normalizers": [prepend, normalizer]}
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        decoder = {"type": "Sequence", "decoders": steps}
        return {"normalizer": normalizer, "pre_tokenizer": None, "model": model, "decoder": decoder}, True

    def _model(self, merges: list[tuple[str, str]], **options: Any) -> dict[str, Any]:
        return {"type": "BPE", "vocab": self.vocab, "merges": merges, **options}

    def _spell_space_runs(self) -> set[int]:
        """Write user-defined tokens of spaces only as pieces ("▁▁"); returns their ids."""
        if self.special.types is None:
            return set()
        pieces, runs = set(self.tokens), set()
        for index in np.flatnonzero(self.special.types == USER_DEFINED).tolist():
            piece = self.tokens[index].replace(" ", "▁")
            if piece.strip("▁") == "" and (piece == self.tokens[index] or piece not in pieces):
                self.tokens[index] = piece
                runs.add(index)
        return runs

    def _merges(self) -> list[tuple[str, str]]:
        """The file's merges as pairs of the vocabulary's own strings, which costs a third of fresh ones."""
        pairs = []
        for index, merge in enumerate(self.special.strings("merges")):
            left, _, right = merge.partition(" ")
            if " " in right or left not in self.vocab or right not in self.vocab:
                left, right = self._resolve_merge(index, merge)
            if left + right not in self.vocab:
                self.fail("merges", f"entry {index} makes {left + right!r}, which is not in the vocabulary")
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
            self.fail("merges", f"entry {index}, {merge[:80]!r}, {why}")
        return known.pop()

    def _merges_from_scores(self) -> list[tuple[str, str]]:
        scores = self.special.numbers("scores")
        if not np.isfinite(scores).all():
            self.fail("scores", f"holds {int((~np.isfinite(scores)).sum())} values that are not finite")
        ranks = (-scores).tolist()
        if sum(len(token) ** 2 for token in self.tokens) > _MAX_CUT_WORK:
            self.fail("tokens", "holds pieces far longer than any SentencePiece vocabulary has")
        found = []
        for index, token in enumerate(self.tokens):
            # Best score first; among equals the longer left half, then the order of the vocabulary. Runs of spaces
            # come before everything, in the order of the vocabulary and the shorter left half first.
            run = index in self.space_runs
            rank = index if run else ranks[index]
            for cut in range(1, len(token)):
                left = self.vocab.get(token[:cut])
                right = self.vocab.get(token[cut:])
                if left is not None and right is not None:
                    found.append((not run, rank, cut if run else -cut, cut - len(token), index, left, right))
        found.sort()
        return [(self.tokens[left], self.tokens[right]) for *_, left, right in found]

    def _added_tokens(self) -> list[AddedToken]:
        types = self.special.types
        if types is not None:
            special = np.flatnonzero((types == CONTROL) | (types == UNKNOWN)).tolist()
            plain = np.flatnonzero(types == USER_DEFINED).tolist()
        else:
            special, plain = sorted(set(self.special.named.values())), []
        kinds = [(index, True) for index in special] + [(index, False) for index in plain]
        return [AddedToken(self.tokens[index], normalized=False, special=kind) for index, kind in kinds]

    def _template(self, add_bos_default: bool) -> dict[str, Any] | None:
        around: dict[str, list[str]] = {"bos": [], "eos": []}
        special = {}
        for name, default in (("bos", add_bos_default), ("eos", False)):
            wanted = self.metadata.get(f"tokenizer.ggml.add_{name}_token")
            index = self.special.token_id(name)
            if index is None and wanted:
                self.fail(f"add_{name}_token", f"is set, but there is no tokenizer.ggml.{name}_token_id")
            if wanted is None:
                wanted = default and name in self.special.named
            if index is None or not wanted:
                continue
            special[name] = {"id": name, "ids": [index], "tokens": [self.tokens[index]]}
            around[name].append(name)
        if not special:
            return None

        def pieces(text: str, kind: int) -> list[dict[str, Any]]:
            front, behind = (
                [{"SpecialToken": {"id": name, "type_id": kind}} for name in around[place]] for place in ("bos", "eos")
            )
            return [*front, {"Sequence": {"id": text, "type_id": kind}}, *behind]

        pair = [*pieces("A", 0), *pieces("B", 1)]
        return {"type": "TemplateProcessing", "single": pieces("A", 0), "pair": pair, "special_tokens": special}
