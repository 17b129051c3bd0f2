"""Text out of a stream of token ids, with no character torn apart.

A token is not a piece of text but a piece of *bytes*: an emoji may take four tokens, and the first three
decode to nothing presentable. Decoding everything again at each step would be right and quadratic; decoding
each token alone would be fast and wrong. The two decoders that the served models have can be run
incrementally, exactly:

* byte-level (GPT-2, Llama 3, Qwen, SmolLM): every token is a byte string, and Python's incremental UTF-8
  decoder keeps an unfinished character back. It replaces malformed bytes as the tokenizers library does
  (one U+FFFD per maximal well-formed prefix).
* SentencePiece with byte fallback (Llama 2, TinyLlama): pieces are text, "▁" is a space, one space at the
  very start is dropped, and a run of byte tokens is text only if the *whole run* is valid; otherwise each
  of its bytes becomes U+FFFD. So a run is held back until it ends.

Any other decoder goes through the tokenizers library's own stream, which is exact on well-formed text.
"""

from __future__ import annotations

import codecs
import re
from typing import Protocol

from edgecal_weights.plain_tokenizer import byte_alphabet
from edgecal_weights.tokenizer_backend import DecodeStream, Tokenizer, decoder_fields
from edgecal_weights.tokenizer_faults import tokenizer_faults

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class _Decoder(Protocol):
    def push(self, index: int) -> str: ...

    def settle(self) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """Turns ids into text as they come.

    The concatenation of all `push` results and `flush` equals decoding all ids at once. Work per id does
    not grow with the number of ids before it.

    Args:
        backend: the tokenizer.
        skip_special_tokens: leave out control tokens such as the end of turn.

    `skipped` has their written form by id; empty when they are shown.
    """

    def __init__(self, backend: Tokenizer, skip_special_tokens: bool = True) -> None:
        added = backend.get_added_tokens_decoder() if skip_special_tokens else {}
        self.skipped = {index: token.content for index, token in added.items() if token.special}
        self._decoder = _make_decoder(backend, skip_special_tokens)

    def push(self, index: int) -> str:
        """The text that became complete with this id; often empty, never half a character."""
        return "" if index in self.skipped else self._decoder.push(index)

    def settle(self) -> str:
        """What is held back although it is whole, for a caller that needs the text up to here before what follows.

        A run of byte tokens is held until it ends. One that is settled counts as ended.
        """
        return self._decoder.settle()

    def flush(self) -> str:
        """What is still held back, with U+FFFD for bytes that never made a character. Ends the stream."""
        return self._decoder.flush()


def _make_decoder(backend: Tokenizer, skip_special_tokens: bool) -> _Decoder:
    spec = decoder_fields(backend)
    if spec.get("type") == "ByteLevel":
        return _ByteLevel(backend)
    if spec.get("type") == "Sequence":
        steps = spec["decoders"]
        if steps == _SENTENCEPIECE or steps == [*_SENTENCEPIECE, _STRIP_FIRST_SPACE]:
            return _SentencePiece(backend, strip=len(steps) > len(_SENTENCEPIECE))
    return _Library(backend, skip_special_tokens)


class _ByteLevel:
    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        token = self._backend.id_to_token(index)
        if token is None:
            return ""
        return self._utf8.decode(byte_alphabet.read(token))

    def settle(self) -> str:
        return ""  # a whole character is never held back

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _SentencePiece:
    def __init__(self, backend: Tokenizer, strip: bool) -> None:
        self._backend = backend
        self._strip = strip  # until the first text has come out
        self._run = bytearray()

    def push(self, index: int) -> str:
        token = self._backend.id_to_token(index)
        if token is None:
            return ""
        token = token.replace("▁", " ")
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            self._run.append(int(byte[1], 16))
            return ""
        return self._emit(self._end_run() + token)

    def settle(self) -> str:
        try:
            self._run.decode()
        except UnicodeDecodeError:
            return ""
        return self.flush()

    def flush(self) -> str:
        return self._emit(self._end_run())

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return _REPLACEMENT * len(run)

    def _emit(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class _Library:
    def __init__(self, backend: Tokenizer, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._length = 0

    def push(self, index: int) -> str:
        self._ids.append(index)
        text = self._stream.step(self._backend, index) or ""
        self._length += len(text)
        return text

    def settle(self) -> str:
        return ""

    def flush(self) -> str:
        with tokenizer_faults("the model"):
            text = self._backend.decode(self._ids, skip_special_tokens=self._skip_special_tokens)[self._length :]
        self._length += len(text)
        return text
