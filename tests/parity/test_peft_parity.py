"""Live against peft 0.21.2: what PEFT writes, edgecal reads to the same dW, and common formulas agree.

A two-layer random Llama with GQA, whose q, k, gate and down differ in shape. Tolerance: max |error| / max
|reference| <= 1e-6 in float32.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import LlamaConfig, LlamaForCausalLM

from edgecal.adapters import CompiledAdapter, LoraAdapter, Recipe, compile_recipe
from edgecal.architecture import base_facts
from edgecal.config import ModelConfig
from edgecal.errors import AdapterError
from edgecal_weights.peft_config import PeftConfig
from tests.adapter_files import write_adapter
from tests.adapter_formats import write_gguf_adapter, write_mlx_adapter

# What PEFT and transformers say to each other about deprecations and odd options is not edgecal's to mend.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]

TOLERANCE = 1e-6
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, int]]:
    modules = tiny_llama().named_modules()
    return {n: (m.out_features, m.in_features) for n, m in modules if isinstance(m, torch.nn.Linear)}


def randomize(model: torch.nn.Module, adapter: str, seed: int) -> None:
    """B starts at zero: give both factors numbers."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)


def save_random(directory: Path, seed: int = 1, **options: Any) -> tuple[PeftModel, Path]:
    """A PEFT model with one random adapter, and the directory it was saved to."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": SEVEN, "task_type": "CAUSAL_LM"} | options)
    model = get_peft_model(tiny_llama(), config)
    randomize(model, "default", seed)
    model.save_pretrained(directory)
    return model, directory


def peft_deltas(model: torch.nn.Module, adapter: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight(adapter).detach().numpy()
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_A", {})
    }


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error <= TOLERANCE, f"{error:.2e}"


def compiled(recipe: Recipe, adapters: list[LoraAdapter], shapes: dict[str, tuple[int, int]]) -> CompiledAdapter:
    result = compile_recipe(recipe, {adapter.name: adapter for adapter in adapters}, None, shapes, {})
    assert result is not None
    return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj", "down_proj"], "r": 1, "lora_alpha": 3},
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\.(q|gate)_proj"},
        {"target_modules": r"^(?!.*mlp).*(q_proj|o_proj)$"},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]},
        {"exclude_modules": r".*\.1\..*"},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}, "alpha_pattern": {"k_proj": 11}},
        {
            "rank_pattern": {r".*\.0\..*": 3, "q_proj": 5},
            "alpha_pattern": {r"^model.layers.1.self_attn.v_proj": 2},
        },
        {
            "rank_pattern": {"(q|k)_proj": 2, ".*k_proj": 9, "mlp.up_proj": 5},
            "alpha_pattern": {".*mlp.*": 1, "self_attn.[kv]_proj": 4},
        },
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_delta_weight(tmp_path: Path, shapes: dict[str, tuple[int, int]], options: dict[str, Any]) -> None:
    model, directory = save_random(tmp_path, **options)
    adapter = LoraAdapter.load(directory, "mine")
    adapter.check_against(shapes)
    wanted = peft_deltas(model, "default")
    assert set(adapter.pairs) == set(wanted)
    single = compiled(Recipe("single", ("mine",)), [adapter], shapes)
    for module, delta in wanted.items():
        close(adapter.pairs[module].delta(), delta)
        close(single.pairs[module].delta(), delta)


def test_rslora_with_patterns_follows_its_formula(tmp_path: Path) -> None:
    """alpha / sqrt(r) of each module's own rank; PEFT's merges are off here, so the formula is the judge."""
    options = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 11}}
    _, directory = save_random(tmp_path, **options)
    adapter = LoraAdapter.load(directory)
    layer = "model.layers.1.self_attn."
    assert adapter.pairs[layer + "q_proj"].scaling == 6 / math.sqrt(2)
    assert adapter.pairs[layer + "k_proj"].scaling == 11 / math.sqrt(4)


@pytest.mark.parametrize(
    "options", [{}, {"target_modules": ["q_proj", "down_proj"], "r": 1}, {"layers_to_transform": [1]}], ids=str
)
@pytest.mark.parametrize("form", ["GGUF", "MLX"])
def test_delta_weight_of_other_formats(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    """As llama.cpp and mlx-lm keep the same adapter; `tests/adapters/test_adapter_formats.py` has the rest."""
    model, directory = save_random(tmp_path / "peft", **options)
    config = ModelConfig.from_dict(model.config.to_dict() | {"rope_theta": 1e4})
    if form == "GGUF":
        path = write_gguf_adapter(tmp_path / "a.gguf", directory, config)
    else:
        path = write_mlx_adapter(tmp_path / "mlx", directory)
    adapter = LoraAdapter.load(path).on_base(base_facts(config))
    wanted = peft_deltas(model, "default")
    assert adapter.format == form and set(adapter.pairs) == set(wanted)
    for module, delta in wanted.items():
        close(adapter.pairs[module].delta(), delta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path: Path, dtype: torch.dtype) -> None:
    model, _ = save_random(tmp_path / "full")
    model.to(dtype).save_pretrained(tmp_path / "half")
    wanted = peft_deltas(model.float(), "default")
    adapter = LoraAdapter.load(tmp_path / "half")
    assert adapter.nbytes == 2 * adapter.n_parameters
    for module, delta in wanted.items():
        close(adapter.pairs[module].delta(), delta)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
    ids=str,
)
def test_unsupported_adapters_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    _, directory = save_random(tmp_path, **options)
    with pytest.raises(AdapterError, match="not supported|init_lora_weights"):
        LoraAdapter.load(directory)


SELECTIONS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["layers.1.self_attn.q_proj", "self_attn.v_proj"]},
    {"target_modules": ["proj"]},
    {"target_modules": "q_proj"},
    {"target_modules": r".*\.[kv]_proj"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": r"l\w+"},
    {"target_modules": ["down_proj"], "layers_to_transform": [3], "layers_pattern": "experts"},
    {"target_modules": ["down_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": "k_proj"},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.0.*"},
]


@pytest.mark.parametrize("options", SELECTIONS, ids=str)
def test_target_modules_mean_the_same(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], options: dict[str, Any]
) -> None:
    write_adapter(tmp_path, {}, **options)
    ours, theirs = PeftConfig(tmp_path / "adapter_config.json"), LoraConfig(**options)
    if isinstance(options["target_modules"], list):
        theirs.target_modules = options["target_modules"]
    others = ["model.embed_tokens", "model.layers.1.mlp.experts.3.down_proj", "layers.1.q_proj", "q_proj"]
    for module in [*shapes, *others]:
        assert ours.targets(module) == bool(check_target_module_exists(theirs, module)), module


# ---------------------------------------------------------------------------------------- several adapters
def two_adapters(tmp_path: Path, ranks: tuple[int, int] = (4, 4)) -> tuple[PeftModel, list[LoraAdapter]]:
    """One PEFT model with adapters "one" and "two" (scalings 1.5 and 0.75 for rank 4), and the same in edgecal."""
    for name, rank, alpha, seed in (("one", ranks[0], 6, 1), ("two", ranks[1], 3, 2)):
        save_random(tmp_path / name, seed, r=rank, lora_alpha=alpha)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    return model, [LoraAdapter.load(tmp_path / name) for name in ("one", "two")]


@pytest.mark.parametrize("ranks", [(4, 4), (2, 5)])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.7, -0.4), (1.0, 2.0)])
def test_concat_is_pefts_cat(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], ranks: tuple[int, int], weights: tuple[float, float]
) -> None:
    model, adapters = two_adapters(tmp_path, ranks)
    model.add_weighted_adapter(["one", "two"], list(weights), "both", combination_type="cat")
    ours = compiled(Recipe("concat", ("one", "two"), weights), adapters, shapes)
    assert ours.rank == sum(ranks)
    for module, delta in peft_deltas(model, "both").items():
        close(ours.pairs[module].delta(), delta)


@pytest.mark.parametrize("weights", [None, (0.7, -0.4)])
def test_linear_is_equation_5_in_torch(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], weights: tuple[float, float] | None
) -> None:
    model, adapters = two_adapters(tmp_path)
    ours = compiled(Recipe("linear", ("one", "two"), weights), adapters, shapes)
    w = weights or (0.5, 0.5)
    for name, module in model.named_modules():
        if "one" not in getattr(module, "lora_A", {}):
            continue
        a = sum(w[i] * module.lora_A[n].weight for i, n in enumerate(("one", "two")))
        b = sum(w[i] * module.scaling[n] * module.lora_B[n].weight for i, n in enumerate(("one", "two")))
        pair = ours.pairs[name.removeprefix("base_model.model.")]
        close(pair.a, a.detach().numpy())
        close(pair.b, b.detach().numpy())
        close(pair.delta(), (b @ a).detach().numpy())


def test_logits_with_a_merged_pair(tmp_path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """The compiled pairs added to the weights give PEFT's own logits (1e-5 absolute)."""
    model, adapters = two_adapters(tmp_path)
    model.add_weighted_adapter(["one", "two"], [0.1, 0.1], "both", combination_type="cat")
    model.set_adapter("both")
    plain = tiny_llama()
    ours = compiled(Recipe("concat", ("one", "two"), (0.1, 0.1)), adapters, shapes)
    for name, module in plain.named_modules():
        if name in ours.pairs:
            module.weight.data += torch.from_numpy(ours.pairs[name].delta())
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits, rtol=0, atol=1e-5)
