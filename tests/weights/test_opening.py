"""`open_checkpoint`: every kind of model by what it is, advice for the rest, and paths told apart from hub ids."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgecal_weights import opening
from edgecal_weights.errors import FileFormatError, HubError, ModelNotFoundError, UnsupportedModelError
from edgecal_weights.hub import _model_files
from edgecal_weights.opening import locate, open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint

from ..adapter_files import random_tensors, write_adapter
from .hf_files import write_hf
from .samples import weights, write_gguf


@pytest.fixture
def model(tmp_path, rng):
    return write_hf(tmp_path / "model", weights("llama", rng))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_kind_of_model(tmp_path, model, rng):
    gguf = write_gguf(tmp_path / "without-ending", "llama", weights("llama", rng))
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.kind == "huggingface"
        quantize_checkpoint(checkpoint, tmp_path / "packed")
    for path, kind, opened in (
        (str(model), "huggingface", model),
        (model / "config.json", "huggingface", model),
        (tmp_path / "packed", "packed", tmp_path / "packed"),
        (tmp_path / "packed" / "config.json", "packed", tmp_path / "packed"),
        (gguf, "gguf", gguf),
    ):
        with open_checkpoint(path) as checkpoint:
            assert (checkpoint.kind, checkpoint.path) == (kind, opened)
            checkpoint.read("model.norm.weight")


def test_refusals_with_advice(tmp_path):
    def refused(kind, message):
        with pytest.raises(kind, match=message):
            open_checkpoint(tmp_path)

    refused(ModelNotFoundError, r"config\.json is not there")
    (tmp_path / "config.json").write_text("{}")
    refused(ModelNotFoundError, r"\*\.safetensors is not there")
    (tmp_path / "pytorch_model.bin").touch()
    refused(UnsupportedModelError, "runs whatever code.*save_pretrained")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    refused(UnsupportedModelError, "PEFT adapter, not a model.*base model")
    zeros = {"x": np.zeros(2, np.float32)}
    save_file({"base_model.model.x.lora_A.weight": zeros["x"]}, tmp_path / "adapter_model.safetensors")
    save_file({"model.layers.0.x": zeros["x"]}, tmp_path / "part.safetensors")
    save_file(zeros, tmp_path / "tensors.safetensors")
    save_file(zeros, tmp_path / "calibration.safetensors", {"format": "edgecal-calibration"})
    (tmp_path / "notes.txt").write_text("hello")
    for name, message in {
        "adapter_model.safetensors": "a PEFT adapter's weights, not a model; give it as an adapter",
        "adapter_config.json": "the configuration of an adapter, not a model",
        "part.safetensors": "weights of a model; give the directory",
        "tensors.safetensors": "give the directory",
        "calibration.safetensors": "is a calibration, not a model",
        "pytorch_model.bin": "is a pickle, not a model. Loading a pickle runs",
        "notes.txt": "is nothing that edgecal knows: expected a GGUF",
    }.items():
        with pytest.raises(UnsupportedModelError, match=f"{name} is .*{message}|{name} {message}"):
            open_checkpoint(tmp_path / name)


def test_a_directory_with_gguf_files(tmp_path, rng):
    write_gguf(tmp_path / "m.Q8_0.gguf", "llama", weights("llama", rng))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.kind == "gguf"
    shutil.copy(tmp_path / "m.Q8_0.gguf", tmp_path / "m.Q4_0.gguf")
    with pytest.raises(
        FileFormatError, match=r"several GGUF files, name one of them: m\.Q4_0\.gguf, m\.Q8_0\.gguf"
    ):
        open_checkpoint(tmp_path)


def test_a_model_and_an_adapter_in_one_directory(tmp_path, model, rng):
    """transformers applies the adapter; neither the base alone nor a guess will do."""
    write_adapter(model, random_tensors(rng))
    with pytest.raises(UnsupportedModelError, match=f"transformers would apply.*Give {model}/config.json as the model"):
        open_checkpoint(model)
    with open_checkpoint(model / "config.json") as checkpoint:
        assert checkpoint.kind == "huggingface" and not any("lora" in name for name in checkpoint.names())
    folder = write_adapter(tmp_path / "gguf", random_tensors(rng))
    gguf = write_gguf(folder / "m.gguf", "llama", weights("llama", rng))
    with pytest.raises(UnsupportedModelError, match="Give the .gguf in it as the model"):
        open_checkpoint(folder)
    with open_checkpoint(gguf) as checkpoint:
        assert checkpoint.kind == "gguf"


def test_an_adapter_in_a_repository_of_a_model_is_fetched_to_be_seen():
    files = ["config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt"]
    assert set(_model_files("org/name", None, files)) == set(files[:-1])
    assert set(_model_files("org/name", None, [*files[:2], files[3]])) == set(files[:2])


# ------------------------------------------------------------------------------------------------- paths and hub ids


@pytest.mark.parametrize("model_id", ["org/some-Model.v1", "org/name:Q4_K_M"])
def test_hub_ids_are_handed_on(model, monkeypatch, model_id):
    asked = []

    def download(model_id, **options):
        asked.append((model_id, options))
        return model

    monkeypatch.setattr(opening, "download", download)
    with open_checkpoint(model_id, revision="abc", offline=True) as checkpoint:
        assert checkpoint.path == model
    assert asked == [(model_id, {"revision": "abc", "offline": True, "progress": None})]


def unreachable(hub_id):
    raise AssertionError(f"{hub_id} was taken for a hub id")


@pytest.mark.parametrize("path", ["no_such_model", "./a/b", "a/b/c", "org/name:", "/nowhere/x", "org/", "~/no/such"])
def test_what_cannot_be_a_hub_id(here, path):
    with pytest.raises(ModelNotFoundError, match="no such file or directory.*hub id of the form org/name"):
        locate(path, unreachable)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("models/llama", r" .did you mean 'models/Llama-3'.."),
        ("models/Llama3", r" .did you mean 'models/Llama-3'.."),
        ("models/other", r" .models has Llama-3."),
        ("models/llama:Q4_0", r" .did you mean 'models/Llama-3'.."),
        ("org/model.gguf", " .there is no .*/org."),
        ("org/model.safetensors", " .there is no .*/org."),
        ("org/config.json", " .there is no .*/org."),
        ("org/pytorch_model.bin", " .there is no .*/org."),
    ],
)
def test_a_mistyped_path_is_not_taken_for_a_hub_id(here, path, hint):
    (here / "models" / "Llama-3").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match=f"{path}: no such file or directory{hint}.*--revision main"):
        locate(path, unreachable)
    assert locate(path, lambda hub_id: here / hub_id, certain=True) == here / path
    with pytest.raises(ModelNotFoundError, match="no such file or directory"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", [ModelNotFoundError, HubError])
def test_what_the_hub_does_not_have_is_not_here_either(here, kind):
    def fetch(hub_id):
        raise kind(f"no {hub_id} on the hub")

    with pytest.raises(kind, match="no modles/llama on the hub. Nor is there a file or directory modles/llama here"):
        locate("modles/llama", fetch)


@pytest.mark.parametrize(
    "path", ["x" * 5000, "~nobody-of-this-name/x", "a\0b"], ids=["too long", "a home that nobody has", "a NUL"]
)
def test_paths_that_cannot_be(here, path):
    with pytest.raises(ModelNotFoundError, match="cannot be opened|no such file"):
        locate(path, unreachable)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_name_that_is_not_utf8(tmp_path, rng, shards):
    """As the command line gives it: bytes that are no text become half surrogates."""
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    write_hf(folder, weights("llama", rng), shards=shards)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tokenizer().get_vocab_size() == 48
        assert checkpoint.tokenizer_config()["eos_token"] == "</s>"
        quantize_checkpoint(checkpoint, folder / "packed")
    with open_checkpoint(folder / "packed") as checkpoint:
        assert checkpoint.tokenizer().get_vocab_size() == 48
        json.dumps(checkpoint.source)
        checkpoint.read("lm_head.weight")
    with pytest.raises(ModelNotFoundError, match="no such file or directory"):
        open_checkpoint(folder / "gone")
