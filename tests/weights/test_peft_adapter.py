"""Reading PEFT directories: the right numbers, and a refusal with a name for everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecal_weights.errors import AdapterError, FileFormatError
from edgecal_weights.peft_adapter import PeftAdapter
from edgecal_weights.peft_config import HARMLESS, REFUSED, PeftConfig
from tests.adapter_files import MODULES, random_tensors, tensor_name, write_adapter
from tests.tiny import write_tiny_hf
from tests.work import counted

Q0 = "model.layers.0.self_attn.q_proj"
V1 = "model.layers.1.self_attn.v_proj"


@pytest.fixture
def tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return random_tensors(rng)


def config_of(directory: Path, **config: Any) -> PeftConfig:
    write_adapter(directory, {}, **config)
    return PeftConfig(directory / "adapter_config.json")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_reads_what_was_written(tmp_path: Path, rng: np.random.Generator, dtype: Any) -> None:
    written = random_tensors(rng, dtype=dtype)
    adapter = PeftAdapter(write_adapter(tmp_path, written))
    assert set(adapter.modules) == set(MODULES)
    assert adapter.base_model_name == "some/base"
    assert adapter.sha256 == hashlib.sha256((tmp_path / "adapter_model.safetensors").read_bytes()).hexdigest()
    for module, (d, k) in MODULES.items():
        facts = adapter.modules[module]
        assert (facts.out_features, facts.in_features, facts.rank, facts.scaling) == (d, k, 4, 2.0)
        assert facts.nbytes == 4 * (d + k) * np.dtype(dtype).itemsize
        for array, factor in zip(adapter.read(module), "AB", strict=True):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, written[tensor_name(module, factor)].astype(np.float32))


def test_bfloat16(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    import torch
    from safetensors.torch import save_file

    write_adapter(tmp_path, tensors)
    halves = {name: torch.from_numpy(array).bfloat16() for name, array in tensors.items()}
    save_file(halves, tmp_path / "adapter_model.safetensors")
    a, _b = PeftAdapter(tmp_path).read(Q0)
    np.testing.assert_array_equal(a, halves[tensor_name(Q0, "A")].float().numpy())


def test_path_of_the_file_itself(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_adapter(tmp_path, tensors)
    assert set(PeftAdapter(tmp_path / "adapter_model.safetensors").modules) == set(MODULES)


def test_every_key_of_pefts_config_is_accounted_for() -> None:
    import peft

    keys = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert keys <= set(HARMLESS) | set(REFUSED)
    assert not set(HARMLESS) & set(REFUSED)


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}])
def test_patterns_choose_rank_and_alpha(tmp_path: Path, rng: np.random.Generator, config: dict[str, Any]) -> None:
    tensors = random_tensors(rng) | random_tensors(rng, {V1: MODULES[V1]}, rank=2)
    patterns = {
        "rank_pattern": {"layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {r".*\.1\..*": 3, "q_proj": 5},
    }
    adapter = PeftAdapter(write_adapter(tmp_path, tensors, **patterns, **config))
    root = math.sqrt if config else float
    assert adapter.modules[V1].scaling == 3 / root(2)
    assert adapter.modules[Q0].scaling == 5 / root(4)
    assert adapter.modules["model.layers.0.self_attn.v_proj"].scaling == 8 / root(4)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"use_dora": True}, "use_dora.*DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"target_parameters": ["experts.down"]}, "target_parameters"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config"),
        ({"monteclora_config": {"n": 1}}, "monteclora_config"),
        ({"megatron_config": {"tp": 2}}, "megatron_config"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights.*path_initial_model"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "brand_new"}, "init_lora_weights.*does not know"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"brand_new_option": 3}, "unknown key 'brand_new_option' = 3"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": None}, "r is None"),
        ({"rank_pattern": {"q_proj": 10**9}}, r"rank_pattern\['q_proj'\] is 1000000000"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern.*object"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern.*not a regular expression"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"alpha_pattern": {"q_proj": math.inf}}, "alpha_pattern"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"target_modules": [1]}, "target_modules"),
        ({"layers_to_transform": "all"}, "layers_to_transform"),
        ({"target_modules": ["k_proj"]}, "target_modules.*do not select"),
        ({"exclude_modules": "q_proj"}, None),
        ({"exclude_modules": ["q_proj"]}, "do not select"),
        ({"r": 8}, "has rank 4, .*says 8"),
    ],
)
def test_refused_configurations(
    tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], word: str | None
) -> None:
    write_adapter(tmp_path, tensors, **config)
    if word is None:  # a string is a pattern for the whole path, so "q_proj" excludes nothing
        PeftAdapter(tmp_path)
        return
    with pytest.raises(AdapterError, match=word) as caught:
        PeftAdapter(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_empty_unknown_keys_are_fine(tmp_path: Path, tensors: dict[str, np.ndarray], value: Any) -> None:
    PeftAdapter(write_adapter(tmp_path, tensors, brand_new_option=value, use_dora=value))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_harmless_initializations(tmp_path: Path, tensors: dict[str, np.ndarray], init: Any) -> None:
    PeftAdapter(write_adapter(tmp_path, tensors, init_lora_weights=init, eva_config={"rho": 2.0}))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (f"base_model.model.{Q0}.lora_magnitude_vector", "DoRA"),
        (f"base_model.model.{Q0}.lora_B.bias", "lora_bias"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.lm_head.weight", "modules_to_save"),
        (f"base_model.model.{Q0}.lora_A.default.weight", "adapter name"),
        (f"{Q0}.lora_A.weight", "begin with 'base_model.model.'"),
        (f"base_model.model.{Q0}.lora_C.weight", "modules_to_save|unknown tensor"),
        ("base_model.model.../../etc/passwd.lora_A.weight", "modules_to_save|unknown tensor"),
        ("base_model.model." + "a." * 50_000 + "b.lora_A.weight", r"aaa|a\.a\.a"),
    ],
)
def test_foreign_tensors(tmp_path: Path, tensors: dict[str, np.ndarray], name: str, word: str) -> None:
    tensors[name] = np.zeros((4, 8), np.float32)
    with pytest.raises(AdapterError, match=word) as caught:
        PeftAdapter(write_adapter(tmp_path, tensors))
    assert len(str(caught.value)) < 600


def test_a_without_b(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    del tensors[tensor_name(V1, "B")]
    with pytest.raises(AdapterError, match=r"v_proj\.lora_B\.weight is missing"):
        PeftAdapter(write_adapter(tmp_path, tensors))


@pytest.mark.parametrize(
    ("factor", "array", "word"),
    [
        ("B", np.zeros((6, 3), np.float32), "ranks must be equal"),
        ("A", np.zeros(8, np.float32), "expected a matrix"),
        ("A", np.zeros((0, 8), np.float32), "expected a matrix"),
        ("A", np.zeros((4, 8), np.float64), "type F64"),
        ("A", np.zeros((4, 8), np.int32), "type I32"),
    ],
)
def test_impossible_tensors(
    tmp_path: Path, tensors: dict[str, np.ndarray], factor: str, array: np.ndarray, word: str
) -> None:
    tensors[tensor_name(V1, factor)] = array
    with pytest.raises(AdapterError, match=word) as caught:
        PeftAdapter(write_adapter(tmp_path, tensors))
    assert V1 in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(tmp_path: Path, rng: np.random.Generator, dtype: Any, value: float) -> None:
    tensors = random_tensors(rng, dtype=dtype)
    tensors[tensor_name(V1, "A")][2, 5] = value
    with pytest.raises(AdapterError, match=r"1\.self_attn\.v_proj\.lora_A\.weight has 1 .*row 2, column 5"):
        PeftAdapter(write_adapter(tmp_path, tensors))


def test_large_but_finite_numbers_pass(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    tensors[tensor_name(V1, "A")][:] = 3e38
    PeftAdapter(write_adapter(tmp_path, tensors))


@pytest.mark.parametrize("kept", [0, 4, 8, 60, 0.5, 0.999])
def test_truncated(tmp_path: Path, tensors: dict[str, np.ndarray], kept: float) -> None:
    write_adapter(tmp_path, tensors)
    weights = tmp_path / "adapter_model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[: int(kept * len(raw) if isinstance(kept, float) else kept)])
    with pytest.raises((AdapterError, FileFormatError), match="adapter_model.safetensors"):
        PeftAdapter(tmp_path)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 99_999_999])
def test_huge_header(tmp_path: Path, tensors: dict[str, np.ndarray], length: int) -> None:
    write_adapter(tmp_path, tensors)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    with pytest.raises(FileFormatError, match="header"):
        PeftAdapter(tmp_path)


def test_duplicate_keys(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_adapter(tmp_path, tensors)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 4, "r": 8'))
    with pytest.raises(AdapterError, match="'r' occurs twice"):
        PeftAdapter(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", '{"r": 1', "[" * 100_000, "\x00\xff"])
def test_broken_json(tmp_path: Path, tensors: dict[str, np.ndarray], text: str) -> None:
    write_adapter(tmp_path, tensors)
    (tmp_path / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(AdapterError, match="adapter_config.json"):
        PeftAdapter(tmp_path)


def test_giant_configuration(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_adapter(tmp_path, tensors, auto_mapping="x" * (5 << 20))
    with pytest.raises(AdapterError, match="larger than 4 MiB"):
        PeftAdapter(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "(a+)+$" + "(.*)*" * 20},
        {"target_modules": "(((model|m.*)*)*)*x"},
        {"rank_pattern": {f"(a|.*)*{i}(.*.*)*": 4 for i in range(200)}},
        {"exclude_modules": "(.*.*)*x"},
        {"layers_to_transform": [0], "layers_pattern": ["(l*a*y*)*" * 30]},
    ],
)
def test_regex_bombs_are_quick(tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    write_adapter(tmp_path, tensors, **config)
    try:
        with counted(20_000_000):
            PeftAdapter(tmp_path)
    except AdapterError as error:
        assert str(tmp_path) in str(error)


def test_missing_and_wrong_paths(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(AdapterError, match="no such path"):
        PeftAdapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match=r"there is no adapter_config.json and no adapter_model.safetensors$"):
        PeftAdapter(tmp_path)
    model = write_tiny_hf(tmp_path / "model")
    with pytest.raises(AdapterError, match=r"holds no adapter: .*; it is a model of Hugging Face$"):
        PeftAdapter(model)
    write_adapter(tmp_path, tensors)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read: No such file"):
        PeftAdapter(tmp_path)
    (tmp_path / "adapter_config.json").mkdir()
    with pytest.raises(AdapterError, match="cannot be read: Is a directory"):
        PeftAdapter(tmp_path)


def test_pickles_are_refused_with_advice(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_adapter(tmp_path, tensors)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        with pytest.raises(AdapterError, match="pickle.*safe_serialization=True"):
            PeftAdapter(path)


def test_a_pipe_does_not_hang(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_adapter(tmp_path, tensors)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).rename(tmp_path / "kept")
        os.mkfifo(tmp_path / name)
        with pytest.raises((AdapterError, FileFormatError), match="not a regular file"):
            PeftAdapter(tmp_path)
        (tmp_path / "kept").replace(tmp_path / name)


def test_targets(tmp_path: Path) -> None:
    def targets(name: str, **config: Any) -> bool:
        return config_of(tmp_path, **config).targets(name)

    assert targets(Q0, target_modules=["self_attn.q_proj"])
    assert not targets(Q0, target_modules=["attn.q_proj", "proj"])
    assert targets(Q0, target_modules="all-linear")
    assert not targets("lm_head", target_modules="all-linear")
    assert targets(Q0, target_modules=r".*\.0\..*")
    assert not targets(V1, target_modules=r".*\.0\..*")
    assert not targets(V1, layers_to_transform=0)
    assert targets(V1, layers_to_transform=[0, 1], layers_pattern="layers")
    assert not targets(V1, layers_to_transform=[0, 1], layers_pattern=["blocks"])
    assert targets("anything", target_modules=None)


def test_config_is_the_demo_adapters(export: Path) -> None:
    adapter = PeftAdapter(export / "summarize")
    assert len(adapter.modules) == 210
    assert {facts.scaling for facts in adapter.modules.values()} == {0.5}
    recorded = json.loads((export / "summarize" / "adapter_config.json").read_text())
    assert adapter.base_model_name == recorded["base_model_name_or_path"]


@pytest.mark.parametrize("dot", [".", r"\."])
def test_one_pattern_per_module_of_a_large_model(tmp_path: Path, rng: np.random.Generator, dot: str) -> None:
    """EVA and conversions write such files: 560 modules, 560 patterns. They are no bombs."""
    modules = {f"model.layers.{i}.mlp.{part}_proj": (4, 4) for i in range(187) for part in ("up", "gate", "down")}
    patterns = {module.replace(".", dot): 4 for module in modules}
    write_adapter(tmp_path, random_tensors(rng, modules), rank_pattern=patterns, target_modules=r".*?\.mlp\..*?_proj")
    assert len(PeftAdapter(tmp_path).modules) == 561
