"""Recipes as data, and compiling them against adapters, calibration and model."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecal.adapters import Calibration, LoraAdapter, LoraPair, Recipe, Step, compile_recipe, compile_steps
from edgecal.adapters.merge import method_names
from edgecal.errors import AdapterError, CalibrationError, PromptError, RecipeError
from edgecal.text.tasks import TASKS, instruction, user_message
from edgecal_weights.calibration_file import read_calibration
from edgecal_weights.safetensors_file import SafetensorsFile

BASE = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}
PAIR = ("summarize", "professional")
STEPS = (
    Step("summarize", instruction("summarize")),
    Step("professional", instruction("tone", tone="professional")),
)


@pytest.fixture(scope="module")
def adapters(export: Path) -> dict[str, LoraAdapter]:
    return {name: LoraAdapter.load(export / name) for name in ("summarize", "professional", "translate_fr")}


@pytest.fixture(scope="module")
def shapes(adapters: dict[str, LoraAdapter]) -> dict[str, tuple[int, int]]:
    return {module: (shape.d, shape.k) for module, shape in adapters["summarize"].shapes.items()}


RECIPES = [
    Recipe("zero_shot"),
    Recipe("single", ("summarize",)),
    Recipe("linear", PAIR, weights=(0.25, 0.75)),
    Recipe("concat", PAIR),
    Recipe("learnable_calibration", PAIR, calibration="lc.safetensors"),
    Recipe("multi_step", steps=STEPS),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.method)
def test_recipes_are_data(recipe: Recipe, tmp_path: Path) -> None:
    text = json.dumps(recipe.to_dict())
    again = Recipe.from_dict(json.loads(text))
    assert again == recipe
    assert again.key == recipe.key
    assert hash(again) == hash(recipe)
    assert len({other.key for other in RECIPES}) == len(RECIPES)
    (tmp_path / "recipe.json").write_text(text)
    loaded = Recipe.from_file(tmp_path / "recipe.json")
    if recipe.calibration:
        assert loaded.calibration == str(tmp_path / "lc.safetensors")
    else:
        assert loaded == recipe


def test_key_is_stable() -> None:
    """Caches on disk outlive a process, so the key may not change by accident."""
    assert Recipe("concat", PAIR).key == "39c858ce503921e0"
    assert Recipe("concat", ["summarize", "professional"]) == Recipe("concat", PAIR)  # type: ignore[arg-type]


def test_passes_and_names() -> None:
    recipe = Recipe("multi_step", steps=(*STEPS, Step(None, "Translate"), STEPS[0]))
    assert recipe.passes == 4
    assert recipe.adapter_names == PAIR
    assert Recipe("concat", PAIR).passes == 1
    assert Recipe("concat", PAIR).adapter_names == PAIR


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "'method' is missing"),
        ({"method": "lineer"}, "unknown method 'lineer'.*did you mean 'linear'.*multi_step"),
        ({"method": ["linear"]}, "'method' is"),
        ({"method": "linear"}, "linear takes one adapter or more; given: none"),
        ({"method": "single", "adapters": PAIR}, "single takes one adapter; given: summarize, professional"),
        ({"method": "zero_shot", "adapters": ["summarize"]}, "zero_shot takes no adapters"),
        (
            {"method": "multi_step", "adapters": PAIR, "steps": STEPS},
            "no adapters; they are named in its steps",
        ),
        ({"method": "multi_step"}, "multi_step needs 'steps'"),
        ({"method": "linear", "adapters": PAIR, "steps": STEPS}, "'steps' belong to multi_step"),
        ({"method": "linear", "adapters": "summarize"}, "'adapters' is 'summarize', expected a list"),
        ({"method": "linear", "adapters": [1]}, "'adapters'.*expected names"),
        ({"method": "linear", "adapters": None}, "'adapters' is None"),
        ({"method": "linear", "adapters": PAIR, "weights": [1]}, "1 weight for 2 adapters"),
        ({"method": "linear", "adapters": PAIR, "weights": [1, float("nan")]}, "'weights'.*expected numbers"),
        ({"method": "linear", "adapters": PAIR, "weights": ["1", 2]}, "'weights'.*expected numbers"),
        ({"method": "linear", "adapters": PAIR, "calibration": "x"}, "linear takes no calibration"),
        (
            {"method": "learnable_calibration", "adapters": PAIR},
            "needs a calibration file.*summarize, professional",
        ),
        (
            {"method": "projection_merge", "adapters": PAIR, "calibration": "x", "weights": [1, 1]},
            "projection_merge takes no weights",
        ),
        ({"method": "multi_step", "steps": [{"adapter": "a"}]}, "'steps' holds"),
        ({"method": "multi_step", "steps": [{"adapter": "", "instruction": "b"}]}, "'steps' holds"),
        ({"method": "linear", "adapters": PAIR, "density": 0.5}, "unknown recipe key 'density'"),
    ],
)
def test_wrong_recipes_are_explained(values: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"method": "linear", "method": "concat"}', "occurs twice"),
        ('{"method": "xyz"}', "unknown method"),
        ('{"method": "zero_shot", "calibration": 7}', "'calibration' is 7"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=word) as caught:
        Recipe.from_file(path)
    assert str(path) in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_file(tmp_path / "nowhere.json")


# ------------------------------------------------------------------------------------------------- compiling
@pytest.mark.parametrize(
    ("method", "rank", "extra"),
    [
        ("linear", 16, 0),
        ("concat", 32, 0),
        ("learnable_calibration", 17, 5_184),
        ("learnable_calibration_pp", 20, 40_704),
        ("projection_merge", 4, 23_040),
    ],
)
def test_compile(
    adapters: dict[str, LoraAdapter],
    shapes: dict[str, tuple[int, int]],
    export: Path,
    method: str,
    rank: int,
    extra: int,
) -> None:
    path = export / f"{method}.safetensors" if extra else None
    recipe = Recipe(method, PAIR, calibration=str(path) if path else None)
    calibration = Calibration.load(path) if path else None
    compiled = compile_recipe(recipe, adapters, calibration, shapes, BASE)
    assert compiled is not None
    assert (compiled.method, compiled.rank, compiled.recipe_key) == (method, rank, recipe.key)
    assert (compiled.extra_parameters, compiled.extra_bytes) == (extra, 4 * extra)
    assert set(compiled.pairs) == set(shapes)
    for module, (d, k) in shapes.items():
        assert compiled.pairs[module].a.shape == (rank, k)
        assert compiled.pairs[module].b.shape == (d, rank)
    if method != "projection_merge":
        assert compiled.nbytes == 4 * rank * sum(d + k for d, k in shapes.values())
    else:  # P2 belongs to a shape and is shared
        assert compiled.nbytes == 4 * rank * (
            sum(k for _, k in shapes.values()) + sum(d for d, _ in set(shapes.values()))
        )


def test_compiling_reads_every_factor_once_and_forms_no_dense_matrix(
    monkeypatch: pytest.MonkeyPatch, shapes: dict[str, tuple[int, int]], export: Path
) -> None:
    """What makes it fast, counted: no clock tells that on a busy machine."""
    own = {name: LoraAdapter.load(export / name) for name in PAIR}
    path = export / "learnable_calibration_pp.safetensors"
    recipe, calibration = Recipe("learnable_calibration_pp", PAIR, calibration=str(path)), Calibration.load(path)
    read: list[tuple[Path, str]] = []
    plain = SafetensorsFile.read

    def counted(self: SafetensorsFile, name: str, *into: Any) -> Any:
        read.append((self.path, name))
        return plain(self, name, *into)

    monkeypatch.setattr(SafetensorsFile, "read", counted)
    tracemalloc.start()
    try:
        compiled = compile_recipe(recipe, own, calibration, shapes, BASE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert compiled is not None
    assert len(read) == len(set(read)) == 2 * 2 * len(shapes)
    # Beside the result there is the scratch of each thread, far from the 400 MB of all dW
    assert peak < compiled.nbytes + (48 << 20)


def test_zero_shot_compiles_to_nothing(shapes: dict[str, tuple[int, int]]) -> None:
    assert compile_recipe(Recipe("zero_shot"), {}, None, shapes, BASE) is None


def test_steps(adapters: dict[str, LoraAdapter], shapes: dict[str, tuple[int, int]]) -> None:
    recipe = Recipe("multi_step", steps=(*STEPS, Step(None, "Translate"), STEPS[0]))
    compiled = compile_steps(recipe, adapters, shapes, BASE)
    assert [None if step is None else step.method for step in compiled] == [
        "single",
        "single",
        None,
        "single",
    ]
    assert compiled[0] is compiled[3]
    first = next(iter(shapes))
    assert compiled[0] is not None
    np.testing.assert_allclose(
        compiled[0].pairs[first].delta(), adapters["summarize"].pairs[first].delta(), rtol=1e-4, atol=1e-8
    )
    with pytest.raises(RecipeError, match="compile its steps"):
        compile_recipe(recipe, adapters, None, shapes, BASE)
    with pytest.raises(RecipeError, match="no steps"):
        compile_steps(Recipe("zero_shot"), adapters, shapes, BASE)
    with pytest.raises(RecipeError, match="no adapter 'unknown' is loaded; loaded: summarize"):
        compile_steps(Recipe("multi_step", steps=(Step("unknown", "Do"),)), adapters, shapes, BASE)


def test_parts_that_do_not_fit(
    adapters: dict[str, LoraAdapter], shapes: dict[str, tuple[int, int]], export: Path
) -> None:
    lc, lcpp = (export / f"{name}.safetensors" for name in ("learnable_calibration", "learnable_calibration_pp"))

    def build(recipe: Recipe, calibration: Path | None = None, base: dict[str, Any] = BASE) -> None:
        compile_recipe(recipe, adapters, Calibration.load(calibration) if calibration else None, shapes, base)

    with pytest.raises(RecipeError, match="no adapter 'funny' is loaded; loaded: summarize, professional"):
        build(Recipe("concat", ("summarize", "funny")))
    with pytest.raises(RecipeError, match="was not loaded"):
        build(Recipe("learnable_calibration", PAIR, calibration=str(lc)))
    with pytest.raises(CalibrationError, match="for learnable_calibration_pp, the recipe's method is learnable_calib"):
        build(Recipe("learnable_calibration", PAIR, calibration=str(lc)), lcpp)
    with pytest.raises(CalibrationError, match="Swap them"):
        build(Recipe("learnable_calibration", PAIR[::-1], calibration=str(lc)), lc)
    with pytest.raises(CalibrationError, match="translate_fr"):
        build(Recipe("learnable_calibration", ("summarize", "translate_fr"), calibration=str(lc)), lc)
    with pytest.raises(CalibrationError, match="hidden_size is 576; this model has 2048"):
        build(Recipe("learnable_calibration", PAIR, calibration=str(lc)), lc, {**BASE, "hidden_size": 2048})
    small = dict(list(shapes.items())[:7])
    with pytest.raises(AdapterError, match="203 of its 210 modules are not in this model"):
        compile_recipe(Recipe("concat", PAIR), adapters, None, small, BASE)


def test_adapters_of_different_modules_and_ranks() -> None:
    def pair(rank: int, value: float) -> LoraPair:
        return LoraPair(np.full((rank, 3), value, np.float32), np.ones((4, rank), np.float32))

    both = {
        "one": LoraAdapter("one", {"m.q_proj": pair(2, 1.0), "m.k_proj": pair(2, 1.0)}),
        "two": LoraAdapter("two", {"m.q_proj": pair(1, 3.0), "m.v_proj": pair(1, 3.0)}),
    }
    shapes = dict.fromkeys(("m.q_proj", "m.k_proj", "m.v_proj", "m.o_proj"), (4, 3))
    compiled = compile_recipe(Recipe("concat", ("one", "two")), both, None, shapes, {})
    assert compiled is not None
    deltas = {module: float(p.delta()[0, 0]) for module, p in compiled.pairs.items()}
    assert deltas == {"m.q_proj": 0.5 * 2 + 0.5 * 3, "m.k_proj": 1.0, "m.v_proj": 1.5}
    assert compiled.rank == 3
    with pytest.raises(AdapterError, match="linear of one, two at m.q_proj: .*rank 2.*rank 1"):
        compile_recipe(Recipe("linear", ("one", "two")), both, None, shapes, {})


def test_unknown_methods_are_listed_for_every_method() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe("nothing of this kind")
    assert all(name in str(caught.value) for name in method_names())


# ------------------------------------------------------------------------------------------------------ tasks
def test_instructions_are_those_of_the_export(export: Path) -> None:
    known = json.loads((export / "prompts.json").read_text())
    assert {name: TASKS[name] for name in known} == known and len(TASKS) == len(known) + 2, "of three tasks at once"
    recorded = read_calibration(export / "projection_merge.safetensors")
    assert recorded.adapters[0].name in TASKS


def test_instruction() -> None:
    wanted = "Summarize the following text and change its tone to professional"
    assert instruction("summarize+tone", tone="professional") == wanted
    assert user_message("Do this", "with that") == "Do this\n\nwith that"
    with pytest.raises(PromptError, match="unknown task 'sing'; known tasks: summarize"):
        instruction("sing")
    with pytest.raises(PromptError, match="takes tone; given: none"):
        instruction("tone")
    with pytest.raises(PromptError, match="takes no fields; given: tone"):
        instruction("summarize", tone="professional")


def test_demo_dialogue_has_the_form_of_the_training_data(export: Path) -> None:
    turns = (export / "dialogue.txt").read_text().splitlines()
    assert 10 <= len(turns) <= 14
    assert all(turn.startswith(f"#Person{1 + i % 2}#: ") for i, turn in enumerate(turns))
