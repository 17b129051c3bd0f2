"""Several runs along a number that they differ in."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgecal.benchmark import Evaluation, read_report, trend
from edgecal.benchmark.trend import to_html
from edgecal.errors import BenchmarkError
from tests.cli.shell import edgecal
from tests.tiny import model_config, write_tiny_hf


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """Of calibrations that were trained on 10 and on 100 examples, and of a model without adapters."""
    root = tmp_path_factory.mktemp("trend")
    write_tiny_hf(root / "model", num_hidden_layers=3)
    small = replace(config, limit=3, methods=config.methods[:1])
    made = {
        "ten": replace(config, limit=3, about={"examples": 10}),
        "hundred": replace(config, limit=3, about={"examples": 100.0}),
        "larger": replace(small, model=str(root / "model"), adapters={}, calibrations=()),
    }
    for name, values in made.items():
        Evaluation(values, root / name).run()
    return root


def reports(runs, *names):
    return {name: read_report(str(runs / name)) for name in names}


def test_points_are_the_means_of_the_runs(runs):
    found = reports(runs, "hundred", "ten")
    by, points = trend(found)
    assert by == "examples" and {point.x for point in points} == {10.0, 100.0}
    for point in points:
        assert point.estimate == found[point.run].cells[point.task, point.method].estimate("weighted_rouge")
    assert [(p.task, p.method, p.x) for p in points] == sorted((p.task, p.method, p.x) for p in points)
    assert len(points) == sum(len(report.cells) for report in found.values())


def test_sizes_of_models(runs, config):
    by, points = trend(reports(runs, "ten", "larger"))
    tied = model_config(Path(config.model))
    assert by == "size"
    sizes = sorted({point.x for point in points})
    assert len(sizes) == 2 and sizes[0] < sizes[1]
    layer = 64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64
    assert math.isclose(sizes[0] * 1e6, tied.vocab_size * 64 + 2 * layer + 64)
    assert math.isclose((sizes[1] - sizes[0]) * 1e6, layer)


def test_refusals(runs):
    with pytest.raises(BenchmarkError, match="two runs or more"):
        trend(reports(runs, "ten"))
    with pytest.raises(BenchmarkError, match="larger does not say its 'examples'; it says size"):
        trend(reports(runs, "ten", "larger"), "examples")
    with pytest.raises(BenchmarkError, match="the runs differ in no number"):
        trend({"a": read_report(str(runs / "larger")), "b": read_report(str(runs / "larger"))})


def test_the_page_and_the_command(runs, tmp_path):
    by, points = trend(reports(runs, "ten", "hundred"))
    page = to_html(by, points)
    assert page.count("<polyline") == len({(point.task, point.method) for point in points})
    assert len(re.findall("<circle", page)) == len(points)
    arguments = ["--trend", runs / "ten", "--trend", runs / "hundred", "--out", tmp_path / "out", "--json"]
    done = edgecal("eval", *map(str, arguments), home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["by"] == "examples" and len(found["points"]) == len(points)
    assert (tmp_path / "out/trend.html").read_text().startswith("<!doctype html>")
    shown = edgecal("eval", *map(str, arguments[:4]), "--by", "examples", home=tmp_path)
    assert shown.returncode == 0 and "weighted ROUGE by examples" in shown.stdout
    wrong = edgecal("eval", "--by", "size", "--report", str(runs / "ten"), home=tmp_path)
    assert wrong.returncode == 2 and "--by goes with --trend" in wrong.stderr
