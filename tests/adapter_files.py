"""PEFT adapter directories made by hand, for tests that bend one thing at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "some/base",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
MODULES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in {"q_proj": (12, 8), "v_proj": (6, 8)}.items()
}


def tensor_name(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"


def random_tensors(
    rng: np.random.Generator,
    modules: dict[str, tuple[int, int]] = MODULES,
    rank: int = 4,
    dtype: type[np.floating[Any]] = np.float32,
) -> dict[str, np.ndarray]:
    """lora_A (rank, k) and lora_B (d, rank) for modules {path: (d, k)}."""
    tensors = {}
    for module, (d, k) in modules.items():
        tensors[tensor_name(module, "A")] = rng.normal(size=(rank, k)).astype(dtype)
        tensors[tensor_name(module, "B")] = rng.normal(size=(d, rank)).astype(dtype)
    return tensors


def write_adapter(directory: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """Write both files; `config` overrides CONFIG."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory
