"""The calibrations without LoRAs, the ablation of paper 1 (Table 4): what the few shared parameters do alone.

    learnable_calibration_only        dW = c p 1_k^T    rank 1 (or the bias c p)
    learnable_calibration_pp_only     dW = c P2 P1      rank s

They are trained without adapters, so their files name none; every module of the model whose component the file has is
changed, and all modules of a component share one pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..compiled import CompiledPair
from ..lora import LoraPair
from .context import PLAIN, Context
from .registry import method

_PAPER = "Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)"


@method(
    "learnable_calibration_only",
    title="a trained vector per component, no LoRA",
    paper=_PAPER,
    equation="Table 4",
    needs_calibration=True,
    min_adapters=0,
    max_adapters=0,
)
def learnable_calibration_only(
    pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN
) -> CompiledPair:
    """Rank 1, or 0 with a bias."""
    calibration = context.needed_calibration("learnable_calibration_only")
    d, k = context.shape
    p = calibration.tensors["p"] * np.float32(calibration.scaling)
    if calibration.bias_mode == "output":
        return CompiledPair(np.empty((0, k), np.float32), np.empty((d, 0), np.float32), bias=p)
    return CompiledPair(np.ones((1, k), np.float32), p[:, None])


@method(
    "learnable_calibration_pp_only",
    title="a trained low-rank matrix per component, no LoRA",
    paper=_PAPER,
    equation="Table 4",
    needs_calibration=True,
    min_adapters=0,
    max_adapters=0,
)
def learnable_calibration_pp_only(
    pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN
) -> CompiledPair:
    """Rank s."""
    calibration = context.needed_calibration("learnable_calibration_pp_only")
    p2 = calibration.tensors["P2"]
    scaled = p2 if calibration.scaling == 1 else p2 * np.float32(calibration.scaling)
    return CompiledPair(calibration.tensors["P1"], scaled)
