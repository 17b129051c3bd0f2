"""The methods of composition, one file each: a pure function from the LoRA pairs of a module to one pair.

Whatever several methods share has a file of its own beside them: `factors`, `pruning`, `sign_election`, `spherical`,
`truncation`. To add a method, write its file and import it here.

Papers: *paper 1* is "Efficient Compositional Multi-tasking for On-device Large Language Models" (EMNLP 2025),
*paper 2* "On-device System of Compositional Multi-tasking in Large Language Models" (2025).
"""

from __future__ import annotations

from . import (
    calibration_only,
    concat,
    dam,
    dare,
    in_context,
    learnable_calibration,
    learnable_calibration_pp,
    linear,
    lm_cocktail,
    lorahub,
    magnitude_prune,
    multi_step,
    peft_linear,
    projection_merge,
    single,
    slerp,
    svd,
    ties,
    zero_shot,
)
from .context import Context
from .options import Option
from .registry import Method, find_method, method_names, methods

__all__ = [
    "Context",
    "Method",
    "Option",
    "calibration_only",
    "concat",
    "dam",
    "dare",
    "find_method",
    "in_context",
    "learnable_calibration",
    "learnable_calibration_pp",
    "linear",
    "lm_cocktail",
    "lorahub",
    "magnitude_prune",
    "method_names",
    "methods",
    "multi_step",
    "peft_linear",
    "projection_merge",
    "single",
    "slerp",
    "svd",
    "ties",
    "zero_shot",
]
