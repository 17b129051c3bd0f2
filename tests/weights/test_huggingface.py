"""Hugging Face directories in every spelling, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, StableLmConfig

from edgecal_kernels.errors import EdgecalError
from edgecal_weights.errors import FileFormatError, ModelNotFoundError, UnsupportedModelError
from edgecal_weights.hf_config import normalize_config
from edgecal_weights.huggingface import HFCheckpoint
from edgecal_weights.opening import open_checkpoint

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_json(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def model_dir(tmp_path):
    """A two-shard Llama with tokenizer, written by hand: {name: tensor} is returned too."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {
        "model-00001-of-00002.safetensors": {
            "model.embed_tokens.weight": torch.randn(64, 32).bfloat16(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(4),
        },
        "model-00002-of-00002.safetensors": {
            "model.norm.weight": torch.randn(32),
            "lm_head.weight": torch.randn(64, 32).half(),
        },
    }
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", {"model_type": "llama", **SMALL})
    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(folder / "tokenizer.json"))
    return folder, {name: t.float().numpy() for tensors in shards.values() for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_directories_written_by_transformers(tmp_path, dtype):
    """transformers' own save_pretrained, in many shards, for all three families."""
    torch.manual_seed(1)
    for config in (
        LlamaConfig(**SMALL, rope_parameters={**LLAMA3, "rope_theta": 500000.0}, tie_word_embeddings=True),
        Qwen2Config(**SMALL),
        StableLmConfig(**SMALL, use_qkv_bias=True),
    ):
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        folder = tmp_path / config.model_type
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        state = model.state_dict()
        if config.tie_word_embeddings:
            del state["lm_head.weight"]
        with open_checkpoint(folder) as checkpoint:
            assert checkpoint.kind == "huggingface" and set(checkpoint.names()) == set(state)
            for name, tensor in state.items():
                np.testing.assert_array_equal(checkpoint.read(name), tensor.float().numpy())
                assert checkpoint.shape(name) == tuple(tensor.shape) and checkpoint.counterpart(name) is None
            assert checkpoint.tensor_bytes() == sum(t.numel() * t.element_size() for t in state.values())
            assert checkpoint.config["tie_word_embeddings"] is config.tie_word_embeddings
            assert checkpoint.config["dtype"] == str(dtype).removeprefix("torch.")
            assert "rope_parameters" not in checkpoint.config
            if config.model_type == "llama":
                assert checkpoint.config["rope_theta"] == 500000.0
                assert checkpoint.config["rope_scaling"] == LLAMA3
            if config.model_type == "stablelm":
                assert checkpoint.config["partial_rotary_factor"] == 0.25
                assert checkpoint.config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"rope_theta": 5.0, "rope_scaling": None}, {"rope_theta": 5.0, "rope_scaling": None}),
        ({"rope_theta": 5.0}, {"rope_theta": 5.0}),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
            {"rope_theta": 5.0, "rope_scaling": None},
        ),
        ({"rope_parameters": {"rope_theta": 5.0, **LLAMA3}}, {"rope_theta": 5.0, "rope_scaling": LLAMA3}),
        ({"rope_theta": 5.0, "rope_scaling": LLAMA3}, {"rope_theta": 5.0, "rope_scaling": LLAMA3}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
            {"rope_theta": 5.0, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        ({"rope_pct": 0.25}, {"partial_rotary_factor": 0.25, "rope_pct": 0.25}),
        ({"torch_dtype": "torch.float16"}, {"dtype": "float16"}),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
    ],
)
def test_both_spellings_of_the_configuration(tmp_path, written, expected):
    assert normalize_config(written, tmp_path) == expected


@pytest.mark.parametrize("written", [{"rope_scaling": 4}, {"rope_parameters": []}])
def test_configurations_that_make_no_sense(tmp_path, written):
    with pytest.raises(FileFormatError, match="rope_"):
        normalize_config(written, tmp_path)


def test_ropes_by_layer_type(tmp_path):
    full, local = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    found = normalize_config({"rope_parameters": {"full_attention": full, "sliding_attention": local}}, tmp_path)
    assert found == {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }


