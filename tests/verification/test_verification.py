"""Verification: what is right passes, what is wrong fails and is found, what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecal import Engine, Recipe
from edgecal.errors import (
    AdapterError,
    FileFormatError,
    ModelNotFoundError,
    PromptError,
    RecipeError,
    VerificationError,
)
from edgecal.verification.comparison import Deviation, compare_ids
from edgecal.verification.verify import Tolerances, Verification, check_recipe, recipe_of, verify
from edgecal_weights.reference_file import ReferenceFile
from tests.references import MODULES, reference_parts, sha256, write_reference
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")
CALIBRATED = "learnable_calibration_pp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verification")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR, 1):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    adapters = {name: root / name for name in PAIR}
    write_tiny_calibration(root / "pair.safetensors", root / "model", adapters, CALIBRATED)
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    paths = {name: folder / name for name in PAIR}
    return Engine.load(folder / "model", weights="fp32", cache_dtype="fp32", backend="numpy", adapters=paths)


@pytest.fixture
def parts(engine: Engine) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return reference_parts(engine, Recipe("concat", PAIR))


def check(path: Path, engine: Engine, recipe: Recipe | None = None, **tolerances: float) -> Verification:
    with ReferenceFile(path) as reference:
        recipe = recipe or recipe_of(reference, engine.adapters)
        return verify(reference, engine, recipe, Tolerances(**tolerances), model="tiny")


def failures(report: Verification) -> list[str]:
    return [row.tensor for row in report.comparisons if not row.passed]


@pytest.mark.parametrize("thin", [1, 3])
@pytest.mark.parametrize("method", ["zero_shot", "single", "concat", CALIBRATED])
def test_what_is_right_passes(tmp_path, folder, engine, method, thin):
    names = {"zero_shot": (), "single": PAIR[:1]}.get(method, PAIR)
    calibration = str(folder / "pair.safetensors") if method == CALIBRATED else None
    recipe = Recipe(method, names, calibration=calibration)
    path = write_reference(tmp_path / "r.safetensors", *reference_parts(engine, recipe, thin))
    report = check(path, engine, recipe)
    assert report.passed and failures(report) == []
    kinds = [row.kind for row in report.comparisons]
    assert kinds.count("delta") == (2 if names else 0) and kinds.count("output") == 2
    assert {"input_ids", "logits_last4", "greedy_ids"} < set(kinds)
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


@pytest.mark.parametrize("thin", [1, 3])
def test_the_worst_element_is_found(tmp_path, engine, thin):
    """Its index is that of the whole tensor, whatever was stored."""
    tensors, metadata = reference_parts(engine, Recipe("concat", PAIR), thin)
    q, down = MODULES
    largest = np.abs(tensors[f"delta/{q}"]).max()
    tensors[f"delta/{q}"][7, 5] += 2e-6 * largest
    tensors[f"output/{down}/one"][1, 4] += 1
    tensors["logits_last4/one"][2, 9] += 3e-4
    report = check(write_reference(tmp_path / "r.safetensors", tensors, metadata), engine)
    assert failures(report) == [f"delta/{q}", f"output/{down}/one", "logits_last4/one"]
    rows = {row.tensor: row for row in report.comparisons}
    delta, output, logits = (rows[name] for name in failures(report))
    assert delta.worst == (7 * thin, 5) and delta.max_rel == pytest.approx(2e-6, rel=0.2)
    assert output.worst == (1, 4 * thin) and output.wanted - output.found == pytest.approx(1, rel=1e-4)
    assert logits.worst == (2, 9 * thin) and logits.max_abs == pytest.approx(3e-4, rel=0.1)
    assert 1 - logits.cosine < 1e-6


def test_tolerances_decide(tmp_path, engine, parts):
    tensors, metadata = parts
    tensors["logits_last4/one"][0, 0] += 1e-3
    path = write_reference(tmp_path / "r.safetensors", tensors, metadata)
    assert not check(path, engine).passed
    assert check(path, engine, logits=2e-3).passed
    assert not check(path, engine, logits=2e-3, delta=-1).passed


def test_another_answer_is_found_at_its_token(tmp_path, engine, parts):
    tensors, metadata = parts
    tensors["greedy_ids/one"][3] = (tensors["greedy_ids/one"][3] + 1) % 200
    metadata["cases"]["one"]["text"] += " Or not?"
    report = check(write_reference(tmp_path / "r.safetensors", tensors, metadata), engine)
    assert failures(report) == ["input_ids/one", "greedy_ids/one"]
    prompt, greedy = (row for row in report.comparisons if not row.passed)
    assert "differ from position" in prompt.note
    assert greedy.worst == (3,) and greedy.wanted == tensors["greedy_ids/one"][3] and "logits differ by" in greedy.note


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_an_answer_of_another_length_than_the_case_says_fails(tmp_path, engine, parts, kept):
    """All ids that are there are right: only the length tells that the reference was cut, or another's was added."""
    tensors, metadata = parts
    metadata["cases"]["one"]["n_new_tokens"] = 5
    path = tmp_path / "r.safetensors"
    assert check(write_reference(path, tensors, metadata), engine).passed
    answer = np.resize(tensors["greedy_ids/one"], kept)
    report = check(write_reference(path, {**tensors, "greedy_ids/one": answer}, metadata), engine)
    assert failures(report) == ["greedy_ids/one"]
    assert f"has {kept} ids in the file, whose case says 5" in report.comparisons[-1].note


