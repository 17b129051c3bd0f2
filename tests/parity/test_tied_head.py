"""A configuration that ties the head, and files that say otherwise: edgecal does as transformers."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from edgecal.cache import KVCache
from edgecal.engine import Engine
from edgecal.inspection.report import inspect
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint

from ..tiny import write_tiny_hf

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
IDS = np.array([5, 80, 17, 200, 33])


def differs(tensors):
    tensors[HEAD] = np.roll(tensors[EMBEDDING], 3, axis=0)


def last_number_differs(tensors):
    tensors[HEAD] = tensors[EMBEDDING].copy()
    tensors[HEAD][-1, -1] += np.float32(3)


def copy(tensors):
    tensors[HEAD] = tensors[EMBEDDING].copy()


def head_only(tensors):
    """As safetensors.torch.save_model leaves it: of two names for one tensor, the first of the alphabet."""
    tensors[HEAD] = tensors.pop(EMBEDDING)


def embedding_only(tensors):
    pass


@pytest.mark.parametrize("family", ["llama", "qwen2", "stablelm"])
@pytest.mark.parametrize("change", [differs, last_number_differs, copy, head_only, embedding_only])
def test_the_head_is_that_of_transformers(tmp_path, monkeypatch, family, change):
    monkeypatch.setattr("edgecal_weights.huggingface._COMPARED", 1000)  # several blocks
    path = write_tiny_hf(tmp_path / "model", family, tie_word_embeddings=True)
    tensors = load_file(path / "model.safetensors")
    parameters = sum(w.size for w in tensors.values())
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS[None])).logits[0].numpy()
    tied = theirs.lm_head.weight is theirs.model.embed_tokens.weight

    engine = Engine.load(path, backend="numpy", weights="fp32")
    assert engine.model.config.tie_word_embeddings is tied
    logits = engine.model.forward(IDS, KVCache(engine.model.config, "fp32"), None, all_logits=True)
    np.testing.assert_allclose(logits, wanted, atol=2e-4)

    report = inspect(path)
    head = 0 if tied else tensors[HEAD].size
    assert (report.refusal, report.sizes["tie_word_embeddings"]) == (None, tied)
    assert report.parameters == parameters + head
    with open_checkpoint(path) as checkpoint:
        quantize_checkpoint(checkpoint, tmp_path / "packed", format="int8", embedding_format="fp32")
    with open_checkpoint(tmp_path / "packed") as packed:
        assert (HEAD in packed.names()) is not tied and packed.config["tie_word_embeddings"] is tied
        np.testing.assert_array_equal(packed.read(HEAD if not tied else EMBEDDING), theirs.lm_head.weight.detach())
    packed = Engine.load(tmp_path / "packed", backend="numpy")
    found = packed.model.forward(IDS, KVCache(packed.model.config, "fp32"), None, all_logits=True)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(("change", "tied"), [(differs, False), (copy, True), (embedding_only, True)])
def test_a_configuration_that_does_not_say(tmp_path, change, tied):
    path = write_tiny_hf(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (path / "config.json").write_text(json.dumps(config))
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    engine = Engine.load(path, backend="numpy", weights="fp32")
    assert engine.model.config.tie_word_embeddings is tied
    np.testing.assert_array_equal(engine.model.lm_head.weight, tensors[HEAD if HEAD in tensors else EMBEDDING])
