"""`edgecal demo` end to end on the real model, in a process of its own, with the memory that is promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cli.shell import SOURCES

# Numba imports SciPy where it finds it (25 MiB). A test dependency brings it; edgecal's own dependencies do not.
WITHOUT_SCIPY = "import sys; sys.modules['scipy'] = None; from edgecal.cli import main; main()"
EDGECAL = [sys.executable, "-c", WITHOUT_SCIPY]
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES}
MIB = 2**20
REST_MIB = 220  # interpreter, libraries, compiled code, tokenizer, adapters; importing NumPy and Numba takes 90


@pytest.fixture(scope="module", autouse=True)
def demo_model() -> None:
    """The packed demo model in the user's cache, and the kernels compiled: what `make demo` sets up."""
    subprocess.run([*EDGECAL, "pull", "demo"], check=True, capture_output=True, timeout=600, env=ENVIRONMENT)
    subprocess.run([*EDGECAL, "warmup"], check=True, capture_output=True, timeout=600, env=ENVIRONMENT)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EDGECAL, "demo", *arguments], capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def test_the_demo_summarizes_within_its_memory():
    done = run("--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["method"] == "learnable_calibration_pp" and len(facts["passes"]) == 1
    assert "room 412" in facts["text"] and "#Person1#:" not in facts["text"], "a summary, not more dialogue"
    memory = facts["memory"]
    assert memory["peak"] == memory["weights"] + memory["kv_cache"] + memory["rest"]
    assert memory["weights"] < 93 * MIB and memory["kv_cache"] <= 23 * MIB
    assert memory["rest"] <= REST_MIB * MIB, memory


def test_what_a_person_sees():
    done = run("-n", "12")
    assert done.returncode == 0, done.stderr
    for part in ("Dialogue", "#Person1#:", "learnable_calibration_pp", "new tokens at", "peak memory with 1024"):
        assert part in done.stdout


def test_compare_runs_every_method():
    done = run("--compare", "-n", "4", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)}
    assert {"zero_shot", "linear", "learnable_calibration", "projection_merge", "multi_step"} <= set(rows)
    assert rows["multi_step"]["n_passes"] == 2 and rows["zero_shot"]["rank"] == 0
    assert (rows["linear"]["rank"], rows["concat"]["rank"], rows["projection_merge"]["rank"]) == (16, 32, 4)
    assert rows["learnable_calibration"]["extra_parameters"] == 5184
    assert rows["learnable_calibration_pp"]["extra_parameters"] == 40704
    assert rows["projection_merge"]["extra_parameters"] == 23040
    assert all(row["peak_bytes"] > 0 and row["first_token_s"] > 0 for row in rows.values())
    table = run("--compare", "-n", "2").stdout
    assert all(name in table for name in rows)


def test_an_unknown_method_is_refused():
    done = run("--method", "merge")
    assert done.returncode == 1 and "learnable_calibration_pp" in done.stderr


def test_a_limit_of_memory():
    done = run("--memory-limit", "60M")
    assert done.returncode == 1 and "are left of the memory limit" in done.stderr and done.stderr.count("\n") == 1
