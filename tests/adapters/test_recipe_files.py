"""Recipe files: YAML beside JSON, mergekit's spelling, options, paths, and what hostile files get."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgecal.adapters import Recipe
from edgecal.errors import RecipeError

PAIR = ("summarize", "professional")


def load(folder: Path, text: str, name: str = "recipe.yaml") -> Recipe:
    (folder / name).write_text(text)
    return Recipe.from_file(folder / name)


def test_flat_yaml(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """
        # TIES of two adapters
        method: ties
        adapters: [summarize, professional]
        weights: [0.6, 4e-1]
        options: {density: 0.5, majority_sign_method: frequency}
        """,
    )
    options = (("density", 0.5), ("majority_sign_method", "frequency"))
    assert recipe == Recipe("ties", PAIR, (0.6, 0.4), options=options)
    assert hash(recipe) == hash(Recipe("ties", PAIR, (0.6, 0.4), options=dict(options)))  # type: ignore[arg-type]


def test_adapters_with_paths_make_a_file_complete(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """
        method: concat
        base_model: org/base
        adapters:
          - {path: lora/summarize, weight: 0.6}
          - {name: tone, path: /elsewhere/professional, weight: 0.4}
        """,
    )
    assert recipe.adapters == ("summarize", "tone")
    assert recipe.weights == (0.6, 0.4)
    assert dict(recipe.paths) == {"summarize": str(tmp_path / "lora/summarize"), "tone": "/elsewhere/professional"}
    assert recipe.base_model == "org/base"
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert (again, again.key) == (recipe, recipe.key)


def test_mergekits_spelling(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "beside").mkdir()
    recipe = load(
        tmp_path,
        """
        merge_method: ties
        base_model: base
        models:
          - model: adapters/summarize
            parameters: {weight: 0.6, density: 0.5}
          - model: professional
            parameters: {weight: 0.4}
          - model: beside
            parameters: {weight: 1}
          - model: demo:translate_fr
            parameters: {weight: -1}
        parameters: {density: 0.7, majority_sign_method: frequency}
        """,
    )
    assert recipe.adapters == ("summarize", "professional", "beside", "translate_fr")
    assert recipe.weights == (0.6, 0.4, 1.0, -1.0)
    assert dict(recipe.options) == {"density": (0.5, 0.7, 0.7, 0.7), "majority_sign_method": "frequency"}
    assert dict(recipe.paths) == {
        "summarize": str(tmp_path / "adapters/summarize"),
        "beside": str(tmp_path / "beside"),
        "translate_fr": "demo:translate_fr",
    }
    assert recipe.base_model == str(tmp_path / "base")
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_steps_say_where_their_adapters_are(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """
        method: multi_step
        adapters: [{path: a/summarize}]
        steps: [{adapter: summarize, instruction: Summarize}, {adapter: null, instruction: Translate}]
        """,
    )
    assert recipe.adapters == ()
    assert dict(recipe.paths) == {"summarize": str(tmp_path / "a/summarize")}
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_calibrations_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "method: learnable_calibration\nadapters: [a, b]\ncalibration: "
    assert load(tmp_path, text + "lc.safetensors").calibration == str(tmp_path / "lc.safetensors")
    assert load(tmp_path, text + "/x/lc.safetensors").calibration == "/x/lc.safetensors"
    assert load(tmp_path, text + "demo:learnable_calibration").calibration == "demo:learnable_calibration"


def test_plain_words_stay_words(tmp_path: Path) -> None:
    """YAML 1.1 would make False, a date, 8 and 61 of these."""
    recipe = load(tmp_path, "method: concat\nadapters: [no, 2024-01-01, 0o10, 1:01, 010]\n".replace("010]", "'010']"))
    assert recipe.adapters == ("no", "2024-01-01", "0o10", "1:01", "010")


def test_key_holds_the_options() -> None:
    plain = Recipe("ties", PAIR)
    keys = {plain.key, *(Recipe("ties", PAIR, options=(("density", d),)).key for d in (0.2, 0.3, 1))}
    assert len(keys) == 4
    assert Recipe("ties", PAIR, options=(("density", 1),)) == Recipe("ties", PAIR, options=(("density", 1.0),))
    assert Recipe("ties", PAIR, options=(("density", 0.2),)).key == "aa8b7a4792d21773"


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        ("ties", {"desnity": 0.5}, "'desnity' .did you mean 'density'..; its options are density, majority"),
        ("linear", {"density": 0.5}, "linear has no option 'density'; it takes none"),
        ("ties", {"density": 0}, r"option 'density' is '0', expected a number in \(0, 1\], or one per adapter"),
        ("ties", {"density": 1.01}, "'density'"),
        ("ties", {"density": float("nan")}, "'density'"),
        ("ties", {"density": True}, "'density'"),
        ("ties", {"density": "0.5"}, "'density'"),
        ("ties", {"density": [0.5]}, "option 'density' has 1 number for 2 adapters"),
        ("ties", {"density": [0.5, 2]}, "'density'"),
        ("ties", {"majority_sign_method": "median"}, "expected total or frequency"),
        ("ties", {"majority_sign_method": ["total"]}, "'majority_sign_method'"),
        ("dare_ties", {"seed": 0.5}, "option 'seed' is '0.5', expected a whole number from 0"),
        ("dare_ties", {"seed": 10**30}, "'seed'"),
        ("svd", {"svd_rank": 0}, "'svd_rank'"),
        ("svd", {"svd_rank": 10**9}, "'svd_rank'"),
        ("slerp", {"t": -0.1}, "'t'"),
        ("lm_cocktail", {"losses": 1.0}, "option 'losses' is '1.0', expected a number .* per adapter"),
        ("lm_cocktail", {"losses": [1.0, -2.0]}, "'losses'"),
        ("lm_cocktail", {"losses": [1, 2], "temperature": 0}, "'temperature'"),
        ("ties", [1], "'options' is"),
    ],
)
def test_wrong_options_are_named(method: str, options: Any, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Recipe.from_dict({"method": method, "adapters": PAIR, "options": options})


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"method": "slerp", "adapters": ("a", "b", "c"), "options": {"t": 0.5}}, "'t' lies between two adapters"),
        ({"method": "slerp", "adapters": PAIR, "options": {"t": 0.5}, "weights": [1, 1]}, "follow from 't'"),
        ({"method": "slerp", "adapters": PAIR, "weights": [1, -1]}, "weights are shares"),
        ({"method": "slerp", "adapters": PAIR, "weights": [0, 0]}, "weights are shares"),
        (
            {"method": "lm_cocktail", "adapters": PAIR, "options": {"losses": [1, 2]}, "weights": [1, 1]},
            "follow from 'losses'",
        ),
        ({"method": "learnable_calibration_only", "adapters": PAIR, "calibration": "x"}, "takes no adapters"),
        ({"method": "learnable_calibration_only"}, "needs a calibration file$"),
        ({"method": "joint_expert", "adapters": PAIR}, "takes one adapter"),
        ({"method": "cat", "adapters": PAIR}, "unknown method 'cat' .called 'concat' here"),
    ],
)
def test_parts_that_exclude_each_other(values: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", r"holds nothing \(null\), expected an object"),
        ("- a\n- b\n", "holds a list, expected an object"),
        ("just words", "holds a text, expected an object"),
        ("method: [", "not valid YAML"),
        ("method: linear\nmethod: concat\n", "line 2: the key 'method' occurs twice"),
        ("{method: ties, adapters: [a, b], options: {density: 0.5, density: 0.6}}", "'density' occurs twice"),
        ("method: linear\nadapters: [a]\ndensity: 0.5\n", "unknown recipe key 'density'; a recipe has method"),
        ("method: linear\nadapters: [{name: a, wieght: 1}]", "'wieght' .did you mean 'weight'.. of an adapter"),
        ("method: linear\nadapters: [{weight: 1}]", "needs a 'name' or a 'path'"),
        ("method: linear\nadapters: [{path: 7}]", "'path' is 7"),
        ('method: linear\nadapters: [{path: "a\\0b"}]', "'path' is"),
        ("method: linear\nadapters: [{path: a, weight: 1}, {path: b}]", "'weight' is given for 1 of 2 adapters"),
        ("method: linear\nadapters: [{path: a, weight: 1}]\nweights: [1]", "'weights' and a 'weight'"),
        ("method: linear\nadapters: [{path: x/a}, {path: y/a}]", "two adapters are called 'a'"),
        ("method: linear\nadapters: [[a]]", "expected names"),
        (
            "merge_method: ties\nmodels: [{model: a}]\nslices: []",
            "'slices': adapters are merged whole: .*; a recipe has merge_method",
        ),
        ("merge_method: ties\nmodels: [{model: a}]\nparameters: {normalize: false}", "'normalize': ties always"),
        ("merge_method: ties\nmethod: ties\nmodels: []", "unknown recipe key 'method'"),
        ("models: [{model: a}]", "'merge_method' is missing"),
        ("merge_method: ties\nmodels: {a: 1}", "'models' has to be a list"),
        ("merge_method: ties\nmodels: [{model: 3}]", "is not a path or a name"),
        ("merge_method: ties\nmodels: [{model: a, paremeters: {}}]", "did you mean 'parameters'.. of a model"),
        ("merge_method: ties\nmodels: [{model: a, parameters: [1]}]", "'parameters' is"),
        ("merge_method: ties\nmodels: [{model: a}]\nparameters: {weight: 1}", "'weight' belongs to"),
        (
            "merge_method: ties\nmodels: [{model: a, parameters: {density: 0.5}}, {model: b}]",
            "'density' is given for 1 of 2",
        ),
        ("method: linear\nbase_model: [a]", "'base_model' is"),
        ("method: linear\nadapters: [a]\nweights: [.nan]", "'weights'.*expected numbers"),
        ("method: linear\nadapters: [a]\n? [x, y]\n: 1\n", "a key has to be a plain word"),
        ("method: zero_shot\n---\nmethod: zero_shot\n", "not valid YAML"),
        ("method: !!python/object/apply:os.system [echo hello]", "not valid YAML.*could not determine a constructor"),
        ("method: !!binary aGVsbG8=", "not valid YAML"),
        ("method: zero_shot\n<<: {a: 1}", "unknown recipe key '<<'"),
        ("method: &m zero_shot\ncalibration: *m\n", r"line 2: aliases \(\*name\) have no place"),
    ],
)
def test_wrong_yaml_is_explained(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "recipe.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in pairwise("abcdefghij")),
        "method: " + "[" * 30_000,
        "method: " + "{a: " * 15_000,
        "- " * 30_000,
        "method: " + "x" * 70_000,
        "method: linear\nweights: [" + "9" * 60_000 + "]",
        "method: '" + "\\" * 60_000 + "'",
        "? " * 20_000,
        "\0" * 1000,
        "\xff\xfe" * 100,
    ],
    ids=["aliases", "lists", "mappings", "dashes", "long", "digits", "backslashes", "questions", "zeros", "bytes"],
)
def test_hostile_yaml_is_refused_quickly(tmp_path: Path, text: str) -> None:
    started = time.thread_time()  # of this thread, however busy the machine is
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load(tmp_path, text)
    assert time.thread_time() - started < 5


def test_hostile_json_and_places(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nested too deep"):
        load(tmp_path, "[" * 200_000, "recipe.json")
    with pytest.raises(RecipeError, match="larger than"):
        load(tmp_path, " " * (2 << 20), "recipe.json")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        Recipe.from_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"method: \xe9")
    with pytest.raises(RecipeError, match=r"latin\.yaml is not UTF-8"):
        Recipe.from_file(tmp_path / "latin.yaml")
