"""What adapters and calibrations have to fit: the shapes and the facts of a base, without its weights.

An Engine knows the same of its loaded model. Commands that only look at adapters open the checkpoint, read its
configuration and leave the weights where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecal_weights.checkpoint import Checkpoint

from .config import ModelConfig
from .inspection.model import linear_shapes
from .loading import check_tensors


@dataclass(frozen=True)
class Foundation:
    """`shapes`: (d, k) by module path, in the order of the layers; `facts` as in `Engine.base`."""

    config: ModelConfig
    shapes: dict[str, tuple[int, int]]
    facts: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Foundation:
        """Raises UnsupportedModelError, or FileFormatError when the checkpoint lacks a tensor."""
        config = ModelConfig.from_dict(checkpoint.config)
        check_tensors(checkpoint, config)
        facts = {
            "model_type": config.family,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.n_layers,
            "vocab_size": config.vocab_size,
        }
        return cls(config, linear_shapes(config), facts)