def test_an_answer_that_may_have_been_cut_is_noted(tmp_path, engine, parts):
    """Without n_new_tokens a closing token is the only sign of a whole answer."""
    tensors, metadata = parts
    path = tmp_path / "r.safetensors"
    report = check(write_reference(path, tensors, metadata), engine)
    assert report.passed and "the answer of one has no closing token, and the metadata no" in report.notes[0]
    closed = np.array([*tensors["greedy_ids/one"], min(engine.tokenizer.eos_ids)])
    report = check(write_reference(path, {**tensors, "greedy_ids/one": closed}, metadata), engine)
    assert report.notes == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail(tmp_path, engine, parts, bad):
    tensors, metadata = parts
    tensors[f"delta/{MODULES[0]}"][3, 4] = bad
    tensors["logits_last4/one"][1, 2] = bad
    report = check(write_reference(tmp_path / "r.safetensors", tensors, metadata), engine)
    assert failures(report) == [f"delta/{MODULES[0]}", "logits_last4/one"]
    row = report.comparisons[0]
    assert row.worst == (3, 4) and "the reference is" in row.note
    assert "NaN" not in json.dumps(report.to_dict()) and "Infinity" not in json.dumps(report.to_dict())


def test_modules_that_nobody_has_or_changes(tmp_path, folder, engine, parts):
    """A dW that should be there fails; one of zeros where nothing changes passes; a wrong shape is said."""
    _, metadata = parts
    write_tiny_adapter(tmp_path / "half", folder / "model", components=("q_proj",))
    half = engine.add_adapter(tmp_path / "half", "half")
    metadata |= {"adapters": [{"name": "half", "sha256": half.sha256}], "method": "half"}  # called after its adapter
    q, down = MODULES
    deltas = {
        f"delta/{q}": half.pairs[q].delta(),
        f"delta/{down}": np.zeros(engine.model.linear_shapes[down], np.float32),
        "delta/model.layers.1.mlp.up_proj": np.ones((96, 64), np.float32),
        "delta/model.layers.9.mlp.up_proj": np.ones((96, 64), np.float32),
        "delta/model.layers.0.mlp.up_proj": np.ones((64, 96), np.float32),
    }
    metadata["cases"] = {}
    try:
        report = check(write_reference(tmp_path / "r.safetensors", deltas, metadata), engine)
    finally:
        engine.remove_adapter("half")
    assert report.method == "single"
    notes = {row.tensor: row.note for row in report.comparisons if not row.passed}
    assert notes["delta/model.layers.1.mlp.up_proj"] == "the recipe leaves this module alone"
    assert "no such module" in notes["delta/model.layers.9.mlp.up_proj"]
    assert "expected (96, 64)" in notes["delta/model.layers.0.mlp.up_proj"]
    assert len(notes) == 3


# ------------------------------------------------------------------------------------------ what cannot be compared

