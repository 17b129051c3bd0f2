"""BLAS keeps to one thread while modules are merged side by side, and gets its own back, whatever happens."""

from __future__ import annotations

import numpy as np
import pytest

from edgecal.adapters import LoraAdapter, LoraPair, Recipe, compile_recipe
from edgecal.adapters.merge import blas
from edgecal.errors import AdapterError
from tests.adapters.test_merge_kernels import SHAPES, adapters


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """OpenBLAS's number of threads, in a list: what was set, in order."""
    seen = [4]
    monkeypatch.setattr(blas, "_controls", lambda: (lambda: seen[-1], seen.append))
    return seen


def test_the_last_user_puts_it_back(threads: list[int]) -> None:
    with blas.one_thread():
        with blas.one_thread():
            assert threads[-1] == 1
        assert threads[-1] == 1
    assert threads[-1] == 4


def test_users_may_leave_in_any_order(threads: list[int]) -> None:
    first, second = blas.one_thread(), blas.one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads[-1] == 1
    second.__exit__(None, None, None)
    assert threads[-1] == 4


def test_compiling_asks_for_it(threads: list[int]) -> None:
    compile_recipe(Recipe("svd", ("a0", "a1")), adapters(2), None, SHAPES, {})
    assert threads == [4, 1, 4]
    wrong = {name: LoraAdapter(name, {"m": LoraPair(*pair)}) for name, pair in _of_two_ranks().items()}
    with pytest.raises(AdapterError, match="equal shapes and ranks"):
        compile_recipe(Recipe("linear", tuple(wrong)), wrong, None, {"m": (3, 5)}, {})
    assert threads[-1] == 4


def _of_two_ranks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {f"r{r}": (np.ones((r, 5), np.float32), np.ones((3, r), np.float32)) for r in (1, 2)}


def test_another_blas_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_controls", lambda: None)
    with blas.one_thread():
        assert compile_recipe(Recipe("svd", ("a0",)), adapters(1), None, SHAPES, {}) is not None


def test_the_real_one() -> None:
    """NumPy's wheels bring OpenBLAS; elsewhere there may be nothing to control."""
    controls = blas._controls()
    if controls is None:
        pytest.skip("NumPy is not linked to OpenBLAS here")
    before = controls[0]()
    with blas.one_thread():
        assert controls[0]() == 1
    assert controls[0]() == before
