"""Random adapters of the same numbers in the two forms that the engines read: PEFT's and llama.cpp's.

What an adapter costs depends on its shapes only, but the values are kept small enough for the logits to stay
meaningful, so that the run can compare them between the engines. llama.cpp's converter (convert_lora_to_gguf) is not
in any wheel; `write_gguf` writes the same file: float32 factors under `blk.N.attn_q.weight.lora_a` / `.lora_b`, the
rows of B of Q and K reordered for the interleaved rope of its llama architecture, alpha in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgecal_weights.families import BY_ARCHITECTURE
from edgecal_weights.gguf_config import gguf_name

Array = NDArray[np.float32]
Pairs = dict[str, tuple[Array, Array]]  # module path -> A (r, k), B (d, r)


def random_pairs(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    return {
        module: (
            rng.standard_normal((rank, k), np.float32) / np.float32(np.sqrt(k)),
            rng.standard_normal((d, rank), np.float32) * np.float32(0.02),
        )
        for module, (d, k) in shapes.items()
    }


def write_peft(folder: Path, pairs: Pairs, rank: int) -> None:
    """A PEFT directory, fp16 as trained adapters are published, with scaling 1 (alpha = rank)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float16)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    components = sorted({module.rsplit(".", 1)[1] for module in pairs})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": components,
        "base_model_name_or_path": "",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_gguf(path: Path, pairs: Pairs, rank: int, architecture: str, n_heads: int, n_kv_heads: int) -> None:
    """The same adapter for llama.cpp. `architecture` is GGUF's name of the base's."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for module, (a, b) in pairs.items():
        values = b.astype(np.float16).astype(np.float32)  # the numbers of the PEFT file
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = n_heads if module.endswith("q_proj") else n_kv_heads
            values = values.reshape(heads, 2, -1, rank).swapaxes(1, 2).reshape(values.shape)
        name = gguf_name(f"{module}.weight", BY_ARCHITECTURE[architecture])
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
