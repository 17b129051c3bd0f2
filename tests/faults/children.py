"""Processes of their own, for what would take the tests' process along."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def environment(**changes: str | None) -> dict[str, str]:
    """This process's, with changes; None takes a variable away."""
    values = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return {key: value for key, value in (values | changes).items() if value is not None}


def python(code: str, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run code with `sys.argv[1:]` of `arguments`."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(**changes))


def edgecal(*arguments: object, preexec: object = None, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command = [sys.executable, "-m", "edgecal", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment(**changes), preexec_fn=preexec  # type: ignore[call-overload]
    )


def hidden(folder: Path) -> list[str]:
    """What is left in a folder under hidden names."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
