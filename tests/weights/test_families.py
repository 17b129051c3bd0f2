"""Every family's file against transformers: names of tensors, defaults of keys that a config.json lacks, structure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgecal import config as config_module
from edgecal.architecture import expected_shapes
from edgecal.config import ModelConfig
from edgecal.errors import EdgecalError
from edgecal_weights.families import BY_ARCHITECTURE, FAMILIES
from edgecal_weights.hf_config import normalize_config
from tests.weights.samples import ARCH

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def ours(config) -> ModelConfig:
    return ModelConfig.from_dict(normalize_config(config.to_dict(), Path("config.json")))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_are_those_of_transformers(name, tied):
    config = AutoConfig.for_model(name, **SIZES, tie_word_embeddings=tied)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    shapes = {n: tuple(t.shape) for n, t in theirs.state_dict().items() if not (tied and n == "lm_head.weight")}
    assert type(theirs).__name__ == FAMILIES[name].hf_class
    assert expected_shapes(ours(config)) == shapes


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_keys_are_those_of_transformers(name):
    """A config.json with sizes alone is what transformers makes of it."""
    family = FAMILIES[name]
    windows = {"use_sliding_window": True} if "max_window_layers" in family.defaults else {}
    config = AutoConfig.for_model(name, **windows)
    for key, value in family.defaults.items():
        if key in ("rope_theta", "rope_local_base_freq", "partial_rotary_factor"):  # in rope_parameters since 5
            continue
        assert getattr(config, key) == value, key
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    few = {"model_type": name, **sizes, "num_attention_heads": 32, "hidden_size": 2048}
    assert ModelConfig.from_dict(few) == ours(AutoConfig.for_model(**few))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_null_heads_of_keys_are_as_many_as_of_queries(name):
    """A missing key has the family's default, null another meaning."""
    given = {**SIZES, "num_attention_heads": 8, "num_key_value_heads": None}
    theirs = AutoConfig.for_model(name, **given)
    assert ModelConfig.from_dict({"model_type": name, **given}).n_kv_heads == 8 == theirs.num_key_value_heads


def test_a_scaling_of_the_familys_own_outlives_reading(monkeypatch):
    scaling = {"rope_type": "linear", "factor": 4.0}
    own = replace(FAMILIES["llama"], defaults={**FAMILIES["llama"].defaults, "rope_scaling": scaling})
    monkeypatch.setitem(config_module.FAMILIES, "llama", own)
    for written, there in (({}, True), ({"rope_scaling": None}, False)):
        values = normalize_config({"model_type": "llama", **SIZES, **written}, Path("config.json"))
        assert (ModelConfig.from_dict(values).rope_scaling is not None) == there


@pytest.mark.parametrize(
    ("name", "given", "windows"),
    [
        ("llama", {}, [0] * 7),
        ("qwen2", {"sliding_window": 9}, [0] * 7),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 5}, [0] * 5 + [9] * 2),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, [9] * 7),
        ("mistral", {}, [4096] * 7),
        ("mistral", {"sliding_window": None}, [0] * 7),
        ("gemma3_text", {"sliding_window": 9}, [9] * 5 + [0, 9]),
        ("gemma3_text", {"sliding_window": 9, "sliding_window_pattern": 2}, [9, 0] * 3 + [9]),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, [0] * 7),
    ],
)
def test_windows_of_the_layers(name, given, windows):
    written = {"model_type": name, **SIZES, **given}
    assert list(ModelConfig.from_dict(written).windows) == windows
    theirs = AutoConfig.for_model(**written)
    types = getattr(theirs, "layer_types", None)
    if types is not None:
        assert [t == "sliding_attention" for t in types] == [w > 0 for w in windows]
    assert list(ours(theirs).windows) == windows


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("phi3", {}, "model_type 'phi3' is not served; known architectures: llama, qwen2, qwen3, mistral"),
        ("llama", {"sliding_window": 8}, "sliding_window 8 is not served for llama"),
        ("llama", {"layer_types": ["sliding_attention"] * 7}, "sliding_attention do not go with a llama"),
        ("llama", {"rope_local_base_freq": 1e4}, "rope_local_base_freq"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 7, "use_sliding_window": False}, "window is false"),
        ("qwen3", {"layer_types": ["full_attention"] * 6}, "for each of 7 layers"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 7}, "full_attention or sliding_attention"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be a whole number"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not served"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual True"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm True"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping 30\.0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping 50\.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("gemma3_text", {"hidden_activation": "relu"}, "hidden_activation 'relu'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(name, given, message):
    with pytest.raises(EdgecalError, match=message):
        ModelConfig.from_dict({"model_type": name, **SIZES, **given})


def test_architectures_of_gguf():
    assert set(BY_ARCHITECTURE) == set(ARCH)  # each has files in the tests of GGUF
    assert BY_ARCHITECTURE["llama"] is FAMILIES["llama"]
