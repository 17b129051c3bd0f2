"""Ready-made kernels, for the tests that run some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecal_kernels import cpu
from edgecal_kernels.errors import BackendError


@pytest.fixture(scope="session")
def ready_isa() -> str:
    """The instruction set of `ready_folder`: EDGECAL_ISA's, else the best one of this processor."""
    served = cpu.processor_isas()
    wanted = os.environ.get(cpu.ISA_ENV) or (served[0] if served else None)
    if wanted not in served:
        pytest.skip("no ready-made kernels for this processor")
    return wanted


@pytest.fixture(scope="session")
def ready_folder(ready_isa: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library for this processor; compiled when its sources have changed since it last was."""
    from edgecal_kernels.build import build

    place = tmp_path_factory.mktemp("ready")
    try:
        build(ready_isa, place)
    except BackendError as error:
        if "no linker" in str(error):
            pytest.skip(str(error))
        raise
    return place
