"""`edgecal profile` end to end, as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cli.shell import MAIN, edgecal, environment, killed_at_the_end, terminal, wait_for_work
from tests.profile.engines import PAIR, write_files

FAST = ("-p", "8", "-n", "4", "-r", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("profile_cli"))


@pytest.fixture(scope="module")
def adapters(folder):
    return [word for name in PAIR for word in ("--adapter", folder / name)]


@pytest.fixture(scope="module")
def saved(folder, adapters):
    """A profile of three recipes, with every file that can be written beside it."""
    files = {kind: folder / f"p.{kind}" for kind in ("html", "trace", "json")}
    out = ["--html", files["html"], "--trace", files["trace"], "--save", files["json"]]
    words = ("zero_shot", "linear", folder / "lcpp.safetensors", "summary")
    done = edgecal("profile", folder / "model", *words, *adapters, "-p", "8", "-n", "4", "-r", "3", *out, home=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, files


def test_the_table_fits_80_columns(saved):
    out, _ = saved
    assert max(map(len, out.splitlines())) <= 80
    for part in ("zero_shot", "linear", "learnable_calib.++", "single (summary)", "write 4", "p95", "jitter"):
        assert part in out
    for part in ("read 8, up to the first token", "LoRA", "sampling", "sum of parts", "idle, loaded", "KV cache"):
        assert part in out


def test_the_files_say_the_same(saved):
    _, files = saved
    profile = json.loads(files["json"].read_text())
    names = [method["name"] for method in profile["methods"]]
    assert names == ["zero_shot", "linear", "learnable_calibration_pp", "single (summary)"]
    assert profile["schema"] == "edgecal-profile" and profile["load_s"] > 0
    page = files["html"].read_text()
    assert all(name in page for name in names) and "://" not in page
    events = json.loads(files["trace"].read_text())["traceEvents"]
    assert {"load", "compile", "write 4", "token 0", "forward"} <= {event["name"] for event in events}
    assert not [path for path in files["json"].parent.iterdir() if path.name.endswith(".partial")]


def test_json_csv_and_markdown_on_stdout(folder):
    model = folder / "model"
    report = json.loads(edgecal("profile", model, *FAST, "--json", home=folder).stdout)
    assert report["methods"][0]["method"] == "zero_shot" and report["settings"]["prompts"] == [8]
    rows = list(csv.DictReader(io.StringIO(edgecal("profile", model, *FAST, "-d", "0,8", "--csv", home=folder).stdout)))
    assert [(row["measured"], row["depth"]) for row in rows] == [
        ("read", "0"),
        ("read", "8"),
        ("write", "0"),
        ("write", "8"),
    ]
    assert float(rows[2]["p50_s"]) > 0 and float(rows[2]["part_sampling_s"]) > 0 and rows[0]["p50_s"] == ""
    page = edgecal("profile", model, *FAST, "--md", home=folder).stdout
    assert page.startswith("# edgecal profile\n") and "| zero\\_shot |" in page and "## Memory" in page


def test_recipes_by_options_and_files(folder, adapters):
    by_option = edgecal("profile", folder / "model", *adapters, "--method", "concat", *FAST, "--json", home=folder)
    assert [m["method"] for m in json.loads(by_option.stdout)["methods"]] == ["concat"]
    recipe = {"method": "linear", "adapters": [{"name": name, "path": name} for name in PAIR]}
    (folder / "mine.json").write_text(json.dumps(recipe))
    by_file = edgecal("profile", folder / "model", folder / "mine.json", *FAST, "--json", home=folder)
    assert [m["rank"] for m in json.loads(by_file.stdout)["methods"]] == [4]
    steps = ["--step", "summary: Shorten", "--step", "formal: Polish"]
    pipeline = edgecal("profile", folder / "model", *adapters, *steps, *FAST, "--json", home=folder)
    assert json.loads(pipeline.stdout)["methods"][0]["n_passes"] == 2


def test_costs_without_weights(folder, adapters):
    words = ("linear", folder / "lcpp.safetensors")
    done = edgecal("profile", folder / "model", *words, *adapters, "--costs", "--json", home=folder)
    rows = json.loads(done.stdout)
    assert [row["extra_parameters"] > 0 for row in rows] == [False, True]
    table = edgecal("profile", folder / "model", *words, *adapters, "--costs", home=folder).stdout
    assert "extra" in table and max(map(len, table.splitlines())) <= 80


def test_costs_of_a_configuration(folder, tmp_path):
    """No weights, no adapters, no recipes: paper 1's Table 3 for a model that is not here."""
    config = tmp_path / "config.json"
    config.write_text((folder / "model" / "config.json").read_text())
    done = edgecal("profile", "--costs", config, "--rank", "2", "--lora-rank", "8", "--json", home=tmp_path)
    counts = json.loads(done.stdout)
    assert (counts["rank"], counts["lora_rank"], counts["model_type"]) == (2, 8, "llama")
    assert counts["shares"]["projection_merge"] == counts["projection_merge"] / counts["lora"]
    table = edgecal("profile", "--costs", folder / "model", home=tmp_path, COLUMNS="60").stdout
    assert "joint_expert" in table and "100.00 %" in table and max(map(len, table.splitlines())) <= 60
    mixed = edgecal("profile", "--costs", config, "linear", "--rank", "2", home=tmp_path)
    assert mixed.returncode == 2 and "counts without recipes" in mixed.stderr


