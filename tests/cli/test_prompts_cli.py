"""`edgecal generate --prompts`: JSON lines in, JSON lines out, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import MAIN, edgecal, environment, killed_at_the_end
from tests.tiny import write_tiny_adapter, write_tiny_hf

LINES = [
    {"prompt": "Some text", "id": "first"},
    {"text": "Another text", "max_tokens": 3, "summary": "ignored"},
    {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]},
    {"dialogue": "A: hi", "recipe": {"method": "single", "adapters": ["lora"]}},
    {"prompt": "Some text", "temperature": 1.5, "seed": 3, "id": 5},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prompts")
    write_tiny_hf(root / "model", max_position_embeddings=100_000)
    write_tiny_adapter(root / "lora", root / "model")
    return root


def write(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(folder: Path, *arguments: object, **options):
    return edgecal("generate", folder / "model", *arguments, home=folder / "home", **options)


def base(folder: Path) -> list[object]:
    return ["--adapter", folder / "lora", "--method", "zero_shot", "-n", 8]


def test_an_answer_for_every_line(folder, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", LINES)
    done = run(folder, "--prompts", prompts, *base(folder), "--batch", 2)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [a["index"] for a in answers] == [0, 1, 2, 3, 4]
    assert [a.get("id") for a in answers] == ["first", None, None, None, 5]
    assert [a["new_tokens"] for a in answers] == [8, 3, 8, 8, 8]
    assert [a["method"] for a in answers] == ["zero_shot"] * 3 + ["single", "zero_shot"]
    assert "[5 answers:" in done.stderr and "35 new tokens" in done.stderr
    alone = run(folder, "Some text", *base(folder), "--json")
    assert answers[0]["text"] == json.loads(alone.stdout)["text"] != answers[4]["text"]
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    piped = run(folder, "--prompts", "-", *base(folder), "--quiet", "--tokens", input=lines)
    assert piped.stderr == ""
    again = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [a["text"] for a in again] == [a["text"] for a in answers]
    assert all("".join(t["text"] for t in a["tokens"]) == a["text"] for a in again)


def test_tasks_and_steps(folder, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", [{"dialogue": "A: hi"}, {"dialogue": "B: hello"}])
    task = ["--task", "summarize"]
    answers = [json.loads(x) for x in run(folder, "--prompts", prompts, "-n", 4, *task).stdout.splitlines()]
    assert answers[1]["text"] == json.loads(run(folder, "B: hello", "-n", 4, *task, "--json").stdout)["text"]
    steps = ["--adapter", folder / "lora", "--step", "lora: Shorten", "--step", ": Polish"]
    answers = [json.loads(x) for x in run(folder, "--prompts", prompts, "-n", 4, *steps).stdout.splitlines()]
    assert [len(a["passes"]) for a in answers] == [2, 2]


def test_a_refused_prompt_does_not_stop_the_others(folder, tmp_path):
    lines = [{"prompt": "one"}, {"prompt": " "}, {"prompt": "x", "temperature": -1, "id": "bad"}, {"prompt": "two"}]
    done = run(folder, "--prompts", write(tmp_path / "p.jsonl", lines), "-n", 3)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and "2 of 4 prompts were refused" in done.stderr
    assert "empty" in answers[1]["error"]["message"] and answers[1]["error"]["type"] == "PromptError"
    assert "temperature" in answers[2]["error"]["message"] and answers[2]["id"] == "bad"
    assert answers[0]["new_tokens"] == answers[3]["new_tokens"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 1: not valid JSON"),
        (b'{"prompt": "x"}\n[1]', "line 2: a list, expected an object"),
        (
            b'{"question": "x"}',
            "expected one of the keys 'prompt', 'text', 'dialogue', 'messages'; its keys are 'question'",
        ),
        (b'{"prompt": "x", "text": "y"}', "expected one of the keys"),
        (b'{"prompt": 3}', "'prompt' must be a text"),
        (b'{"messages": ["x"]}', "'messages' must be a list of {role, content}"),
        (b'{"prompt": "x", "recipe": "linear"}', "'recipe' must be an object"),
        (b'{"prompt": "x", "recipe": {"method": "liner"}}', "did you mean 'linear'"),
        (b'{"prompt": "x", "prompt": "y"}', "line 1"),
        (b"\n\n", "holds no prompts"),
        (b"\xff", "line 1: not valid JSON"),
        (b"[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_files_that_hold_no_prompts(folder, tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    done = run(folder, "--prompts", path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and message in done.stderr and str(path) in done.stderr


def test_wrong_usage(folder, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "x"}])
    assert run(folder, "x", "--prompts", prompts).returncode == 2
    assert run(folder, "--prompts", prompts, "-f", prompts).returncode == 2
    assert run(folder, "x", "--batch", 3).returncode == 2
    assert run(folder, "--prompts", prompts, "--batch", 0).returncode == 2
    missing = run(folder, "--prompts", tmp_path / "nowhere.jsonl")
    assert missing.returncode == 1 and "nowhere.jsonl cannot be read" in missing.stderr


def test_speculate(folder):
    for value in ("off", "auto", "0"):
        assert run(folder, "x", "-n", 2, "--speculate", value).returncode == 0
    wrong = run(folder, "x", "--speculate", "fast")
    assert wrong.returncode == 1 and "speculate must be 'auto', 'off' or" in wrong.stderr
    numpy = run(folder, "x", "--speculate", "4", "--backend", "numpy")
    assert numpy.returncode == 1 and "needs compiled kernels" in numpy.stderr


def test_ctrl_c_keeps_what_is_complete(folder, tmp_path):
    lines = [{"prompt": "long", "max_tokens": 90_000}, {"prompt": "short", "max_tokens": 2}]
    command = [sys.executable, "-c", MAIN, "generate", str(folder / "model"), "--prompts", "-", "--quiet"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder / "home", PYTHONUNBUFFERED="1"),
    )
    with killed_at_the_end(process):
        assert process.stdin is not None
        process.stdin.write("".join(json.dumps(line) + "\n" for line in [*lines[1:], *lines]))
        process.stdin.close()
        process.stdin = None
        assert process.stdout is not None
        first = process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert json.loads(first)["index"] == 0
    assert all(json.loads(line)["new_tokens"] == 2 for line in out.splitlines())
