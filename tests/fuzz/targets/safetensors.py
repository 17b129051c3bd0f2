"""Any .safetensors: the header, what kind of file it is, and the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from edgecal_weights.errors import UnsupportedModelError
from edgecal_weights.file_kind import describe
from edgecal_weights.safetensors_file import SafetensorsFile

from ..mutate import safetensors
from ..target import Target


def prepare(folder: Path) -> list[bytes]:
    tensors = {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(6, dtype=np.float16), "c": np.ones(2, np.int64)}
    return [save(tensors, {"format": "pt"}), save({"x": np.zeros((0, 3), np.float64)})]


def run(data: bytes, folder: Path) -> None:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    describe(path)
    with SafetensorsFile(path) as file:
        for name in file.names():
            try:
                file.read(name)
            except UnsupportedModelError:
                continue
            if file.shape(name):
                file.read_rows(name, 0, file.shape(name)[0])


TARGET = Target(run, prepare, safetensors)
