"""edgecal: compositional multi-tasking language models on small CPUs.

    import edgecal

    engine = edgecal.Engine.load("model/", adapters={"summarize": "adapters/summarize", "formal": "adapters/formal"})
    recipe = edgecal.Recipe("learnable_calibration_pp", ("summarize", "formal"), calibration="lcpp.safetensors")
    print(engine.generate("Summarize ...", recipe=recipe).text)
    print(edgecal.parameter_counts("config.json", rank=4, lora_rank=32).projection_merge)

Names are imported when first used: `import edgecal` alone costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Calibration, CompiledAdapter, LoraAdapter, Recipe, Shot, Step
    from .adapters.parameter_counts import ParameterCounts, parameter_counts
    from .async_engine import AsyncEngine
    from .cache import KVCache
    from .completion import Completion, Pass, Piece, Request, Settings
    from .config import ModelConfig
    from .conversation import Conversation
    from .decoding.generate import TokenRecord
    from .decoding.sampler import SamplingOptions
    from .engine import Engine
    from .errors import EdgecalError
    from .model import Model
    from .text.tasks import instruction, user_message
    from .text.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "AsyncEngine",
    "Calibration",
    "CompiledAdapter",
    "Completion",
    "Conversation",
    "EdgecalError",
    "Engine",
    "KVCache",
    "LoraAdapter",
    "Model",
    "ModelConfig",
    "ParameterCounts",
    "Pass",
    "Piece",
    "Recipe",
    "Request",
    "SamplingOptions",
    "Settings",
    "Shot",
    "Step",
    "TokenRecord",
    "Tokenizer",
    "__version__",
    "instruction",
    "parameter_counts",
    "user_message",
]

_HOMES = {
    "adapters": ("Calibration", "CompiledAdapter", "LoraAdapter", "Recipe", "Shot", "Step"),
    "adapters.parameter_counts": ("ParameterCounts", "parameter_counts"),
    "async_engine": ("AsyncEngine",),
    "cache": ("KVCache",),
    "completion": ("Completion", "Pass", "Piece", "Request", "Settings"),
    "config": ("ModelConfig",),
    "conversation": ("Conversation",),
    "engine": ("Engine",),
    "errors": ("EdgecalError",),
    "decoding.generate": ("TokenRecord",),
    "model": ("Model",),
    "decoding.sampler": ("SamplingOptions",),
    "text.tasks": ("instruction", "user_message"),
    "text.tokenizer": ("Tokenizer",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'edgecal' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
