"""Kernels from disk: their code for LLVM stays packed, and serves when something is compiled with them."""

from __future__ import annotations

import pytest

from edgecal_kernels import jit

pytestmark = pytest.mark.numba


def twice(x):
    return 2 * x


def loaded(function):
    """The kernel as the next process has it, and its library."""
    kernel = jit.kernel(function)
    assert kernel(3.0) == function(3.0) and sum(kernel.stats.cache_hits.values()) == 1
    (compiled,) = kernel.overloads.values()
    return kernel, compiled.library


def test_code_for_llvm_stays_packed_until_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "kernel_cache", lambda: tmp_path)
    monkeypatch.setattr(jit, "can_keep", lambda: True)
    jit.kernel(twice)(3.0)
    inner, library = loaded(twice)
    assert library._shared_module is None, "as Numba's cache keeps it: 17 MiB for the kernels of a request"

    def four_times(x):
        return inner(inner(x))

    assert jit.kernel(four_times)(3.0) == 12.0
    assert library._shared_module is None
    _, outer = loaded(four_times)
    code = str(outer._get_module_for_linking()).splitlines()
    assert any(line.startswith("define") and "four_times" in line for line in code)
    assert not any(line.startswith("declare") and "twice" in line for line in code), "it is part of what calls it"
