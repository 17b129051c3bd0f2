"""Sampling against transformers' logits processors, and the draws against the distribution they come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edgecal.decoding.sampler import Sampler, SamplingOptions, advised
from edgecal.errors import EdgecalError, OptionError


def logits_of(rng: np.random.Generator, size: int, spread: float = 3.0) -> np.ndarray:
    return (rng.standard_normal(size) * spread).astype(np.float32)


def transformers_probabilities(logits: np.ndarray, prompt: list[int], options: SamplingOptions) -> np.ndarray:
    """The same list of processors, in the same order, as transformers' generate() builds it."""
    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1:
        processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        processors.append(MinPLogitsWarper(options.min_p))
    scores = processors(torch.tensor([prompt], dtype=torch.long), torch.tensor(logits[None].copy()))
    return torch.softmax(scores.double(), dim=-1)[0].numpy()


def dense(sampler: Sampler, logits: np.ndarray) -> np.ndarray:
    ids, probabilities = sampler.distribution(logits)
    assert (np.diff(ids) > 0).all()
    full = np.zeros(len(logits))
    full[ids] = probabilities
    return full


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 2.5, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 100_000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.3, "top_p": 0.05},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.1},
    {"temperature": 1.7, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 0.8},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("size", "spread"), [(7, 3.0), (1000, 3.0), (49152, 4.0), (5000, 0.01)])
def test_probabilities_equal_transformers(
    case: dict[str, Any], size: int, spread: float, rng: np.random.Generator
) -> None:
    options = SamplingOptions(**case)
    logits = logits_of(rng, size, spread)
    prompt = rng.integers(0, size, 30).tolist()
    expected = transformers_probabilities(logits, prompt, options)
    found = dense(Sampler(options, prompt), logits)
    # transformers adds up float32 probabilities, so a nearly flat top-p set may end one token earlier or later.
    assert abs(np.count_nonzero(found) - np.count_nonzero(expected)) <= (1 if spread < 1 and options.top_p < 1 else 0)
    tolerance = 1e-6 if spread >= 1 or options.top_p == 1 else 1e-3
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


@given(
    size=st.integers(1, 600),
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 700),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
    penalty=st.sampled_from([0.7, 1.0, 1.2]),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_equal_transformers_for_any_options(
    size: int, seed: int, temperature: float, top_k: int, min_p: float, penalty: float
) -> None:
    rng = np.random.default_rng(seed)
    options = SamplingOptions(temperature, top_k=top_k, min_p=min_p, repetition_penalty=penalty)
    logits, prompt = logits_of(rng, size), rng.integers(0, size, 5).tolist()
    expected = transformers_probabilities(logits, prompt, options)
    np.testing.assert_allclose(dense(Sampler(options, prompt), logits), expected, atol=1e-6, rtol=0)


def test_top_k_keeps_ties_like_transformers() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], dtype=np.float32)
    options = SamplingOptions(1.0, top_k=2)
    np.testing.assert_allclose(
        dense(Sampler(options), logits), transformers_probabilities(logits, [], options), atol=1e-6
    )
    assert Sampler(options).distribution(logits)[0].tolist() == [1, 2, 3, 4]


def test_top_p_keeps_the_first_of_equals() -> None:
    ids, probabilities = Sampler(SamplingOptions(1.0, top_p=0.5)).distribution(np.zeros(1000, np.float32))
    assert ids.tolist() == list(range(500))
    np.testing.assert_allclose(probabilities, 1 / 500)


def sorted_nucleus(weights: np.ndarray, top_p: float) -> list[int]:
    """The definition: a token is kept if those before it, sorted, sum to less than top_p of all."""
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    target = top_p * float(weights.sum(dtype=np.float64))
    return sorted(order[: int(np.searchsorted(cumulative, target)) + 1].tolist())


SHAPES: dict[str, Any] = {
    "normal": lambda rng, n: rng.standard_normal(n) * rng.choice([1e-4, 0.1, 1, 3, 10, 100]),
    "one far above": lambda rng, n: np.append(rng.standard_normal(n - 1), 40.0),
    "uniform": lambda rng, n: rng.uniform(-5, 0, n),
    "heavy tails": lambda rng, n: np.clip(rng.standard_cauchy(n), -1e3, 60),
    "all equal": lambda rng, n: np.zeros(n),
    "many equals": lambda rng, n: np.round(rng.standard_normal(n) * 2) / 2,
    "periodic": lambda rng, n: np.where(np.arange(n) % 8 == 0, 0.0, -3.0) + rng.standard_normal(n) * 0.01,
    "forbidden": lambda rng, n: np.where(rng.random(n) < 0.9, -np.inf, rng.standard_normal(n)) + np.eye(1, n)[0] * 1e2,
    "sorted": lambda rng, n: np.sort(rng.standard_normal(n))[:: rng.choice([-1, 1])],
}


