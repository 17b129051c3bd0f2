"""The model family that docs/extending.md adds as its example, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgecal.architecture import expected_shapes
from edgecal.cache import KVCache
from edgecal.config import ModelConfig
from edgecal_kernels import reference
from edgecal_weights.families import FAMILIES
from edgecal_weights.hf_config import normalize_config
from tests.parity.test_model_parity import LOGITS, ours, random_model, torch_logits
from tests.test_docs import example, load

SIZES = {"vocab_size": 64, "hidden_size": 56, "intermediate_size": 90, "num_hidden_layers": 2, "head_dim": 32}
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1}


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "edgecal_weights.families.gemma"
    spec = load(example("= Family("), name, tmp_path / "gemma.py", monkeypatch).GEMMA
    monkeypatch.setitem(FAMILIES, spec.model_type, spec)
    return spec


def test_tensors_and_defaults(family) -> None:
    config = AutoConfig.for_model(family.model_type, **SIZES, **HEADS)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    assert type(theirs).__name__ == family.hf_class
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    found = ModelConfig.from_dict(normalize_config(config.to_dict(), Path("config.json")))
    assert expected_shapes(found) == shapes
    for key, value in family.defaults.items():
        assert getattr(AutoConfig.for_model(family.model_type), key) == value, key


def test_logits(family, rng) -> None:
    config = AutoConfig.for_model(family.model_type, **SIZES, **HEADS)
    model = random_model(AutoModelForCausalLM.from_config, config)
    ids = rng.integers(0, 64, 40)
    found = ours(model, reference).forward(ids, KVCache(ours(model, reference).config, "fp32"), all_logits=True)
    assert np.abs(found - torch_logits(model, ids)).max() <= LOGITS
