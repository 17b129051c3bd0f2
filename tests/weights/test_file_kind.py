"""What is at a path, by its content: the kinds of files and directories, whatever they are called."""

from __future__ import annotations

import os
import pickle
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from edgecal_weights.errors import FileFormatError, ModelNotFoundError
from edgecal_weights.file_kind import Kind, describe, ggufs, identify, identify_adapter, identify_model
from edgecal_weights.huggingface import HFCheckpoint
from edgecal_weights.quantizer import quantize_checkpoint

from ..adapter_files import random_tensors, write_adapter
from .hf_files import write_hf
from .samples import weights, write_gguf


@pytest.fixture
def model(tmp_path, rng):
    return write_hf(tmp_path / "model", weights("llama", rng))


@pytest.fixture
def adapter(tmp_path, rng):
    return write_adapter(tmp_path / "adapter", random_tensors(rng))


def tensors_of(path, name, **metadata):
    save_file({name: np.zeros((2, 2), np.float32)}, path, metadata or None)
    return path


def test_directories(tmp_path, model, adapter, rng):
    assert identify(model) is Kind.HUGGINGFACE
    assert identify(adapter) is Kind.ADAPTER
    with HFCheckpoint(model) as checkpoint:
        quantize_checkpoint(checkpoint, tmp_path / "packed")
    assert identify(tmp_path / "packed") is Kind.PACKED
    (tmp_path / "ggufs").mkdir()
    write_gguf(tmp_path / "ggufs" / "m.GGUF", "llama", weights("llama", rng))
    assert identify(tmp_path / "ggufs") is Kind.GGUF_DIRECTORY
    (tmp_path / "empty").mkdir()
    assert identify(tmp_path / "empty") is Kind.DIRECTORY
    (tmp_path / "empty" / "config.json").touch()
    assert identify(tmp_path / "empty") is Kind.WITHOUT_WEIGHTS
    (tmp_path / "empty" / "pytorch_model-00001-of-00002.bin").touch()
    assert identify(tmp_path / "empty") is Kind.PICKLED_MODEL


@pytest.mark.parametrize("weights_file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_model_and_an_adapter_in_one_directory(tmp_path, model, adapter, rng, weights_file):
    (model / weights_file).touch()
    assert identify(model) is Kind.HUGGINGFACE  # what makes an adapter is its configuration, as in transformers
    shutil.copy(adapter / "adapter_config.json", model)
    assert identify(model) is Kind.MODEL_AND_ADAPTER and identify_model(model) is Kind.HUGGINGFACE
    (model / weights_file).unlink()
    assert identify(model) is Kind.HUGGINGFACE
    write_gguf(adapter / "m.gguf", "llama", weights("llama", rng))
    assert identify(adapter) is Kind.MODEL_AND_ADAPTER and identify_model(adapter) is Kind.GGUF_DIRECTORY


@pytest.mark.parametrize("name", ["file.safetensors", "file", "file.bin", "file.gguf", "file.json"])
def test_safetensors_by_their_metadata_whatever_their_name(tmp_path, name):
    path = tmp_path / name
    for format, kind in {
        "edgecal-calibration": Kind.CALIBRATION,
        "edgecal-reference": Kind.REFERENCE,
        "edgecal-packed": Kind.PACKED_WEIGHTS,
    }.items():
        assert identify(tensors_of(path, "x", format=format)) is kind
    assert identify(tensors_of(path, "base_model.model.x.lora_A.weight", format="pt")) is Kind.ADAPTER_WEIGHTS
    assert identify(tensors_of(path, "model.layers.0.x.weight")) is Kind.MODEL_WEIGHTS
    assert identify(tensors_of(path, "x")) is Kind.TENSORS


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """Its first bytes are the length: 0x80 0x02 begins a pickle, too, and "PK" a zip archive."""
    for length in (0x0280, 0x4B50):
        path = tensors_of(tmp_path / "x", "model.layers.0.w", padding="")
        header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")].rstrip()
        path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(16))
        assert identify(path) is Kind.MODEL_WEIGHTS


