"""`edgecal verify` as a user runs it: the table, the JSON, the exit code, and what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgecal import Engine, Recipe
from tests.cli.shell import edgecal
from tests.references import MODULES, reference_parts, write_reference
from tests.tiny import write_tiny_adapter, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR, 1):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    paths = {name: root / name for name in PAIR}
    engine = Engine.load(root / "model", weights="fp32", cache_dtype="fp32", backend="numpy", adapters=paths)
    tensors, metadata = reference_parts(engine, Recipe("concat", PAIR))
    write_reference(root / "right.safetensors", tensors, metadata)
    tensors[f"delta/{MODULES[0]}"][2, 3] += 1
    write_reference(root / "wrong.safetensors", tensors, metadata)
    write_reference(root / "old.safetensors", tensors, {**metadata, "version": "0"})
    return root


def verify(folder: Path, reference: str | None, *more: str) -> subprocess.CompletedProcess[str]:
    # In an order and under names of their own: adapters are found by their sha256
    adapters = ["--adapter", f"b={folder / 'formal'}", "--adapter", f"a={folder / 'summary'}"]
    first = [str(folder / reference)] if reference else []
    return edgecal("verify", folder / "model", *first, *adapters, *more, home=folder)


def test_all_pass(folder):
    done = verify(folder, "right.safetensors")
    assert done.returncode == 0, done.stderr
    assert "concat of a, b" in done.stdout and "all 7 pass" in done.stdout and "FAIL" not in done.stdout
    assert "dW 0.q_proj" in done.stdout and "tolerances: dW 1e-06" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("/"))


def test_one_fails(folder):
    done = verify(folder, "wrong.safetensors", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["passed"] is False
    failed = [row for row in report["comparisons"] if not row["passed"]]
    assert [row["tensor"] for row in failed] == [f"delta/{MODULES[0]}"] and failed[0]["worst"] == [2, 3]
    table = verify(folder, "wrong.safetensors")
    assert table.returncode == 1 and "1 of 7 FAIL" in table.stdout and table.stderr == ""


def test_refusals(folder):
    old = verify(folder, "old.safetensors")
    assert old.returncode == 1 and "old.safetensors: metadata key 'version'" in old.stderr
    other = verify(folder, "right.safetensors", "--method", "linear", "--json")
    error = json.loads(other.stderr)["error"]
    assert other.returncode == 1 and error["type"] == "VerificationError" and "asks for linear" in error["message"]
    assert "--adapter-weights does not go" in verify(folder, "right.safetensors", "--adapter-weights", "1,1").stderr
    one = edgecal(
        "verify", folder / "right.safetensors", "--model", folder / "model", "--adapter", folder / "formal", home=folder
    )
    assert one.returncode == 1 and "its adapter 1 is 'summary'" in one.stderr
    for wrong in ([None], ["right.safetensors", "--live"], ["right.safetensors", "--prompt", "x"]):
        assert verify(folder, *wrong).returncode == 2
    write_tiny_adapter(folder / "other", write_tiny_hf(folder / "wide", hidden_size=128))
    live = edgecal("verify", folder / "model", "--live", "--adapter", folder / "other", home=folder)
    assert live.returncode == 1 and "adapter other" in live.stderr and "is for another base" in live.stderr
    twice = verify(folder, "right.safetensors", "--model", "another")
    assert twice.returncode == 2 and "say which model, once: edgecal verify MODEL REFERENCE" in twice.stderr


def test_recipe_file(folder, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"method": "concat", "adapters": ["a", "b"]}))
    assert verify(folder, "right.safetensors", "--recipe", str(recipe)).returncode == 0
    recipe.write_text(json.dumps({"method": "concat", "adapters": ["b", "a"]}))
    assert "in this order" in verify(folder, "right.safetensors", "--recipe", str(recipe)).stderr