def test_dialogues(folder, adapters):
    (folder / "d.jsonl").write_text('{"dialogue": "A: Hi."}\n\n{"text": "B: Hello there."}\n{"text": "C"}\n')
    words = ("zero_shot", "linear", folder / "lcpp.safetensors")
    arguments = ("--dialogues", folder / "d.jsonl", "--limit", "2", "-n", "4", "-r", "2")
    done = edgecal("profile", folder / "model", *words, *adapters, *arguments, "--json", home=folder)
    found = json.loads(done.stdout)
    assert found["dialogues"] == 2 and found["instruction"].endswith("tone to professional")
    assert [len(row["total_s"]) for row in found["rows"]] == [4, 4, 4]
    table = edgecal("profile", folder / "model", *words, *adapters, *arguments, home=folder).stdout
    assert "mean s" in table and "peak" in table and max(map(len, table.splitlines())) <= 80


def test_compare_exit_codes(saved, folder):
    _, files = saved
    same = edgecal("profile", "--compare", files["json"], files["json"], home=folder)
    assert same.returncode == 0 and "no significant regression" in same.stdout
    assert max(map(len, same.stdout.splitlines())) <= 80 or "/" in same.stdout
    slower = json.loads(files["json"].read_text())
    for method in slower["methods"]:
        for case in method["decodes"]:
            case["runs"] = [[3 * t for t in run] for run in case["runs"]]
            case["write_s"] = [3 * t for t in case["write_s"]]
    (folder / "slower.json").write_text(json.dumps(slower))
    worse = edgecal("profile", "--compare", files["json"], folder / "slower.json", "--json", home=folder)
    assert worse.returncode == 1 and json.loads(worse.stdout)["regressed"] is True
    assert edgecal("profile", "--compare", folder / "slower.json", files["json"], home=folder).returncode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is not valid JSON"),
        ("{}", "is no profile"),
        ('{"schema": "edgecal-profile", "schema_version": 7}', "version 7"),
    ],
)
def test_compare_with_what_is_no_profile_exits_with_2(saved, folder, content, message):
    _, files = saved
    (folder / "broken.json").write_text(content)
    done = edgecal("profile", "--compare", files["json"], folder / "broken.json", home=folder)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "-p", "x"], "-p 'x': expected whole numbers"),
        (["MODEL", "-n", "0", "-p", "0"], "nothing to measure"),
        (["MODEL", "-d", "5000"], "the model has 1024"),
        (["MODEL", "-p", "4096"], "take a smaller -p or -d"),
        (["MODEL", "-r", "0"], "repeats must be"),
        (["MODEL", "-t", "4", "--backend", "numpy"], "NumPy back end"),
        (["MODEL", "nonsense"], "'nonsense' is no recipe"),
        (["MODEL", "linear"], "takes one adapter or more"),
        (["MODEL", "linear", "--method", "concat"], "give recipes as words or as options"),
        (["MODEL", "zero_shot", "zero_shot"], "given twice"),
        (["MODEL", "single", "--adapter", "OTHER"], "for another base"),
        (["MODEL", "--temperature", "-1"], "temperature must be"),
        (["MODEL", "--html", "nowhere/p.html"], "no such folder"),
        (["nowhere"], "no such file or directory"),
        (["MODEL", "--dialogues", "nowhere.jsonl"], "cannot be read"),
        (["MODEL", "--dialogues", "BAD"], "line 1"),
    ],
)
def test_refusals_are_one_line(folder, arguments, message):
    from tests.tiny import write_tiny_adapter, write_tiny_hf

    if not (folder / "other").exists():
        write_tiny_adapter(folder / "other", write_tiny_hf(folder / "wide", hidden_size=128))
        (folder / "bad.jsonl").write_text('["no object"]\n')
    places = {"MODEL": folder / "model", "OTHER": folder / "other", "BAD": folder / "bad.jsonl"}
    done = edgecal("profile", *[places.get(word, word) for word in arguments], home=folder)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("edgecal: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["MODEL", "--json", "--csv"],
        ["MODEL", "--costs", "--dialogues", "demo"],
        ["MODEL", "--costs", "--csv"],
        ["MODEL", "--rank", "4"],
    ],
)
def test_wrong_usage_exits_with_2(folder, arguments):
    done = edgecal("profile", *[folder / "model" if word == "MODEL" else word for word in arguments], home=folder)
    assert done.returncode == 2 and "Usage" in done.stderr


