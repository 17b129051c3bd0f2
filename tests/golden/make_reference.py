"""PyTorch's own outputs for the demo adapters, written as reference files: what edgecal is compared with.

    python -m tests.golden.make_reference BASE_DIR tests/golden/reference --thin 31

BASE_DIR is the bf16 directory that `make_hf_base` writes; everything runs in fp32. Nothing of edgecal is imported here,
or the reference would be its own opinion: transformers makes the prompt and runs the base, PEFT reads the adapters and
says what their factors and scalings are, and each method is its formula on whole matrices dW, in float64. A file is one
method (format edgecal-reference, version 1): dW of one module of every component, the prompt's ids, the logits at the
last four prompt positions and the greedy answer, for two texts that were written for edgecal.

`--thin N` keeps every Nth row of each dW and every Nth vocabulary id, which is what the repository has room for. N is
odd: an even one would meet the same place in each block of rows that the kernels work on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

DATA = Path(__file__).parents[2] / "demo_data" / "edgecal_demo_data"
NEW_TOKENS = 48
NOTE = (
    "hey, quick one before the weekend: the boiler in the back room is making that knocking noise again and the guy "
    "who fixed it in March won't pick up. can somebody please ring another plumber on monday? i'd rather not have the "
    "kids' class in there with coats on. also we're nearly out of tea."
)
SAMPLED = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.4.self_attn.k_proj",
    "model.layers.9.self_attn.v_proj",
    "model.layers.14.self_attn.o_proj",
    "model.layers.19.mlp.gate_proj",
    "model.layers.24.mlp.up_proj",
    "model.layers.29.mlp.down_proj",
)


class Factors(NamedTuple):
    """One module of one adapter: a (r, k) and b (d, r) in float64."""

    a: Tensor
    b: Tensor
    scaling: float


# Each method takes the adapters' factors at one module and that module's calibration tensors, and gives dW (d, k).


def single(parts: list[Factors], _: dict[str, Tensor]) -> Tensor:
    (part,) = parts
    return part.scaling * part.b @ part.a


def linear(parts: list[Factors], _: dict[str, Tensor]) -> Tensor:
    """Paper 1 Eq. 5: the mean of each factor, so the product has cross terms."""
    b = torch.stack([part.scaling * part.b for part in parts]).mean(0)
    a = torch.stack([part.a for part in parts]).mean(0)
    return b @ a


def concat(parts: list[Factors], _: dict[str, Tensor]) -> Tensor:
    """The mean of the dW themselves."""
    return torch.stack([single([part], {}) for part in parts]).mean(0)


def learnable_calibration(parts: list[Factors], calibration: dict[str, Tensor]) -> Tensor:
    """Paper 1 Eq. 6: p on every column."""
    return linear(parts, {}) + calibration["p"][:, None]


def learnable_calibration_pp(parts: list[Factors], calibration: dict[str, Tensor]) -> Tensor:
    """Paper 1 Eq. 7."""
    return linear(parts, {}) + calibration["P2"] @ calibration["P1"]


def projection_merge(parts: list[Factors], calibration: dict[str, Tensor]) -> Tensor:
    """Paper 2 Eq. 2; the calibration's weights are 1/N here (checked when it is read)."""
    return calibration["P2"] @ calibration["P1"] @ concat(parts, {})


PAIR = ("summarize", "professional")
METHODS: dict[str, tuple[tuple[str, ...], Callable[[list[Factors], dict[str, Tensor]], Tensor]]] = {
    "zero_shot": ((), single),
    "summarize": (("summarize",), single),
    "professional": (("professional",), single),
    "linear": (PAIR, linear),
    "concat": (PAIR, concat),
    "learnable_calibration": (PAIR, learnable_calibration),
    "learnable_calibration_pp": (PAIR, learnable_calibration_pp),
    "projection_merge": (PAIR, projection_merge),
}


