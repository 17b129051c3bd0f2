"""Losses of examples: equal to a direct computation without any reuse (1e-5), and the reuse is what it claims."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgecal import Engine, KVCache, Recipe
from edgecal.decoding import likelihood
from edgecal.errors import ContextLengthError, PromptError
from edgecal.search.losses import Example, ExampleLosses, example_losses, fingerprint, read_examples
from tests.tiny import write_tiny_adapter, write_tiny_hf

TOLERANCE = 1e-5
EXAMPLES = [
    Example("Shorten: the cat sat on the mat", "A cat sat."),
    Example("Translate: hello", "Bonjour"),
    Example("Shorten: the cat sat on the sofa", "A cat on a sofa, of all places in the whole house."),
    Example("Shorten: the cat sat on the mat", "A cat sits, and sits."),  # the prompt of the first
    Example("Translate: hello", "Bonjour"),  # the second again
    Example([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}], "Yes"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    root = tmp_path_factory.mktemp("losses")
    write_tiny_hf(root / "model", max_position_embeddings=256)
    write_tiny_adapter(root / "lora", root / "model")
    return Engine.load(root / "model", weights="fp32", adapters={"lora": root / "lora"}, cache_dtype="fp32")


def encoded(engine: Engine, example: Example) -> tuple[list[int], list[int]]:
    eos = engine.tokenizer.backend.token_to_id("<|im_end|>")
    return engine.encode(example.prompt), [*engine.tokenizer.encode(example.target), eos]


def direct(engine: Engine, example: Example, adapter) -> float:
    """One forward pass over the whole example with a cache of its own, log-softmax in float64."""
    prompt, target = encoded(engine, example)
    ids = np.array(prompt + target)
    cache = KVCache(engine.model.config, engine.cache_dtype)
    logits = engine.model.forward(ids, cache, adapter, all_logits=True).astype(np.float64)
    scores = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    scores -= logits.max(1, keepdims=True)
    return float(-np.mean([scores[i, ids[i + 1]] for i in range(len(prompt) - 1, len(ids) - 1)]))


@pytest.mark.parametrize("recipe", [None, Recipe("single", ("lora",))])
@pytest.mark.parametrize("logit_bytes", [likelihood.LOGIT_BYTES, 4 * 272 * 3, 1])
def test_equals_the_direct_computation(engine, recipe, logit_bytes, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGIT_BYTES", logit_bytes)
    adapter = engine.compile(recipe)[0]
    values = example_losses(engine, EXAMPLES, adapter)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [direct(engine, e, adapter) for e in EXAMPLES], rtol=0, atol=TOLERANCE)


def test_nothing_of_one_adapter_leaks_into_the_next(engine):
    ready = ExampleLosses(engine, EXAMPLES)
    adapter = engine.compile(Recipe("single", ("lora",)))[0]
    first = [ready(a).values for a in (None, adapter)]
    again = [ready(a).values for a in (adapter, None)]
    assert np.abs(first[0] - first[1]).max() > 0.01
    np.testing.assert_array_equal(first, again[::-1])


def test_the_common_beginning_is_run_once(engine):
    result = ExampleLosses(engine, EXAMPLES)(None)
    ids = sorted((tuple(p + t[:-1]), len(p)) for p, t in (encoded(engine, e) for e in EXAMPLES))
    saved = 0
    for (a, _), (b, prompt) in pairwise(ids):
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        saved += min(shared, prompt - 1)
    assert result.tokens_saved == saved > 100
    assert result.tokens_run + result.tokens_saved == sum(len(a) for a, _ in ids)
    assert result.seconds > 0 and result.mean == pytest.approx(result.values.mean())
    alone = ExampleLosses(engine, EXAMPLES[:1])(None)
    assert alone.tokens_saved == 0


def test_the_logits_of_a_long_target_come_in_pieces(engine, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGIT_BYTES", 4 * engine.model.config.vocab_size * 8)
    sizes = []
    forward = engine.model.forward

    def watched(ids, *rest, all_logits=False):
        sizes.extend([len(ids)] if all_logits else [])
        return forward(ids, *rest, all_logits=all_logits)

    monkeypatch.setattr(engine.model, "forward", watched)
    example_losses(engine, [("Say", "x" * 30)], None)
    assert sizes == [8, 8, 8, 7]  # 30 letters and the end


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([], PromptError, "no examples"),
        ([("Hi", "Yes"), (" ", "Yes")], PromptError, "example 2: the prompt is empty"),
        ([("Hi", " \n")], PromptError, "example 1: the target is empty"),
        ([("x" * 300, "Yes")], ContextLengthError, "example 1 has .* the model's context 256"),
    ],
)
def test_refusals(engine, examples, error, message):
    with pytest.raises(error, match=message):
        example_losses(engine, examples, None)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_reading_examples(tmp_path):
    plain = write(tmp_path / "a.jsonl", {"prompt": "Hi", "target": "Yes", "id": 7}, "", {"prompt": "é", "summary": "s"})
    assert read_examples(plain) == [("Hi", "Yes"), ("é", "s")]
    texts = write(tmp_path / "b.jsonl", {"dialogue": "A: hi", "summary": "s"}, {"text": "t", "target": "u"})
    assert read_examples(texts, "Shorten") == [("Shorten\n\nA: hi", "s"), ("Shorten\n\nt", "u")]
    assert fingerprint(read_examples(plain)) != fingerprint(read_examples(texts, "Shorten"))


@pytest.mark.parametrize(
    ("line", "instruction", "message"),
    [
        ("{", None, "not valid JSON"),
        ("[" * 100_000, None, "not valid JSON"),
        ('{"prompt": "a", "prompt": "b", "target": "c"}', None, "occurs twice"),
        ([1], None, "expected an object"),
        ({"target": "x"}, None, "'prompt', 'dialogue', 'text'; its keys are 'target'"),
        ({"prompt": "x", "text": "y", "target": "z"}, None, "expected one of"),
        ({"prompt": "x", "summary1": "y"}, None, "'target', 'summary'; its keys are 'prompt', 'summary1'"),
        ({"prompt": "x", "target": 3}, None, "'target' must be a text"),
        ({"prompt": " ", "target": "y"}, None, "'prompt' must be a text and not empty"),
        ({"prompt": "x", "target": "y"}, "Shorten", "says all"),
        ({"text": "x", "target": "y"}, None, "name a task"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, instruction, message):
    good = {"text": "x", "target": "y"} if instruction else {"prompt": "x", "target": "y"}
    path = write(tmp_path / "bad.jsonl", good, line)
    with pytest.raises(PromptError, match=f"bad.jsonl, line 2: .*{message}"):
        read_examples(path, instruction)


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(PromptError, match="nowhere.jsonl cannot be read"):
        read_examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(PromptError, match="empty.jsonl holds no examples"):
        read_examples(write(tmp_path / "empty.jsonl", "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9", "target": "x"}\n')
    with pytest.raises(PromptError, match="line 1: not valid JSON"):
        read_examples(tmp_path / "latin.jsonl")
