"""`edgecal list`, `rm` and `cache`: what is kept, with sizes, and what goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.cli.shell import edgecal
from tests.tiny import write_tiny_hf


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cache with the demo model, a converted file, a model of the hub, kernels and a history."""
    home = tmp_path / "home"
    write_tiny_hf(tmp_path / "model")
    for name in ("demo/smollm2", "converted/abc"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        with open_checkpoint(tmp_path / "model") as checkpoint:
            quantize_checkpoint(checkpoint, home / name)
    for name in ("0123", "4567"):
        (home / "kernels" / name).mkdir(parents=True)
        (home / "kernels" / name / "complete").write_bytes(bytes(1000))
    (home / "chat_history").write_text("hello\n")
    blobs, snapshot = (tmp_path / "hf/hub/models--org--name" / folder for folder in ("blobs", "snapshots/0a1b"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "w").write_bytes(bytes(5000))
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blobs / "w", snapshot))
    (blobs.parent / "refs").mkdir()
    (blobs.parent / "refs/main").write_text("0a1b")
    return home


def run(home: Path, *arguments: str, **variables: str):
    return edgecal(*arguments, home=home, HF_HOME=str(home.parent / "hf"), **variables)


def entries(home: Path, command: str) -> dict[str, dict]:
    found = json.loads(run(home, command, "--json").stdout)
    return {entry["name"]: entry for entry in (found if command == "list" else found["entries"])}


def test_list(home):
    found = entries(home, "list")
    assert {name: entry["kind"] for name, entry in found.items()} == {
        "demo": "demo", "converted/abc": "converted", "org/name": "hub",
    }  # fmt: skip
    assert found["org/name"]["bytes"] == 5000
    packed = home / "converted/abc"
    assert found["converted/abc"]["bytes"] == sum(file.stat().st_size for file in packed.iterdir())
    for columns in ("40", "60", "80"):
        shown = run(home, "list", COLUMNS=columns).stdout
        assert max(map(len, shown.splitlines())) <= int(columns)
        assert all(name in shown for name in found) and "4.9 KiB" in shown


def test_nothing_is_here(tmp_path):
    done = edgecal("list", home=tmp_path, HF_HOME=str(tmp_path))
    assert done.returncode == 0 and "edgecal pull demo" in done.stdout
    assert json.loads(edgecal("list", "--json", home=tmp_path, HF_HOME=str(tmp_path)).stdout) == []
    assert edgecal("cache", home=tmp_path / "nowhere", HF_HOME=str(tmp_path)).returncode == 0


def test_rm(home):
    wrong = run(home, "rm", "demo", "converted/abd")
    assert wrong.returncode == 1 and "(did you mean 'converted/abc'?)" in wrong.stderr
    assert len(entries(home, "list")) == 3  # all are looked up before the first is removed
    done = run(home, "rm", "demo", "org/name")
    assert done.returncode == 0 and done.stdout.splitlines()[1] == "removed org/name: 4.9 KiB"
    assert list(entries(home, "list")) == ["converted/abc"]
    assert not (home / "demo").exists() and not (home.parent / "hf/hub/models--org--name").exists()
    assert (home / "chat_history").exists()
    gone = json.loads(run(home, "rm", "converted/abc", "--json").stdout)
    assert [entry["name"] for entry in gone] == ["converted/abc"]


def test_cache(home):
    from edgecal_kernels.jit import kernel_cache

    own = home / "kernels" / kernel_cache().name
    own.mkdir()
    found = entries(home, "cache")
    kinds = {name: entry["kind"] for name, entry in found.items()}
    assert kinds[f"kernels/{own.name}"] == "kernels"
    assert kinds["kernels/0123"] == kinds["kernels/4567"] == "old kernels"
    assert (kinds["chat_history"], found["chat_history"]["bytes"]) == ("other", 6)
    shown = run(home, "cache", COLUMNS="60")
    assert max(map(len, shown.stdout.splitlines())) <= 60 or str(home) in shown.stdout
    assert "--clean removes the old kernels" in shown.stdout
    cleaned = run(home, "cache", "--clean")
    assert "removed 2 folders of old kernels: 2.0 KiB" in cleaned.stdout
    assert [folder.name for folder in (home / "kernels").iterdir()] == [own.name]
    assert {"demo", "converted/abc", "chat_history"} <= set(entries(home, "cache"))


def test_names_are_never_cut(home):
    """`edgecal rm` takes them: where a table is too wide each has a line of its own."""
    name = "converted/" + "a-very-long-name-of-a-model" * 2
    (home / "converted/abc").rename(home / name)
    for columns in ("40", "60", "80"):
        lines = [line.rstrip() for line in run(home, "list", COLUMNS=columns).stdout.splitlines()]
        assert name in lines and "    converted, 60.9 KiB, today" in lines


def test_empty_folders_have_an_age(home):
    (home / "kernels/89ab").mkdir()
    (home / "converted/abc").rename(home / "abc")
    found = entries(home, "cache")
    assert found["kernels/89ab"]["used_s"] > 1e9
    assert "converted" not in found, "an empty folder is nothing that is kept"
