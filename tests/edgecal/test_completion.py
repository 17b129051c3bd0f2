"""The text of an answer from its tokens: what is shown, and where a stop string cuts it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer as Backend

from edgecal.completion import Answer, Settings
from edgecal.decoding.generate import TokenRecord
from edgecal.decoding.sampler import SamplingOptions
from edgecal.errors import OptionError
from edgecal.text.tokenizer import Tokenizer
from tests.backends import BACKENDS

START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


def ids_of(backend: Backend, *parts: str) -> list[int]:
    """A model's tokens: special ones as they are, bytes one by one where the vocabulary has no piece."""
    return [index for part in parts for index in backend.encode(part, add_special_tokens=False).ids]


def answer(backend: Backend, ids: Sequence[int], stop: tuple[str, ...], last: str = "length") -> tuple[str, str | None]:
    """Text and finish reason, as a generation over these tokens makes them."""
    made = Answer(Tokenizer(backend), Settings(stop=stop), 1)
    text = ""
    for index, token in enumerate(ids):
        reason = last if index == len(ids) - 1 else None
        piece = made.push(TokenRecord(token, index, 0.1 * index, 0.1, 0.0, reason))  # type: ignore[arg-type]
        text += piece.text
        if piece.finish_reason is not None:
            break
    assert text == made.text
    return text, made.finish_reason


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ((START,), "ab é"),
        ((f"é{START}",), "ab "),
        ((f" é{START}",), "ab"),
        ((f"{START}a",), "ab é"),
        ((f"é{START}aa",), "ab "),
        ((END, f"{START}aab"), "ab éaa"),
        (("aa", START), "ab é"),
        (("aa",), "ab é"),  # a special token that no stop string names interrupts nothing
        (("éa",), "ab "),
        ((f"a{START}",), "ab éaa"),  # never there
        (("im_start", "<|"), "ab éaa"),  # parts of a special token are not text
    ],
)
def test_stop_strings_that_name_special_tokens(backend: Backend, stop: tuple[str, ...], shown: str) -> None:
    tokens = [*ids_of(backend, "ab é"), backend.token_to_id(START), *pieces(backend, "aa"), backend.token_to_id(END)]
    text, reason = answer(backend, tokens, stop)
    assert text == shown
    never = stop in ((f"a{START}",), ("im_start", "<|"))
    assert reason == ("length" if never else "stop")


def pieces(backend: Backend, text: str) -> list[int]:
    """Tokens of one letter each, without a space that SentencePiece would put in front."""
    return [backend.token_to_id(char) for char in text]


@pytest.mark.parametrize("stop", [(), (END,), ("nothing",)])
def test_the_end_of_a_turn_ends_the_answer_by_itself(backend: Backend, stop: tuple[str, ...]) -> None:
    tokens = [*ids_of(backend, "ab"), backend.token_to_id(END)]
    assert answer(backend, tokens, stop, last="stop") == ("ab", "stop")


def test_a_stop_string_may_end_with_the_end_of_a_turn(backend: Backend) -> None:
    tokens = [*ids_of(backend, "ab"), backend.token_to_id(END)]
    assert answer(backend, tokens, (f"b{END}",), last="stop") == ("a", "stop")


def test_without_such_stop_strings_a_character_may_go_around_a_special_token(backend: Backend) -> None:
    """What transformers decodes: special tokens are taken out first, then bytes become text."""
    whole = ids_of(backend, "x 😀")
    torn = [*whole[:-2], backend.token_to_id(START), *whole[-2:]]
    assert answer(backend, torn, ("nothing",)) == (backend.decode(torn), "length")
    assert backend.decode(torn) == "x 😀"


LOOP = "I like the sea. " * 60


def test_an_answer_that_repeats_itself_ends(backend: Backend) -> None:
    ids = ids_of(backend, f"So it goes. {LOOP}")
    text, reason = answer(backend, ids, ())
    assert reason == "repetition" and f"So it goes. {LOOP}".startswith(text) and 200 < len(text) < 400
    made = Answer(Tokenizer(backend), Settings(stop_at_repetition=False), 1)
    said = [made.push(TokenRecord(token, index, 0.0, 0.0, 0.0, None)).text for index, token in enumerate(ids)]
    assert made.finish_reason is None and len("".join(said)) > 900
    # what was held back for a stop string is part of it
    text, reason = answer(backend, ids, ("the sea. I like the moon",))
    assert reason == "repetition" and f"So it goes. {LOOP}".startswith(text)


def test_the_end_that_comes_first_counts(backend: Backend) -> None:
    text, reason = answer(backend, ids_of(backend, LOOP), ("sea. I",))
    assert reason == "stop" and text == "I like the "
    _, reason = answer(backend, ids_of(backend, LOOP)[:40], ())
    assert reason == "length"


def test_options_by_name() -> None:
    changed = Settings(stop=("a",)).with_options(max_tokens=5, temperature=0.5, top_k=3, stop="b")
    assert changed == Settings(5, SamplingOptions(temperature=0.5, top_k=3), ("b",))
    assert changed.with_options() == changed
    sampling = SamplingOptions(seed=3)
    assert Settings().with_options(sampling=sampling, min_p=0.1).sampling == SamplingOptions(seed=3, min_p=0.1)
    for options, message in [
        ({"max_token": 5}, "there is no option 'max_token'; options: .*max_tokens"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -1}, "temperature must be"),
        ({"stop": ("",)}, "stop string"),
    ]:
        with pytest.raises(OptionError, match=message):
            Settings().with_options(**options)
