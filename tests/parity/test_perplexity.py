"""Perplexity and KL divergence beside transformers and PyTorch in float32: losses within 1e-4, KL within 1e-5."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from edgecal import Engine
from edgecal.errors import OptionError, PromptError, RecipeError
from edgecal.perplexity import TokenScores, measure, summarize, token_scores
from edgecal.text.corpus import read_documents, split_documents, windows
from tests.cli.shell import edgecal
from tests.texts import TEXTS
from tests.tiny import write_tiny_adapter, write_tiny_hf

DOCUMENTS = [text + "\n\n" for text in TEXTS.values()]
CONTEXT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("perplexity")
    write_tiny_hf(root / "model")
    write_tiny_hf(root / "other", seed=1)
    write_tiny_adapter(root / "lora", root / "model")
    (root / "texts.jsonl").write_text("".join(json.dumps({"dialogue": text[:-2]}) + "\n" for text in DOCUMENTS))
    return root


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine.load(folder / "model", weights="fp32", cache_dtype="fp32", adapters={"lora": folder / "lora"})


@pytest.fixture(scope="module")
def other(folder) -> Engine:
    return Engine.load(folder / "other", weights="fp32", cache_dtype="fp32")


def theirs(path, texts: list[np.ndarray]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return [torch.log_softmax(model(torch.tensor(ids[None])).logits[0].double(), -1)[:-1] for ids in texts]


def test_beside_transformers(folder, engine, other):
    found = measure(engine, DOCUMENTS, against=other, context=CONTEXT)
    texts = windows(engine.tokenizer, DOCUMENTS, CONTEXT)
    own, others = theirs(folder / "model", texts), theirs(folder / "other", texts)
    targets = torch.cat([torch.tensor(ids[1:]) for ids in texts])
    a, b = torch.cat(own), torch.cat(others)
    kl = torch.nn.functional.kl_div(a, b, log_target=True, reduction="none").sum(-1)
    loss, loss_b = (float(torch.nn.functional.nll_loss(x, targets)) for x in (a, b))
    assert found.tokens == len(targets) and found.windows == len(texts)
    assert math.log(found.perplexity.value) == pytest.approx(loss, abs=1e-4)
    compared = found.against
    assert compared is not None
    assert math.log(compared.perplexity) == pytest.approx(loss_b, abs=1e-4)
    assert math.log(compared.ratio.value) == pytest.approx(loss - loss_b, abs=1e-4)
    assert compared.kl.value == pytest.approx(float(kl.mean()), abs=1e-5)
    assert compared.kl_median == pytest.approx(float(kl.median()), rel=0.05)  # theirs takes the lower of two
    assert compared.kl_99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-3)
    assert compared.same_top.value == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()), abs=2e-3)


def test_a_model_beside_itself(engine):
    found = measure(engine, DOCUMENTS, against=engine, context=CONTEXT).against
    assert found is not None
    assert (found.kl.value, found.same_top.value, found.ratio.value) == (0, 1, 1)


def test_pieces_of_logits_change_nothing(engine, other, monkeypatch):
    whole = measure(engine, DOCUMENTS, against=other, context=CONTEXT)
    monkeypatch.setattr("edgecal.perplexity._LOGIT_BYTES", 4 * engine.model.config.vocab_size * 7)
    parts = measure(engine, DOCUMENTS, against=other, context=CONTEXT)
    assert parts.perplexity.value == pytest.approx(whole.perplexity.value, rel=1e-6)
    assert parts.against is not None and whole.against is not None
    assert parts.against.kl.value == pytest.approx(whole.against.kl.value, rel=1e-5)


def test_a_recipe_is_used(engine):
    assert measure(engine, DOCUMENTS, recipe="lora").perplexity != measure(engine, DOCUMENTS).perplexity


def test_refusals(engine, other, folder, tmp_path):
    with pytest.raises(OptionError, match="choose 2 to 1024"):
        measure(engine, DOCUMENTS, context=2000)
    with pytest.raises(PromptError, match="at least two"):
        measure(engine, ["a"])
    with pytest.raises(RecipeError, match="makes prompts of its own"):
        from edgecal import Recipe, Step

        measure(engine, DOCUMENTS, recipe=Recipe("multi_step", steps=(Step("lora", "Do."),)))
    write_tiny_hf(tmp_path / "larger", vocab_size=280)
    with pytest.raises(OptionError, match="272 and 280"):
        measure(engine, DOCUMENTS, against=Engine.load(tmp_path / "larger", weights="fp32"))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(0, 2**16))
def test_the_error_of_windows_of_one_length_is_the_usual_one(lengths, seed):
    rng = np.random.default_rng(seed)
    found = summarize([TokenScores(rng.random(5)) for _ in lengths])
    rng = np.random.default_rng(seed)
    means = [rng.random(5).mean() for _ in lengths]
    usual = np.std(means, ddof=1) / math.sqrt(len(means))
    assert found.perplexity.error == pytest.approx(usual * found.perplexity.value)
    uneven = summarize([TokenScores(rng.random(n)) for n in lengths])
    assert uneven.tokens == sum(lengths)


def test_one_window_has_no_error(rng):
    logits = rng.normal(size=(5, 11)).astype(np.float32)
    found = summarize([token_scores(logits, np.arange(5), logits)])
    assert found.perplexity.error is None and found.against is not None and found.against.kl.low is None


def test_the_command(folder):
    options = ["--text", folder / "texts.jsonl", "-c", str(CONTEXT), "--cache-dtype", "fp32", "--weights", "fp32"]
    done = edgecal("perplexity", folder / "model", *options, "--against", folder / "other", "--json", home=folder)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert {"model", "against_model", "perplexity", "tokens", "windows", "context", "against"} == set(value)
    assert value["against"]["kl"]["low"] < value["against"]["kl"]["value"] < value["against"]["kl"]["high"]
    rounded = [*options, "--against-weights", "int8", "--windows", "2", "--adapter", folder / "lora"]
    done = edgecal("perplexity", folder / "model", *rounded, home=folder)
    assert done.returncode == 0, done.stderr
    assert "same top token" in done.stdout and "94 tokens scored in 2 windows of 48" in done.stdout
    text = "".join(DOCUMENTS)
    done = edgecal("perplexity", folder / "model", "-f", "-", "--max-tokens", "100", home=folder, input=text)
    assert done.returncode == 0 and "[99 tokens scored in 1 window " in done.stdout, done.stderr
    done = edgecal("perplexity", folder / "model", "--text", folder / "nowhere", home=folder)
    assert done.returncode == 1 and "nowhere" in done.stderr


def test_documents_of_a_file(folder, tmp_path):
    assert read_documents(folder / "texts.jsonl") == DOCUMENTS
    assert split_documents(b"\xef\xbb\xbfa {b}\n", "x.txt") == ["a {b}\n"]
    assert split_documents(b'{"a": "1", "text": "2"}\n\n{"text": "3"}', "x") == ["2\n\n", "3\n\n"]
    assert split_documents(b'{"a": "1", "text": "2"}', "x", "a") == ["1\n\n"]
    for raw, message in (
        (b"  ", "holds no text"),
        (b"\xff", "not UTF-8"),
        (b'{"a": "1"}', "line 1: expected one of 'text'.*found the keys 'a'.*--field"),
        (b'{"text": 1}', "must be a text, found a number"),
        (b'{"text": "a"}\n[1]', "line 2: a list"),
        (b'{"text": "a"}\n{', "line 2: not valid JSON"),
    ):
        with pytest.raises(PromptError, match=message):
            split_documents(raw, "x.jsonl")


def test_windows_begin_with_what_begins_a_text(folder):
    tokenizer = Engine.load(folder / "model", weights="fp32").tokenizer
    plain = windows(tokenizer, ["abcdefgh"], 3)
    assert [len(ids) for ids in plain] == [3, 3, 2] and [len(i) for i in windows(tokenizer, ["abcdefg"], 3)] == [3, 3]
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend.post_processor = TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    begun = windows(tokenizer, ["abcdefgh"], 3)
    assert [ids[0] for ids in begun] == [1, 1, 1]
    assert [list(a[1:]) == list(b[1:]) for a, b in zip(begun, plain, strict=True)] == [True] * 3
