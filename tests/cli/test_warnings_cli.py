"""What a person should know about a model that is served all the same: one line on stderr."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgecal.cli import _format_warning
from tests.cli.shell import edgecal
from tests.weights.samples import TOKENS, weights, write_gguf


def byte_level_without_pre(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_merges([])
    writer.add_token_list([f"t{i}" for i in range(len(TOKENS))])


def test_a_warning_is_one_line_on_stderr(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), extra=byte_level_without_pre)
    done = edgecal("inspect", path, home=tmp_path)
    assert done.returncode == 0
    line, *more = done.stderr.splitlines()
    assert not more
    assert line.startswith(f"edgecal: warning: {path}: tokenizer.ggml.pre is missing")
    assert "tokenizer.ggml.pre" not in done.stdout


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning])
def test_warnings_of_others_keep_their_form(category: type[Warning]) -> None:
    shown = _format_warning("careful", category, "lib.py", 7, "f(x)")
    assert shown == f"lib.py:7: {category.__name__}: careful\n  f(x)\n"
