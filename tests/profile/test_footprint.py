"""Bytes against the files and against /proc."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgecal import Engine, KVCache
from edgecal.profile.footprint import memory_now, model_facts, weights_resident
from edgecal_kernels.bandwidth import plain_read
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.tiny import write_tiny_hf

PAGE = 4096


@pytest.mark.parametrize("family", ["llama", "qwen2", "stablelm"])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_arrays_are_all_weights(tmp_path, family, weights):
    engine = Engine.load(write_tiny_hf(tmp_path / family, family), weights=weights)
    facts, model = model_facts(engine, "x"), engine.model
    assert sum(x.nbytes for x in model.arrays.values()) == model.weight_bytes == facts.weight_bytes
    assert sum(facts.formats.values()) == facts.weight_bytes
    if weights == "fp32":  # to the byte what lies in the file
        with open_checkpoint(tmp_path / family) as checkpoint:
            assert facts.weight_bytes == checkpoint.tensor_bytes()
    table = 0 if model.config.tie_word_embeddings else model.embed_tokens.nbytes
    assert facts.read_bytes == facts.weight_bytes - table
    c = model.config
    products = sum(d * k for d, k in model.linear_shapes.values()) + c.vocab_size * c.hidden_size
    assert facts.operations == 2 * products
    assert facts.position_bytes == 2 * c.n_layers * c.n_kv_heads * 16 * 2  # keys and values, 16 wide, float16
    assert KVCache(c).nbytes == 0


def test_mapped_weights_count_as_far_as_they_were_touched(tmp_path):
    """Of a packed model nothing is resident before it is read (but what checks touched); then all of it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("asks /proc")
    source = write_tiny_hf(tmp_path / "hf", hidden_size=256, intermediate_size=1024, vocab_size=2048)
    quantize_checkpoint_to(source, tmp_path / "packed")
    engine = Engine.load(tmp_path / "packed")
    model = engine.model
    for weight in model.arrays.values():
        for array in (weight.codes, weight.scale) if hasattr(weight, "codes") else (weight,):
            np.asarray(array).sum()
    after, weights = memory_now(model)[1], model.weight_bytes
    assert after == pytest.approx(weights, abs=2 * PAGE)
    size = Path(tmp_path / "packed" / PACKED_FILE).stat().st_size
    assert weights <= size <= weights * 1.1 + 64 * PAGE


def quantize_checkpoint_to(source: Path, target: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        quantize_checkpoint(checkpoint, target, format="int8")


def test_owned_weights_are_resident_whole(engine):
    assert weights_resident(engine.model) == engine.model.weight_bytes


def test_the_plain_read_reads_every_word(rng):
    words = rng.integers(0, 2**63, 100_003, dtype=np.uint64)
    assert plain_read()(words) == int(np.bitwise_xor.reduce(words))
    words[77_777] ^= np.uint64(1 << 40)
    assert plain_read()(words) == int(np.bitwise_xor.reduce(words))
