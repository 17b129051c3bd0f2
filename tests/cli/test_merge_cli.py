"""`edgecal merge` as a user runs it, and the new methods through `edgecal generate`."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from edgecal.adapters import LoraAdapter
from edgecal.adapters.merge import method_names
from tests.cli.shell import edgecal, terminal
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("merge")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    write_tiny_calibration(root / "pm.safetensors", root / "model", {n: root / n for n in PAIR}, "projection_merge")
    (root / "ties.yaml").write_text(
        "merge_method: ties\nbase_model: model\nmodels:\n"
        "  - {model: ./summary, parameters: {weight: 0.6}}\n  - {model: ./formal, parameters: {weight: 0.4}}\n"
        "parameters: {density: 0.7}\n"
    )
    (root / "names.json").write_text('{"method": "linear", "adapters": ["summary", "formal"]}')
    return root


def test_notes_of_a_recipe_are_lines_on_stderr(folder: Path, tmp_path: Path) -> None:
    (folder / "linear.yaml").write_text(
        "merge_method: linear\ndtype: float16\nmodels:\n"
        "  - {model: ./summary, parameters: {weight: 3}}\n  - {model: ./formal, parameters: {weight: 1}}\n"
    )
    done = edgecal("merge", folder / "linear.yaml", "--out", tmp_path / "mean", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["method"], result["weights"], result["rank"]) == ("concat", [0.75, 0.25], 8)
    first, second = done.stderr.splitlines()
    assert first.startswith("note: dtype changes nothing here: merging is float32")
    assert second == (
        "note: mergekit's linear is concat here, with the weights 0.75, 0.25; Eq. 5 is `method: linear` of the flat "
        "spelling"
    )
    options = ("--method", "svd", "--option", "svd_rank=2", "--adapter", folder / "summary")
    done = edgecal("merge", *options, "--out", tmp_path / "whole", "--json", home=tmp_path)
    assert json.loads(done.stdout)["rank"] == 4
    assert done.stderr == "note: svd_rank changes nothing here: svd leaves one adapter alone whole, as PEFT does\n"


def test_a_recipe_file_is_complete(folder: Path, tmp_path: Path) -> None:
    done = edgecal("merge", folder / "ties.yaml", "--out", tmp_path / "out", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["method"], result["rank"], result["n_modules"]) == ("ties", 4, 14)
    assert (result["weights"], result["options"]) == ([0.6, 0.4], {"density": 0.7})
    merged = LoraAdapter.load(tmp_path / "out")
    assert len(merged.shapes) == 14
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert len(config["target_modules"]) == 7  # components, since the base was at hand
    with safe_open(tmp_path / "out/adapter_model.safetensors", "np") as file:
        recipe = json.loads(file.metadata()["edgecal_recipe"])
    assert recipe == {
        "method": "ties", "adapters": list(PAIR), "weights": [0.6, 0.4], "options": {"density": 0.7},
    }  # fmt: skip

    assert done.stderr.startswith("note: ties is PEFT's here, on the factors;") and done.stderr.count("\n") == 1

    again = edgecal("merge", folder / "ties.yaml", "--out", tmp_path / "out", home=tmp_path)
    assert again.returncode == 1 and "exists already; --force" in again.stderr
    forced = edgecal(
        "merge", folder / "ties.yaml", "--out", tmp_path / "out", "--force", "--dtype", "fp16", home=tmp_path
    )
    assert forced.returncode == 0 and "ties, 14 modules, rank 4" in forced.stdout
    half = LoraAdapter.load(tmp_path / "out")
    assert half.nbytes == merged.nbytes / 2


def test_by_options(folder: Path, tmp_path: Path) -> None:
    pair = [word for name in PAIR for word in ("--adapter", folder / name)]
    method = ["--method", "magnitude_prune", "--option", "density=0.5,0.25", "--adapter-weights", "1,-1"]
    done = edgecal("merge", *pair, *method, "--out", tmp_path / "a", "--json", home=tmp_path)
    assert json.loads(done.stdout)["options"] == {"density": [0.5, 0.25]}, done.stderr
    calibrated = ["--calibration", folder / "pm.safetensors"]
    for base in ([], ["--base", folder / "model"]):
        done = edgecal("merge", *pair, *calibrated, *base, "--out", tmp_path / "b", "--force", "--json", home=tmp_path)
        assert json.loads(done.stdout)["rank"] == 2, done.stderr


def test_refusals(folder: Path, tmp_path: Path) -> None:
    one = ["--adapter", folder / "summary"]
    out = ["--out", tmp_path / "out"]
    for arguments, code, word in (
        ([*one], 2, "give --out DIR"),
        ([*out], 1, "zero_shot does not merge"),
        ([*one, *out, "--option", "density=0.5"], 1, "single has no option 'density'"),
        ([*one, *out, "--method", "ties", "--option", "density"], 1, "expected NAME=VALUE"),
        ([*one, *out, "--method", "ties", "--option", "density=x"], 1, "option 'density' is 'x'"),
        ([*one, *out, "--step", "summary:Do it"], 1, "multi_step does not merge"),
        ([folder / "names.json", *out], 1, "where its adapter 'summary' is: give --adapter summary=PATH"),
        ([folder / "nowhere.yaml", *out], 1, "cannot be read: No such file"),
        ([folder / "ties.yaml", *out, "--method", "ties"], 1, "a recipe file says everything"),
        ([folder / "ties.yaml", *out, "--adapter", f"summary={folder / 'formal'}"], 1, "give one of the two"),
    ):
        done = edgecal("merge", *arguments, home=tmp_path)
        assert (done.returncode, word in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_list(tmp_path: Path) -> None:
    shown = edgecal("merge", "--list", home=tmp_path, COLUMNS="120").stdout
    lines = shown.splitlines()
    assert all(name in lines for name in method_names())
    at = lines.index("ties")
    assert lines[at + 1 : at + 5] == [
        "  largest entries of the factors that agree in sign",
        "  TIES-Merging (arXiv 2306.01708), PEFT's variant",
        "  takes adapters, equal ranks",
        "  options: density=0.5, majority_sign_method=total",
    ]
    assert "density\n  share of the entries that is kept: a number in (0, 1], or one per adapter\n" in shown
    entries = json.loads(edgecal("merge", "--list", "--json", home=tmp_path).stdout)
    assert [entry["name"] for entry in entries] == list(method_names())


@pytest.mark.parametrize("columns", [60, 80])
def test_list_fits_a_terminal(tmp_path: Path, columns: int) -> None:
    """Every line within the width, names on lines of their own, and no word cut or lost."""
    wide = edgecal("merge", "--list", home=tmp_path, COLUMNS="200").stdout
    with terminal("merge", "--list", home=tmp_path, COLUMNS=str(columns), TERM="xterm") as seen:
        shown = re.sub(r"\x1b\[\d*m", "", seen.expect("T of softmax(-loss / T): a number above 0\n"))
        assert seen.wait() == 0
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(name in lines for name in method_names())
    assert shown.split() == wide.split()


def test_generate_takes_the_recipe_and_the_options(folder: Path, tmp_path: Path) -> None:
    """And says the same as with the merged adapter in its place."""
    question = [folder / "model", "Some text", "-n", "8", "-q", "--weights", "fp32", "--cache-dtype", "fp32"]
    by_recipe = edgecal("generate", *question, "--recipe", folder / "ties.yaml", home=tmp_path)
    assert by_recipe.returncode == 0, by_recipe.stderr
    pair = [word for name in PAIR for word in ("--adapter", folder / name)]
    method = ["--method", "ties", "--option", "density=0.7", "--adapter-weights", "0.6,0.4"]
    assert edgecal("generate", *question, *pair, *method, home=tmp_path).stdout == by_recipe.stdout
    edgecal("merge", folder / "ties.yaml", "--out", tmp_path / "out", home=tmp_path)
    merged = edgecal("generate", *question, "--adapter", tmp_path / "out", home=tmp_path)
    assert merged.stdout == by_recipe.stdout
    assert not np.array_equal(merged.stdout, edgecal("generate", *question, home=tmp_path).stdout)


def test_chat_takes_the_options(folder: Path, tmp_path: Path) -> None:
    pair = [word for name in PAIR for word in ("--adapter", folder / name)]
    losses = ["--method", "lm_cocktail", "--option", "losses=1,2"]
    done = edgecal(
        "chat", folder / "model", *pair, *losses, "-n", "4", home=tmp_path, input="Hello\n/method concat\nMore\n"
    )
    assert done.returncode == 0, done.stderr
    assert "lm_cocktail" in done.stderr and "concat" in done.stderr


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_umask_gives(folder: Path, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        done = edgecal("merge", folder / "ties.yaml", "--out", tmp_path / "out", home=tmp_path)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {mode}


def test_adapters_of_two_bases_are_named(tmp_path: Path) -> None:
    for name, size in (("one", 64), ("two", 128)):
        write_tiny_adapter(tmp_path / name, write_tiny_hf(tmp_path / f"base-{name}", hidden_size=size))
    pair = ["--adapter", tmp_path / "one", "--adapter", tmp_path / "two"]
    done = edgecal("merge", *pair, "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 1 and "in 'two' and (64, 96) in 'one'; give those of one base" in done.stderr


def test_a_wrong_kind_of_calibration_is_named(folder: Path, tmp_path: Path) -> None:
    pair = [word for name in PAIR for word in ("--adapter", folder / name)]
    for path, kind in (
        (folder / "summary", "the directory of a PEFT adapter"),
        (folder / "summary/adapter_model.safetensors", "a PEFT adapter's weights"),
        (folder / "model/model.safetensors", "weights of a model"),
        (folder / "model", "a model of Hugging Face"),
    ):
        done = edgecal("merge", *pair, "--calibration", path, "--out", tmp_path / "out", home=tmp_path)
        assert done.returncode == 1
        assert done.stderr == f"edgecal: error: {path} is no calibration: this is {kind}\n"
