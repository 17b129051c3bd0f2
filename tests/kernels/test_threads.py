"""Threads of the kernels: a number that holds in a block and no longer."""

from __future__ import annotations

import numba
import pytest

from edgecal_kernels import cpu
from edgecal_kernels.errors import BackendError
from edgecal_kernels.threads import number_of_threads, use_threads

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
