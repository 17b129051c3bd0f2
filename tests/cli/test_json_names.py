"""One name for one thing in the JSON of all commands: docs/json.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecal.cli import COMMANDS
from tests.cli.shell import ROOT, edgecal
from tests.tiny import write_tiny_adapter, write_tiny_hf

SAME_AS = {  # what must not come back beside the one name
    "nbytes": "bytes", "size": "bytes", "seconds": "total_s", "directory": "path", "folder": "path", "file": "path",
    "decode_rate": "decode_tokens_per_s", "modules_changed": "n_modules",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("json")
    write_tiny_hf(root / "model")
    write_tiny_adapter(root / "a", root / "model")
    return root


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


@pytest.mark.parametrize(
    "command",
    [
        "generate model x -n 2 --tokens",
        "inspect model",
        "inspect a --against model",
        "doctor model --adapter a",
        "merge --adapter a --out out --force",
        "merge --list",
        "figure -m model --adapter a",
        "list",
        "cache",
    ],
)
def test_names(folder, command):
    words = [str(folder / word) if word in ("model", "a", "out") else word for word in command.split()]
    done = edgecal(*words, "--json", home=folder / "home", HF_HOME=str(folder))
    value = json.loads(done.stdout)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    found = set(keys(value))
    assert not found & set(SAME_AS), {name: SAME_AS[name] for name in found & set(SAME_AS)}
    row = next(line for line in page().splitlines() if line.startswith(f"| `{command.split()[0]}`"))
    documented = set(re.findall(r"`(\w+)`", row)) - set(COMMANDS)
    if isinstance(value, dict) and command != "inspect a --against model":
        assert documented & {"path", "bytes", "method", "healthy", "entries", "text"} <= found


def page() -> str:
    return (ROOT / "docs/json.md").read_text()


def test_every_command_is_documented():
    assert [name for name in COMMANDS if f"| `{name}` |" not in page()] == []
