"""The whole pipeline, with the names that the library's Tokenizer has, as far as edgecal uses them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FileFormatError
from ..files import parse_json
from ..tokenizer_growth import check_growth
from . import decoders, normalizers, pre_tokenizers
from .added_tokens import AddedToken, finders
from .bpe import Bpe
from .parts import Part, chosen, make
from .template import make_template
from .unigram import Unigram

_MODELS: Mapping[str, Callable[[Part], Bpe | Unigram]] = {"BPE": Bpe, "Unigram": Unigram}
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class Encoding(NamedTuple):
    """Of one text."""

    ids: list[int]


class Tokenizer:
    """Made of the fields of a tokenizer.json. `path` is the file, for messages.

    Raises FileFormatError for what is malformed, UnsupportedModelError for what needs the library.
    """

    def __init__(self, fields: Mapping[str, Any], path: Path) -> None:
        self._spec = {name: fields.get(name) for name in _PARTS}
        self._normalize = make(fields.get("normalizer"), "normalizer", path, normalizers.MAKERS)
        self._cut = make(fields.get("pre_tokenizer"), "pre_tokenizer", path, pre_tokenizers.MAKERS)
        self._decode = make(fields.get("decoder"), "decoder", path, decoders.MAKERS)
        self._template = make_template(fields.get("post_processor"), path)
        self._part = Part(_with_type(fields.get("model")), "model", path)
        self._model = chosen(self._part, _MODELS)
        self._vocabulary = self._model.vocabulary
        self._added: dict[int, AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        self._special: set[str] = set()
        self._finders = finders({}, None)
        self._written: dict[int, str] = {}  # normalized tokens as the text has them, which is what decoding gives
        self._add(_added_token(entry, path) for entry in _list(fields.get("added_tokens"), path))

    @classmethod
    def from_bytes(cls, content: bytes, path: Path) -> Tokenizer:
        """Of the content of a tokenizer.json."""
        try:
            text = content.decode()
            fields = parse_json(text, unique=False)
            if _HALF.search(text):  # of a character that JSON writes as two escapes; alone it is no text
                json.dumps(fields, ensure_ascii=False).encode()
        except ValueError as error:
            raise FileFormatError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise FileFormatError(f"{path} is not a tokenizer: the JSON is not an object")
        check_growth((fields.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")), path)
        return cls(fields, path)

    # ---------------------------------------------------------------------------------------------- text and ids

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        ids: list[int] = []
        plain, normalized = self._finders
        for start, stretch in plain.split(text):
            if isinstance(stretch, int):
                ids.append(stretch)
                continue
            stretch = self._normalize(stretch) if self._normalize is not None else stretch
            for place, part in normalized.split(stretch):
                if isinstance(part, int):
                    ids.append(part)
                    continue
                pieces = [part] if self._cut is None else self._cut([part], start == 0 and place == 0)
                for piece in pieces:
                    ids += self._model.tokenize(piece)
        return Encoding(self._template(ids) if add_special_tokens else ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        written = self._written
        found = [token for i in ids if (token := written.get(i) or self.id_to_token(i)) is not None]
        if skip_special_tokens:
            found = [token for token in found if token not in self._special]
        return " ".join(found) if self._decode is None else "".join(self._decode(found))

    def token_to_id(self, token: str) -> int | None:
        index = self._added_ids.get(token)
        return self._vocabulary.ids.get(token) if index is None else index

    def id_to_token(self, index: int) -> str | None:
        added = self._added.get(index)
        if added is not None:
            return added.content
        tokens = self._vocabulary.tokens
        return tokens[index] if 0 <= index < len(tokens) else None

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return self._vocabulary.ids | (self._added_ids if with_added_tokens else {})

    def get_vocab_size(self) -> int:
        return len(self._vocabulary.ids) + sum(token not in self._vocabulary.ids for token in self._added_ids)

    @property
    def decoder_fields(self) -> Any:
        """The decoder as tokenizer.json has it."""
        return self._spec["decoder"]

    def no_truncation(self) -> None:
        """Nothing is ever cut off."""

    def no_padding(self) -> None:
        """Nothing is ever filled up."""

    # ---------------------------------------------------------------------------------------------- added tokens

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return {index: self._added[index] for index in sorted(self._added)}

    def add_tokens(self, tokens: Iterable[AddedToken]) -> None:
        """Those that the vocabulary lacks get the next free ids."""
        self._add(tokens)

    def add_special_tokens(self, tokens: Iterable[AddedToken]) -> None:
        """As `add_tokens`, and decoding may leave them out."""
        self._add(AddedToken(**{**asdict(token), "special": True}) for token in tokens)

    def _add(self, tokens: Iterable[AddedToken]) -> None:
        size = len(self._vocabulary.ids)
        last = max(self._added, default=-1)
        for token in tokens:
            if not token.content or self._added.get(self._added_ids.get(token.content, -1)) == token:
                continue
            index = self.token_to_id(token.content)
            if index is None:
                index = max(last + 1, size)
            last = max(last, index)
            self._added[index] = token
            self._added_ids[token.content] = index
            if token.special:
                self._special.add(token.content)
        self._finders = finders(self._added, self._normalize)
        self._written = self._finders[1].texts()

    def to_str(self) -> str:
        """A tokenizer.json that the library reads as well."""
        model = {key: value for key, value in self._part.fields.items() if key not in ("vocab", "merges")}
        if isinstance(self._model, Bpe):
            model |= {"vocab": self._vocabulary.ids, "merges": self._model.merges()}
        else:
            model |= {"vocab": self._model.pairs}
        added = [{"id": index, **asdict(token)} for index, token in self.get_added_tokens_decoder().items()]
        fields = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
        return json.dumps({**fields, **self._spec, "model": {"type": self._part.type, **model}}, ensure_ascii=False)


def _with_type(model: Any) -> Any:
    """Files from before there were several kinds have no type; they are BPE."""
    return {"type": "BPE", **model} if isinstance(model, Mapping) and "merges" in model else model


def _list(value: Any, path: Path) -> Sequence[Any]:
    if not isinstance(value, (list, type(None))):
        raise FileFormatError(f"{path}: added_tokens is {value!r:.60}, expected a list")
    return value or []


def _added_token(entry: Any, path: Path) -> AddedToken:
    try:
        return AddedToken(**{key: value for key, value in entry.items() if key != "id"})
    except (AttributeError, TypeError, ValueError):  # UnicodeEncodeError is one
        raise FileFormatError(f"{path}: added_tokens holds {entry!r:.80}, expected the record of a token") from None
