"""The searches on losses that are formulas: minimum, budget, objective, resuming; and candidates against recipes."""

from __future__ import annotations

import json
import math
import sys
import threading

import numpy as np
import pytest

from edgecal.adapters import LoraAdapter, LoraPair, Recipe, compile_recipe
from edgecal.errors import AdapterError, OptionError, RecipeError, StorageError
from edgecal.search import search as search_module
from edgecal.search.record import Evaluation, SearchRecord
from edgecal.search.search import Candidates, Search, cocktail_weights, l1_term

NAMES = ("a", "b", "c")
TARGET = (0.8, -0.4, 2.5)  # the last one beyond the bounds


class Bowl:
    """A quadratic loss, and what it was asked."""

    def __init__(self, target: tuple[float, ...] = TARGET, fail_at: int | None = None) -> None:
        self.target, self.fail_at = target, fail_at
        self.asked: list[tuple[float, ...]] = []

    def __call__(self, weights: tuple[float, ...]) -> float:
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(weights)
        return 1 + sum((w - t) ** 2 for w, t in zip(weights, self.target, strict=True))


@pytest.mark.parametrize(
    ("target", "tolerance"),
    # nevergrad folds the space at the bounds, and COBYLA ends 0.03 or 0.06 away, by the processor's BLAS
    [((0.8, -0.4, 0.1), 0.01), (TARGET, 0.1)],
)
def test_lorahub_finds_the_minimum_within_the_bounds(target, tolerance):
    bowl = Bowl(target)
    recipe = Search("lorahub", NAMES, bowl, evaluations=100).run()
    # The L1 term moves the minimum of (w - t)^2 by 0.05 / (2 * 3)
    shifted = np.array(target) - np.sign(target) * search_module.L1 / 6
    np.testing.assert_allclose(recipe.weights, shifted.clip(-1.5, 1.5), rtol=0, atol=tolerance)
    assert recipe.method == "lorahub" and recipe.adapters == NAMES
    assert bowl.asked[0] == (0.0, 0.0, 0.0)
    assert max(abs(w) for weights in bowl.asked for w in weights) <= search_module.LIMIT == 1.5


def test_the_objective_is_the_authors():
    assert l1_term((1.0, -2.0, 0.0)) == pytest.approx(0.05 * (1 + 2 + 0) / 3)
    search = Search("lorahub", NAMES, Bowl())
    assert search.objective(Evaluation((1.0, -2.0, 0.0), 3.0)) == pytest.approx(3.05)
    assert search.total == 40
    search.run()
    best = min(search.record.evaluations, key=lambda e: e.loss + l1_term(e.weights))
    assert search.best == best


def test_the_optimiser_is_the_authors():
    """The same points as nevergrad's own loop with NGOpt, start 0 and bounds of 1.5."""
    nevergrad = pytest.importorskip("nevergrad")
    bowl = Bowl()
    Search("lorahub", NAMES, bowl).run()
    point = nevergrad.p.Array(init=[0] * 3, upper=[1.5] * 3, lower=[-1.5] * 3)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=point, budget=40)
    theirs = Bowl()
    with pytest.warns(UserWarning, match="COBYLA"):
        optimizer.minimize(lambda w: theirs(tuple(map(float, w))) + l1_term(w))
    del optimizer
    assert list(dict.fromkeys(theirs.asked)) == bowl.asked


@pytest.mark.parametrize(("n_adapters", "evaluations"), [(1, 7), (2, 1), (3, 25), (5, 4), (1, 60), (2, 120)])
def test_the_budget_is_kept_and_no_thread_stays(n_adapters, evaluations):
    bowl, threads = Bowl(tuple(np.linspace(-1, 1, n_adapters))), set(threading.enumerate())
    seen = []
    names = tuple("abcde")[:n_adapters]
    search = Search("lorahub", names, bowl, evaluations=evaluations, progress=seen.append)
    search.run()
    assert len(bowl.asked) <= evaluations and [p.done for p in seen] == list(range(1, evaluations + 1))
    assert all(p.total == evaluations for p in seen) and search.done == evaluations
    best = [p.best_objective for p in seen]
    assert best == sorted(best, reverse=True) and best[-1] == min(p.objective for p in seen)
    for thread in set(threading.enumerate()) - threads:  # told to end; a busy machine takes its time
        thread.join(60)
    assert set(threading.enumerate()) <= threads, "a thread of the search is still there"


