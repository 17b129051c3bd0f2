"""The papers' cost tables: paper 2's system analysis and paper 1's Table 3."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgecal import LoraAdapter, demo
from edgecal.architecture import Architecture
from edgecal.errors import AdapterError, OptionError
from edgecal.profile.costs import costs, to_rows
from edgecal.profile.system import SystemAnalysis
from edgecal_weights.opening import open_checkpoint
from tests.profile.engines import recipes, tiny_engine


def test_the_system_analysis_of_all_methods(folder):
    engine = tiny_engine(folder)
    seen = []
    analysis = SystemAnalysis(
        engine,
        recipes(folder),
        ["A: Hi.", "A: How are you?\nB: Fine."],
        "Summarize",
        repeats=2,
        max_tokens=5,
        progress=lambda *what: seen.append(what),
    )
    rows = analysis.run()
    assert [(row.name, row.n_passes) for row in rows] == [("base", 1), ("linear", 1), ("lcpp", 1), ("two", 2)]
    for row in rows:
        assert len(row.total_s) == len(row.new_tokens) == 4
        assert row.mean_s == np.mean(row.total_s) and row.std_s == np.std(row.total_s, ddof=1)
        assert row.peak_bytes >= row.idle_bytes * 0.9 and row.idle_bytes > 0
        assert all(first < total for first, total in zip(row.first_token_s, row.total_s, strict=True))
    assert rows[2].extra_parameters > 0 == rows[1].extra_parameters
    assert max(rows[3].new_tokens) > 5, "two answers"
    assert seen[-1][:2] == (20, 20)
    json.dumps(analysis.to_dict(), allow_nan=False)


def test_it_can_be_interrupted(folder):
    engine = tiny_engine(folder)

    def progress(done, total, what):
        if done == 6:
            raise KeyboardInterrupt

    analysis = SystemAnalysis(engine, recipes(folder), ["A"], "Summarize", max_tokens=2, progress=progress)
    with pytest.raises(KeyboardInterrupt):
        analysis.run()
    assert analysis.interrupted and analysis.rows[0].total_s and analysis.disturbance


@pytest.mark.parametrize(("dialogues", "repeats"), [([], 1), (["a"], 0)])
def test_nothing_to_analyse(engine, folder, dialogues, repeats):
    with pytest.raises(OptionError):
        SystemAnalysis(engine, recipes(folder), dialogues, "x", repeats=repeats)


def test_table_3_of_the_demo(smollm2_gguf):
    """The demo's own counts; the papers' models are in tests/edgecal/test_calibration.py."""
    with open_checkpoint(smollm2_gguf) as checkpoint:
        architecture = Architecture.of(checkpoint)
    adapters = {name: LoraAdapter.load(demo.DATA / name) for name in demo.PAIR}
    rows = {row.name: row for row in costs(architecture, {"base": None, **demo.recipes()}, adapters)}
    extra = {name: row.extra_parameters for name, row in rows.items() if row.extra_parameters}
    assert extra == {"learnable_calibration": 5184, "learnable_calibration_pp": 40704, "projection_merge": 23040}
    assert {rows[name].extra_bytes for name in extra} == {4 * n for n in extra.values()}
    assert rows["multi_step"].n_passes == 2 and rows["linear"].n_passes == 1 and rows["base"].adapters == 0
    both = sum(adapter.n_parameters for adapter in adapters.values())
    assert rows["linear"].adapter_parameters == rows["multi_step"].adapter_parameters == both
    assert rows["linear"].adapter_bytes == sum(a.nbytes for a in adapters.values())
    assert rows["projection_merge"].rank == 4 and rows["concat"].rank == 32
    assert to_rows(list(rows.values()))[0]["extra_share"] == 0


def test_an_adapter_of_another_model_is_refused(smollm2_gguf, folder):
    with open_checkpoint(smollm2_gguf) as checkpoint:
        architecture = Architecture.of(checkpoint)
    adapters = {"summary": LoraAdapter.load(folder / "summary"), "formal": LoraAdapter.load(folder / "formal")}
    with pytest.raises(AdapterError, match=r"another base|not in this model"):
        costs(architecture, {"linear": recipes(folder)["linear"]}, adapters)
