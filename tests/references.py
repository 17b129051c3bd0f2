"""Reference files for tests, of what an engine itself computes: right by construction, to be made wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgecal import Engine, Recipe
from edgecal.adapters.calibration import BASE_FACTS
from edgecal.cache import KVCache
from edgecal.decoding.generate import decode

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
TEXT = "The meeting is on Monday."


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reference_parts(engine: Engine, recipe: Recipe, thin: int = 1) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, metadata with JSON values not yet written as text) of a whole reference file."""
    (merged,), (compiled,) = engine.merge(recipe), engine.compile(recipe)
    rng = np.random.default_rng(5)
    tensors: dict[str, np.ndarray] = {}
    for module in MODULES:
        linear = engine.model.linears[module]
        if merged is not None:
            pair = merged.pairs[module]
            tensors[f"delta/{module}"] = (pair.b.astype(np.float64) @ pair.a).astype(np.float32)[::thin].copy()
        x = rng.standard_normal((3, linear.shape[1])).astype(np.float32)
        tensors[f"input/{module}/one"] = x
        tensors[f"output/{module}/one"] = linear(engine.model.ops.Activations(x), compiled)[:, ::thin].copy()
    ids = engine.encode(TEXT)
    cache = KVCache(engine.model.config, "fp32")
    logits = engine.model.forward(np.array(ids), cache, compiled, all_logits=True)[-4:]
    answer = [int(logits[-1].argmax())]
    while len(answer) < 5:
        answer.append(int(decode(engine.model, answer[-1], cache, compiled).argmax()))
    tensors["input_ids/one"] = np.array(ids)
    tensors["logits_last4/one"] = logits[:, ::thin].copy()
    tensors["greedy_ids/one"] = np.array(answer)
    adapters = [{"name": name, "sha256": engine.adapters[name].sha256} for name in recipe.adapters]
    metadata = {
        "format": "edgecal-reference",
        "version": "1",
        "method": recipe.method,
        "adapters": adapters,
        "calibration": Path(recipe.calibration).name if recipe.calibration else "",
        "base_model": {"name": "tiny", **{fact: engine.base[fact] for fact in BASE_FACTS}},
        "dtype": "float32",
        "thin": str(thin),
        "cases": {"one": {"text": TEXT}},
    }
    return tensors, metadata


def write_reference(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Path:
    """None among the metadata leaves a key out."""
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items() if v is not None}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, text)
    return path
