"""`edgecal eval` end to end, as a user runs it."""

from __future__ import annotations

import json

import pytest

from tests.benchmark.conftest import write_folder
from tests.cli.shell import edgecal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def results(folder):
    done = edgecal("eval", folder / "eval.yaml", "--out", folder / "results", "--json", home=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json_has_the_rows_and_says_where_the_page_is(results, folder):
    assert results["page"] == str(folder / "results" / "report.html") and (folder / "results" / "report.html").exists()
    assert {row["method"] for row in results["rows"]} >= {"zero_shot", "linear", "multi_step"}
    assert all(0 <= row["rouge1"] <= 1 for row in results["rows"])


def test_tables_of_a_folder(results, folder):
    for width in ("60", "80", "200"):
        done = edgecal("eval", "--report", folder / "results", home=folder, COLUMNS=width)
        assert done.returncode == 0 and "summarize+french" in done.stdout and "WR" in done.stdout
        assert all(len(line) <= int(width) for line in done.stdout.splitlines() if "report.html" not in line)
        assert "no learnable_calibration_pp: no learnable_calibration_pp file" in done.stderr.replace("\n", " ")
    markdown = edgecal("eval", "--report", folder / "results", "--format", "markdown", home=folder)
    assert markdown.stdout.startswith("### summarize+professional") and "page: " in markdown.stderr


def test_two_folders_are_compared(results, folder):
    again = edgecal("eval", folder / "eval.yaml", "--out", folder / "other", "--limit", "3", "-q", home=folder)
    assert again.returncode == 2, "there is no -q"
    done = edgecal("eval", folder / "eval.yaml", "--out", folder / "other", "--limit", "3", home=folder)
    assert done.returncode == 0, done.stderr
    compared = edgecal("eval", "--compare", folder / "results", folder / "other", "--json", home=folder)
    found = json.loads(compared.stdout)
    assert {d["estimate"]["n"] for d in found} == {3} and {d["estimate"]["mean"] for d in found} == {0.0}


def test_what_there_is(folder):
    told = json.loads(edgecal("eval", "--list", "--json", home=folder).stdout)
    assert len(told["sub_tasks"]) == 14 and "mini" in {one["name"] for one in told["data"]}
    shown = edgecal("eval", "--list", home=folder)
    assert "reply+paraphrase" in shown.stdout.replace("\n", " ") and "paper1" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give a configuration, or one of --quick"),
        (["FOLDER/eval.yaml", "--quick"], 2, "give a configuration, or one of --quick"),
        (["FOLDER/nowhere.yaml"], 1, "nowhere.yaml cannot be read"),
        (["FOLDER/eval.yaml", "--task", "dance"], 1, "task 'dance'"),
        (["FOLDER/eval.yaml", "--workers", "2", "--scheduler", "tcp://x:1"], 2, "give one"),
        (["FOLDER/eval.yaml", "--out", "FOLDER/small", "--memory-limit", "1M"], 1, "are left of the memory limit"),
        (["FOLDER/eval.yaml", "--memory-limit", "little"], 2, "'little' is no size"),
        (["--report", "FOLDER"], 1, "holds no results"),
        (["--compare", "FOLDER", "FOLDER"], 1, "holds no results"),
    ],
)
def test_refusals_are_one_line(folder, arguments, code, message):
    done = edgecal("eval", *[str(a).replace("FOLDER", str(folder)) for a in arguments], home=folder)
    assert done.returncode == code and message in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1


def test_verdicts_are_asked_for_and_shown(results, folder):
    refused = edgecal("eval", folder / "eval.yaml", "--judge", folder / "model", home=folder)
    assert refused.returncode == 2 and "--judge goes with --report" in refused.stderr
    small = ("--judge", folder / "model", "--memory-limit", "1M")
    refused = edgecal("eval", "--report", folder / "results", *small, home=folder)
    assert refused.returncode == 1 and "are left of the memory limit" in refused.stderr
    done = edgecal("eval", "--report", folder / "results", "--judge", folder / "model", "--json", home=folder)
    assert done.returncode == 0, done.stderr
    judges = json.loads(done.stdout)["judges"]
    assert sum(row["n"] for row in judges) == 54 and all(0 <= row["yes_share"] <= 1 for row in judges)
    shown = edgecal("eval", "--report", folder / "results", home=folder)
    assert "judged" in shown.stdout and "no verdict" in shown.stdout.replace("\n", " ")
