"""A model and an adapter in one directory: what edgecal says to give instead computes what transformers computes."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgecal.adapters.recipe import Recipe
from edgecal.cache import KVCache
from edgecal.engine import Engine
from edgecal.errors import UnsupportedModelError
from edgecal.inspection.report import inspect

from ..tiny import write_tiny_adapter, write_tiny_hf

IDS = np.array([5, 80, 17, 200, 33])


def theirs(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(IDS[None])).logits[0].numpy()


def test_the_two_ways_out(tmp_path):
    model = write_tiny_hf(tmp_path / "model")
    adapter = write_tiny_adapter(tmp_path / "adapter", model)
    both = shutil.copytree(model, tmp_path / "both")
    for file in adapter.iterdir():
        shutil.copy(file, both)
    base, adapted = theirs(model), theirs(both)
    assert np.abs(base - adapted).max() > 0.1

    with pytest.raises(UnsupportedModelError, match="transformers would apply the adapter"):
        Engine.load(both, backend="numpy")
    report = inspect(both)
    assert "transformers would apply the adapter" in report.refusal
    assert report.formats == inspect(model).formats  # of the model, not of the adapter

    engine = Engine.load(both / "config.json", backend="numpy", weights="fp32", adapters={"a": both})
    for recipe, wanted in ((None, base), (Recipe("single", ("a",)), adapted)):
        (compiled,) = engine.compile(recipe)
        found = engine.model.forward(IDS, KVCache(engine.model.config, "fp32"), compiled, all_logits=True)
        np.testing.assert_allclose(found, wanted, atol=2e-4)
