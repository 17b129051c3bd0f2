"""Where packages that have to be compiled are missing, plain Python serves, and one line says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shell import SOURCES, edgecal
from tests.tiny import write_tiny_hf

COMPILED = ("numba", "llvmlite", "tokenizers", "safetensors", "hf_xet", "huggingface_hub", "httpx")
NOTE = "note: without the package tokenizers plain Python turns text into tokens"


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """Variables of a process in which none of them can be imported."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({COMPILED}))")
    return {"PYTHONPATH": f"{tmp_path}:{SOURCES}", "EDGECAL_BACKEND": ""}


def test_the_same_answer(tmp_path: Path, without: dict[str, str]) -> None:
    model = write_tiny_hf(tmp_path / "model")
    arguments = ("generate", model, "Grüße, 世界! 12 👍🏽", "--max-tokens", "8")
    usual = edgecal(*arguments, home=tmp_path / "a", EDGECAL_BACKEND="numpy")
    plain = edgecal(*arguments, home=tmp_path / "b", **(without | {"EDGECAL_BACKEND": "numpy"}))
    assert (plain.returncode, plain.stdout) == (0, usual.stdout) and usual.returncode == 0, plain.stderr
    assert plain.stderr.count(NOTE) == 1 and NOTE not in usual.stderr


def test_what_the_hub_needs_is_said(tmp_path: Path, without: dict[str, str]) -> None:
    done = edgecal("inspect", "org/model", home=tmp_path, **without)
    assert done.returncode == 1 and "needs the package huggingface-hub" in done.stderr
    assert edgecal("list", home=tmp_path, **without).returncode == 0
