"""What goes in and out of a process: prompts from files and pipes, code pages, closed streams, readers that leave."""

from __future__ import annotations

import codecs
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecal import Engine, Settings
from edgecal.cli import _output
from edgecal.cli._output import echo, echo_json
from edgecal.text.tasks import user_message
from tests.cli.shell import MAIN, PATIENCE, edgecal, environment
from tests.tiny import write_tiny_adapter, write_tiny_hf

BRIEF = ("-n", "6", "-q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    write_tiny_hf(root / "model", max_position_embeddings=16384)
    write_tiny_adapter(root / "a", root / "model")
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder / "model", backend="numpy")


def answer(engine: Engine, prompt: str, raw: bool = False) -> str:
    return engine.generate(prompt, settings=Settings(max_tokens=6, raw=raw)).text + "\n"


def generate(folder: Path, *arguments: str | Path, input: str | bytes = "", **variables: str) -> str:
    done = edgecal("generate", folder / "model", *BRIEF, *arguments, home=folder, input=input, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --------------------------------------------------------------------------------------------------- prompts


def test_an_instruction_joins_what_comes_with_it(folder, engine, tmp_path):
    file = tmp_path / "chat.txt"
    file.write_text("A: hi\nB: hello\n")
    expected = answer(engine, user_message("Shorten this", "A: hi\nB: hello"))
    assert generate(folder, "Shorten this", input=file.read_text()) == expected
    assert generate(folder, "Shorten this", "-f", file) == expected
    assert generate(folder, "Shorten this", "-f", "-", input=file.read_text()) == expected
    alone = answer(engine, "A: hi\nB: hello")
    assert generate(folder, "-f", file, input="not read") == alone
    assert generate(folder, "-", input=file.read_text()) == alone
    assert generate(folder, "Shorten this") == answer(engine, "Shorten this")  # nothing on standard input
    task = generate(folder, "Shorten this", "--task", "reply", "-f", file)
    joined = user_message("Shorten this", "A: hi\nB: hello")
    assert task == answer(engine, user_message("Suggest a reply for the following text", joined))


@pytest.mark.parametrize("text", ["\n", " ", "  two\n\n", "a\r\n", "x"])
def test_a_raw_prompt_is_what_the_file_holds(folder, engine, tmp_path, text):
    (tmp_path / "p").write_bytes(text.encode())
    assert generate(folder, "--raw", "-f", tmp_path / "p") == answer(engine, text, raw=True)
    assert generate(folder, "--raw", input=text) == answer(engine, text, raw=True)


@pytest.mark.parametrize("content", ["Grüße".encode("utf-8-sig"), codecs.BOM_UTF16_LE + "Grüße".encode("utf-16-le")])
def test_a_byte_order_mark_is_not_part_of_the_prompt(folder, engine, tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    expected = answer(engine, "Grüße", raw=True)
    assert generate(folder, "--raw", "-f", tmp_path / "p") == expected
    assert generate(folder, "--raw", input=content) == expected


def test_byte_order_marks_of_json_lines_and_chats(folder, tmp_path):
    lines = codecs.BOM_UTF8 + b'{"prompt": "x"}\n'
    done = edgecal("generate", folder / "model", "--prompts", "-", *BRIEF, home=folder, input=lines)
    assert done.returncode == 0, done.stderr
    said = edgecal("chat", folder / "model", "--json", "-n", "2", home=folder, input=codecs.BOM_UTF8 + b"/stats\nhi\n")
    assert [next(iter(json.loads(line))) for line in said.stdout.splitlines()] == ["command", "user"]


@pytest.mark.parametrize("text", ["", "\n", " \t\n"])
def test_empty_prompts(folder, text):
    done = edgecal("generate", folder / "model", home=folder, input=text)
    assert done.returncode == 1 and "the prompt is empty" in done.stderr


# ------------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    _output.prepare_streams()
    text = "I’m in 北京 – é"
    echo(text)
    echo_json({"text": text})
    sys.stdout.flush()
    shown, as_json = raw.getvalue().decode(encoding).splitlines()
    assert shown.encode(encoding).decode("unicode_escape" if encoding == "ascii" else encoding) and "\\u5317" in shown
    assert as_json.isascii() and json.loads(as_json) == {"text": text}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("command", ["generate", "generate --json", "chat", "doctor", "merge --list", "inspect"])
def test_commands_on_an_old_code_page(folder, command, encoding):
    name, *flags = command.split()
    model = folder / "model"
    arguments = {
        "generate": [model, "-n", "200", "--temperature", "2", "--seed", "3", "Ü"],
        "chat": [model, "-n", "40"],
        "doctor": [model, "--adapter", folder / "a"],
        "inspect": [model, "--tensors"],
        "merge": [],
    }[name]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, name, *map(str, arguments), *flags],
        input="ñ ’\n".encode(),
        capture_output=True,
        env=environment(folder, PYTHONIOENCODING=encoding),
        timeout=PATIENCE,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    text = done.stdout.decode(encoding)
    if "--json" in flags:
        assert text.isascii() and not json.loads(text)["text"].isascii()
    elif name == "doctor":
        assert "q_proj" in text and "\u2581" not in text and "\\u" not in text


def test_json_numbers_that_are_none(capsys):
    echo_json({"a": [float("nan"), 1.5], "b": {"c": float("-inf")}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}


# -------------------------------------------------------------------------------------------- closed streams


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """`edgecal` in a line of a shell; the exit code is that of edgecal."""
    command = f"{sys.executable} -c '{MAIN}'"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("edgecal", command)],
        capture_output=True,
        text=True,
        env=environment(folder),
        cwd=folder,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    "arguments", ["generate model x -n 4", "generate model x -n 4 --json", "merge --list", "--help"]
)
def test_stdout_is_closed(folder, arguments):
    done = shell(folder, f"edgecal {arguments} >&-")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "standard output: it is closed" in done.stderr