@given(
    shape=st.sampled_from(list(SHAPES)),
    size=st.sampled_from([1, 2, 100, 16_384, 16_385, 49_152, 151_936]),
    top_p=st.one_of(st.sampled_from([1e-9, 0.5, 0.95, 0.999, 1 - 2**-53]), st.floats(1e-6, 1, exclude_max=True)),
    seed=st.integers(0, 99),
)
@settings(max_examples=120, deadline=None)
def test_top_p_is_the_sorted_definition(shape: str, size: int, top_p: float, seed: int) -> None:
    logits = SHAPES[shape](np.random.default_rng(seed), size).astype(np.float32)
    if not np.isfinite(logits.max()):
        logits[0] = 0
    weights = np.exp(logits - logits.max())
    found = Sampler(SamplingOptions(1.0, top_p=top_p)).distribution(logits)[0].tolist()
    expected = sorted_nucleus(weights, top_p)
    if found != expected:
        # Only where the last token of one set is in it by the rounding of a sum
        assert abs(len(found) - len(expected)) <= 1 or 1 - top_p < 1e-9
        smaller, larger = sorted((found, expected), key=len)
        rest = weights[sorted(set(larger) - set(smaller))].sum(dtype=np.float64)
        total = weights.sum(dtype=np.float64)
        assert abs(weights[smaller].sum(dtype=np.float64) - top_p * total) <= 1e-12 * total or rest <= 1e-12 * total


def test_greedy_takes_the_largest_after_the_penalty(rng: np.random.Generator) -> None:
    logits = logits_of(rng, 500)
    best = int(logits.argmax())
    assert Sampler(SamplingOptions())(logits) == best
    before = logits.copy()
    penalized = Sampler(SamplingOptions(repetition_penalty=100.0), [best])
    second = penalized(logits)
    assert second == int(np.where(np.arange(500) == best, -np.inf, logits).argmax())
    penalized.accept(second)
    assert penalized(logits) not in (best, second)
    np.testing.assert_array_equal(logits, before)


def test_generated_ids_count_for_the_penalty(rng: np.random.Generator) -> None:
    options = SamplingOptions(1.0, repetition_penalty=1.5)
    logits = logits_of(rng, 50)
    sampler = Sampler(options, [3, 4, 4])
    for index in (7, 3):
        sampler.accept(index)
    np.testing.assert_allclose(
        dense(sampler, logits), transformers_probabilities(logits, [3, 4, 4, 7, 3], options), atol=1e-6
    )


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))
    sampler = Sampler(SamplingOptions(1.0, seed=11))
    draws = 20_000
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=4)
    expected = draws * np.array([0.5, 0.25, 0.15, 0.1])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = 0.001


def test_same_seed_same_text_and_other_seed_other_text(rng: np.random.Generator) -> None:
    rows = [logits_of(rng, 300) for _ in range(40)]

    def run(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(1.0, top_p=0.95, seed=seed))
        return [sampler(row) for row in rows]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(None) != run(None)


def test_draws_are_pinned() -> None:
    """PCG64 and the inverse of the cumulative sum give these on every platform."""
    sampler = Sampler(SamplingOptions(1.0, seed=42))
    logits = np.log(np.arange(1, 11, dtype=np.float32))
    assert [sampler(logits) for _ in range(8)] == [8, 6, 9, 8, 2, 9, 8, 8]


def test_a_token_costs_one_uniform_number_whatever_the_options(rng: np.random.Generator) -> None:
    logits = logits_of(rng, 200)
    for options in (
        SamplingOptions(1.0, seed=3),
        SamplingOptions(0.5, top_k=9, top_p=0.5, min_p=0.2, seed=3),
    ):
        sampler = Sampler(options)
        ids, probabilities = sampler.distribution(logits)
        uniform = np.random.Generator(np.random.PCG64(3)).random(5)
        edges = np.cumsum(probabilities)
        expected = [int(ids[np.searchsorted(edges, u * edges[-1], side="right")]) for u in uniform]
        assert [sampler(logits) for _ in range(5)] == expected