@pytest.mark.parametrize(
    "written",
    [
        {"full_attention": {"rope_theta": 1.0}, "chunked_attention": {"rope_theta": 2.0}},
        {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
    ],
)
def test_other_ropes_by_layer_type_are_refused(tmp_path, written):
    with pytest.raises(UnsupportedModelError, match="full_attention"):
        normalize_config({"rope_parameters": written}, tmp_path)


def test_shards(model_dir):
    folder, tensors = model_dir
    hidden = "model.layers.0.self_attn.rotary_emb.inv_freq"
    with open_checkpoint(str(folder)) as checkpoint:
        assert set(checkpoint.names()) == set(tensors) - {hidden}
        for name in checkpoint.names():
            np.testing.assert_array_equal(checkpoint.read(name), tensors[name])
        np.testing.assert_array_equal(
            checkpoint.read_rows("lm_head.weight", 10, 12), tensors["lm_head.weight"][10:12]
        )
        stored = {checkpoint.stored_type(name) for name in checkpoint.names()}
        assert stored == {"BF16", "F32", "F16"}
        assert checkpoint.config["tie_word_embeddings"] is False and checkpoint.generation_config == {}
        with pytest.raises(FileFormatError, match=r"has no tensor model\.nope"):
            checkpoint.read("model.nope")
        with pytest.raises(EdgecalError, match="no packed counterpart"):
            checkpoint.packed("lm_head.weight")
        assert checkpoint.tokenizer().get_vocab_size() == 3


def test_a_missing_shard_is_named(model_dir):
    folder, _ = model_dir
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 of 2 shards: model-00002-of-00002\.safetensors"):
        HFCheckpoint(folder)


def test_a_tensor_missing_from_its_shard_is_named(model_dir):
    folder, _ = model_dir
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(FileFormatError, match=r"00002\.safetensors has no tensor lm_head\.weight"):
        HFCheckpoint(folder)


def test_a_truncated_shard_is_named(model_dir):
    folder, _ = model_dir
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(
        FileFormatError, match=r"model-00001-of-00002\.safetensors is truncated: model\.embed_tokens"
    ):
        HFCheckpoint(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..\\x.safetensors",
        "pickle.bin",
        7,
        "",
        ".x.safetensors",
    ],
)
def test_index_entries_with_path_tricks(model_dir, file):
    folder, _ = model_dir
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "model.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"lm_head.weight": file}})
    with pytest.raises(FileFormatError, match=r"lm_head\.weight is said to lie in"):
        HFCheckpoint(folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_broken_index(model_dir, index):
    folder, _ = model_dir
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(FileFormatError, match=r"model\.safetensors\.index\.json"):
        HFCheckpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\udcff"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_broken_json(model_dir, file, text):
    folder, _ = model_dir
    (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FileFormatError, match=file.replace(".", r"\.")):
        HFCheckpoint(folder)


def test_several_files_without_an_index(model_dir):
    folder, _ = model_dir
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelNotFoundError, match="2 safetensors files"):
        HFCheckpoint(folder)


def test_names_without_the_prefix(tmp_path):
    tensors = {"embed_tokens.weight": torch.ones(4, 2), "norm.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with HFCheckpoint(tmp_path) as checkpoint:
        assert set(checkpoint.names()) == {"model.embed_tokens.weight", "model.norm.weight"}
        assert checkpoint.read("model.norm.weight").tolist() == [1, 1]
        assert checkpoint.config["tie_word_embeddings"] is True


def test_quantized_checkpoints_are_refused_by_name(model_dir):
    folder, _ = model_dir
    write_json(
        folder / "config.json", {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    )
    with pytest.raises(UnsupportedModelError, match="'gptq'"):
        open_checkpoint(folder)


def test_tokenizer_that_is_missing_or_broken(model_dir):
    folder, _ = model_dir
    with HFCheckpoint(folder) as checkpoint:
        write_json(folder / "tokenizer.json", '{"model": {"type": "nonsense"}}')
        with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
            checkpoint.tokenizer()
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelNotFoundError, match="save_pretrained"):
            checkpoint.tokenizer()


def test_chat_template_in_every_place(model_dir):
    folder, _ = model_dir
    config = folder / "tokenizer_config.json"
    with HFCheckpoint(folder) as checkpoint:
        assert checkpoint.tokenizer_config() == {}
        write_json(folder / "chat_template.json", {"chat_template": "third"})
        assert checkpoint.tokenizer_config()["chat_template"] == "third"
        write_json(config, {"chat_template": "second", "bos_token": None})
        assert checkpoint.tokenizer_config()["chat_template"] == "second"
        (folder / "chat_template.jinja").write_text("first")
        assert checkpoint.tokenizer_config()["chat_template"] == "first"
        (folder / "chat_template.jinja").unlink()
        named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
        write_json(config, {"chat_template": named})
        assert checkpoint.tokenizer_config()["chat_template"] == named
        write_json(config, {"chat_template": named[:1]})
        assert checkpoint.tokenizer_config()["chat_template"] == "t"
        for broken in (7, [{"name": "x"}], ["x"], [{"name": 1, "template": "t"}]):
            write_json(config, {"chat_template": broken})
            with pytest.raises(FileFormatError, match="chat_template"):
                checkpoint.tokenizer_config()


def test_special_tokens_are_plain_strings(model_dir):
    folder, _ = model_dir
    write_json(folder / "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "add_bos_token": True})
    write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "</s>"}})
    with HFCheckpoint(folder) as checkpoint:
        assert checkpoint.tokenizer_config() == {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "add_bos_token": True,
        }
        write_json(folder / "special_tokens_map.json", {"eos_token": 5})
        with pytest.raises(FileFormatError, match="eos_token"):
            checkpoint.tokenizer_config()