def test_minutes_end_a_search(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(search_module, "monotonic", lambda: now[0])
    bowl = Bowl()

    def slow(weights):
        now[0] += 20
        return bowl(weights)

    search = Search("lorahub", NAMES, slow, minutes=1)
    assert search.run().weights is not None
    assert len(bowl.asked) == 3 and search.out_of_time
    again = Search("lm_cocktail", NAMES, slow, minutes=0.5)
    with pytest.raises(RecipeError, match="before c was evaluated"):
        again.run()


@pytest.mark.parametrize("method", ["lorahub", "lm_cocktail"])
def test_resuming_gives_the_same_trajectory(tmp_path, method):
    whole, state, threads = Bowl(), tmp_path / "state.json", set(threading.enumerate())
    expected = Search(method, NAMES, whole).run()
    first = Bowl(fail_at=2)
    search = Search(method, NAMES, first, record=SearchRecord({"x": "1"}, state))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    best = search.best_recipe()
    assert best.weights == first.asked[1] if method == "lorahub" else best is None
    for thread in set(threading.enumerate()) - threads:  # told to end; a busy machine takes its time
        thread.join(60)
    assert set(threading.enumerate()) <= threads, "a thread of the search is still there"
    second = Bowl()
    resumed = Search(method, NAMES, second, record=SearchRecord({"x": "1"}, state))
    assert resumed.run() == expected and resumed.reused >= 2
    assert first.asked + second.asked == whole.asked
    third = Bowl()
    assert Search(method, NAMES, third, record=SearchRecord({"x": "1"}, state)).run() == expected
    assert third.asked == []


def test_a_larger_budget_goes_on_where_the_smaller_ended(tmp_path):
    short, long, both = Bowl(), Bowl(), Bowl()
    record = SearchRecord()
    Search("lorahub", NAMES, short, evaluations=20, record=record).run()
    Search("lorahub", NAMES, long, evaluations=170, record=record).run()  # beyond NGOpt's COBYLA
    Search("lorahub", NAMES, both, evaluations=170).run()
    assert short.asked + long.asked == both.asked


def test_a_loss_that_overflows_is_a_bad_loss(tmp_path):
    def fragile(weights):
        return math.nan if weights[0] > 0.4 else Bowl((0.2, 0.3))(weights)

    record = SearchRecord({}, tmp_path / "state.json")
    recipe = Search("lorahub", NAMES[:2], fragile, record=record).run()
    assert recipe.weights[0] <= 0.4 and any(math.isinf(e.loss) for e in record.evaluations)
    again = SearchRecord({}, tmp_path / "state.json")
    assert again.evaluations == record.evaluations


def test_lm_cocktail_is_the_softmax_of_the_losses():
    losses = {(1.0, 0.0, 0.0): 1.0, (0.0, 1.0, 0.0): 2.0, (0.0, 0.0, 1.0): 4.0}
    asked = []

    def loss(weights):
        asked.append(weights)
        return losses.get(weights, 0.5)

    search = Search("lm_cocktail", NAMES, loss)
    recipe = search.run()
    powers = np.exp(-np.array([1.0, 2.0, 4.0]) / 5)
    np.testing.assert_allclose(recipe.weights, powers / powers.sum(), rtol=1e-12)
    assert recipe.method == "lm_cocktail" and asked == [*losses, recipe.weights]  # the mix is looked at last
    assert Search("lm_cocktail", NAMES, loss, evaluations=3).run() == recipe and len(asked) == 7
    assert cocktail_weights([math.inf, 700.0, 700.0]) == pytest.approx((0, 0.5, 0.5))
    assert cocktail_weights([1.0, 2.0], 0.01)[0] == pytest.approx(1)
    with pytest.raises(RecipeError, match="finite"):
        cocktail_weights([math.inf, math.nan])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ties"}, "no search for 'ties'"),
        ({"evaluations": 0}, "needs 1 evaluation, found 0"),
        ({"method": "lm_cocktail", "evaluations": 2}, "needs 3 evaluations, found 2"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"minutes": math.nan}, "minutes must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(OptionError, match=message):
        Search(**{"method": "lorahub", "adapters": NAMES, "loss": Bowl(), **arguments})
    with pytest.raises(RecipeError, match="needs adapters"):
        Search("lorahub", (), Bowl())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not the state of a search"),
        ('{"format": "edgecal-search", "version": 9}', "version 9"),
        ('{"format": "edgecal-search", "version": 1, "setup": {}}', "a list 'evaluations'"),
        ({"setup": {"examples": "other"}}, "another search: examples is 'other' there and 'mine' now"),
        ({"evaluations": [{"weights": [1.0], "loss": 1.0}, {"weights": "x", "loss": 1.0}]}, "evaluation 2 is not"),
        ({"evaluations": [{"weights": [True], "loss": 1.0}]}, "evaluation 1 is not"),
        ({"evaluations": [{"weights": [1.0], "loss": "low"}]}, "evaluation 1 is not"),
    ],
)
def test_a_bad_state_file_is_refused(tmp_path, content, message):
    path = tmp_path / "state.json"
    if isinstance(content, dict):
        whole = {"format": "edgecal-search", "version": 1, "setup": {"examples": "mine"}, "evaluations": []}
        content = json.dumps(whole | content)
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        SearchRecord({"examples": "mine"}, path)
    assert path.read_text() == content


