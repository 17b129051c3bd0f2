"""kill -9 at every step of what writes: the old content or the new one, never a mixture, and no rubbish for good."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request

import pytest

from tests.tiny import write_tiny_adapter, write_tiny_hf

from .children import environment, python

_BEGIN = """
import os, shutil, sys
from pathlib import Path
from tests.faults.kill_everywhere import kill_everywhere
folder = Path(sys.argv[1])

def age():
    "What was left looks a day old, or nobody may remove it yet."
    for path in folder.iterdir():
        if path.name.startswith("."):
            os.utime(path, (1, 1))

def report(killed, again):
    again()
    rest = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not rest, rest
    print("killed", killed)
"""


def killed(code: str, *arguments: object) -> int:
    done = python(_BEGIN + textwrap.dedent(code), *arguments, EDGECAL_BACKEND="numpy")
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"killed (\d+)\n", done.stdout)
    assert found is not None, done.stdout
    print(f"killed at {found[1]} places")  # -s shows it
    return int(found[1])


def test_a_file(tmp_path):
    code = """
    from edgecal_weights.files import write_json
    target = folder / "state.json"
    write_json(target, "old")
    def check(n):
        assert target.read_text() in ('"old"\\n', '"new"\\n')
        write_json(target, "old")
        age()
    report(kill_everywhere(folder, lambda: write_json(target, "new"), check), lambda: write_json(target, "old"))
    """
    assert killed(code, tmp_path) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_quantizing(tmp_path, there):
    """A target that is there already holds int8, what is written is int6."""
    write_tiny_hf(tmp_path / "hf", num_hidden_layers=1)
    (tmp_path / "out").mkdir()
    code = """
    from edgecal_weights.opening import open_checkpoint
    from edgecal_weights.quantizer import quantize_checkpoint
    there = bool(int(sys.argv[3]))
    target = folder / "packed"
    def write(format):
        with open_checkpoint(sys.argv[2]) as source:
            quantize_checkpoint(source, target, format=format, overwrite=True)
    def formats():
        with open_checkpoint(target) as found:
            for name in found.names():
                found.read(name)
            return found.stored_type("model.layers.0.mlp.up_proj.weight")
    if there:
        write("int8")
    def check(n):
        if there or target.exists():
            assert formats() in (("int8", "int6") if there else ("int6",))
        if there:
            write("int8")
        elif target.exists():
            shutil.rmtree(target)
        age()
    report(kill_everywhere(folder, lambda: write("int6"), check), lambda: write("int6"))
    assert formats() == "int6"
    """
    assert killed(code, tmp_path / "out", tmp_path / "hf", int(there)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("more", [False, True])
def test_merging_over_an_adapter(tmp_path, more):
    """With a file of somebody's in the folder it cannot be exchanged: then weights without a configuration may be left,
    which are refused, but never the weights of one with the configuration of the other."""
    write_tiny_hf(tmp_path / "hf", num_hidden_layers=1)
    write_tiny_adapter(tmp_path / "a", tmp_path / "hf", rank=2, components=("q_proj",))
    (tmp_path / "out").mkdir()
    code = """
    from edgecal.adapters import LoraAdapter
    from edgecal.errors import AdapterError
    source, target, more = Path(sys.argv[2]), folder / "adapter", bool(int(sys.argv[3]))
    from edgecal.adapters.export import _write
    def write(rank):
        import json
        from safetensors.numpy import load_file
        tensors = load_file(source / "adapter_model.safetensors")
        config = json.loads((source / "adapter_config.json").read_text())
        config["lora_alpha"] = rank
        _write(target, {name: t * rank for name, t in tensors.items()}, config, {"rank": str(rank)})
    def check(n):
        try:
            adapter = LoraAdapter.load(target)
        except AdapterError:
            assert more
        else:
            (pair,) = adapter.pairs.values()
            first = LoraAdapter.load(source).pairs
            (wanted,) = first.values()
            rank = round(float(pair.a.flat[0] / wanted.a.flat[0]))
            assert pair.scaling == rank / 2, (pair.scaling, rank)
        write(2)
        age()
    write(2)
    if more:
        (target / "README.md").write_text("mine")
    report(kill_everywhere(folder, lambda: write(4), check), lambda: write(4))
    assert not more or (target / "README.md").read_text() == "mine"
    """
    assert killed(code, tmp_path / "out", tmp_path / "a", int(more)) >= 6


@pytest.mark.slow
def test_answers_of_an_evaluation(tmp_path):
    """What was appended is there after every kill, and a line that was cut off is cut off whole."""
    code = """
    from edgecal.benchmark.results import ResultFolder
    results = ResultFolder(folder / "results")
    line = {"task": "summarize", "method": "linear", "id": "1", "error": "none"}
    config = {"model": "demo", "tasks": ["summarize"], "data": "mini"}
    def work():
        results.begin(config, "x")
        results.append("answers.jsonl", [{**line, "fingerprint": "x"}])
        with (results.path / "answers.jsonl").open("ab") as file:
            file.write(b'{"task": "half')
    count = 0
    def check(n):
        global count
        if (results.path / "config.json").exists():
            results.begin(config, "x")
            found = len(list(results.answers()))
            assert found in (count, count + 1)
            count = found
    report(kill_everywhere(folder, work, check), lambda: None)
    """
    assert killed(code, tmp_path) >= 6


@pytest.mark.slow
def test_a_server(tmp_path):
    """Killed while it answers, and started again at the same place."""
    model = write_tiny_hf(tmp_path / "model")
    port = "8391"
    command = [sys.executable, "-m", "edgecal", "serve", str(model), "--port", port, "--backend", "numpy"]
    for _ in range(2):
        server = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            body = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 900, "stream": true}'
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.readline().startswith(b"data:")
                server.send_signal(signal.SIGKILL)
                server.wait(20)
        finally:
            server.kill()
            server.wait(20)


def _wait(url: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_leftovers_of_others_stay_while_they_are_at_work(tmp_path):
    from edgecal_weights.files import atomic_write, write_text

    target = tmp_path / "file"
    with atomic_write(target) as partial:
        os.utime(partial, (1, 1))
        write_text(target, "other")
        assert partial.exists()
        partial.write_text("ours")
    assert target.read_text() == "ours"
    (tmp_path / ".file.0123abcd.partial").write_text("left a moment ago")
    write_text(target, "again")
    assert (tmp_path / ".file.0123abcd.partial").exists()
    os.utime(tmp_path / ".file.0123abcd.partial", (1, 1))
    write_text(target, "again")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
