"""Write a calibration for edgecal (format edgecal-calibration, version 1) from PyTorch tensors.

A file to copy into a training side: it needs torch and safetensors, nothing of edgecal. What each tensor is called and
what every metadata key means is in docs/export.md; edgecal checks all of it on loading and names the key that is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def fingerprints(adapters: dict[str, str | Path]) -> list[dict[str, str]]:
    """Name and SHA-256 of each adapter's weights, in order."""
    return [
        {"name": name, "sha256": hashlib.sha256((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest()}
        for name, folder in adapters.items()
    ]


def export_calibration(
    path: str | Path,
    method: str,
    tensors: dict[str, torch.Tensor],
    adapters: dict[str, str | Path],
    base: Any,
    *,
    base_name: str,
    weights: list[float] | None = None,
    rank: int | None = None,
    calibration_scaling: float | None = None,
    bias_mode: str | None = None,
    shared_with: Sequence[dict[str, str | Path]] = (),
) -> None:
    """`tensors` by edgecal's names ("q_proj.p", "q_proj.P1", "576x576.P2" ...); `adapters` {name: PEFT directory} in
    the order they were trained in, `shared_with` further such lists when it was trained for several at once; `base` the
    transformers config of the base model."""
    facts = {key: getattr(base, key) for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    metadata = {
        "format": "edgecal-calibration",
        "version": "1",
        "method": method,
        "adapters": json.dumps(fingerprints(adapters)),
        "base_model": json.dumps({"name": base_name, **facts}),
    }
    if weights is not None:
        metadata["weights"] = json.dumps(weights)
    if shared_with:
        metadata["shared_with"] = json.dumps([fingerprints(others) for others in shared_with])
    if calibration_scaling is not None:
        metadata["calibration_scaling"] = str(calibration_scaling)
    if rank is not None:
        metadata["rank"] = str(rank)
    if bias_mode is not None:
        metadata["bias_mode"] = bias_mode
    # A copy of each: tensors of a training run may share memory or lie in another order
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata)
