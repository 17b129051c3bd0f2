"""Recipes in mergekit's spelling against mergekit's own formulas on whole models, written down in NumPy (float64)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecal.adapters import LoraAdapter, LoraPair, Recipe, compile_recipe
from edgecal.errors import RecipeError

D, K = 11, 7
SHAPES = {"m.q_proj": (D, K)}
BASE = np.random.default_rng(0).normal(size=(D, K))
RANKS = {"a": 3, "b": 2, "c": 4}  # unequal: sums of whole changes do not mind


def adapters() -> dict[str, LoraAdapter]:
    found = {}
    for i, (name, rank) in enumerate(RANKS.items(), 1):
        rng = np.random.default_rng(i)
        a, b = rng.normal(size=(rank, K)).astype(np.float32), rng.normal(size=(D, rank)).astype(np.float32)
        found[name] = LoraAdapter(name, {"m.q_proj": LoraPair(a, b, 0.5 * i)})
    return found


def model(name: str) -> np.ndarray:
    """A whole model: the base with one adapter merged in, or the base itself."""
    if name == "base":
        return BASE
    pair = adapters()[name].pairs["m.q_proj"]
    return BASE + pair.scaling * (pair.b.astype(np.float64) @ pair.a)


def mergekit_linear(models: dict[str, float], normalize: bool = True) -> np.ndarray:
    merged = sum(weight * model(name) for name, weight in models.items())
    return merged / sum(models.values()) if normalize else merged


def mergekit_task_arithmetic(models: dict[str, float], normalize: bool = False, lambda_: float = 1.0) -> np.ndarray:
    tasks = {name: weight for name, weight in models.items() if name != "base"}
    delta = sum(weight * (model(name) - BASE) for name, weight in tasks.items())
    return BASE + lambda_ * (delta / sum(tasks.values()) if normalize else delta)


def spelled(method: str, models: dict[str, Any], **more: Any) -> dict[str, Any]:
    entries = [{"model": name, "parameters": {"weight": weight}} for name, weight in models.items()]
    return {"merge_method": method, "models": entries, **more}


def merged(values: dict[str, Any]) -> np.ndarray:
    """The whole model that the recipe gives."""
    compiled = compile_recipe(Recipe.from_dict(values), adapters(), None, SHAPES, {})
    assert compiled is not None
    pair = compiled.pairs["m.q_proj"]
    return BASE + pair.b.astype(np.float64) @ pair.a


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "models",
    [{"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0}, {"a": 0.6, "b": 1.4, "c": 2}, {"a": 1, "b": -0.25}],
    ids=str,
)
def test_linear_is_the_weighted_mean_of_models(models: dict[str, float]) -> None:
    values = spelled("linear", models)
    close(merged(values), mergekit_linear(models))
    close(merged({**values, "parameters": {"normalize": True}}), mergekit_linear(models))
    recipe = Recipe.from_dict(values)
    assert recipe.method == "concat" and sum(recipe.merge_weights) == pytest.approx(1)
    assert "mergekit's linear is concat here, with the weights" in recipe.notes[0]


def test_the_base_among_the_models_takes_its_share() -> None:
    models = {"base": 0.5, "a": 0.25, "b": 0.75}
    close(merged(spelled("linear", models, base_model="base")), mergekit_linear(models))
    close(merged(spelled("task_arithmetic", models, base_model="base")), mergekit_task_arithmetic(models))
    entries = [{"model": "base"}, {"model": "a"}, {"model": "b"}]
    values = {"merge_method": "ties", "base_model": "base", "models": entries}
    assert Recipe.from_dict(values).adapters == ("a", "b")


def test_linear_without_normalization() -> None:
    """With weights that do not sum to 1 mergekit scales the base as well, which no adapter can."""
    models = {"a": 0.75, "b": 0.25}
    plain = {"parameters": {"normalize": False}}
    close(merged(spelled("linear", models, **plain)), mergekit_linear(models, normalize=False))
    shared = {"base": 0.5, "a": 0.25, "b": 0.25}
    close(merged(spelled("linear", shared, base_model="base", **plain)), mergekit_linear(shared, normalize=False))
    with pytest.raises(RecipeError, match=r"'normalize: false'.*multiplies the base by 0\.5 .*or task_arithmetic"):
        Recipe.from_dict(spelled("linear", {"a": 0.25, "b": 0.25}, **plain))
    with pytest.raises(RecipeError, match="weights sum to 0"):
        Recipe.from_dict(spelled("linear", {"a": 0.25, "b": -0.25}))


@pytest.mark.parametrize("normalize", [None, False, True])
@pytest.mark.parametrize("factor", [1, 0.5, -2.0])
@pytest.mark.parametrize("models", [{"a": 1.0}, {"a": 0.5, "b": 0.75}, {"a": 1, "b": -0.25, "c": 2}], ids=str)
def test_task_arithmetic(models: dict[str, float], factor: float, normalize: bool | None) -> None:
    settings = {"lambda": factor} | ({} if normalize is None else {"normalize": normalize})
    found = merged(spelled("task_arithmetic", models, base_model="base", parameters=settings))
    close(found, mergekit_task_arithmetic(models, bool(normalize), factor))


def test_lambda_multiplies_any_weights() -> None:
    """Of the merged matrix, for the methods on factors too, whose weights are under a root."""
    models = {"a": 0.5, "c": 0.75}
    for method in ("ties_svd", "svd"):
        once, twice = (merged(spelled(method, models, parameters={"lambda": factor})) for factor in (1, 2.5))
        close(twice - BASE, 2.5 * (once - BASE))
    models = [{"model": "a"}, {"model": "b"}]
    half = Recipe.from_dict({"merge_method": "svd", "models": models, "parameters": {"lambda": 3}})
    assert half.weights == (1.5, 1.5)


@pytest.mark.parametrize(
    ("method", "more", "note"),
    [
        ("task_arithmetic", {"dtype": "bfloat16"}, "dtype changes nothing here: merging is float32 here, and `edgecal"),
        ("task_arithmetic", {"out_dtype": "float16"}, "out_dtype changes nothing here"),
        ("task_arithmetic", {"tokenizer_source": "union"}, "tokenizer_source changes nothing here"),
        ("ties", {"tokenizer_source": "org/base", "base_model": "org/base"}, "tokenizer_source changes nothing here"),
        ("ties", {"parameters": {"int8_mask": True}}, "int8_mask changes nothing here: it saves mergekit memory"),
        ("ties", {"parameters": {"normalize": True}}, "normalize changes nothing here: ties averages of itself"),
        ("slerp", {"parameters": {"normalize": True}}, "normalize changes nothing here"),
        ("ties", {"parameters": {"rescale": False}}, "rescale changes nothing here: ties never rescales"),
        ("dare_linear", {"parameters": {"rescale": True}}, "rescale changes nothing here: dare_linear always"),
        ("task_arithmetic", {"parameters": {"rescale": False}}, "rescale changes nothing here"),
        ("ties", {}, "ties is PEFT's here, on the factors"),
        ("dare_ties", {}, "dare_ties is PEFT's here"),
        ("dare_linear", {}, "dare_linear is PEFT's here"),
        ("slerp", {}, "mergekit's is between whole models"),
    ],
)
def test_what_changes_nothing_is_said(method: str, more: dict[str, Any], note: str) -> None:
    plain = Recipe.from_dict(spelled(method, {"a": 0.5, "b": 0.5}))
    recipe = Recipe.from_dict(spelled(method, {"a": 0.5, "b": 0.5}, **more))
    assert any(note in said for said in recipe.notes) and all("\n" not in said for said in recipe.notes)
    assert recipe.merge_weights == plain.merge_weights and recipe.options == plain.options
    again = Recipe.from_dict(recipe.to_dict())
    assert (again, again.key, hash(again)) == (recipe, recipe.key, hash(recipe))


@pytest.mark.parametrize(
    ("method", "more", "word"),
    [
        ("ties", {"parameters": {"normalize": False}}, "'normalize': ties always averages"),
        ("slerp", {"parameters": {"normalize": False}}, "'normalize': slerp always averages"),
        ("dare_ties", {"parameters": {"rescale": False}}, "'rescale': dare_ties always rescales"),
        ("ties", {"parameters": {"rescale": True}}, "'rescale': ties never rescales"),
        ("slerp", {"parameters": {"lambda": 2}}, "'lambda': slerp has no weights to multiply"),
        ("ties", {"parameters": {"normalize": "yes"}}, "'normalize' is 'yes', expected true or false"),
        ("ties", {"parameters": {"lambda": "big"}}, "'lambda' is 'big', expected numbers"),
        ("ties", {"parameters": {"gamma": 0.01}}, "no option 'gamma'"),
        ("ties", {"tokenizer_source": "org/other"}, "'tokenizer_source': adapters have no tokenizer"),
        ("ties", {"tokenizer": {"source": "base"}}, "'tokenizer': adapters have no tokenizer, leave it out"),
        ("ties", {"chat_template": "chatml"}, "'chat_template': adapters have no chat template"),
        ("ties", {"slices": []}, "'slices': adapters are merged whole"),
        ("ties", {"modules": {}}, "'modules': adapters are merged whole"),
        ("della", {}, "unknown method 'della'"),
        (["ties"], {}, "'merge_method' is"),
    ],
)
def test_what_would_change_something_is_refused(method: Any, more: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Recipe.from_dict(spelled(method, {"a": 0.5, "b": 0.5}, **more))


@pytest.mark.parametrize("weight", [[0.1, 0.9], [{"filter": "mlp", "value": 0.5}, {"value": 1}], "much", True])
def test_a_weight_is_one_number(weight: Any) -> None:
    with pytest.raises(RecipeError, match="'weight' is .*number"):
        Recipe.from_dict(spelled("linear", {"a": weight, "b": weight}))
    with pytest.raises(RecipeError, match="of a model has 'lambda', which belongs to those of all"):
        Recipe.from_dict({"merge_method": "ties", "models": [{"model": "a", "parameters": {"lambda": 1}}]})


def test_density_is_1_unless_given() -> None:
    """mergekit's default; the package's own, 0.5, is that of its own spelling."""
    for method in ("ties", "dare_ties", "dare_linear"):
        assert dict(Recipe.from_dict(spelled(method, {"a": 1, "b": 1})).options) == {"density": 1.0}
    given = Recipe.from_dict(spelled("ties", {"a": 1, "b": 1}, parameters={"density": 0.25}))
    assert dict(given.options) == {"density": 0.25}
    assert Recipe.from_dict(spelled("ties_svd", {"a": 1, "b": 1})).options == ()


def test_a_lora_on_a_base(tmp_path: Path) -> None:
    """BASE+ADAPTER; a plus sign in a file name that exists is one."""
    (tmp_path / "c+").mkdir()
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: linear\nmodels: [{model: org/base+adapters/a}, {model: org/base+b}, {model: c+}]\n"
    )
    recipe = Recipe.from_file(tmp_path / "recipe.yaml")
    assert recipe.adapters == ("a", "b", "c+") and recipe.base_model == "org/base"
    assert dict(recipe.paths) == {"a": str(tmp_path / "adapters/a"), "c+": str(tmp_path / "c+")}
    for base in ("org/other", None):
        values = {"merge_method": "linear", "models": [{"model": "org/base+x/a"}, {"model": "org/third+x/b"}]}
        with pytest.raises(RecipeError, match=r"an adapter of org/.* beside others of org/"):
            Recipe.from_dict({**values, "base_model": base} if base else values)


def test_the_base_of_slerp_is_where_t_is_0() -> None:
    models = [{"model": "a"}, {"model": "b"}]
    values = {"merge_method": "slerp_svd", "models": models, "parameters": {"t": 0.2}}
    swapped = Recipe.from_dict({**values, "base_model": "b"})
    assert swapped.adapters == ("b", "a") and swapped.base_model is None and swapped.merge_weights == (0.8, 0.2)
    assert Recipe.from_dict({**values, "base_model": "a"}).adapters == ("a", "b")
    kept = Recipe.from_dict({**values, "base_model": "org/base"})
    assert kept.adapters == ("a", "b") and kept.base_model == "org/base"
