"""`edgecal search` end to end in a process of its own, on a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.shell import MAIN, PATIENCE, edgecal, environment, killed_at_the_end, terminal
from tests.tiny import write_tiny_adapter, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("search")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    lines = [{"dialogue": f"A: it is {i}", "summary": f"It was {i}."} for i in range(4)]
    (root / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def arguments(folder: Path, *more: str | Path, examples: str = "few.jsonl") -> list[str | Path]:
    adapters = [word for name in PAIR for word in ("--adapter", folder / name)]
    task = ["--task", "summarize"] if examples == "few.jsonl" else []
    return ["search", folder / "model", *adapters, "--examples", folder / examples, *task, *more]


def test_the_recipe_on_stdout_the_account_on_stderr(folder, tmp_path):
    done = edgecal(*arguments(folder, "--method", "lm_cocktail"), home=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = json.loads(done.stdout)
    assert recipe["method"] == "lm_cocktail" and [a["name"] for a in recipe["adapters"]] == list(PAIR)
    assert sum(recipe["weights"]) == pytest.approx(1)
    assert "3 of 3 evaluations" in done.stderr and "mix" in done.stderr
    assert "tokens run" in done.stderr and "saved by prefix reuse" in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.suffix] == []


def test_a_search_resumes_and_its_recipe_runs(folder, tmp_path):
    state, out = tmp_path / "state.json", tmp_path / "recipe.json"
    first = edgecal(*arguments(folder, "--evaluations", "4", "--state", state, "--json"), home=tmp_path)
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["evaluations"] == 4 and report["reused_evaluations"] == 0 and report["stopped"] == "evaluations"
    assert report["per_evaluation"]["tokens_saved"] > 100 and report["per_evaluation"]["tokens_run"] > 0
    assert report["per_evaluation"]["total_s"] > 0
    second = edgecal(*arguments(folder, "--evaluations", "6", "--state", state, "--out", out), home=tmp_path)
    assert second.returncode == 0 and second.stdout == "" and f"written to {out}" in second.stderr.replace("\n", " ")
    assert "6 of 6 evaluations, 4 of them known before" in second.stderr
    evaluations = json.loads(state.read_text())["evaluations"]
    assert [e["weights"] for e in evaluations[:4]] == [e["weights"] for e in report["trajectory"]]
    adapters = [word for name in PAIR for word in ("--adapter", folder / name)]
    done = edgecal("generate", folder / "model", "Hi", *adapters, "--recipe", out, "-n", "4", home=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = edgecal("generate", folder / "model", "Hi", "--recipe", out, "-n", "4", home=tmp_path)
    assert alone.stdout == done.stdout  # it knows where its adapters are


def test_ctrl_c_keeps_the_best(folder, tmp_path):
    state, out = tmp_path / "state.json", tmp_path / "recipe.json"
    many = [{"prompt": f"Say {i}", "target": "x" * 40} for i in range(150)]
    (folder / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    command = arguments(folder, "--state", state, "--out", out, examples="many.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    deadline = time.monotonic() + PATIENCE
    with killed_at_the_end(process):
        while not state.exists() or len(json.loads(state.read_text())["evaluations"]) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    kept = json.loads(state.read_text())["evaluations"]
    assert 2 <= len(kept) < 40
    best = min(kept, key=lambda e: e["loss"] + 0.05 * sum(map(abs, e["weights"])) / 2)
    assert json.loads(out.read_text())["weights"] == best["weights"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix) == ["recipe.json", "state.json"]


def test_a_terminal_shows_the_best_so_far(folder, tmp_path):
    with terminal(*arguments(folder, "--method", "lm_cocktail"), home=tmp_path, TERM="xterm", COLUMNS="160") as screen:
        screen.expect("lm_cocktail")
        screen.expect("best ")
        screen.expect("tokens run")
        screen.expect('"method": "lm_cocktail"')
        screen.expect("}")
        assert screen.wait() == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--examples", "BAD"], "line 2: not valid JSON"),
        (["--examples", "BAD", "--tone", "witty"], "takes no fields"),
        (["--method", "lm_cocktail", "--evaluations", "1"], "needs 2 evaluations"),
        (["--minutes", "0"], "minutes must be above 0"),
        (["--state", "BAD"], "not valid JSON"),
        (["--out", "NOWHERE"], "not a folder that can be written to"),
    ],
)
def test_refusals_are_one_line(folder, tmp_path, more, message):
    (tmp_path / "bad").write_text('{"text": "x", "target": "y"}\n{\n')
    places = {"BAD": tmp_path / "bad", "NOWHERE": tmp_path / "nowhere" / "recipe.json"}
    done = edgecal(*arguments(folder, *[places.get(word, word) for word in more]), home=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("edgecal: error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_state_of_other_examples_is_refused(folder, tmp_path):
    state = tmp_path / "state.json"
    command = ["--method", "lm_cocktail", "--evaluations", "2", "--state", state]
    assert edgecal(*arguments(folder, *command), home=tmp_path).returncode == 0
    before = state.read_text()
    (folder / "other.jsonl").write_text('{"prompt": "x", "target": "y"}\n')
    done = edgecal(*arguments(folder, *command, examples="other.jsonl"), home=tmp_path)
    assert done.returncode == 1 and "the state of another search: examples is" in done.stderr
    assert state.read_text() == before
