"""The figure: numbers that are those of the dense dW, the same every time, and a picture of them."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal.adapters import LoraAdapter, Recipe
from edgecal.architecture import Architecture
from edgecal.cli.figure import command
from edgecal.errors import OptionError, RecipeError, StorageError
from edgecal.inspection.figure import BINS, Measurement, histogram, measure
from edgecal.inspection.figure_picture import save_picture
from edgecal_weights.opening import open_checkpoint
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("figure")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR, 1):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    write_tiny_adapter(root / "wide", root / "model", rank=7)
    adapters = {name: root / name for name in PAIR}
    for method in ("learnable_calibration", "projection_merge"):
        write_tiny_calibration(root / f"{method}.safetensors", root / "model", adapters, method)
    return root


def measured(folder: Path, recipe: Recipe) -> Measurement:
    with open_checkpoint(folder / "model") as checkpoint:
        architecture = Architecture.of(checkpoint)
    adapters = {name: LoraAdapter.load(folder / name) for name in (*PAIR, "wide")}
    return measure(recipe, adapters, architecture, model="tiny")


def test_numbers_are_those_of_the_dense_matrices(folder):
    measurement = measured(folder, Recipe("concat", PAIR))
    adapters = [LoraAdapter.load(folder / name) for name in PAIR]
    assert len(measurement.modules) == 14 and len(measurement.components) == 7
    for m in measurement.modules:
        pairs = [adapter.pairs[m.module] for adapter in adapters]
        exact = sum(pair.delta().astype(float) for pair in pairs) / 2
        mean = sum(p.scaling * p.b.astype(float) for p in pairs) / 2 @ (sum(p.a.astype(float) for p in pairs) / 2)
        assert m.baseline is not None
        for values, dense in ((m.recipe, exact), (m.baseline, mean)):
            assert values.norm == pytest.approx(np.linalg.norm(dense), rel=1e-6)
            assert values.sampled == dense.size  # these modules are small enough to be looked at whole
            assert sum(values.counts) + values.outside == dense.size
            assert values.largest == pytest.approx(np.abs(dense).max(), rel=1e-5)
            counts, _ = np.histogram(dense, BINS, (-m.half_range, m.half_range))
            assert np.abs(np.array(values.counts) - counts).sum() <= 4  # a value on the edge of a bin


def test_large_modules_are_sampled_evenly_and_always_alike(folder, monkeypatch):
    monkeypatch.setattr("edgecal.inspection.figure._SAMPLE", 1000)
    first, second = (measured(folder, Recipe("concat", PAIR)) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    for m in first.modules:
        assert m.recipe.sampled <= 1000 + m.shape[1]
        assert m.recipe.largest > 0.3 * m.half_range / 6


def test_baseline(folder):
    assert "baseline itself" in measured(folder, Recipe("linear", PAIR)).notes[0]
    uneven = measured(folder, Recipe("concat", ("summary", "wide")))
    assert (
        uneven.baseline == {"method": "concat", "adapters": ["summary", "wide"]} and "ranks differ" in uneven.notes[0]
    )
    calibrated = Recipe("projection_merge", PAIR, calibration=str(folder / "projection_merge.safetensors"))
    assert measured(folder, calibrated).baseline == {"method": "linear", "adapters": list(PAIR)}


def test_what_has_no_dw(folder):
    for recipe in (Recipe("zero_shot"), Recipe("multi_step", steps=(("summary", "Do it"),))):
        with pytest.raises(RecipeError, match="no merge"):
            measured(folder, recipe)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.floats(0.1, 5))
def test_histogram_counts_everything_once(values, half):
    array = np.array(values)
    counts = histogram(array, half)
    inside = int(((array >= -half) & (array < half)).sum())
    assert len(counts) == BINS and abs(int(counts.sum()) - inside) <= (np.abs(np.abs(array) - half) < 1e-9).sum()
    assert histogram(np.zeros(3), half)[BINS // 2] == 3


def test_picture(folder, tmp_path):
    recipe = Recipe("learnable_calibration", PAIR, calibration=str(folder / "learnable_calibration.safetensors"))
    save_picture(measured(folder, recipe), tmp_path / "figure.png")
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 20_000
    with pytest.raises(StorageError, match="could not be written"):
        save_picture(measured(folder, recipe), tmp_path / "nowhere" / "figure.png")
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_without_matplotlib(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"pip install 'edgecal\[plot\]'"):
        save_picture(measured(folder, Recipe("concat", PAIR)), tmp_path / "figure.png")


def test_command_writes_numbers(folder, tmp_path):
    options = ["--model", str(folder / "model"), *(w for n in PAIR for w in ("--adapter", str(folder / n)))]
    files = [word for name in ("n.json", "n.csv", "f.png", "f.svg") for word in ("--out", str(tmp_path / name))]
    done = CliRunner().invoke(command, [*options, "--method", "concat", *files], catch_exceptions=False)
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 4
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (tmp_path / "f.svg").read_text()
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["recipe"]["method"] == "concat" and len(numbers["modules"]) == 14
    rows = list(csv.DictReader((tmp_path / "n.csv").read_text().splitlines()))
    assert len(rows) == 28 and {row["series"] for row in rows} == {"recipe", "baseline"}
    assert float(rows[0]["norm"]) == numbers["modules"][0]["recipe"]["norm"]
    assert CliRunner().invoke(command, options).exit_code == 2
    assert CliRunner().invoke(command, [*options, "--out", str(tmp_path / "f.gif")]).exit_code == 2
    shown = CliRunner().invoke(command, [*options, "--method", "concat", "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout) == numbers
