"""A calibration: metadata and tensors."""

from __future__ import annotations

from pathlib import Path

from edgecal.adapters.calibration import Calibration
from tests.tiny import linear_shapes, model_config, write_tiny_calibration

from ..mutate import safetensors
from ..target import Target
from . import _adapters

_METHODS = ("learnable_calibration", "learnable_calibration_pp", "projection_merge")


def prepare(folder: Path) -> list[bytes]:
    pair = dict.fromkeys(("a", "b"), _adapters.write(folder))
    paths = [write_tiny_calibration(folder / f"{x}.safetensors", folder / "base", pair, x) for x in _METHODS]
    return [path.read_bytes() for path in paths]


def run(data: bytes, folder: Path) -> None:
    path = folder / "calibration.safetensors"
    path.write_bytes(data)
    calibration = Calibration.load(path)
    for module, (d, k) in linear_shapes(model_config(folder / "base")).items():
        if calibration.covers(module, d, k):
            calibration.for_module(module, d, k)


TARGET = Target(run, prepare, safetensors)