BROKEN = {
    "version 0": ({"version": "0"}, r"key 'version': expected 1; .*found '0'"),
    "version 2": ({"version": "2"}, "key 'version'"),
    "no format": ({"format": None}, "key 'format': expected edgecal-reference .*; there is none"),
    "no method": ({"method": None}, "key 'method'"),
    "half precision": ({"dtype": "bfloat16"}, "key 'dtype': .*lower precision is no reference"),
    "unknown key": ({"temperature": "1"}, "unknown metadata key 'temperature'"),
    "adapters": ({"adapters": [{"name": "a", "sha256": "abc"}]}, "key 'adapters': expected a JSON list"),
    "duplicate keys": ({"adapters": '[{"name": "a", "name": "b", "sha256": "c"}]'}, "key 'adapters'"),
    "base": ({"base_model": {"name": "x"}}, "key 'base_model': expected a JSON object with name, model_type"),
    "thin": ({"thin": "0"}, "key 'thin'"),
    "weights": ({"weights": [1]}, "key 'weights': expected a JSON list of 2 numbers"),
    "options": ({"options": [1]}, "key 'options'"),
    "calibration": ({"calibration_sha256": "12"}, "key 'calibration_sha256'"),
    "cases": ({"cases": ["one"]}, "key 'cases'"),
    "case too many": ({"cases": {"one": {}, "two": {}}}, "input_ids/two is missing"),
    "case too few": ({"cases": {}}, "input_ids/one has no case"),
    "length": ({"cases": {"one": {"n_new_tokens": "5"}}}, "key 'cases': expected n_new_tokens of 'one' to be the"),
    "no length": ({"cases": {"one": {"n_new_tokens": 0}}}, "key 'cases': expected n_new_tokens of 'one' to be the"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_metadata_is_explained(tmp_path, parts, name):
    changes, message = BROKEN[name]
    path = write_reference(tmp_path / "r.safetensors", parts[0], {**parts[1], **changes})
    with pytest.raises(FileFormatError, match=message) as error:
        ReferenceFile(path)
    assert str(path) in str(error.value)


def test_missing_and_foreign_tensors(tmp_path, parts):
    tensors, metadata = parts
    q = MODULES[0]
    for gone, message in {
        ("input_ids/one",): "input_ids/one is missing",
        ("logits_last4/one", "greedy_ids/one"): "neither logits_last4/one nor greedy_ids/one",
        ("greedy_ids/one",): "greedy_ids/one is missing; the case says how long it is",
        (f"input/{q}/one",): f"input/{q}/one is missing, its partner is there",
        tuple(tensors): "no tensors",
    }.items():
        left = {name: tensor for name, tensor in tensors.items() if name not in gone}
        cases = {"one": {"n_new_tokens": 5}} if left else {}
        metadata_left = {**metadata, "cases": cases}
        with pytest.raises(FileFormatError, match=message):
            ReferenceFile(write_reference(tmp_path / "r.safetensors", left, metadata_left))
    with pytest.raises(FileFormatError, match="tensor 'dW/q' is none of version 1"):
        ReferenceFile(write_reference(tmp_path / "r.safetensors", {**tensors, "dW/q": np.ones(2)}, metadata))


def test_ids_are_checked_before_they_are_used(tmp_path, engine, parts):
    tensors, metadata = parts
    for name, ids, error, message in (
        ("input_ids/one", np.array([1, 10**9]), VerificationError, "outside the model's vocabulary"),
        ("greedy_ids/one", np.array([-1]), VerificationError, "outside the model's vocabulary"),
        ("input_ids/one", np.array([1.5, 2]), FileFormatError, "input_ids/one is F64"),
        ("input_ids/one", np.zeros((2, 2), np.int64), FileFormatError, "expected a list of ids"),
        ("input_ids/one", np.zeros(5000, np.int64), PromptError, "5000 tokens"),
    ):
        path = write_reference(tmp_path / "r.safetensors", {**tensors, name: ids}, metadata)
        with pytest.raises(error, match=message):
            check(path, engine)


def test_other_kinds_of_files_are_named(tmp_path, folder, parts):
    pickle = tmp_path / "r.pt"
    pickle.write_bytes(b"PK\x03\x04" + bytes(100))
    for path, message in {
        folder / "pair.safetensors": "this is a calibration",
        folder / "summary" / "adapter_model.safetensors": "this is a PEFT adapter's weights",
        folder / "model" / "model.safetensors": "this is weights of a model",
        pickle: "a pickle.*save_file",
        folder / "summary": "the directory of a PEFT adapter",
    }.items():
        with pytest.raises(FileFormatError, match=message):
            ReferenceFile(path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        ReferenceFile(tmp_path / "nowhere.safetensors")
    path = write_reference(tmp_path / "r.safetensors", *parts)
    content = path.read_bytes()
    for length in (0, 7, 50, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match="r.safetensors"):
            ReferenceFile(path)


def test_other_adapters_base_or_method(tmp_path, folder, engine, parts):
    tensors, metadata = parts
    path = write_reference(tmp_path / "r.safetensors", tensors, metadata)
    other = Engine.load(
        write_tiny_hf(tmp_path / "qwen", "qwen2"),
        weights="fp32",
        cache_dtype="fp32",
        backend="numpy",
        adapters={name: folder / name for name in PAIR},
    )
    with pytest.raises(VerificationError, match="made on tiny, whose model_type is 'llama'; this model has 'qwen2'"):
        check(path, other)
    changed = write_tiny_adapter(tmp_path / "summary", folder / "model", seed=9)
    engine.add_adapter(changed, "summary")
    try:
        with pytest.raises(VerificationError, match="its adapter 1 is 'summary' with sha256"):
            check(path, engine)
    finally:
        engine.add_adapter(folder / "summary", "summary")
    with pytest.raises(VerificationError, match="is about concat; the recipe's method is linear"):
        check(path, engine, Recipe("linear", PAIR))
    with pytest.raises(
        VerificationError, match="adapters summary, formal in this order; the recipe has formal, summary"
    ):
        check(path, engine, Recipe("concat", PAIR[::-1]))
    with pytest.raises(VerificationError, match=r"weights \[0.5, 0.5\]; the recipe has \[1.0, 0.5\]"):
        check(path, engine, Recipe("concat", PAIR, (1, 0.5)))
    unknown = write_reference(tmp_path / "u.safetensors", tensors, {**metadata, "method": "fusion"})
    with pytest.raises(VerificationError, match="method 'fusion', which edgecal does not have"):
        check(unknown, engine)


def test_names_weights_and_options_are_those_of_the_file(tmp_path, folder, engine, parts):
    tensors, metadata = parts
    renamed = {f"my_{name}": engine.adapters[name] for name in PAIR}
    path = write_reference(tmp_path / "r.safetensors", tensors, {**metadata, "weights": [0.25, 2]})
    with ReferenceFile(path) as reference:
        recipe = recipe_of(reference, renamed)
    assert recipe.adapters == ("my_summary", "my_formal") and recipe.weights == (0.25, 2)
    trimmed = {**metadata, "method": "ties", "options": {"density": 0.3}}
    path = write_reference(tmp_path / "r.safetensors", tensors, trimmed)
    with ReferenceFile(path) as reference:
        assert dict(recipe_of(reference, engine.adapters).options)["density"] == 0.3
        with pytest.raises(VerificationError, match=r"density = 0.3; the recipe has 0.5"):
            check_recipe(reference, Recipe("ties", PAIR), engine.adapters)
    path = write_reference(tmp_path / "r.safetensors", tensors, {**metadata, "options": {"density": 0.3}})
    with ReferenceFile(path) as reference, pytest.raises(RecipeError, match="r.safetensors: concat has no option"):
        recipe_of(reference, engine.adapters)


def test_calibrations_are_compared_by_content(tmp_path, folder, engine):
    calibration = folder / "pair.safetensors"
    tensors, metadata = reference_parts(engine, Recipe(CALIBRATED, PAIR, calibration=str(calibration)))
    metadata["calibration_sha256"] = sha256(calibration)
    path = write_reference(tmp_path / "r.safetensors", tensors, metadata)
    with ReferenceFile(path) as reference:
        with pytest.raises(VerificationError, match=r"calibration pair.safetensors; give it with --calibration"):
            recipe_of(reference, engine.adapters)
        recipe = recipe_of(reference, engine.adapters, str(calibration))
    assert check(path, engine, recipe).passed
    adapters = {name: folder / name for name in PAIR}
    other = write_tiny_calibration(tmp_path / "pair.safetensors", folder / "model", adapters, CALIBRATED, seed=8)
    with pytest.raises(VerificationError, match="another calibration"):
        check(path, engine, Recipe(CALIBRATED, PAIR, calibration=str(other)))
    # Without its sha256 in the file the numbers decide, and another name is worth a note
    renamed = other.rename(tmp_path / "other.safetensors")
    path = write_reference(tmp_path / "r.safetensors", tensors, {**metadata, "calibration_sha256": None})
    report = check(path, engine, Recipe(CALIBRATED, PAIR, calibration=str(renamed)))
    assert not report.passed and "names the calibration pair.safetensors" in report.notes[0]
    with pytest.raises(AdapterError):
        check(path, engine, Recipe(CALIBRATED, PAIR, calibration=str(folder / "summary" / "adapter_model.safetensors")))


# ------------------------------------------------------------------------------------------------------- arithmetic

FLOATS = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, (7, 3), elements=FLOATS),
    arrays.arrays(np.float32, (7, 3), elements=FLOATS),
    st.integers(1, 7),
)
def test_blocks_of_rows_change_nothing(found, wanted, rows):
    deviation = Deviation()
    for start in range(0, 7, rows):
        deviation.add(found[start : start + rows], wanted[start : start + rows], start)
    row = deviation.result("delta/x", (7, 3), "relative", 1e-6, (1, 1))
    gap = np.abs(found.astype(float) - wanted)
    assert row.max_abs == gap.max() and row.worst is not None and gap[row.worst] == gap.max()
    largest = np.abs(wanted).max()
    assert row.max_rel == (gap.max() / largest if largest else (0 if gap.max() == 0 else np.inf))
    assert row.passed == (row.max_rel <= 1e-6)


def test_ids_of_different_lengths():
    assert compare_ids("input_ids/x", [1, 2], [1, 2], "ids").passed
    shorter = compare_ids("input_ids/x", [1, 2], [1, 2, 3], "ids")
    assert not shorter.passed and shorter.worst == (2,) and shorter.wanted == 3 and np.isnan(shorter.found)
