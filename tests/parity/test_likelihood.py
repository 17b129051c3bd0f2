"""Log-likelihoods as EleutherAI's harness asks for them, beside transformers' own in float32: sums within 1e-3."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from edgecal import Engine, Recipe
from edgecal.decoding.likelihood import Forced, rolling_windows
from edgecal.errors import ContextLengthError, PromptError, RecipeError
from tests.texts import TEXTS
from tests.tiny import write_tiny_adapter, write_tiny_hf

PAIRS = [
    ("The cat sat on", " the mat"),
    ("The cat sat on ", "the mat"),  # white space at the end belongs to the continuation
    ("The cat sat on", " a chair, and then it"),
    ("", "A text of its own"),
    ("Question: a?\nAnswer:", " yes"),
    ("Question: a?\nAnswer:", " no"),
    ("über", "all ✓"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("likelihood")
    write_tiny_hf(root / "model", max_position_embeddings=64)
    write_tiny_adapter(root / "lora", root / "model")
    return root


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine.load(folder / "model", weights="fp32", cache_dtype="fp32", adapters={"lora": folder / "lora"})


class Theirs:
    """What the harness's own class for transformers' models computes."""

    def __init__(self, folder) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def score(self, ids: list[int], start: int) -> tuple[float, bool]:
        with torch.no_grad():
            logits = self.model(torch.tensor([ids[:-1]])).logits[0].double()
        chosen = torch.tensor(ids[start:])
        probabilities = torch.log_softmax(logits, -1)[start - 1 :]
        total = probabilities.gather(1, chosen[:, None]).sum()
        return float(total), bool((probabilities.argmax(-1) == chosen).all())

    def pair(self, context: str, continuation: str) -> tuple[float, bool]:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole, before = self.encode(context + continuation), self.encode(context)
        return self.score(whole, len(before)) if before else self.score([0, *whole], 1)

    def rolling(self, text: str, most: int) -> float:
        """By the harness's windows: the first behind the first id alone, the last one filled up from the left."""
        ids, total, done = self.encode(text), 0.0, 0
        while done < len(ids):
            n = min(most, len(ids) - done)
            before = [0] if not done else ids[max(0, done + n - most - 1) : done]
            total += self.score([*before, *ids[done : done + n]], len(before))[0]
            done += n
        return total


@pytest.fixture(scope="module")
def theirs(folder) -> Theirs:
    return Theirs(folder)


def test_pairs_equal_transformers(engine, theirs):
    found = engine.loglikelihood(PAIRS)
    for pair, (total, greedy) in zip(PAIRS, found, strict=True):
        expected, likely = theirs.pair(*pair)
        assert total == pytest.approx(expected, abs=1e-3) and greedy == likely, pair


def test_what_greedy_decoding_says_is_greedy(engine):
    said = engine.generate("The cat", raw=True, max_tokens=5, stop_at_repetition=False)
    ids = tuple(engine.tokenizer.encode("The cat")) + tuple(token.id for token in said.tokens)
    start = len(engine.tokenizer.encode("The cat"))
    (one,) = engine.scorer().ids([Forced(ids, start)])
    assert one.greedy
    (other,) = engine.scorer().ids([Forced((*ids[:-1], (ids[-1] + 1) % 256), start)])
    assert not other.greedy and other.total < one.total


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 200])
def test_whole_texts_equal_transformers(engine, theirs, n):
    """Longer than the context of 64, too: every token once."""
    text = (TEXTS["english"] * 9)[:n]
    (found,) = engine.loglikelihood_rolling([text])
    assert found == pytest.approx(theirs.rolling(text, 64), abs=1e-3)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 12, 17])
def test_windows_hold_every_token_once(length):
    ids = list(range(100, 100 + length))
    windows = rolling_windows(ids, 7, 6)
    assert [i for window in windows for i in window.ids[window.start :]] == ids
    assert all(len(window.ids) - 1 <= 6 for window in windows) and windows[0].ids[0] == 7
    assert all(len(window.ids) - 1 == 6 for window in windows[1:]), "as much before them as there is room for"


def test_many_give_what_one_gives_and_share_their_beginnings(engine):
    together = engine.loglikelihood(PAIRS * 2)
    alone = [engine.loglikelihood([pair])[0] for pair in PAIRS * 2]
    assert [x.greedy for x in together] == [x.greedy for x in alone]
    assert [x.total for x in together] == pytest.approx([x.total for x in alone], abs=1e-4)


def test_adapters_count(engine):
    (base,), (named,) = engine.loglikelihood(PAIRS[:1]), engine.loglikelihood(PAIRS[:1], recipe="lora")
    (spelled,) = engine.loglikelihood(PAIRS[:1], recipe=Recipe("single", ("lora",)))
    assert named == spelled and named.total != base.total


def test_refusals(engine):
    with pytest.raises(PromptError, match="prompt 2: the continuation is empty"):
        engine.loglikelihood([("a", "b"), ("a", "")])
    with pytest.raises(ContextLengthError, match="prompt 1: it has 19. tokens and the model's context 64"):
        engine.loglikelihood([("x" * 190, " y")])
    with pytest.raises(RecipeError, match="no likelihood"):
        engine.loglikelihood(PAIRS[:1], recipe=Recipe("multi_step", steps=(("lora", "Shorten"), (None, "Polish"))))
