"""Threads of the kernels: a number that holds in a block and no longer."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import pytest

from edgecal_kernels import cpu
from edgecal_kernels.errors import BackendError
from edgecal_kernels.threads import number_of_threads, use_threads
from tests.cli.shell import SOURCES

pytestmark = pytest.mark.numba
MOST = numba.config.NUMBA_NUM_THREADS


def test_blocks_nest_and_give_back_what_was():
    before = numba.get_num_threads()
    with use_threads(1):
        assert numba.get_num_threads() == 1
        with use_threads(MOST), use_threads(None):
            assert numba.get_num_threads() == MOST
        assert numba.get_num_threads() == 1
        with pytest.raises(ZeroDivisionError), use_threads(MOST):
            raise ZeroDivisionError
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before


def test_the_number(monkeypatch):
    monkeypatch.setattr(cpu, "physical_cores", lambda: 1)
    assert number_of_threads() == 1 and number_of_threads(MOST) == MOST
    monkeypatch.setattr(cpu, "physical_cores", lambda: MOST + 7)
    assert number_of_threads() == MOST, "never more than Numba has"
    for wanted in (0, MOST + 1):
        with pytest.raises(BackendError, match=f"{wanted} threads were asked for; this process has 1 to {MOST}"):
            number_of_threads(wanted)


FORK = """
import multiprocessing, os, sys
from edgecal_kernels.numba_ops import OPERATIONS as ops
from edgecal_kernels.errors import BackendError
from edgecal_kernels.threads import use_threads
import numpy as np
from edgecal_kernels.quant import quantize

def product():
    x = ops.Activations(np.ones((4, 64), np.float32))
    with use_threads(2):
        return round(float(ops.matmul(x, quantize(np.ones((4096, 64), np.float32), "int8")).sum()))

def child(number):
    try:
        return product()
    except BackendError as error:
        return str(error)

if __name__ == "__main__":
    before = sys.argv[1] == "before"
    if before:
        product()
    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        print(pool.map(child, [0])[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP and fork")
@pytest.mark.parametrize(
    ("used", "start", "said"),
    [
        ("before", "fork", "forked from one that had run compiled kernels"),
        ("not", "fork", "10485"),
        ("before", "spawn", "10485"),
    ],
)
def test_a_process_forked_after_use_is_refused(tmp_path, used, start, said):
    """OpenMP would end it by a signal, and a pool would wait for its answer forever."""
    (tmp_path / "fork.py").write_text(FORK)
    command = [sys.executable, str(tmp_path / "fork.py"), used, start]
    here = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=here)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
