"""Completion as bash itself asks for it: a line in, what would be typed out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
ASK = """
edgecal() {{ {python} -c 'from edgecal.cli import main; main()' "$@"; }}
env() {{ local pairs=() ; while [[ $1 == *=* ]]; do export "$1"; shift; done; edgecal; }}
eval "$(_EDGECAL_COMPLETE=bash_source edgecal)"
compopt() {{ echo "option $2"; }}
COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}
COMP_POINT={point} _edgecal_completion edgecal
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(line: str, home: Path) -> list[str]:
    script = ASK.format(python=sys.executable, line=line, point=len(line))
    paths = os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": paths, "EDGECAL_CACHE": str(home)}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return [one for one in done.stdout.splitlines() if one]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("edgecal generate demo --adapter demo:sum", ["summarize"]),
        ("edgecal generate demo --adapter demo:", ["summarize", "professional", "translate_fr"]),
        ("edgecal generate demo --adapter name=demo:prof", ["professional"]),
        ("edgecal generate demo --task=summarize+tone+", ["summarize+tone+translate"]),
        ("edgecal generate demo --task reply+to", ["reply+tone", "reply+tone+translate"]),
        ("edgecal gen", ["generate"]),
        ("edgecal generate demo -f c", ["option default"]),
        ("edgecal generate demo --prompts c", ["option default"]),
        ("edgecal generate demo 'a prompt' --task summarize+tr", ["summarize+translate"]),
    ],
)  # fmt: skip
def test_what_bash_is_given(line, expected, tmp_path):
    assert completed(line, tmp_path) == expected
