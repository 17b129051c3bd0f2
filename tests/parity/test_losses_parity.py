"""The loss of examples against transformers' own, with and without an adapter through PEFT: float32, 1e-4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from edgecal import Engine, Recipe
from edgecal.search.losses import ExampleLosses, example_losses
from tests.tiny import write_tiny_adapter, write_tiny_hf

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]

TOLERANCE = 1e-4
EXAMPLES = [("Shorten: the cat sat on the mat", "A cat sat."), ("Shorten: the end", "End"), ("Hello", "there, you!")]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_equals_transformers(tmp_path, family):
    write_tiny_hf(tmp_path / "model", family)
    write_tiny_adapter(tmp_path / "lora", tmp_path / "model")
    engine = Engine.load(tmp_path / "model", weights="fp32", adapters={"lora": tmp_path / "lora"}, cache_dtype="fp32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()

    def reference() -> list[float]:
        values = []
        for prompt, target in EXAMPLES:
            start = engine.encode(prompt)
            ids = torch.tensor([start + engine.tokenizer.encode(target) + [2]])
            labels = ids.clone()
            labels[:, : len(start)] = -100
            with torch.no_grad():
                values.append(model(input_ids=ids, labels=labels).loss.item())
        return values

    np.testing.assert_allclose(example_losses(engine, EXAMPLES, None), reference(), rtol=0, atol=TOLERANCE)
    model = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    adapter = engine.compile(Recipe("single", ("lora",)))[0]
    found = ExampleLosses(engine, EXAMPLES)(adapter)
    np.testing.assert_allclose(found.values, reference(), rtol=0, atol=TOLERANCE)
    assert found.tokens_saved > 0
