"""Write the GGUF of SmolLM2 as a Hugging Face directory in bf16, with transformers alone.

The reference files of the demo adapters were made on exactly these weights: the Q4_1 blocks dequantized, rounded to
bf16. Usage: python -m tests.golden.make_hf_base FILE.gguf OUT_DIR
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path


def convert(gguf: Path, out: Path) -> None:
    """Dequantize `gguf` with transformers and save it in bf16 under `out`, which appears only when complete."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers and gguf warn about their own business
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        weights = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).state_dict()
        config = AutoConfig.from_pretrained(**source)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(weights, strict=True)
        partial = out.with_name(out.name + f".partial{os.getpid()}")
        model.to(torch.bfloat16).save_pretrained(partial)
        AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