def test_stdin_is_closed(folder):
    done = shell(folder, "edgecal generate model -n 4 -q <&-")
    assert done.returncode == 1 and done.stderr == "edgecal: error: the prompt is empty: give some text to answer\n"
    done = shell(folder, "edgecal generate model hello -n 4 -q <&-")
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""
    assert shell(folder, "edgecal chat model <&-").returncode == 0


def test_stderr_is_closed(folder):
    done = shell(folder, "edgecal generate model hello -n 4 2>&-")
    assert done.returncode == 0 and done.stdout.strip()
    assert shell(folder, "edgecal generate nowhere hello 2>&-").returncode == 1
    assert shell(folder, "edgecal generate model hello -n 4 <&- >&- 2>&-").returncode == 1


@pytest.mark.parametrize(
    "arguments", ["generate model x -n 4000", "merge --list", "merge --list --json", "inspect model --tensors --json"]
)
def test_the_reader_leaves(folder, arguments):
    """As SIGPIPE ends other tools: not a word, and exit code 141."""
    done = shell(folder, f"edgecal {arguments} | true")
    assert (done.returncode, done.stderr) == (_output.BROKEN_PIPE, "")


def test_the_reader_of_many_answers_leaves(folder):
    lines = "".join(json.dumps({"prompt": "x" * n}) + "\n" for n in range(1, 40))
    (folder / "p.jsonl").write_text(lines)
    done = shell(folder, "edgecal generate model --prompts p.jsonl -n 300 --batch 1 -q | head -n 1")
    assert done.returncode == _output.BROKEN_PIPE and done.stderr == ""
    assert json.loads(done.stdout)["index"] == 0


def test_python_m_edgecal(folder):
    done = subprocess.run(
        [sys.executable, "-m", "edgecal", "--version"], capture_output=True, text=True, env=environment(folder)
    )
    assert done.returncode == 0 and done.stdout.startswith("edgecal ")
    assert os.linesep in done.stdout
