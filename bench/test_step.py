"""A whole step of a model: 135M's width, 8 layers, random weights, so that nothing has to be fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgecal.adapters.compiled import CompiledAdapter, CompiledPair
from edgecal.architecture import expected_shapes
from edgecal.cache import KVCache
from edgecal.config import ModelConfig
from edgecal.decoding.generate import decode, prefill
from edgecal.decoding.sampler import Sampler, SamplingOptions
from edgecal.model import Model
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import quantize

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
RANK, DEPTH, PROMPT = 32, 1024, 128
Paired = Callable[..., None]
RNG = np.random.default_rng(2)


@pytest.fixture(scope="module", params=["int4", "int8"])
def model(request: pytest.FixtureRequest) -> Model:
    config = ModelConfig.from_dict(SHAPE)
    shapes = expected_shapes(config)

    def weight(name: str) -> Any:
        values = RNG.standard_normal(shapes[name], np.float32) * np.float32(0.03)
        return quantize(values, request.param) if values.ndim == 2 else 1 + values

    return Model(config, weight, backend("numba"))


@pytest.fixture(scope="module")
def adapter(model: Model) -> Any:
    pairs = {
        name: CompiledPair(
            RNG.standard_normal((RANK, k), np.float32) * np.float32(0.02),
            RNG.standard_normal((d, RANK), np.float32) * np.float32(0.02),
        )
        for name, (d, k) in model.linear_shapes.items()
    }
    return model.run_form(CompiledAdapter("single", pairs, "bench"))


def step(model: Model, depth: int, adapter: Any = None) -> Callable[[], Any]:
    """One token behind `depth` others."""
    cache = KVCache(model.config)
    if depth:
        prefill(model, list(range(depth)), cache, adapter)

    def run() -> Any:
        cache.truncate(depth)
        return decode(model, 7, cache, adapter)

    return run


def test_step(paired: Paired, model: Model) -> None:
    paired(step(model, 0), 4, beside="memory")


def test_step_with_lora(paired: Paired, model: Model, adapter: Any) -> None:
    paired(step(model, 0, adapter), 4, beside="memory")


def test_step_in_a_long_context(paired: Paired, model: Model) -> None:
    paired(step(model, DEPTH), 4, beside="memory")


def test_step_of_four_sequences(paired: Paired, model: Model) -> None:
    caches = [KVCache(model.config) for _ in range(4)]

    def run() -> None:
        for cache in caches:
            cache.truncate(0)
        model.step([1, 2, 3, 4], caches)

    paired(run, 2, beside="memory")


def test_draft_of_four_tokens(paired: Paired, model: Model) -> None:
    cache, ids = KVCache(model.config), np.arange(4)

    def run() -> None:
        cache.truncate(0)
        model.forward(ids, cache, all_logits=True)

    paired(run, 2, beside="memory")


def test_prompt(paired: Paired, model: Model) -> None:
    ids = list(range(PROMPT))
    paired(lambda: prefill(model, ids, KVCache(model.config)), 1, rounds=15)


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(temperature=0.8, top_k=40, top_p=0.9, seed=1)])
def test_sampling(paired: Paired, options: SamplingOptions) -> None:
    logits, sampler = RNG.standard_normal(SHAPE["vocab_size"], np.float32), Sampler(options)
    paired(lambda: sampler(logits), 5)
