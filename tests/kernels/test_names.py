"""Numba links kernels by name; on disk lie those that any number of processes compiled."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.numba

NAMES = """
import json, sys
from edgecal_kernels import numba_ops
from edgecal_kernels.packed_kernels import VECTORS
from edgecal_kernels.packed_blocks import BLOCKS
from edgecal_kernels.packed_tiles import TILE_PRODUCTS, UNPACKED
from numba.core.dispatcher import Dispatcher

modules = [module for name, module in sys.modules.items() if name.startswith("edgecal_kernels.")]
kernels = [kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Dispatcher)]
for table in (VECTORS, BLOCKS, UNPACKED, TILE_PRODUCTS):
    kernels += table.values()
functions = {kernel.py_func for kernel in kernels}
print(json.dumps([[function.__module__, function.__qualname__] for function in functions]))
"""


def test_no_two_kernels_have_one_name():
    """Numba's own number for a function starts anew in every process, so it does not tell two of one name apart: the
    int8 block ran as int4's when several processes had filled the folder of compiled kernels."""
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, timeout=300, check=True)
    names = [tuple(one) for one in json.loads(done.stdout)]
    assert len(names) > 50
    assert len(set(names)) == len(names)
    assert not [name for name in names if "<locals>" in name[1]]
