"""The commands of docs/tutorial.md, one after the other, in an empty folder, with the demo's model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    commands = "".join(re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.S | re.M))
    assert commands.count("edgecal ") > 12
    (tmp_path / "bin").mkdir()
    for name, module in (("python", ""), ("edgecal", "-m edgecal")):
        tool = tmp_path / "bin" / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        tool.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "examples").symlink_to(ROOT / "examples")
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("EDGECAL_READY", None)
    command = ["bash", "-emx", "-c", commands]
    where = {"cwd": tmp_path / "work", "env": environment}
    done = subprocess.run(command, **where, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = ("both/adapter_model.safetensors", "base/edgecal-packed.safetensors")
    for made in ("results/report.html", "profile.html", *weights):
        assert (tmp_path / "work" / made).exists(), made
