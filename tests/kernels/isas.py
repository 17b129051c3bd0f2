"""A process of its own per instruction set: it is settled when the first kernel is defined, for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecal_kernels import cpu

# The files for smaller registers as a processor without AVX-512 compiles them: Numba would take the larger otherwise.
_TARGET = {
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"},
    "avxvnni": {"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avxvnni"},
}


def run_on(isa: str, code: str, cache: Path) -> str:
    """What Python code prints where kernels are compiled for `isa`; skips the test where the processor lacks it."""
    if not cpu.available_isas()[isa]:
        pytest.skip(f"this processor has no {isa}")
    environment = {**os.environ, "EDGECAL_ISA": isa, "EDGECAL_CACHE": str(cache), **_TARGET.get(isa, {})}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout
