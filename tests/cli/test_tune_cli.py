"""`edgecal tune`: what it prints, keeps and takes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecal import Engine, tuned
from edgecal.cli.tune import command
from edgecal_kernels import cpu
from edgecal_kernels.errors import EdgecalError
from tests.tiny import write_tiny_hf


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tuned, "cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "60")
    return str(write_tiny_hf(tmp_path / "model"))


def run(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(command, arguments)
    said = str(found.exception) if isinstance(found.exception, EdgecalError) else found.stderr
    return found.exit_code, found.stdout, said


def test_it_measures_keeps_and_forgets(model):
    code, out, _ = run(model, "--seconds", "0.01", "--json")
    found = json.loads(out)
    assert code == 0 and [one["threads"] for one in found["measured"]][-1] == cpu.usable_cores()
    threads = Engine.load(model, backend="numba").threads
    assert {"decode": threads.decode, "prefill": threads.prefill} == found["threads"]
    assert Path(found["path"]) == tuned.tuned_file()
    code, out, _ = run(model, "--seconds", "0.01")
    assert code == 0 and "read tokens/s" in out and "from now on" in out
    assert max(map(len, out.splitlines())) <= 60
    assert run(model, "--forget")[1].endswith("the default number of threads again\n")
    assert json.loads(run(model, "--forget", "--json")[1])["forgotten"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--seconds", "0"), 2, "seconds"),
        (("--backend", "numpy"), 1, "the NumPy back end has no threads to tune"),
        (("--threads", "2"), 2, "No such option"),
    ],
)
def test_what_is_refused(model, arguments, code, message):
    found, _, err = run(model, *arguments)
    assert found == code and message in err


def test_no_such_model():
    code, _, err = run("no/such/model.gguf")
    assert code == 1 and "no/such/model.gguf" in err