def test_forbidden_tokens_never_come(rng: np.random.Generator) -> None:
    logits = np.full(100, -np.inf, dtype=np.float32)
    logits[[4, 70]] = [0.0, 1.0]
    for options in (
        SamplingOptions(2.0, seed=1),
        SamplingOptions(2.0, top_k=50, top_p=0.99, min_p=0.01, seed=1),
    ):
        sampler = Sampler(options)
        assert {sampler(logits) for _ in range(60)} == {4, 70}


@pytest.mark.parametrize("temperature", [1e-300, 1e-8, 1e8])
def test_extreme_temperatures_stay_finite(temperature: float, rng: np.random.Generator) -> None:
    logits = logits_of(rng, 64, spread=1e4)
    ids, probabilities = Sampler(SamplingOptions(temperature)).distribution(logits)
    assert math.isclose(probabilities.sum(), 1.0)
    if temperature < 1:
        assert ids[probabilities > 0].tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nonsense_logits_are_an_error(bad: float, temperature: float) -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[3] = bad
    with pytest.raises(EdgecalError, match="the largest logit is (nan|inf)"):
        Sampler(SamplingOptions(temperature))(logits)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", -0.1, "temperature must be at least 0, found -0.1"),
        ("temperature", math.nan, "temperature must be"),
        ("temperature", math.inf, "temperature must be"),
        ("temperature", "hot", "temperature must be at least 0, found 'hot'"),
        ("temperature", True, "temperature must be"),
        ("top_k", -1, "top_k must be a whole number, at least 0"),
        ("top_k", 2.5, "top_k must be a whole number"),
        ("top_p", 0.0, "top_p must be above 0 and at most 1"),
        ("top_p", 1.01, "top_p must be"),
        ("min_p", -0.01, r"min_p must be from 0 \(off\) to 1"),
        ("min_p", 1.5, "min_p must be"),
        ("repetition_penalty", 0.0, "repetition_penalty must be above 0"),
        ("seed", -1, "seed must be a whole number, at least 0, or None, found -1"),
        ("seed", 1.0, "seed must be"),
    ],
)
def test_options_outside_their_range(option: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SamplingOptions(**{option: value})
    with pytest.raises(ValueError, match=option):  # OptionError is a ValueError, as callers of NumPy expect
        SamplingOptions(**{option: value})


ADVICE = {
    "nothing": ({"eos_token_id": 2, "max_length": 100}, None),
    "llama 3.2": (
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"temperature": 0.6, "top_k": 50, "top_p": 0.9},
    ),
    "qwen 2.5": (
        {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1},
    ),
    "gemma 3": ({"do_sample": True, "top_k": 64, "top_p": 0.95}, {"temperature": 1.0, "top_k": 64, "top_p": 0.95}),
    "sampling alone": ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
    "greedy": ({"do_sample": False}, {}),
    "not said to sample": ({"temperature": 0.6, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    "null": ({"do_sample": None, "temperature": None}, None),
    "off": ({"do_sample": True, "top_k": 0, "temperature": 0.0}, {"temperature": 0.0, "top_k": 0}),
}


@pytest.mark.parametrize("name", ADVICE)
def test_what_a_model_advises(name: str) -> None:
    config, expected = ADVICE[name]
    assert advised(config) == (None if expected is None else SamplingOptions(**expected))


@pytest.mark.parametrize("name", [name for name in ADVICE if name not in ("null", "off")])
def test_it_is_what_transformers_makes_of_it(name: str) -> None:
    config, _ = ADVICE[name]
    theirs, ours = GenerationConfig(**config), advised(config) or SamplingOptions()
    for key, value in GenerationConfig._get_default_generation_params().items():  # as generate() fills it in
        if getattr(theirs, key, None) is None:
            setattr(theirs, key, value)
    assert ours.greedy == (not theirs.do_sample) and ours.repetition_penalty == theirs.repetition_penalty
    if theirs.do_sample:
        assert (ours.temperature, ours.top_k, ours.top_p) == (theirs.temperature, theirs.top_k, theirs.top_p)


@pytest.mark.parametrize("config", [{"do_sample": True, "top_p": 2}, {"repetition_penalty": "much"}])
def test_advice_that_makes_no_sense(config: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="must be"):
        advised(config)
