"""The papers' counts from what config.json says: the models of the papers, and every place where a config.json lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgecal
from edgecal import ModelConfig, parameter_counts
from edgecal.adapters import Calibration
from edgecal.adapters.parameter_counts import METHODS
from edgecal.architecture import linear_shapes
from edgecal.errors import FileFormatError, ModelNotFoundError, OptionError, UnsupportedModelError
from tests.tiny import write_tiny_hf

# What the models' own config.json say of their sizes
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
}
QWEN_1_5B = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "use_sliding_window": False,
}
STABLELM_1_6B = {
    "model_type": "stablelm",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 100_352,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": True,
}
PAPER = (LLAMA_1B, QWEN_1_5B, STABLELM_1_6B)


def test_llama_3_2_1b() -> None:
    """24K, 176K (paper 1) and 102K (paper 2, Table 5)."""
    counts = parameter_counts(LLAMA_1B)
    assert (counts.learnable_calibration, counts.learnable_calibration_pp) == (23_552, 176_128)
    assert counts.projection_merge == 102_400
    assert counts.lora == 32 * 16 * (2 * 4096 + 2 * 2560 + 3 * 10_240)


def test_means_over_the_three_models_of_paper_1() -> None:
    """23K, 166K, 30M: and LC++ is 0.56 % of a LoRA of rank 32."""
    counts = [parameter_counts(config) for config in PAPER]

    def mean(name: str) -> float:
        return sum(getattr(count, name) for count in counts) / len(counts)

    assert round(mean("learnable_calibration")) == 22_699
    assert round(mean("learnable_calibration_pp")) == 166_229
    assert round(mean("lora") / 1e6, 2) == 29.92
    assert round(100 * mean("learnable_calibration_pp") / mean("lora"), 2) == 0.56


@given(st.integers(1, 64), st.integers(1, 256))
def test_counts_grow_with_the_ranks(rank: int, lora_rank: int) -> None:
    one, counts = parameter_counts(LLAMA_1B, 1, 1), parameter_counts(LLAMA_1B, rank, lora_rank)
    assert counts.lora == lora_rank * one.lora
    assert counts.learnable_calibration == one.learnable_calibration
    assert counts.learnable_calibration_pp == rank * one.learnable_calibration_pp
    assert counts.projection_merge == rank * one.projection_merge
    assert counts.share("projection_merge") == counts.projection_merge / counts.lora


def test_the_table_is_that_of_paper_1() -> None:
    rows = {row.method: row for row in parameter_counts(LLAMA_1B).table()}
    assert [rows[name].parameters for name in ("zero_shot", "linear", "multi_step")] == [0, 0, 0]
    assert rows["multi_step"].n_passes == 2 and rows["joint_expert"].parameters == 22_544_384
    assert rows["learnable_calibration_pp"].share == 176_128 / 22_544_384
    values = json.loads(json.dumps(parameter_counts(LLAMA_1B).to_dict()))
    assert set(values["shares"]) == set(METHODS) and values["lora_rank"] == 32


def test_counts_are_those_of_the_shipped_files(export: Path) -> None:
    loaded = {method: Calibration.load(export / f"{method}.safetensors") for method in METHODS}
    base = loaded["projection_merge"].content.base_model
    config = {
        **{key: getattr(base, key) for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")},
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    counts = parameter_counts(config)
    assert {method: getattr(counts, method) for method in METHODS} == {m: c.n_parameters for m, c in loaded.items()}


# ---------------------------------------------------------------------------------------- where a config.json may be


def test_every_place_of_a_configuration(tmp_path: Path) -> None:
    """The file under any name, the directory with and without weights, a mapping, a ModelConfig; either spelling."""
    model = write_tiny_hf(tmp_path / "model")
    values = json.loads((model / "config.json").read_text())
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(values))
    (tmp_path / "tiny.config.json").write_text(json.dumps(values))
    (tmp_path / "five.json").write_text(json.dumps({**values, "rope_parameters": {"rope_theta": 1e4}}))
    wanted = parameter_counts(values)
    config = ModelConfig.from_dict(values)
    assert wanted.lora == 32 * sum(d + k for d, k in linear_shapes(config).values())
    places: list[Any] = [model, bare, bare / "config.json", tmp_path / "tiny.config.json", str(tmp_path / "five.json")]
    for place in [*places, config]:
        assert parameter_counts(place) == wanted, place


def test_what_only_matters_for_running_is_no_obstacle() -> None:
    plain = parameter_counts(LLAMA_1B)
    for option in (
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"sliding_window": 4096},
    ):
        assert parameter_counts({**LLAMA_1B, **option}) == plain


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"model_type": "gpt2"}, UnsupportedModelError, "'gpt2' is not known to have Llama's seven .*known: gemma"),
        ({"model_type": None}, UnsupportedModelError, "model_type 'None'"),
        ({"model_type": "granite", "num_key_value_heads": None}, UnsupportedModelError, "num_key_value_heads is not"),
        ({"model_type": "gemma2", "head_dim": None}, UnsupportedModelError, "head_dim is not there"),
        ({"intermediate_size": None}, UnsupportedModelError, "intermediate_size is not there"),
        ({"hidden_size": 0}, FileFormatError, "hidden_size must be a whole number"),
        ({"num_hidden_layers": "16"}, FileFormatError, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_counted(changes: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        parameter_counts({**LLAMA_1B, **changes})


def test_ranks_and_places_are_checked(tmp_path: Path) -> None:
    for ranks in ({"rank": 0}, {"lora_rank": 0}, {"rank": True}, {"lora_rank": 1.5}, {"rank": 10**6}):
        with pytest.raises(OptionError, match=rf"{next(iter(ranks))} must be a whole number from 1"):
            parameter_counts(LLAMA_1B, **ranks)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError, match="no such file or directory, and not a hub id"):
        parameter_counts(tmp_path / "nowhere" / "model")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(FileFormatError, match=r"list\.json holds a list"):
        parameter_counts(tmp_path / "list.json")


def test_it_is_public() -> None:
    assert edgecal.parameter_counts is parameter_counts
    assert isinstance(parameter_counts(LLAMA_1B), edgecal.ParameterCounts)
