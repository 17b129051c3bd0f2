"""An evaluation from its configuration to its tables: what is asked, kept, taken up again, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from edgecal import Engine, Recipe, Settings, Shot
from edgecal.benchmark import EvalConfig, Evaluation, between_methods, between_runs, load_prompts, read_report
from edgecal.benchmark.inventory import load_inventory
from edgecal.benchmark.methods import ABLATIONS, PAPER, MethodSpec, rows_for
from edgecal.benchmark.page import to_html
from edgecal.benchmark.results import ResultFolder
from edgecal.benchmark.tables import HEADERS, rows, table_rows, to_csv, to_latex, to_markdown
from edgecal.benchmark.tasks import Task
from edgecal.errors import BenchmarkError
from tests.benchmark.conftest import PARTS
from tests.cli.shell import PATIENCE, SOURCES, killed_at_the_end

PROFESSIONAL, FRENCH = Task("summarize", tone="professional"), Task("summarize", language="french")


def answers(out) -> list[dict]:
    return list(ResultFolder(out).answers())


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    seen = []
    Evaluation(config, out).run(progress=lambda *step: seen.append(step))
    assert [step[0] for step in seen] == sorted(step[0] for step in seen) and seen[-1][:2] == (54, 54)
    return out


def test_every_example_is_answered_by_every_method_once(done, config):
    """Six of seven examples: one is shown in context, and so is asked of no method."""
    found = answers(done)
    keys = [(line["task"], line["method"], line["id"]) for line in found]
    assert len(keys) == len(set(keys)) == 6 * (5 + 4)
    methods = {"zero_shot", "in_context", "linear", "learnable_calibration_pp", "multi_step"}
    assert {m for t, m, _ in keys if t == PROFESSIONAL.name} == methods
    assert {m for t, m, _ in keys if t == FRENCH.name} == methods - {"learnable_calibration_pp"}
    assert len({line["fingerprint"] for line in found}) == 1
    lacking = json.loads((done / "notes.json").read_text())["lacking"]
    assert lacking == {
        FRENCH.name: {
            "learnable_calibration_pp": "no learnable_calibration_pp file that was trained for these adapters"
        }
    }


def test_texts_are_those_of_one_by_one_greedy_generation(done, config, folder):
    engine = Engine.load(folder / "model", adapters={name: folder / name for name in PARTS})
    prompts, settings = load_prompts("paper1"), Settings(max_tokens=6)
    examples = ResultFolder(done).read("examples.jsonl")
    texts = {line["id"]: line["input"] for line in examples if line["task"] == FRENCH.name}
    linear = Recipe("linear", ("summarize", "french"))
    for line in answers(done):
        if (line["task"], line["method"]) == (FRENCH.name, "linear"):
            asked = prompts.messages(FRENCH, texts[line["id"]])
            assert line["text"] == engine.generate(asked, recipe=linear, settings=settings).text


def test_an_example_in_context_stands_before_the_question_and_is_reused(done):
    lines = [line for line in answers(done) if line["task"] == FRENCH.name]
    plain, shown = ([x for x in lines if x["method"] == name] for name in ("zero_shot", "in_context"))
    assert min(x["prompt_tokens"] for x in shown) > max(x["prompt_tokens"] for x in plain)
    assert all(x["reused_tokens"] > 20 for x in shown[1:]), "the example's tokens are in the prefix cache"


def test_a_finished_run_asks_nothing(done, config):
    before = (done / "answers.jsonl").read_bytes()
    Evaluation(config, done).run(loading=lambda *_: pytest.fail("the model was loaded"))
    assert (done / "answers.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_torn_is_answered_again(done, config, tmp_path, cut):
    out = tmp_path / "out"
    out.mkdir()
    raw = (done / "answers.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("config.json", "examples.jsonl", "costs.jsonl"):
        (out / name).write_bytes((done / name).read_bytes())
    (out / "answers.jsonl").write_bytes(b"".join(raw[:20]) + raw[20][:-cut])
    Evaluation(config, out).run()
    assert sorted(without_times(answers(out))) == sorted(without_times(answers(done)))


def without_times(lines: list[dict]) -> list[str]:
    left_out = ("first_token_s", "total_s", "reused_tokens")
    return [json.dumps({key: value for key, value in line.items() if key not in left_out}) for line in lines]


RUN = """
import sys
from edgecal.benchmark import EvalConfig, Evaluation
Evaluation(EvalConfig.from_file(sys.argv[1]), sys.argv[2]).run()
"""


def test_a_killed_run_loses_and_repeats_nothing(done, config, folder, tmp_path):
    """kill -9 after some lines, as often as it takes."""
    out, command = tmp_path / "out", [sys.executable, "-c", RUN, str(folder / "eval.yaml"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    for wanted in (1, 20):
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + PATIENCE
        with killed_at_the_end(process):
            while not (out / "answers.jsonl").exists() or (out / "answers.jsonl").read_bytes().count(b"\n") < wanted:
                assert time.monotonic() < deadline
                if process.poll() is not None:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    assert subprocess.run(command, env=environment, timeout=PATIENCE).returncode == 0
    assert without_times(answers(out)) == without_times(answers(done)), "the same lines in the same order"


def test_a_folder_of_something_else_is_left_alone(config, folder):
    before = (folder / "model/config.json").read_text()
    with pytest.raises(BenchmarkError, match="holds a config.json of something else"):
        Evaluation(config, folder / "model").run()
    assert (folder / "model/config.json").read_text() == before


def test_answers_of_other_settings_are_not_mixed(done, config):
    for other in (replace(config, max_new_tokens=7), replace(config, prompts="colon"), replace(config, weights="int8")):
        with pytest.raises(BenchmarkError, match="holds answers of another model, prompt set or setting"):
            Evaluation(other, done).run()
    assert replace(config, limit=3).digest == config.digest, "how many examples is no such setting"


def test_what_cannot_be_asked_is_counted_and_the_rest_goes_on(folder, config, tmp_path):
    rows_file = tmp_path / "rows.jsonl"
    long = {"id": "long", "input": "x " * 2000, "reference": "r"}
    rows_file.write_text("".join(json.dumps(r) + "\n" for r in ({"input": "a", "reference": "b"}, long)) + "{\n")
    method = (MethodSpec("zero_shot", "zero_shot"),)
    small = replace(config, data={"": str(rows_file)}, tasks=(FRENCH,), methods=method)
    Evaluation(small, tmp_path / "out").run()
    short, refused = answers(tmp_path / "out")
    assert "text" in short and "the model's context" in refused["error"] and "text" not in refused
    report = read_report(str(tmp_path / "out"))
    [row] = rows(report)
    assert (row["n"], row["refused"]) == (1, 1) and report.notes["n_left_out"] == {FRENCH.name: 1}
    page = to_html(report, tmp_path / "out")
    assert "1 example could not be asked" in page and "1 rows of the data were left out" in page


# ------------------------------------------------------------------------------------------------------- methods


def test_every_row_of_the_papers_as_a_recipe(folder, config):
    inventory = load_inventory(replace(config, joint={PROFESSIONAL.name: str(folder / "french")}))
    prompts = load_prompts("paper1")
    specs = [MethodSpec(name, name) for name in (*PAPER, *ABLATIONS)]
    made, lacking = rows_for(specs, PROFESSIONAL, inventory, prompts)
    recipes = {row.name: row.recipe for row in made}
    assert set(lacking) == {"projection_merge"}
    pair = ("summarize", "professional")
    assert recipes["main_adapter"] == Recipe("single", pair[:1])
    assert recipes["auxiliary_adapter"] == Recipe("single", pair[1:])
    assert recipes["ties"] == Recipe("ties", pair)
    assert recipes["joint_expert"].adapters == (f"joint {PROFESSIONAL.name}",)
    assert [step.instruction for step in recipes["multi_step"].steps] == [
        "Summarize the following text",
        "Change the tone of the following text to professional",
    ]
    assert recipes["learnable_calibration_only"].adapters == () and recipes["learnable_calibration_only"].calibration
    (shown,) = (row for row in made if row.n_shots)
    assert shown.name == "in_context" and shown.with_shots([Shot("a", "b")] * 3).recipe.shots == (("a", "b"),)
    _, lacking = rows_for(specs, Task("reply", tone="witty"), inventory, prompts)
    assert lacking["linear"] == "no adapter for 'reply'" and "zero_shot" not in lacking
    single, lacking = rows_for(specs, Task("summarize"), inventory, prompts)
    assert [row.name for row in single] == ["zero_shot", "in_context", "main_adapter"]
    assert lacking["linear"] == "a single task has nothing to merge"
    weighted = MethodSpec("hub", "lorahub", weights=(0.3, 0.7))
    assert rows_for([weighted], PROFESSIONAL, inventory, prompts)[0][0].recipe.weights == (0.3, 0.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, "unknown key 'modle'"),
        ({"tasks": ["summarize+latin"]}, "'latin' is unknown"),
        ({"tasks": []}, "'tasks' is .*, expected a list, and not an empty one"),
        ({"data": 3}, "'data' is 3, expected a mapping"),
        ({"limit": 0}, "'limit' is 0, expected a whole number of at least 1"),
        ({"limit": True}, "'limit' is True"),
        ({"seed": -1}, "'seed' is -1, expected a whole number of at least 0"),
        ({"stemmer": "yes"}, "'stemmer' is 'yes', expected true or false"),
        ({"methods": ["linear", "linear"]}, "'methods' names 'linear' twice"),
        ({"methods": ["lienar"]}, "method 'lienar': unknown method 'lienar'.*did you mean 'linear'"),
        ({"methods": [{"method": "ties", "options": {"density": 7}}]}, "method 'ties': .*density"),
        ({"methods": [{"name": "x"}]}, "a method is a name or"),
        ({"methods": [{"method": "in_context", "shots": 0}]}, "'shots' is 0"),
    ],
)
def test_configurations_that_make_no_sense(folder, tmp_path, change, message):
    values = yaml.safe_load((folder / "eval.yaml").read_text()) | change
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(BenchmarkError, match=message) as caught:
        EvalConfig.from_file(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)


def test_a_key_that_is_missing(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: x\ndata: mini\n")
    with pytest.raises(BenchmarkError, match="the key 'tasks' is missing"):
        EvalConfig.from_file(tmp_path / "bad.yaml")


def test_places_are_beside_the_file_where_they_exist(tmp_path):
    for name in ("model", "summarize", "talk", "demo"):
        (tmp_path / name).mkdir()
    values = {
        "model": "demo:summarize",
        "tasks": ["summarize"],
        "adapters": {"summarize": "demo:summarize"},
        "joint": {"summarize+french": "summarize"},
        "data": {"summarize": "dialogsum:talk", "reply": "samsum:hub:org/talk", "summarize+tone": "mini"},
    }
    found = EvalConfig.from_dict(values, tmp_path)
    assert (found.model, found.adapters["summarize"]) == ("demo:summarize", "demo:summarize"), "none of these is a path"
    assert found.joint["summarize+french"] == str(tmp_path / "summarize")
    assert found.data["summarize"] == f"dialogsum:{tmp_path / 'talk'}"
    assert (found.data["reply"], found.data["summarize+tone"]) == ("samsum:hub:org/talk", "mini")


def test_a_configuration_survives_json(config):
    assert EvalConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_nothing_to_run_says_why(config, tmp_path):
    none = replace(config, tasks=(Task("reply", tone="witty"),), methods=(MethodSpec("linear", "linear"),))
    with pytest.raises(BenchmarkError, match=r"nothing to run: reply\+witty: linear: no adapter for 'reply'"):
        Evaluation(none, tmp_path / "out").run()


# -------------------------------------------------------------------------------------------------------- report


def test_tables_hold_the_means_of_the_lines(done):
    report = read_report(str(done))
    lines = [x for x in answers(done) if (x["task"], x["method"]) == (FRENCH.name, "linear")]
    row = next(row for row in rows(report) if (row["task"], row["method"]) == (FRENCH.name, "linear"))
    for name in ("rouge1", "rougeL", "weighted_rouge", "length_ratio", "right_language"):
        assert row[name] == pytest.approx(sum(x["scores"][name] for x in lines) / 6)
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["good_share"] == pytest.approx(sum(not x["scores"]["failure"] for x in lines) / 6)
    assert row["n"] == 6 and row["n_passes"] == 1 and row["example_s"] > 0
    two = next(row for row in rows(report) if row["method"] == "multi_step")
    assert two["n_passes"] == 2
    assert report.methods == ["zero_shot", "in_context", "linear", "learnable_calibration_pp", "multi_step"], "as asked"


def test_a_group_is_the_mean_of_its_sub_tasks(folder, config, tmp_path):
    rows_of = [{"input": "a b c", "reference": "x y z"}, {"input": "d", "reference": "u v"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    two = (Task("reply", tone="witty"), Task("reply", tone="casual"))
    method = (MethodSpec("zero_shot", "zero_shot"),)
    data = {"": str(tmp_path / "rows.jsonl")}
    Evaluation(replace(config, tasks=two, data=data, methods=method), tmp_path / "out").run()
    each = rows(read_report(str(tmp_path / "out")))
    assert [row["task"] for row in each] == ["reply+witty", "reply+casual", "reply+tone"]
    assert each[2]["rouge1"] == pytest.approx((each[0]["rouge1"] + each[1]["rouge1"]) / 2) and each[2]["n"] == 4


def test_text_forms(done):
    report = read_report(str(done))
    assert all(len(row) == len(HEADERS) for row in table_rows(report, FRENCH.name))
    markdown = to_markdown(report).splitlines()
    assert markdown[0] == f"### {PROFESSIONAL.name}" and markdown[4].startswith("| zero_shot |")
    assert to_csv(report).splitlines()[0].startswith("task,method,n,refused,rouge1,rouge1_low")
    latex = to_latex(report)
    assert latex.count(r"\begin{tabular}{lrrrrrrrrrrrrr}") == 2 and r"learnable\_calibration\_pp & " in latex


def test_differences_are_of_the_same_examples(done):
    report = read_report(str(done))
    found = {(d.task, d.method): d for d in between_methods(report, "linear")}
    assert (FRENCH.name, "linear") not in found and found[FRENCH.name, "zero_shot"].estimate.n == 6
    a, b = (report.cells[FRENCH.name, name].values["weighted_rouge"] for name in ("zero_shot", "linear"))
    mean = sum(a[name] - b[name] for name in a) / len(a)
    assert found[FRENCH.name, "zero_shot"].estimate.mean == pytest.approx(mean)
    assert {d.verdict for d in found.values()} == {"too few"}
    same = between_runs(report, report)
    assert {d.estimate.mean for d in same} == {0.0} and len(same) == 9


def test_the_page_shows_texts_as_texts(folder, config, tmp_path):
    nasty = "</script><img src=x onerror=alert(1)> & <b>"
    row = {"id": nasty, "input": f"{nasty} in", "reference": f"{nasty} out"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    method = (MethodSpec(nasty, "zero_shot"),)
    once = replace(config, data={"": str(tmp_path / "rows.jsonl")}, tasks=(FRENCH,), methods=method)
    Evaluation(once, tmp_path / "out").run()
    page = to_html(read_report(str(tmp_path / "out")), tmp_path / "out")
    assert "<img" not in page and "<b>" not in page and "onerror=alert(1)&gt;" in page
    data = page.split('<script type="application/json" id=answers>')[1].split("</script>")[0]
    told = json.loads(data)["tasks"][FRENCH.name]["examples"][0]
    assert (told["id"], told["input"], told["references"]) == (nasty, f"{nasty} in", [f"{nasty} out"])
    assert "script-src 'sha256-" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{\n", "answers.jsonl, line 1: not valid JSON"),
        (b"[]\n", "line 1: expected an object"),
        (b'{"task": "x"}\n', "line 1: 'method' is missing"),
        (b'{"task": "x", "method": "m", "id": 3}\n', "line 1: 'id' is 3, which it cannot be"),
        (b"", "holds no answers yet"),
    ],
)
def test_results_that_cannot_be_read(tmp_path, line, message):
    with pytest.raises(BenchmarkError, match=r"holds no results: expected the config\.json"):
        read_report(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"config\.json is not that of an evaluation: the key 'model' is missing"):
        read_report(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model": "demo", "tasks": ["summarize"], "data": "mini"}')
    (tmp_path / "answers.jsonl").write_bytes(line)
    with pytest.raises(BenchmarkError, match=message):
        read_report(str(tmp_path))
