"""The weights of a packed model, with the JSON in their metadata."""

from __future__ import annotations

from pathlib import Path

from edgecal_kernels.quant import FORMATS
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.tiny import write_tiny_hf

from ..mutate import safetensors
from ..target import Target


def prepare(folder: Path) -> list[bytes]:
    write_tiny_hf(folder / "hf", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    with open_checkpoint(folder / "hf") as source:
        quantize_checkpoint(source, folder / "packed", format="int4")
    return [(folder / "packed" / PACKED_FILE).read_bytes()]


def run(data: bytes, folder: Path) -> None:
    path = folder / "packed" / PACKED_FILE
    path.unlink()  # never under a map
    path.write_bytes(data)
    with open_checkpoint(path.parent) as checkpoint:
        for name in checkpoint.names():
            checkpoint.read(name)
            if checkpoint.stored_type(name) in FORMATS:
                checkpoint.packed(name)


TARGET = Target(run, prepare, safetensors)