def test_an_unwritable_state_is_found_at_the_start(tmp_path):
    with pytest.raises(StorageError, match="could not be written"):
        SearchRecord({}, tmp_path / "nowhere" / "state.json")
    SearchRecord({}, tmp_path / "state.json").add(Evaluation((0.5,), 1.0))
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def adapters(rng: np.random.Generator, ranks: tuple[int, ...] = (3, 3, 3)) -> list[LoraAdapter]:
    """The last one leaves a module alone."""
    made = []
    for name, r in zip(NAMES, ranks, strict=True):
        modules = {"x": (6, 5), "y": (4, 6)} if name != NAMES[-1] else {"x": (6, 5)}
        pairs = {
            m: LoraPair(rng.standard_normal((r, k), np.float32), rng.standard_normal((d, r), np.float32), 0.5 * r)
            for m, (d, k) in modules.items()
        }
        made.append(LoraAdapter(name, pairs))
    return made


@pytest.mark.parametrize("method", ["lorahub", "lm_cocktail"])
@pytest.mark.parametrize("weights", [(0.3, 0.2, 1.1), (0.0, 1.0, 0.0), (0.5, 0.0, 0.7)])
def test_a_candidate_is_what_its_recipe_compiles_to(rng, method, weights):
    loaded = adapters(rng)
    found = Candidates(method, loaded).compile(weights)
    recipe = Recipe(method, NAMES, weights)
    whole = compile_recipe(recipe, {a.name: a for a in loaded}, None, {"x": (6, 5), "y": (4, 6)}, {})
    assert found is not None and whole is not None
    for module, pair in whole.pairs.items():
        delta = found.pairs[module].delta() if module in found.pairs else 0 * pair.delta()
        np.testing.assert_allclose(delta, pair.delta(), rtol=1e-5, atol=1e-6)


def test_lorahub_puts_the_weights_on_both_factors(rng):
    loaded, weights = adapters(rng), (0.5, -1.2, 0.9)
    compiled = Candidates("lorahub", loaded).compile(weights)
    pairs = [a.pairs["x"] for a in loaded]
    a = sum(w * p.a for w, p in zip(weights, pairs, strict=True))
    b = sum(w * p.scaling * p.b for w, p in zip(weights, pairs, strict=True))
    np.testing.assert_allclose(compiled.pairs["x"].a, a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(compiled.pairs["x"].b, b, rtol=1e-5, atol=1e-6)
    assert Candidates("lorahub", loaded).compile((0.0, 0.0, 0.0)) is None


def test_adapters_that_do_not_combine_are_refused_before_anything_is_evaluated(rng):
    loaded = adapters(rng, (3, 2, 3))
    with pytest.raises(AdapterError, match="lorahub of a, b, c at x: "):
        Candidates("lorahub", loaded)
    assert Candidates("lm_cocktail", loaded).compile((1.0, 1.0, 0.0)).pairs["x"].rank == 5
    with pytest.raises(RecipeError, match="no weights to search for"):
        Candidates("zero_shot", loaded)


def test_without_nevergrad_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    with pytest.raises(OptionError, match=r"pip install 'edgecal\[search\]'"):
        Search("lorahub", NAMES, Bowl()).run()
    assert Search("lm_cocktail", NAMES, Bowl()).run().weights is not None
