"""What a configuration names, loaded: the adapters and calibrations that there are, and the engine."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from edgecal_weights.files import file_sha256
from edgecal_weights.opening import open_checkpoint

from .. import __version__, demo
from ..adapters.calibration import Calibration
from ..adapters.lora import LoraAdapter
from ..architecture import expected_shapes
from ..config import ModelConfig
from ..engine import Engine
from .config import EvalConfig
from .methods import Inventory


def load_inventory(config: EvalConfig) -> Inventory:
    """Adapters and calibrations, without the model. Raises what loading them raises."""
    adapters = {name: LoraAdapter.load(demo.find(path), name) for name, path in config.adapters.items()}
    joint = {name: LoraAdapter.load(demo.find(path), f"joint {name}") for name, path in config.joint.items()}
    return Inventory(adapters, joint, {path: Calibration.load(demo.find(path)) for path in config.calibrations})


def load_engine(config: EvalConfig, **options: Any) -> Engine:
    """The model with every adapter that the configuration names; `options` are those of `Engine.load`. Raises what
    loading them raises."""
    engine = Engine.load(config.model, weights=config.weights, cache_dtype=config.cache_dtype, **options)
    for name, path in config.adapters.items():
        engine.add_adapter(path, name)
    for name, path in config.joint.items():
        engine.add_adapter(path, f"joint {name}")
    return engine


def model_size(config: EvalConfig) -> int:
    """Parameters of the base."""
    with open_checkpoint(demo.find(config.model)) as checkpoint:
        shapes = expected_shapes(ModelConfig.of(checkpoint))
    return sum(math.prod(shape) for shape in shapes.values())


def fingerprint(config: EvalConfig, inventory: Inventory) -> str:
    """16 hex digits, equal when the same answers can be expected: the model's files, adapters, calibrations, prompts,
    settings and the version of edgecal."""
    digest = hashlib.sha256(f"{__version__} {config.digest}".encode())
    model = Path(demo.find(config.model)).expanduser()
    files = [model] if model.is_file() else sorted(model.glob("*")) if model.is_dir() else []
    for file in files:
        if file.suffix in (".gguf", ".safetensors", ".json") and file.is_file():
            digest.update(f"{file.name} {file_sha256(file)}".encode())
    for name, adapter in sorted({**inventory.adapters, **inventory.joint}.items()):
        digest.update(f"{name} {adapter.sha256}".encode())
    for path in sorted(inventory.calibrations):
        digest.update(file_sha256(demo.find(path)).encode())
    return digest.hexdigest()[:16]
