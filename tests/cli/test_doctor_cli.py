"""`edgecal doctor` as a user runs it: a map of what adapters do within 80 columns, and an exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.shell import edgecal
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("doctor")
    write_tiny_hf(root / "model")
    write_tiny_adapter(root / "a", root / "model", seed=1)
    write_tiny_adapter(root / "b", root / "model", seed=2, components=("q_proj", "v_proj"))
    shutil.copytree(root / "a", root / "dead")
    weights = root / "dead" / "adapter_model.safetensors"
    save_file({n: 0 * t if "lora_B" in n else t for n, t in load_file(weights).items()}, weights)
    write_tiny_calibration(root / "c.safetensors", root / "model", {"a": root / "a", "b": root / "b"})
    return root


def test_healthy(folder):
    pair = ["--adapter", folder / "a", "--adapter", folder / "b"]
    done = edgecal("doctor", folder / "model", *pair, "--calibration", folder / "c.safetensors", home=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything fits and has an effect" in done.stdout
    for text in ("14 modules that an adapter can change", "q_proj", "a / b", "learnable_calibration_pp", "One bar per"):
        assert text in " ".join(done.stdout.split()), text
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_no_effect(folder):
    done = edgecal("doctor", folder / "model", "--adapter", folder / "dead", home=folder)
    assert done.returncode == 1 and "PROBLEM: adapter dead has no effect at all" in done.stdout
    assert "xx" in done.stdout
    report = json.loads(edgecal("doctor", folder / "model", "--adapter", folder / "dead", "--json", home=folder).stdout)
    assert report["healthy"] is False and len(report["adapters"][0]["without_effect"]) == 14


def test_refusals(folder):
    assert edgecal("doctor", folder / "model", home=folder).returncode == 2
    done = edgecal("doctor", folder / "nowhere", "--adapter", folder / "a", home=folder)
    assert done.returncode == 1 and "no such file" in done.stderr
    done = edgecal("doctor", folder / "model", "--adapter", folder / "a", "--calibration", folder / "a", home=folder)
    assert done.returncode == 1 and "it is the directory of a PEFT adapter" in " ".join(done.stdout.split())
