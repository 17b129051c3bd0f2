"""llama.cpp's importance matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from edgecal_weights.families import LLAMA
from edgecal_weights.imatrix_file import read_imatrix

from ..mutate import behind
from ..target import Target

_KEYS = (b"general.type", b"attn_q.weight.in_sum2", b"attn_q.weight.counts", b"GGUF", b"imatrix")


def prepare(folder: Path) -> list[bytes]:
    writer = GGUFWriter(folder / "good.gguf", "")
    writer.add_type("imatrix")
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.attn_q.weight.in_sum2", np.arange(64, dtype=np.float32)[None])
        writer.add_tensor(f"blk.{layer}.attn_q.weight.counts", np.full((1, 1), 25, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(folder / "good.gguf").read_bytes()]


def run(data: bytes, folder: Path) -> None:
    (folder / "imatrix.gguf").write_bytes(data)
    read_imatrix(folder / "imatrix.gguf", LLAMA)


TARGET = Target(run, prepare, behind(_KEYS))
