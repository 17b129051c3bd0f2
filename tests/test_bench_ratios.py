"""The comparison of the benchmark suites with their baseline: ratios, not seconds."""

from __future__ import annotations

import json

import pytest

from bench import ratios

STORED = {
    "a": {"ratio": 2.0, "beside": "core"},
    "b": {"ratio": 2.0, "beside": "core"},
    "c": {"ratio": 1, "beside": "x"},
}


def written(path, values):
    rows = [{"name": name, "extra_info": {"kind": "portable, 1 threads", **info}} for name, info in values.items()]
    path.write_text(json.dumps({"benchmarks": rows}))
    return path


def test_verdicts():
    run = {"a": {"ratio": 2.6, "beside": "core"}, "b": {"ratio": 1.5, "beside": "core"}}
    run |= {"c": {"ratio": 9, "beside": "y"}, "d": {"ratio": 1, "beside": "x"}}
    verdicts = {name: verdict for name, _, _, verdict in ratios.judge(run, STORED, 1.25)}
    assert verdicts == {"a": "SLOWER", "b": "faster", "c": "new", "d": "new"}
    assert ratios.judge({}, STORED, 1.25)[0][3] == "not run"
    assert ratios.judge({"a": {"ratio": 2.5, "beside": "core"}}, STORED, 1.25)[0][3] == "", "just within"


def test_a_baseline_is_kept_and_compared_with(tmp_path, capsys):
    run, baseline = written(tmp_path / "run.json", STORED), ["--baseline", str(tmp_path / "kernels.json")]
    assert ratios.main([str(run), *baseline]) == 0 and "no baseline for" in capsys.readouterr().out
    assert ratios.main([str(run), *baseline, "--update"]) == 0
    assert ratios.main([str(run), *baseline]) == 0
    slower = written(tmp_path / "slower.json", {**STORED, "a": {"ratio": 3.0, "beside": "core"}})
    assert ratios.main([str(slower), *baseline]) == 1 and "SLOWER" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", '{"benchmarks": [{"name": "a"}]}', '{"benchmarks": 3}'])
def test_a_file_of_something_else(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit, match="is no result of"):
        ratios.main([str(tmp_path / "run.json")])


def test_the_stored_baseline_is_one():
    baseline = json.loads(ratios.BASELINE.read_text())
    for part in baseline.values():
        assert part["machine"]["cpu"] and len(part["ratios"]) > 20
        assert all(row["ratio"] > 0 and row["beside"] in ("core", "memory") for row in part["ratios"].values())
