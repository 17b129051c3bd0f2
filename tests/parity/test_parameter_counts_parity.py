"""Which models have Llama's seven linear modules in every layer: transformers' own are asked, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from edgecal.adapters.parameter_counts import _ALIKE, _ALIKE_WITH_HEAD_DIM, parameter_counts
from edgecal_weights.families import FAMILIES

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
}
OTHER_HEAD_DIM = ("qwen3", "mistral", "gemma3_text", *_ALIKE_WITH_HEAD_DIM)


@pytest.mark.parametrize("kind", [*FAMILIES, *_ALIKE, *_ALIKE_WITH_HEAD_DIM])
def test_a_lora_on_all_linear_modules(kind: str) -> None:
    """Of rank 1: every nn.Linear but the head is one of the seven, and is counted with its own shape."""
    sizes = {**SIZES, **({"head_dim": 24} if kind in OTHER_HEAD_DIM else {}), "pad_token_id": 0}
    config = CONFIG_MAPPING[kind](**sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    wanted = sum(m.in_features + m.out_features for m in modules.values())
    counts = parameter_counts(config.to_dict(), lora_rank=1)
    assert len(modules) == 7 * SIZES["num_hidden_layers"]
    assert counts.lora == wanted
    one = {name.rpartition(".")[2]: m for name, m in modules.items()}
    assert counts.learnable_calibration == sum(m.out_features for m in one.values())
    assert counts.learnable_calibration_pp == 4 * sum(m.in_features + m.out_features for m in one.values())
