"""Incremental decoding: the pieces make up what decoding everything at once gives, and no character is torn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from edgecal.text.text_stream import TextStream
from tests.backends import BACKENDS, byte_level_backend
from tests.texts import TEXTS
from tests.work import counted


@pytest.fixture(scope="module")
def backends() -> dict[str, Backend]:
    return {name: make() for name, make in BACKENDS.items()}


def streamed(backend: Backend, ids: list[int], skip: bool = True) -> list[str]:
    stream = TextStream(backend, skip)
    return [*(stream.push(index) for index in ids), stream.flush()]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("skip", [True, False])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_stream_equals_decode_for_any_ids(
    backends: dict[str, Backend], name: str, skip: bool, data: st.DataObject
) -> None:
    backend = backends[name]
    size = backend.get_vocab_size()
    # Single bytes and ids beyond the vocabulary (models pad their logits) come up often enough this way.
    index = st.one_of(st.integers(0, size + 3), st.integers(5, 261))
    ids = data.draw(st.lists(index, max_size=30))
    assert "".join(streamed(backend, ids, skip)) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", BACKENDS)
@given(text=st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_stream_of_valid_text_never_shows_a_torn_character(backends: dict[str, Backend], name: str, text: str) -> None:
    backend = backends[name]
    ids = backend.encode(text, add_special_tokens=False).ids
    pieces = streamed(backend, ids)
    assert "".join(pieces) == backend.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_stream_of_real_tokens(smollm2_hf: Path) -> None:
    backend = Backend.from_file(str(smollm2_hf / "tokenizer.json"))
    for text in TEXTS.values():
        ids = backend.encode(text, add_special_tokens=False).ids
        pieces = streamed(backend, ids)
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
    ids = backend.encode(TEXTS["emoji"]).ids
    stream = TextStream(backend)
    waits = [stream.push(index) == "" for index in ids]
    assert any(waits) and stream.flush() == "", "some emoji take several tokens"


def test_stream_shows_truly_broken_bytes_at_the_end() -> None:
    backend = byte_level_backend()
    first_of_emoji = backend.token_to_id("ð")  # byte F0
    stream = TextStream(backend)
    assert stream.push(first_of_emoji) == ""
    assert stream.flush() == "\ufffd" == backend.decode([first_of_emoji])
    stream = TextStream(backend)
    assert stream.push(first_of_emoji) + stream.push(backend.token_to_id("a")) == "\ufffda"


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_whole_can_be_settled(name: str, backends: dict[str, Backend]) -> None:
    """Text in front of a special token comes before it; half a character waits for its end behind it."""
    backend = backends[name]
    stream = TextStream(backend)
    whole = backend.encode("x ä a ü", add_special_tokens=False).ids
    text = "".join(stream.push(index) for index in whole) + stream.settle()
    assert text == backend.decode(whole)
    assert stream.settle() == ""
    spelled = "ð", "Ł", "ĺ", "Ģ"  # the bytes F0 9F 98 80
    half = [backend.token_to_id(token) for token in spelled if name == "byte-level"]
    half = half or [backend.token_to_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    assert "".join(stream.push(index) + stream.settle() for index in half[:2]) == ""
    assert "".join(stream.push(index) + stream.settle() for index in half[2:]) == "😀"
    assert stream.skipped[backend.token_to_id("<|im_end|>")] == "<|im_end|>"
    assert TextStream(backend, skip_special_tokens=False).skipped == {}


def test_stream_work_does_not_grow_with_the_text() -> None:
    backend = byte_level_backend()
    ids = backend.encode(TEXTS["english"]).ids * 2000

    def calls(n: int) -> int:
        stream = TextStream(backend)
        with counted() as work:
            for index in ids[:n]:
                stream.push(index)
        return work.calls

    # 100 times if every step looked at all before it
    assert calls(20_000) == pytest.approx(10 * calls(2_000), rel=0.01)


def test_stream_of_an_unusual_decoder() -> None:
    backend = Backend(models.WordLevel({"un": 0, "##usual": 1, "text": 2, "[U]": 3}, unk_token="[U]"))
    backend.decoder = decoders.WordPiece()
    ids = [0, 1, 2, 2]
    assert "".join(streamed(backend, ids)) == backend.decode(ids) == "unusual text text"


def test_tokenizers_library_is_the_expected_one() -> None:
    """The stream reads the decoder's own serialization; a new major version would have to be looked at."""
    assert tokenizers.__version__.startswith("0.")
    assert json.loads(byte_level_backend().decoder.__getstate__())["type"] == "ByteLevel"
