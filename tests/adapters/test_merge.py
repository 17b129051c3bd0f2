"""The merge functions as algebra, on random pairs.

Tolerance: 2e-6 of the largest entry that the same formula has with every number made positive: what float32
can promise when terms cancel. Below 1e-30 numbers are zero (float32 ends there).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal.adapters.calibration import ModuleCalibration
from edgecal.adapters.compiled import CompiledPair
from edgecal.adapters.lora import LoraPair
from edgecal.adapters.merge import Context, find_method, method_names, methods
from edgecal.adapters.merge.concat import concat
from edgecal.adapters.merge.learnable_calibration import learnable_calibration
from edgecal.adapters.merge.learnable_calibration_pp import learnable_calibration_pp
from edgecal.adapters.merge.linear import linear
from edgecal.adapters.merge.projection_merge import projection_merge
from edgecal.adapters.merge.single import single
from edgecal.errors import AdapterError, RecipeError

D, K = 7, 5
MERGED = [m.name for m in methods() if m.merge is not None]


def exact(pair: LoraPair) -> np.ndarray:
    """dW in float64, by the definition."""
    return pair.scaling * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))


def delta(pair: CompiledPair) -> np.ndarray:
    return pair.b.astype(np.float64) @ pair.a.astype(np.float64)


def close(found: np.ndarray, wanted: np.ndarray, bound: np.ndarray | None = None) -> None:
    """`bound` is the formula of `wanted` on absolute values, where terms can cancel."""
    largest = np.abs(wanted if bound is None else bound).max(initial=0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * largest + 1e-30)


def positive(pairs: Sequence[LoraPair]) -> list[LoraPair]:
    return [LoraPair(np.abs(pair.a), np.abs(pair.b), abs(pair.scaling)) for pair in pairs]


def positive_sum(pairs: Sequence[LoraPair], weights: Sequence[float]) -> np.ndarray:
    return delta(concat(positive(pairs), [abs(w) for w in weights]))


def positive_mean(pairs: Sequence[LoraPair], weights: Sequence[float]) -> np.ndarray:
    return delta(linear(positive(pairs), [abs(w) for w in weights]))


def random_pair(seed: int, rank: int, scaling: float) -> LoraPair:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, K)), rng.normal(size=(D, rank))
    return LoraPair(a.astype(np.float32), b.astype(np.float32), scaling)


def pairs_of(ranks: st.SearchStrategy[int]) -> st.SearchStrategy[LoraPair]:
    return st.builds(random_pair, st.integers(0, 2**16), ranks, st.floats(-4, 4))


ANY_RANK = st.lists(pairs_of(st.integers(0, 4)), min_size=1, max_size=4)
SAME_RANK = st.integers(0, 4).flatmap(lambda r: st.lists(pairs_of(st.just(r)), min_size=1, max_size=4))
WEIGHT = st.floats(-3, 3)


def with_weights(
    pairs: st.SearchStrategy[list[LoraPair]],
) -> st.SearchStrategy[tuple[list[LoraPair], list[float]]]:
    return pairs.flatmap(lambda p: st.tuples(st.just(p), st.lists(WEIGHT, min_size=len(p), max_size=len(p))))


def mean(pairs: Sequence[LoraPair]) -> list[float]:
    return [1 / len(pairs)] * len(pairs) if pairs else []


def random_calibration(seed: int, s: int, scaling: float, rows: int) -> ModuleCalibration:
    """With the tensors of every method."""
    rng = np.random.default_rng(seed)
    tensors = {"p": rng.normal(size=D), "P1": rng.normal(size=(s, rows)), "P2": rng.normal(size=(D, s))}
    tensors |= {f"m{i + 1}": rng.normal(size=K) for i in range(4)}
    return ModuleCalibration({name: t.astype(np.float32) for name, t in tensors.items()}, scaling)


@given(with_weights(ANY_RANK))
def test_concat_is_the_exact_sum(case: tuple[list[LoraPair], list[float]]) -> None:
    pairs, weights = case
    merged = concat(pairs, weights)
    assert merged.rank == sum(pair.shape.rank for pair in pairs)
    terms = [w * exact(pair) for w, pair in zip(weights, pairs, strict=True)]
    close(delta(merged), sum(terms, np.zeros((D, K))), positive_sum(pairs, weights))


@given(with_weights(SAME_RANK))
def test_linear_is_equation_5(case: tuple[list[LoraPair], list[float]]) -> None:
    pairs, weights = case
    merged = linear(pairs, weights)
    a = sum(w * pair.a.astype(np.float64) for w, pair in zip(weights, pairs, strict=True))
    b = sum(w * pair.scaling * pair.b.astype(np.float64) for w, pair in zip(weights, pairs, strict=True))
    bound = linear(positive(pairs), [abs(w) for w in weights])
    close(merged.a, a, bound.a)
    close(merged.b, b, bound.b)
    assert merged.rank == pairs[0].shape.rank


@given(with_weights(SAME_RANK), st.randoms(use_true_random=False))
def test_order_does_not_matter(case: tuple[list[LoraPair], list[float]], random: np.random.Generator) -> None:
    pairs, weights = case
    order = list(range(len(pairs)))
    random.shuffle(order)
    for merge, bound in ((linear, positive_mean(pairs, weights)), (concat, positive_sum(pairs, weights))):
        one = delta(merge(pairs, weights))
        other = delta(merge([pairs[i] for i in order], [weights[i] for i in order]))
        close(other, one, bound)


@pytest.mark.parametrize("merge", [linear, concat, single])
@given(pairs_of(st.integers(0, 4)))
def test_one_adapter_of_weight_1_gives_itself(merge, pair: LoraPair) -> None:
    merged = merge([pair], [1.0])
    np.testing.assert_array_equal(merged.a, pair.a)
    np.testing.assert_array_equal(merged.b, pair.b * np.float32(pair.scaling))


@given(SAME_RANK.map(lambda pairs: pairs[:1]), st.integers(2, 4))
def test_equal_adapters_average_to_themselves(pairs: list[LoraPair], count: int) -> None:
    copies = pairs * count
    for merge in (linear, concat):
        close(delta(merge(copies, mean(copies))), exact(pairs[0]), positive_sum(pairs, [1.0]))


@given(SAME_RANK, WEIGHT)
def test_scaling_laws(pairs: list[LoraPair], factor: float) -> None:
    """dW of concat grows with the weights, that of Eq. 5 with their square; both with the scaling of the pairs."""
    weights, scaled = mean(pairs), [factor / len(pairs)] * len(pairs)
    stretched = [LoraPair(p.a, p.b, factor * p.scaling) for p in pairs]
    of_sum, of_mean = positive_sum(pairs, weights), positive_mean(pairs, weights)
    close(delta(concat(pairs, scaled)), factor * delta(concat(pairs, weights)), factor * of_sum)
    close(delta(linear(pairs, scaled)), factor**2 * delta(linear(pairs, weights)), factor**2 * of_mean)
    for merge, bound in ((concat, of_sum), (linear, of_mean)):
        close(delta(merge(stretched, weights)), factor * delta(merge(pairs, weights)), factor * bound)


@given(pairs_of(st.integers(1, 3)), st.integers(1, 3))
def test_a_zero_adapter_adds_nothing(pair: LoraPair, rank: int) -> None:
    zero = LoraPair(np.zeros((rank, K), np.float32), np.zeros((D, rank), np.float32), 2.0)
    empty = LoraPair(np.zeros((0, K), np.float32), np.zeros((D, 0), np.float32))
    close(delta(concat([pair, zero, empty], [0.5, 0.5, 1.0])), 0.5 * exact(pair), positive_sum([pair], [0.5]))


@given(SAME_RANK, st.floats(-2, 2))
def test_zero_calibrations_equal_linear(pairs: list[LoraPair], scaling: float) -> None:
    weights = mean(pairs)
    wanted = delta(linear(pairs, weights))
    zero = {
        "p": np.zeros(D, np.float32),
        "P1": np.ones((2, K), np.float32),
        "P2": np.zeros((D, 2), np.float32),
    }
    term = ModuleCalibration(zero, scaling)
    close(delta(learnable_calibration(pairs, weights, Context(term))), wanted)
    close(delta(learnable_calibration_pp(pairs, weights, Context(term))), wanted)
    off = ModuleCalibration({**zero, "p": np.ones(D, np.float32), "P2": np.ones((D, 2), np.float32)}, 0.0)
    close(delta(learnable_calibration(pairs, weights, Context(off))), wanted)
    close(delta(learnable_calibration_pp(pairs, weights, Context(off))), wanted)


@given(SAME_RANK, st.integers(0, 99), st.floats(-2, 2))
def test_learnable_calibration_is_equation_6(pairs: list[LoraPair], seed: int, scaling: float) -> None:
    term = random_calibration(seed, 1, scaling, K)
    merged = learnable_calibration(pairs, mean(pairs), Context(term))
    wanted = delta(linear(pairs, mean(pairs))) + scaling * np.outer(term.tensors["p"], np.ones(K))
    vector = np.abs(scaling * term.tensors["p"])
    bound = positive_mean(pairs, mean(pairs)) + vector[:, None]
    close(delta(merged), wanted, bound)
    assert merged.rank == pairs[0].shape.rank + 1
    assert merged.bias is None

    as_output = learnable_calibration(
        pairs, mean(pairs), Context(ModuleCalibration(term.tensors, scaling, "output"))
    )
    assert as_output.bias is not None
    close(delta(as_output), delta(linear(pairs, mean(pairs))))
    close(as_output.bias, scaling * term.tensors["p"].astype(np.float64))


@given(SAME_RANK, st.integers(0, 99), st.integers(1, 4), st.floats(-2, 2))
def test_learnable_calibration_pp_is_equation_7(pairs: list[LoraPair], seed: int, s: int, scaling: float) -> None:
    term = random_calibration(seed, s, scaling, K)
    merged = learnable_calibration_pp(pairs, mean(pairs), Context(term))
    p1, p2 = (term.tensors[name].astype(np.float64) for name in ("P1", "P2"))
    bound = positive_mean(pairs, mean(pairs)) + abs(scaling) * np.abs(p2) @ np.abs(p1)
    close(delta(merged), delta(linear(pairs, mean(pairs))) + scaling * p2 @ p1, bound)
    assert merged.rank == pairs[0].shape.rank + s


@settings(max_examples=60)
@given(with_weights(ANY_RANK), st.integers(0, 99), st.integers(1, 4), st.floats(-2, 2))
def test_projection_folds_to_its_dense_formula(
    case: tuple[list[LoraPair], list[float]], seed: int, s: int, scaling: float
) -> None:
    pairs, weights = case
    term = random_calibration(seed, s, scaling, D)  # P1 (s, d) multiplies dW from the left
    merged = projection_merge(pairs, weights, Context(term))
    p1, p2 = (term.tensors[name].astype(np.float64) for name in ("P1", "P2"))
    dense = sum((w * exact(pair) for w, pair in zip(weights, pairs, strict=True)), np.zeros((D, K)))
    bound = abs(scaling) * np.abs(p2) @ np.abs(p1) @ positive_sum(pairs, weights)
    close(delta(merged), scaling * p2 @ p1 @ dense, bound)
    assert merged.rank == s


@pytest.mark.parametrize("name", MERGED)
def test_results_are_float32_in_the_kernels_order(name: str) -> None:
    rows = D if name == "projection_merge" else K
    most = find_method(name).max_adapters
    count = 3 if most is None else most
    pairs = [random_pair(i, 2, 0.5) for i in range(count)]
    merge = find_method(name).merge
    assert merge is not None
    context = Context(random_calibration(1, 2, 1.0, rows), shape=(D, K))
    merged = merge(pairs, mean(pairs), context)
    assert merged.a.dtype == merged.b.dtype == np.float32
    assert merged.a.flags.c_contiguous and merged.b.flags.f_contiguous
    assert merged.a.shape == (merged.rank, K)
    assert merged.b.shape == (D, merged.rank)
    for pair in pairs:
        assert not np.shares_memory(merged.a, pair.a)


@pytest.mark.parametrize("name", [n for n in MERGED if find_method(n).needs_calibration])
def test_calibrated_methods_need_their_tensors(name: str) -> None:
    merge = find_method(name).merge
    assert merge is not None
    with pytest.raises(ValueError, match=name):
        merge([random_pair(0, 2, 1.0)], [1.0], Context())


def test_unequal_ranks() -> None:
    pairs = [random_pair(0, 2, 1.0), random_pair(1, 3, 1.0)]
    with pytest.raises(AdapterError, match="equal shapes and ranks.*rank 2.*rank 3"):
        linear(pairs, [0.5, 0.5])
    assert concat(pairs, [0.5, 0.5]).rank == 5


def test_unequal_shapes() -> None:
    other = LoraPair(np.zeros((2, K + 1), np.float32), np.zeros((D, 2), np.float32))
    for merge in (linear, concat):
        with pytest.raises(AdapterError, match="shape"):
            merge([random_pair(0, 2, 1.0), other], [0.5, 0.5])


def test_every_method_is_listed_by_what_it_needs() -> None:
    """Those that a user can run with nothing come first; within equal needs by name, so that the list is stable."""
    listed = methods()
    assert [entry.name for entry in listed] == list(method_names()) and len(set(method_names())) == len(listed)
    needs = [(entry.passes, entry.needs_calibration) for entry in listed]
    assert needs == sorted(needs) and listed[0].max_adapters == 0
    for entry in listed:
        assert find_method(entry.name) is entry
        assert entry.title and entry.paper
        assert entry.needs_calibration or entry.passes > 1 or entry.max_adapters == 0 or entry.takes_weights


def test_every_merge_function_is_registered() -> None:
    """A method whose file is not imported in merge/__init__.py would be missing without a word."""
    decorated = {
        name
        for file in Path(inspect.getfile(Context)).parent.glob("*.py")
        for name in re.findall(r'^(?:@method\(|    Method\()\n? +"(\w+)"', file.read_text(), re.M)
    }
    assert decorated == set(method_names())


def test_unknown_methods() -> None:
    with pytest.raises(RecipeError, match="unknown method 'lineer'.*did you mean 'linear'.*known methods: in_context"):
        find_method("lineer")
    with pytest.raises(RecipeError, match="unknown method 'xyz'; known methods"):
        find_method("xyz")
