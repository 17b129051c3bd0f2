"""`edgecal generate` end to end, as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from edgecal import Engine, Settings
from tests.cli.shell import SOURCES, killed_at_the_end, wait_for_work
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

EDGECAL = [sys.executable, "-c", "from edgecal.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES}
PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    write_tiny_hf(root / "model", max_position_embeddings=200_000)
    write_tiny_hf(root / "short")
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    pair = {name: root / name for name in PAIR}
    write_tiny_calibration(root / "lcpp.safetensors", root / "model", pair, "learnable_calibration_pp")
    return root


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [*EDGECAL, "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, **options)


def adapters(folder: Path) -> list[str]:
    return [word for name in PAIR for word in ("--adapter", str(folder / name))]


def test_text_on_stdout_timings_on_stderr(folder):
    done = run(folder / "model", "Some text", "-n", 8)
    assert done.returncode == 0 and len(done.stdout.strip()) > 0
    assert "new tokens at" in done.stderr and "prompt tokens" in done.stderr
    quiet = run(folder / "model", "Some text", "-n", 8, "--quiet")
    assert quiet.stdout == done.stdout and quiet.stderr == ""


def test_prompt_from_stdin_and_file(folder, tmp_path):
    expected = run(folder / "model", "Some text", "-n", 8).stdout
    assert run(folder / "model", "-n", 8, input="Some text\n").stdout == expected
    (tmp_path / "prompt.txt").write_text("Some text")
    assert run(folder / "model", "-n", 8, "-f", tmp_path / "prompt.txt").stdout == expected


def test_json_and_tokens(folder):
    calibration = ["--calibration", folder / "lcpp.safetensors"]
    done = run(folder / "model", "Some text", "-n", 6, *adapters(folder), *calibration, "--json", "--tokens")
    answer = json.loads(done.stdout)
    assert answer["method"] == "learnable_calibration_pp"
    assert answer["new_tokens"] == len(answer["tokens"]) == 6
    assert "".join(token["text"] for token in answer["tokens"]) == answer["text"]
    assert all(token["model_s"] > 0 for token in answer["tokens"])


def test_methods_differ_and_recipes_equal_options(folder, tmp_path):
    linear = run(folder / "model", "Some text", "-n", 8, *adapters(folder)).stdout
    concat = run(folder / "model", "Some text", "-n", 8, *adapters(folder), "--method", "concat").stdout
    assert linear != concat
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"method": "concat", "adapters": list(PAIR)}))
    assert run(folder / "model", "Some text", "-n", 8, *adapters(folder), "--recipe", recipe).stdout == concat
    steps = ["--step", "summary: Shorten", "--step", "formal: Polish"]
    done = run(folder / "model", "Some text", "-n", 8, *adapters(folder), *steps, "--json")
    assert [p["new_tokens"] for p in json.loads(done.stdout)["passes"]] == [8, 8]


def test_sampling_repeats_with_a_seed(folder):
    texts = [run(folder / "model", "x", "-n", 12, "--temperature", 1.2, "--seed", 7).stdout for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", ""], "the prompt is empty"),
        (["SHORT", "x" * 5000], "shorten it by"),
        (["nowhere", "x"], "no such file or directory"),
        (["MODEL", "x", "--method", "liner"], "did you mean 'linear'"),
        (["MODEL", "x", "--method", "single"], "takes one adapter"),
        (["MODEL", "x", "--adapter", "ADAPTER", "--calibration", "CALIBRATION"], "was trained"),
        (["MODEL", "x", "--temperature", "-1"], "temperature must be"),
        (["MODEL", "x", "--task", "sumarize"], "unknown task 'sumarize'"),
        (["MODEL", "x", "--task", "summarize+tone"], "takes tone"),
        (["MODEL", "x", "--tone", "formal"], "belongs to a task"),
        (["MODEL", "x", "--adapter", "demo:nothing"], "not part of the demo"),
        (["MODEL", "x", "--adapter", "ADAPTER", "--adapter-weights", "a,b"], "expected numbers"),
        (["MODEL", "x", "--step", "no instruction"], "NAME:INSTRUCTION"),
        (["MODEL", "x", "--threads", "4096"], "threads were asked for"),
        (["MODEL", "x", "--threads-prefill", "4096"], "threads were asked for"),
        (["MODEL", "x", "--threads", "1", "--backend", "numpy"], "threads 1: the NumPy back end has no threads to set"),
    ],
)
def test_refusals_are_one_line(folder, arguments, message):
    places = {"MODEL": folder / "model", "SHORT": folder / "short", "ADAPTER": folder / "summary"}
    places["CALIBRATION"] = folder / "lcpp.safetensors"
    done = run(*[places.get(word, word) for word in arguments])
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("edgecal: error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_type_of_the_cache(folder):
    for dtype in ("fp16", "int8", "fp32"):
        done = run(folder / "model", "Some text", "-n", 8, "--cache-dtype", dtype, "--quiet")
        assert (done.returncode, done.stderr) == (0, "")
        engine = Engine.load(folder / "model", cache_dtype=dtype)
        expected = engine.generate("Some text", settings=Settings(max_tokens=8, speculate="off")).text
        assert done.stdout.strip() == expected.strip()


def test_a_type_that_no_cache_has(folder):
    done = run(folder / "model", "x", "--cache-dtype", "int4")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--cache-dtype': 'int4' is not one of 'fp16', 'fp32', 'int8'." in done.stderr
    assert "Traceback" not in done.stderr


def test_refusals_as_json(folder):
    done = run("nowhere", "x", "--json")
    error = json.loads(done.stderr)["error"]
    assert done.returncode == 1 and error["type"] == "ModelNotFoundError" and "nowhere" in error["message"]


def test_wrong_usage_exits_with_2(folder):
    assert run(folder / "model", "x", "--nonsense").returncode == 2
    assert run(folder / "model", "--prompts", "x", "-f", "y").returncode == 2
    assert subprocess.run([*EDGECAL, "nothing"], capture_output=True, env=ENVIRONMENT).returncode == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_in_the_middle_of_a_stream(folder, as_json):
    """What was said stays on stdout, stderr says that it was interrupted, the exit code is 130."""
    command = [*EDGECAL, "generate", str(folder / "model"), "Some text", "-n", "190000"]
    process = subprocess.Popen(
        command + ["--json"] * as_json,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    )
    with killed_at_the_end(process):
        if as_json:
            wait_for_work(process, 4)
            first = ""
        else:
            assert process.stdout is not None
            first = process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    if as_json:
        assert json.loads(out)["finish_reason"] == "interrupted"
    else:
        assert len(first + out) > 3


def test_a_closed_pipe_is_no_error(folder):
    command = f"{' '.join(EDGECAL[:1])} -c 'from edgecal.cli import main; main()' generate {folder / 'model'} x -n 200"
    done = subprocess.run(
        f"{command} | head -c 1", shell=True, capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert "Traceback" not in done.stderr and "error" not in done.stderr.lower()


def test_a_question_is_sampled_as_the_model_advises_and_a_task_is_not(folder, tmp_path):
    model = write_tiny_hf(tmp_path / "model")
    advice = {"do_sample": True, "temperature": 1.5, "eos_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(advice))

    def text(*options) -> str:
        done = run(model, "hello", "-n", 16, "-q", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    greedy = text("--temperature", 0)
    explicit = text("--temperature", 1.5, "--top-k", 50, "--seed", 4)
    assert text("--seed", 4) == explicit != greedy
    assert text("--task", "summarize") == text("--task", "summarize", "--temperature", 0)


def test_an_answer_in_a_loop_ends_and_says_so(folder, tmp_path):
    """A model whose head knows one word."""
    model = write_tiny_hf(tmp_path / "model", max_position_embeddings=4096)
    weights = load_file(model / "model.safetensors")
    silent = ("o_proj.weight", "down_proj.weight")
    weights = {name: w * 0 if name.endswith(silent) else w for name, w in weights.items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    done = run(model, "hello", "-n", 2000, "--json")
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "repetition" and answer["new_tokens"] < 2000
    said = run(model, "hello", "-n", 2000)
    assert "it had begun to repeat itself; --no-stop-at-repetition lets it go on" in said.stderr
    on = json.loads(run(model, "hello", "-n", 2000, "--json", "--no-stop-at-repetition").stdout)
    assert on["finish_reason"] == "length" and on["text"].startswith(answer["text"])
