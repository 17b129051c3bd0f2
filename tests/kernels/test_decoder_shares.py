"""How the threads of a step divide its work: everything once, heads of keys and values whole, shares even."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal_kernels.dispatch import backend

pytestmark = pytest.mark.numba
backend("numba")  # chooses the instructions, before a kernel is imported
products = import_module("edgecal_kernels.decoder_products")
counts = st.integers(1, 9)


@settings(deadline=None)  # compiling counts
@given(kv_heads=counts, per_kv=counts, per_head=st.integers(1, 8), n_threads=st.integers(1, 17))
def test_queries_keys_and_values(kv_heads, per_kv, per_head, n_threads):
    kv, queries = kv_heads * per_head, kv_heads * per_kv * per_head
    borders = [products.heads_border.py_func(i, n_threads, kv, queries, per_head) for i in range(n_threads + 1)]
    assert borders[0] == 0
    assert borders[-1] == 2 * kv + queries
    assert borders == sorted(borders)
    even = (2 * kv + queries) / n_threads
    for start, n, whole in ((0, kv, per_head), (kv, queries, 1), (kv + queries, kv, per_head)):
        done = np.zeros(n, int)
        for first, last in pairwise(borders):
            a, b = products.within.py_func(first, last, start, n)
            assert a % whole == 0
            assert b % whole == 0
            done[a:b] += 1
        assert (done == 1).all()
    assert max(np.diff(borders)) <= even + per_head + 1


@settings(deadline=None)
@given(pairs=st.integers(0, 40), n_threads=st.integers(1, 9))
def test_steps_of_the_next_product_are_not_divided(pairs, n_threads):
    shares = [products.pairs_share(2 * pairs, thread, n_threads) for thread in range(n_threads)]
    assert shares[0][0] == 0
    assert shares[-1][1] == 2 * pairs
    assert all(end % 2 == 0 for _, end in shares)
    assert all(before[1] == after[0] for before, after in pairwise(shares))
