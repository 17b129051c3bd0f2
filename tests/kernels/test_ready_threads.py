"""Threads of ready-made kernels: their number, and what they do with nothing to do, with too little of a machine, or
where one comes late."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecal_kernels import cpu
from edgecal_kernels.errors import BackendError
from edgecal_kernels.ready_threads import most_threads, number_of_threads, threads, use_threads
from tests.cli.shell import SOURCES

MOST = most_threads()


def test_blocks_nest_and_give_back_what_was():
    before = threads()
    with use_threads(1):
        assert threads() == 1
        with use_threads(MOST), use_threads(None):
            assert threads() == MOST
        assert threads() == 1
        with pytest.raises(ZeroDivisionError), use_threads(MOST):
            raise ZeroDivisionError
        assert threads() == 1
    assert threads() == before


def test_the_number(monkeypatch):
    monkeypatch.setattr(cpu, "physical_cores", lambda: 1)
    assert number_of_threads() == 1 and number_of_threads(MOST) == MOST
    for wanted in (0, MOST + 1):
        with pytest.raises(BackendError, match=f"{wanted} threads were asked for; this machine has 1 to {MOST}"):
            number_of_threads(wanted)


# A product that is large enough for several threads
_PRODUCT = """
import os, time
import numpy as np
from edgecal_kernels import ready_threads
from edgecal_kernels.errors import BackendError
from edgecal_kernels.quant import quantize
from edgecal_kernels.ready_ops import OPERATIONS as ops

rng = np.random.default_rng(0)
weight = quantize(rng.standard_normal((4096, 64), np.float32), "int8")
x = rng.standard_normal((4, 64), np.float32)

def product(n_threads):
    with ops.use_threads(n_threads):
        return ops.matmul(ops.Activations(x), weight).tobytes()

alone = product(1)
"""


def run(code: str, ready_folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": SOURCES, "EDGECAL_READY": str(ready_folder)}
    command = [sys.executable, "-c", _PRODUCT + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


_IDLE = """
assert product(2) == alone
time.sleep(0.05)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


@pytest.mark.skipif(MOST < 2, reason="one core")
def test_idle_threads_take_no_time(ready_folder):
    """Of all threads of the process, in half a second."""
    assert float(run(_IDLE, ready_folder)) < 0.01


_ONE_CORE = """
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as taskset does
assert ops.number_of_threads() == 1
assert all(product(2) == alone for _ in range(300))
print("the same")
"""


@pytest.mark.skipif(MOST < 2, reason="one core")
def test_one_core_serves_two_threads(ready_folder):
    """By itself a process that may use one core takes one thread; a second one that is asked for is late every time,
    for it gets the core only when the first one gives it up."""
    assert run(_ONE_CORE, ready_folder) == "the same\n"


_LATE = """
import _thread
started = _thread.start_new_thread
_thread.start_new_thread = lambda work, numbers: started(lambda: (time.sleep(0.3), work(*numbers)), ())
began = time.perf_counter()
assert product(2) == alone
assert time.perf_counter() - began > 0.3
assert product(2) == product(1) == alone
"""


@pytest.mark.skipif(MOST < 2, reason="one core")
def test_a_thread_that_starts_late_is_waited_for(ready_folder):
    run(_LATE, ready_folder)


_REFUSED = """
import _thread

def refuse(*arguments):
    raise RuntimeError("can't start new thread")

started, _thread.start_new_thread = _thread.start_new_thread, refuse
for n_threads in (2, ready_threads.most_threads() + 1):
    try:
        product(n_threads)
    except BackendError as error:
        print(error)
_thread.start_new_thread = started
assert product(2) == alone
"""


@pytest.mark.skipif(MOST < 2, reason="one core")
def test_a_thread_that_does_not_start_is_named(ready_folder):
    first, second = run(_REFUSED, ready_folder).splitlines()
    assert first == "a thread for the kernels cannot be started: can't start new thread"
    assert second.startswith(f"{MOST + 1} threads were asked for")
