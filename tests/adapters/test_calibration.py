"""Calibration: for which adapters and base it holds, and the papers' parameter counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecal.adapters import Calibration, LoraAdapter
from edgecal.adapters.calibration import calibration_parameters, lora_parameters
from edgecal.errors import CalibrationError
from edgecal_weights.calibration_file import AdapterReference

BASE = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}


@pytest.fixture(scope="module")
def adapters(export: Path) -> dict[str, LoraAdapter]:
    return {name: LoraAdapter.load(export / name) for name in ("summarize", "professional", "translate_fr")}


@pytest.fixture
def calibration(export: Path) -> Calibration:
    return Calibration.load(export / "learnable_calibration_pp.safetensors")


def test_fits_what_it_was_trained_for(calibration: Calibration, adapters: dict[str, LoraAdapter]) -> None:
    calibration.check([adapters["summarize"], adapters["professional"]], BASE)
    assert calibration.adapter_names == ("summarize", "professional")
    assert (calibration.n_parameters, calibration.nbytes) == (40_704, 162_816)


@pytest.mark.parametrize(
    ("names", "base", "word"),
    [
        (
            ["professional", "summarize"],
            {},
            "in the order summarize, professional; given: professional, summarize",
        ),
        (["summarize"], {}, "for 2 adapters .*given: 1"),
        (
            ["summarize", "translate_fr"],
            {},
            "adapter 2 is 'professional'.*'translate_fr'.*train a calibration",
        ),
        (["summarize", "professional"], {"hidden_size": 960}, "hidden_size is 576; this model has 960"),
        (
            ["summarize", "professional"],
            {"model_type": "qwen2"},
            "model_type is 'llama'; this model has 'qwen2'",
        ),
        (["summarize", "professional"], {"num_hidden_layers": 32}, "num_hidden_layers"),
        (["summarize", "professional"], {"vocab_size": 49280}, "vocab_size"),
    ],
)
def test_foreign_use_is_refused(
    calibration: Calibration,
    adapters: dict[str, LoraAdapter],
    names: list[str],
    base: dict[str, Any],
    word: str,
) -> None:
    with pytest.raises(CalibrationError, match=word) as caught:
        calibration.check([adapters[name] for name in names], BASE | base)
    assert "learnable_calibration_pp.safetensors" in str(caught.value)


def test_unknown_facts_of_the_base(calibration: Calibration, adapters: dict[str, LoraAdapter]) -> None:
    with pytest.raises(CalibrationError, match="vocab_size is not known"):
        calibration.check([adapters["summarize"]], {k: v for k, v in BASE.items() if k != "vocab_size"})


def test_tensors_of_a_module(calibration: Calibration) -> None:
    term = calibration.for_module("model.layers.7.mlp.down_proj", 576, 1536)
    assert (term.tensors["P1"].shape, term.tensors["P2"].shape) == ((4, 1536), (576, 4))
    with pytest.raises(CalibrationError, match=r"down_proj\.P1' has shape \(4, 1536\).*needs \(4, 99\)"):
        calibration.for_module("model.layers.7.mlp.down_proj", 576, 99)
    with pytest.raises(CalibrationError, match=r"no tensors 'fc1\.\*' for model.layers.7.fc1"):
        calibration.for_module("model.layers.7.fc1", 576, 99)


def test_unused_tensors(calibration: Calibration) -> None:
    with pytest.raises(CalibrationError, match="down_proj.*none of the adapters changes"):
        calibration.check_modules({"model.layers.0.self_attn.q_proj": (576, 576)})


def test_adapter_without_a_file(calibration: Calibration, adapters: dict[str, LoraAdapter]) -> None:
    with pytest.raises(CalibrationError, match="no file"):
        calibration.check([LoraAdapter("made up", {}), adapters["professional"]], BASE)


def test_same_adapter_twice(calibration: Calibration, adapters: dict[str, LoraAdapter]) -> None:
    sha256 = adapters["summarize"].sha256
    twice = dataclasses.replace(calibration.content, adapters=(AdapterReference("a", sha256),) * 2)
    Calibration(twice).check([adapters["summarize"]] * 2, BASE)


# ------------------------------------------------------------------------------- the papers' parameter counts
# hidden, intermediate, width of k and v, layers: Llama-3.2-1B, Qwen2.5-1.5B, StableLM2-1.6B
LLAMA, QWEN, STABLELM = (2048, 8192, 512, 16), (1536, 8960, 256, 28), (2048, 5632, 2048, 24)


def linear_shapes(hidden: int, intermediate: int, kv: int, layers: int) -> dict[str, tuple[int, int]]:
    block = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    return {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}


@pytest.mark.parametrize(
    ("method", "count"),
    [("learnable_calibration", 23_552), ("learnable_calibration_pp", 176_128), ("projection_merge", 102_400)],
)
def test_counts_for_llama_3_2_1b(method: str, count: int) -> None:
    assert calibration_parameters(method, linear_shapes(*LLAMA)) == count


@pytest.mark.parametrize(("method", "mean"), [("learnable_calibration", 22_699), ("learnable_calibration_pp", 166_229)])
def test_means_over_three_models(method: str, mean: int) -> None:
    counts = [calibration_parameters(method, linear_shapes(*facts)) for facts in (LLAMA, QWEN, STABLELM)]
    assert round(np.mean(counts)) == mean


def test_mean_lora_of_rank_32() -> None:
    models = [linear_shapes(*facts) for facts in (LLAMA, QWEN, STABLELM)]
    lora = np.mean([lora_parameters(shapes, 32) for shapes in models])
    assert round(lora / 1e6, 2) == 29.92
    extra = np.mean([calibration_parameters("learnable_calibration_pp", shapes) for shapes in models])
    assert round(100 * extra / lora, 2) == 0.56  # per cent, as paper 1 prints it


def test_counts_equal_the_shipped_files(export: Path) -> None:
    shapes = linear_shapes(576, 1536, 192, 30)
    for method in ("learnable_calibration", "learnable_calibration_pp", "projection_merge"):
        loaded = Calibration.load(export / f"{method}.safetensors")
        assert loaded.n_parameters == calibration_parameters(method, shapes)


def test_counts_refuse() -> None:
    with pytest.raises(CalibrationError, match="linear"):
        calibration_parameters("linear", linear_shapes(*LLAMA))
    shapes = {"model.layers.0.q_proj": (4, 4), "model.layers.1.q_proj": (8, 4)}
    with pytest.raises(CalibrationError, match=r"layers\.1\.q_proj.*cannot share"):
        calibration_parameters("learnable_calibration", shapes)