def test_ctrl_c_gives_what_was_measured(folder):
    command = [sys.executable, "-c", MAIN, "profile", str(folder / "model"), "-p", "8", "-n", "64", "-r", "9999"]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder)
    )
    with killed_at_the_end(process):
        wait_for_work(process, 12)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    report = json.loads(out)
    assert report["interrupted"] is True and report["methods"][0]["decodes"][0]["runs"]


def test_ctrl_c_before_an_answer_was_measured_is_said(folder):
    early = (
        "from edgecal.profile import ProfileRun\n"
        "def run(self): raise KeyboardInterrupt\n"
        "ProfileRun.run = run\n"
        "from edgecal.cli import main; main()"
    )
    command = [sys.executable, "-c", early, "profile", str(folder / "model"), *FAST]
    command += ["--html", str(folder / "early.html")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder), timeout=300)
    assert done.returncode == 130 and "no answer had been measured yet" in done.stderr and "interrupted" in done.stderr
    assert not (folder / "early.html").exists()


def test_a_bar_at_a_terminal(folder):
    with terminal("profile", folder / "model", "-p", "8", "-n", "4", "-r", "1", home=folder, TERM="xterm") as screen:
        screen.expect("3/3")
        screen.expect("idle, loaded")
        assert screen.wait() == 0


def test_too_few_repeats_are_not_judged(folder):
    files = [folder / "few_a.json", folder / "few_b.json"]
    for file in files:
        saved = edgecal("profile", folder / "model", *FAST, "--save", file, home=folder)
        assert saved.returncode == 0 and f"written: {file}" in saved.stderr
        assert "this takes about" in saved.stderr
    done = edgecal("profile", "--compare", *files, home=folder)
    assert done.returncode == 3 and "not judged: " in done.stdout and "no significant" not in done.stdout
    as_json = edgecal("profile", "--compare", *files, "--json", home=folder)
    assert as_json.returncode == 3 and json.loads(as_json.stdout)["judged"] == 0


def test_a_recipe_file_is_called_by_its_name(folder):
    for name, method in (("mild", "linear"), ("strong", "concat")):
        recipe = {"method": method, "adapters": [{"name": name, "path": name} for name in PAIR]}
        (folder / f"{name}.json").write_text(json.dumps(recipe))
    words = (folder / "mild.json", folder / "strong.json")
    done = edgecal("profile", folder / "model", *words, *FAST, "--json", home=folder)
    assert [m["name"] for m in json.loads(done.stdout)["methods"]] == ["mild", "strong"]


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_fit(saved, folder, adapters, columns):
    """No line over the edge, and every figure of the wide table that is shown is whole."""
    words = ("zero_shot", "linear", folder / "lcpp.safetensors", "summary")
    for mode in ("--costs", "--dialogues"):
        options = ("demo", "-n", "2", "-r", "1") if mode == "--dialogues" else ()
        done = edgecal(
            "profile", folder / "model", *words, *adapters, mode, *options, home=folder, COLUMNS=str(columns)
        )
        assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= columns
        assert "learnable_cali" in done.stdout
    shown = edgecal("profile", folder / "model", *words, *adapters, *FAST, home=folder, COLUMNS=str(columns)).stdout
    assert max(map(len, shown.splitlines())) <= columns
    assert "Where a token's time goes, ms (write 4)" in shown