@pytest.mark.parametrize("name", ["m.gguf", "m", "sha256-0a1b", "m.bin", "m.safetensors.old"])
def test_a_gguf_by_its_first_bytes(tmp_path, rng, name):
    assert identify(write_gguf(tmp_path / name, "llama", weights("llama", rng))) is Kind.GGUF


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles(tmp_path, protocol):
    (tmp_path / "x").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    torch.save({"a": torch.ones(1)}, tmp_path / "y")
    (tmp_path / "z.pt").touch()
    for name in ("x", "y", "z.pt"):
        assert identify(tmp_path / name) is Kind.PICKLE
        assert "pickle. Loading a pickle runs whatever code is in it" in str(describe(tmp_path / name))


def gguf_adapter(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_adapters_of_llama_cpp(tmp_path, model, rng):
    folder = tmp_path / "ggufs"
    folder.mkdir()
    for name in ("lora.gguf", "lora"):
        assert identify(gguf_adapter(folder / name)) is Kind.GGUF_ADAPTER
    assert identify(folder) is identify_adapter(folder) is Kind.GGUF_ADAPTER_DIRECTORY
    assert identify_model(folder) is Kind.DIRECTORY
    write_gguf(folder / "model.gguf", "llama", weights("llama", rng))
    assert identify(folder) is identify_model(folder) is Kind.GGUF_DIRECTORY
    assert ggufs(folder) == ["model.gguf"] and ggufs(folder, adapters=True) == ["lora.gguf"]
    shutil.copy(folder / "lora.gguf", model)
    assert identify(model) is Kind.HUGGINGFACE and identify_adapter(model) is Kind.GGUF_ADAPTER_DIRECTORY
    for name in ("cut.gguf", "cut"):
        (tmp_path / name).write_bytes((folder / "lora.gguf").read_bytes()[:50])
        assert identify(tmp_path / name) is Kind.DAMAGED_GGUF


def test_adapters_of_mlx(tmp_path, model):
    folder = tmp_path / "mlx"
    folder.mkdir()
    for name in ("adapters.safetensors", "0000100_adapters.safetensors"):
        assert identify(tensors_of(folder / name, "model.layers.0.mlp.up_proj.lora_a")) is Kind.MLX_WEIGHTS
    (folder / "config.json").write_text("{}")
    assert identify(folder) is Kind.MLX_ADAPTER and identify_model(folder) is Kind.WITHOUT_WEIGHTS
    for file in folder.glob("*.safetensors"):
        shutil.copy(file, model)
    (model / "adapter_config.json").write_text("{}")
    assert identify(model) is Kind.HUGGINGFACE and identify_adapter(model) is Kind.MLX_ADAPTER
    with HFCheckpoint(model) as checkpoint:
        assert not any("lora" in name for name in checkpoint.names())


def test_configurations_by_their_content(tmp_path, model, adapter):
    for name, source, kind in (
        ("a.json", model / "config.json", Kind.MODEL_CONFIG),
        ("b.json", adapter / "adapter_config.json", Kind.ADAPTER_CONFIG),
        ("c.json", model / "tokenizer_config.json", Kind.UNKNOWN),
    ):
        shutil.copy(source, tmp_path / name)
        assert identify(tmp_path / name) is kind
    for content in ("{", "[1]", "\xff"):
        (tmp_path / "d.json").write_text(content, "latin-1")
        assert identify(tmp_path / "d.json") is Kind.UNKNOWN


def test_other_files_and_what_is_not_there(tmp_path, model, adapter):
    assert identify(model / "config.json") is Kind.MODEL_CONFIG
    assert identify(adapter / "adapter_config.json") is Kind.ADAPTER_CONFIG
    for name, content in {"empty": b"", "notes.txt": b"hello", "short": b"GGU"}.items():
        (tmp_path / name).write_bytes(content)
        assert identify(tmp_path / name) is Kind.UNKNOWN and describe(tmp_path / name) is None
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(FileFormatError, match="cut.safetensors"):
        identify(tmp_path / "cut.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="not a regular file"):
        identify(tmp_path / "pipe")
    for path in (tmp_path / "gone", "~nobody-of-this-name/x"):
        with pytest.raises(ModelNotFoundError):
            identify(path)
        assert describe(path) is None
