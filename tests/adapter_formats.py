"""PEFT adapters in the formats of llama.cpp and mlx-lm, converted by those projects' own rules.

The GGUF is written by llama.cpp's `gguf` package with its table of tensor names, in what convert_lora_to_gguf.py puts
there: general.type, adapter.type, adapter.lora.alpha, nothing of the heads; q and k of llama with the rows of B in
llama.cpp's order; the embedding's A transposed. mlx-lm has both factors transposed, and the whole factor as `scale`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from edgecal.config import ModelConfig

ARCH = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
TYPES = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0")}


def peft_factors(path: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """({module: {"A", "B"}}, adapter_config.json) of a PEFT directory; an embedding's are among them."""
    factors: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in load_file(path / "adapter_model.safetensors").items():
        if name.endswith(".base_layer.weight"):  # the base's own, which the converter leaves out
            continue
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        factors.setdefault(module, {})[rest.removeprefix("embedding_")[0]] = tensor
    return factors, json.loads((path / "adapter_config.json").read_text())


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's converter: neighbouring pairs of a head rotate together."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf_adapter(
    path: Path,
    peft: Path,
    config: ModelConfig,
    stored: str = "F32",
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """`changes` replace metadata values (None leaves a key out), `tensors` are put beside those of the adapter."""
    factors, options = peft_factors(peft)
    arch = config.spec.gguf_architecture or "llama"  # mistral's name for itself
    names = gguf.get_tensor_name_map(ARCH[arch], config.n_layers)
    metadata = {"architecture": arch, "type": "adapter", "adapter": "lora", "alpha": options["lora_alpha"]}
    metadata |= changes
    writer = gguf.GGUFWriter(path, metadata["architecture"])
    if metadata["type"] is not None:
        writer.add_type(metadata["type"])
    if metadata["adapter"] is not None:
        writer.add_string("adapter.type", metadata["adapter"])
    if metadata["alpha"] is not None:
        writer.add_float32("adapter.lora.alpha", metadata["alpha"])
    if extra is not None:
        extra(writer)

    def add(name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, np.float32)
        # as the converter: rows that are no whole number of blocks stay in fp16
        kind = TYPES["F16" if stored == "Q8_0" and values.shape[1] % 32 else stored]
        if kind == TYPES["F32"]:
            writer.add_tensor(name, values)
        elif kind == TYPES["F16"]:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    for module, pair in factors.items():
        b = pair["B"]
        if arch == "llama" and module.endswith((".q_proj", ".k_proj")):
            b = permuted(b, config.n_heads if module.endswith("q_proj") else config.n_kv_heads)
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        add(f"{name}.lora_a", pair["A"].T if name == "token_embd.weight" else pair["A"])
        add(f"{name}.lora_b", b)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_mlx_adapter(path: Path, peft: Path, n_layers: int = -1, **changes: Any) -> Path:
    """`changes` replace keys of the configuration; None leaves one out."""
    factors, options = peft_factors(peft)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, pair in factors.items():
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(pair["A"].T)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(pair["B"].T)
    save_file(tensors, path / "adapters.safetensors", {"format": "mlx"})
    rank = options["r"]
    config = {
        "fine_tune_type": "lora",
        "model": options["base_model_name_or_path"],
        "num_layers": n_layers,
        "lora_parameters": {"rank": rank, "scale": options["lora_alpha"] / rank, "dropout": 0.0},
        "iters": 600,
        "train": True,
    }
    config = {key: value for key, value in (config | changes).items() if value is not None}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path
