"""`bench.roofline` runs, and its figures follow from its times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.roofline import Measure, table

ROOT = Path(__file__).parents[2]


def test_the_share_is_that_of_the_nearer_roof():
    roofs = [
        Measure("plain read of memory", "", 0, 1e9, 0, print, seconds=0.1),  # 10 GB/s
        Measure("peak of the dot product", "", 0, 0, 1e9, print, seconds=0.001),  # 1000 GOPS
    ]
    rows = table(
        [
            *roofs,
            Measure("int4", "16x32", 1, 1e6, 1e6, print, seconds=2e-4),  # memory allows 1e-4
            Measure("int8", "16x32", 1, 2e6, 1e9, print, seconds=4e-3),  # the dot product allows 1e-3
            Measure("float32 BLAS", "16x32", 1, 8e6, 1e9, print, seconds=1e-3),
        ]
    )
    int4, int8, blas = rows[2:]
    assert [int4["share"], int8["share"]] == pytest.approx([0.5, 0.25])
    assert [int4["gb_per_s"], int8["gops"]] == pytest.approx([5.0, 250.0])
    assert [int8["to_int4"], int8["to_blas"]] == pytest.approx([0.05, 0.25])
    assert "share" not in blas


@pytest.mark.numba
def test_the_command(tmp_path):
    file = tmp_path / "roofline.json"
    options = ["--shapes", "32x64", "--tokens", "1", "2", "--rounds", "1", "--json", str(file)]
    command = [sys.executable, "-m", "bench.roofline", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["operation"] for row in rows} >= {"int4", "int4_affine", "int8", "float32 BLAS", "attention fp16"}
    assert all(row["seconds"] > 0 for row in rows)
    assert all(row["operation"] in done.stdout for row in rows)
    wrong = subprocess.run([*command, "--shapes", "32"], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2 and "not 32" in wrong.stderr
