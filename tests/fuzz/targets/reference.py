"""A reference file of `edgecal verify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecal_weights.reference_file import ReferenceFile
from tests.references import write_reference

from ..mutate import safetensors
from ..target import Target


def prepare(folder: Path) -> list[bytes]:
    tensors = {
        "delta/model.layers.0.self_attn.q_proj": np.ones((4, 4), np.float32),
        "input_ids/one": np.arange(3),
        "logits_last4/one": np.ones((3, 8), np.float32),
        "greedy_ids/one": np.arange(2),
    }
    base = {"name": "tiny", "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 8}
    metadata = {
        "format": "edgecal-reference", "version": "1", "method": "linear", "base_model": base, "dtype": "float32",
        "adapters": [{"name": "a", "sha256": "0" * 64}], "weights": [1.0], "options": {"density": 0.5}, "thin": "1",
        "cases": {"one": {"text": "Hello", "n_new_tokens": 2}},
    }  # fmt: skip
    return [write_reference(folder / "good.safetensors", tensors, metadata).read_bytes()]


def run(data: bytes, folder: Path) -> None:
    path = folder / "reference.safetensors"
    path.write_bytes(data)
    with ReferenceFile(path) as file:
        for kind in ("input_ids", "greedy_ids"):
            for case in file.of(kind):
                file.ids(f"{kind}/{case}")
        for kind in ("delta", "input", "output", "logits_last4"):
            for case in file.of(kind):
                file.read(f"{kind}/{case}")


TARGET = Target(run, prepare, safetensors)