def read_adapters(base: PreTrainedModel, names: tuple[str, ...]) -> dict[str, dict[str, Factors]]:
    """adapter -> module -> factors, as PEFT has them after loading; `base` is left as it was."""
    model = PeftModel.from_pretrained(base, DATA / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(DATA / name, adapter_name=name)
    found: dict[str, dict[str, Factors]] = {name: {} for name in names}
    for path, module in model.named_modules():
        for name in names if hasattr(module, "lora_A") else ():
            a, b = module.lora_A[name].weight.detach().double(), module.lora_B[name].weight.detach().double()
            found[name][path.removeprefix("base_model.model.")] = Factors(a, b, module.scaling[name])
    model.unload()
    return found


def read_calibration(path: Path) -> dict[str, Tensor]:
    """The tensors by name in float64; refuses the options that the formulas above leave out."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert float(metadata.get("calibration_scaling", "1")) == 1, path
        assert metadata.get("bias_mode", "columns") in ("columns", ""), path
        weights = json.loads(metadata["weights"]) if metadata.get("weights") else [0.5, 0.5]
        assert weights == [0.5, 0.5], path
        return {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118 (not a mapping)


def of_module(calibration: dict[str, Tensor], module: str, k: int, d: int) -> dict[str, Tensor]:
    """The tensors that count for one module: stored by component, or by the shape "{k}x{d}"."""
    keys = (f"{module.rpartition('.')[2]}.", f"{k}x{d}.")
    return {name.partition(".")[2]: value for name, value in calibration.items() if name.startswith(keys)}


def adapter_entries(method: str) -> list[dict[str, str]]:
    """Name and sha256 of each adapter, as a calibration file spells them."""
    files = {name: (DATA / name / "adapter_model.safetensors").read_bytes() for name in METHODS[method][0]}
    return [{"name": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()]


@torch.no_grad()
def answer(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (4, V) at the last four positions of `ids` (T,), and the greedy ids with the closing token if it came."""
    out = model(ids[None], logits_to_keep=4, use_cache=True)
    last4, tokens = out.logits[0].clone(), []
    while True:
        tokens.append(int(out.logits[0, -1].argmax()))
        if tokens[-1] == model.generation_config.eos_token_id or len(tokens) == NEW_TOKENS:
            return last4, torch.tensor(tokens)
        out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)


def run(
    method: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, deltas: dict[str, Tensor], thin: int
) -> tuple[dict[str, Tensor], dict[str, dict[str, object]]]:
    """Tensors and cases of a reference file: h += dW x at every module of `deltas` (d, k)."""
    modules, handles = dict(model.named_modules()), []
    for path, delta in deltas.items():

        def add(_: object, inputs: tuple[Tensor], output: Tensor, delta: Tensor = delta) -> Tensor:
            return output + inputs[0] @ delta.T

        handles.append(modules[path].register_forward_hook(add))
    tensors = {f"delta/{path}": deltas[path][::thin].contiguous() for path in SAMPLED if path in deltas}
    cases = {}
    prompts = json.loads((DATA / "prompts.json").read_text("utf-8"))
    instruction = prompts["summarize+tone"].format(tone="professional")
    for case, text in {"demo": (DATA / "dialogue.txt").read_text("utf-8").strip(), "note": NOTE}.items():
        messages = [{"role": "user", "content": f"{instruction}\n\n{text}"}]
        encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        ids = torch.tensor(encoded["input_ids"])
        logits, greedy = answer(model, ids)
        tensors[f"input_ids/{case}"] = ids
        tensors[f"logits_last4/{case}"] = logits[:, ::thin].contiguous()
        tensors[f"greedy_ids/{case}"] = greedy
        said = tokenizer.decode(greedy, skip_special_tokens=True)
        cases[case] = {"text": text, "instruction": instruction, "greedy_text": said, "n_new_tokens": len(greedy)}
        print(f"{method:>26} {case}: {said!r}", flush=True)
    for handle in handles:
        handle.remove()
    return tensors, cases


def main() -> None:
    parser = argparse.ArgumentParser(description="Write PyTorch's reference files for the demo adapters.")
    parser.add_argument("base", type=Path, help="the bf16 directory of tests/golden/make_hf_base.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--thin", type=int, default=1, help="keep every Nth row of dW and every Nth vocabulary id")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    adapters = read_adapters(model, PAIR)
    config = model.config
    base = {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "model_type": config.model_type}
    base |= {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
    options.out.mkdir(parents=True, exist_ok=True)
    for method, (names, formula) in METHODS.items():
        path = DATA / f"{method}.safetensors"
        calibration = read_calibration(path) if path.exists() else {}
        deltas = {}
        for module in adapters[names[0]] if names else ():
            parts = [adapters[name][module] for name in names]
            d, k = len(parts[0].b), parts[0].a.shape[1]
            deltas[module] = formula(parts, of_module(calibration, module, k, d)).float()
        tensors, cases = run(method, model, tokenizer, deltas, options.thin)
        metadata = {
            "format": "edgecal-reference",
            "version": "1",
            "method": method,
            "adapters": json.dumps(adapter_entries(method)),
            "calibration": path.name if calibration else "",
            "base_model": json.dumps(base),
            "dtype": "float32",
            "thin": str(options.thin),
            "cases": json.dumps(cases),
        }
        partial = options.out / f"{method}.partial"
        save_file(tensors, partial, metadata)
        partial.chmod(0o644)
        os.replace(partial, options.out / f"{method}.safetensors")


if __name__ == "__main__":
    main()
