"""Calls of compiled code by its address."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import types

from edgecal_kernels.function_pointer import by_address

pytestmark = pytest.mark.numba
numba_types = types.float32[::1], types.UniTuple(types.int64, 2), types.int64


def _fill(target, pair, at):
    if at == 13:
        raise ValueError("thirteen")
    target[at] = pair[0] + pair[1]


call_fill, fill_code = by_address(numba.njit(_fill), *numba_types)


@numba.njit(parallel=True)
def filled(code, target):
    for i in numba.prange(len(target)):
        call_fill(code, target, (np.int64(i), np.int64(100)), np.int64(i))


@numba.njit
def fill_one(code, target, at):
    call_fill(code, target, (at, at), at)


def test_threads_call_a_kernel_by_its_address():
    target = np.zeros(12, np.float32)
    filled(fill_code(), target)
    np.testing.assert_array_equal(target, np.arange(100, 112))


def test_an_error_of_the_callee_reaches_the_caller():
    with pytest.raises(ValueError, match="thirteen"):
        fill_one(fill_code(), np.zeros(20, np.float32), 13)


def test_other_types_do_not_compile():
    with pytest.raises(numba.TypingError):
        fill_one(fill_code(), np.zeros(4, np.float64), 1)


KEPT = """
import sys
import numba
import numpy as np
from numba import types
from edgecal_kernels.function_pointer import by_address

@numba.njit(cache=True)
def double(x):
    x[0] *= 2

_, code = by_address(double, types.float32[::1])
double(np.ones(1, np.float32)) if sys.argv[1] == "call" else code()
print(len(double.stats.cache_misses), len(double.stats.cache_hits))
"""


def test_an_address_is_of_the_code_that_a_call_has_left_on_disk(tmp_path):
    (tmp_path / "kept.py").write_text(KEPT)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    for way, found in ("call", "1 0"), ("address", "0 1"):
        command = [sys.executable, str(tmp_path / "kept.py"), way]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.stdout.strip() == found, done.stderr
