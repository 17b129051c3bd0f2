"""Write a reference file (format edgecal-reference, version 1) with PyTorch, transformers and PEFT alone.

    python reference.py --base BASE --method concat --adapter a=ADAPTER_A --adapter b=ADAPTER_B --out concat.safetensors

A script of its own: nothing of edgecal is imported here, or the reference would be edgecal's own opinion, and edgecal
does not import it. PEFT reads the adapters and says what their factors and scalings are; a method is its formula on
whole matrices dW in float64, or PEFT's own add_weighted_adapter; the base runs in fp32 with W + dW in the place of W.
Written are, for one module of each component: dW, and what the module gives for what it is given; for every prompt:
its ids, the logits at its last four positions and the greedy answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import peft
import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

COMPONENTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POSITIONS = 4  # of a module's input that are kept


class Factors(NamedTuple):
    """One module of one adapter: a (r, k) and b (d, r) in float64, the adapter's weight in the merge and its place."""

    a: Tensor
    b: Tensor
    scaling: float
    weight: float
    position: int


# ---------------------------------------------------------------------------------------------------------- methods
# Each takes the factors of the adapters that change a module and the calibration tensors of that module, and gives dW.

Term = dict[str, Any]  # the tensors, and the numbers that go with them


def concat(parts: list[Factors], term: Term) -> Tensor:
    """sum_i w_i s_i B_i A_i."""
    return torch.stack([part.weight * part.scaling * part.b @ part.a for part in parts]).sum(0)


def linear(parts: list[Factors], term: Term) -> Tensor:
    """Paper 1 Eq. 5: the weights are on each factor."""
    b = torch.stack([part.weight * part.scaling * part.b for part in parts]).sum(0)
    return b @ torch.stack([part.weight * part.a for part in parts]).sum(0)


def dam(parts: list[Factors], term: Term) -> Tensor:
    """DAM, ZipLoRA: a scale for every column of each dW_i."""
    changes = [p.scaling * p.b @ p.a * term[f"m{p.position + 1}"] for p in parts]
    return torch.stack(changes).sum(0)


def slerp(parts: list[Factors], term: Term) -> Tensor:
    """Between the directions of the flattened factors of two adapters."""
    if len(parts) == 1:
        return parts[0].scaling * parts[0].b @ parts[0].a
    if len(parts) > 2:
        raise ValueError("there is no formula here for slerp of more than two adapters")
    t = parts[1].weight / (parts[0].weight + parts[1].weight)
    a = between(parts[0].a, parts[1].a, t)
    return between(parts[0].scaling * parts[0].b, parts[1].scaling * parts[1].b, t) @ a


def between(first: Tensor, second: Tensor, t: float) -> Tensor:
    """mergekit's slerp: the angle is that of the normalized vectors, linear where they are nearly parallel."""
    dot = torch.dot(first.flatten() / first.norm(), second.flatten() / second.norm())
    if dot.abs() > 0.9995:
        return (1 - t) * first + t * second
    theta = torch.arccos(dot)
    return (torch.sin((1 - t) * theta) * first + torch.sin(t * theta) * second) / torch.sin(theta)


def learnable_calibration(parts: list[Factors], term: Term) -> Tensor:
    """Paper 1 Eq. 6; as a bias (p without the columns) it is no part of dW."""
    shift = term["scaling"] * term["p"][:, None].expand(-1, term["k"])
    return (linear(parts, term) if parts else 0 * shift) + (shift if "bias" not in term else 0)


def learnable_calibration_pp(parts: list[Factors], term: Term) -> Tensor:
    """Paper 1 Eq. 7."""
    shift = term["scaling"] * term["P2"] @ term["P1"]
    return linear(parts, term) + shift if parts else shift


def projection_merge(parts: list[Factors], term: Term) -> Tensor:
    """Paper 2 Eq. 2."""
    return term["scaling"] * term["P2"] @ (term["P1"] @ concat(parts, term))


FORMULAS: dict[str, Callable[[list[Factors], Term], Tensor]] = {
    "single": concat,
    "concat": concat,
    "lm_cocktail": concat,
    "linear": linear,
    "lorahub": linear,
    "slerp": slerp,
    "dam": dam,
    "learnable_calibration": learnable_calibration,
    "learnable_calibration_pp": learnable_calibration_pp,
    "projection_merge": projection_merge,
    "learnable_calibration_only": learnable_calibration,
    "learnable_calibration_pp_only": learnable_calibration_pp,
}
# edgecal's name -> PEFT's combination_type. DARE draws random numbers, so there is nothing to compare it with.
PEFT_TYPES = {
    "peft_linear": "linear",
    "ties": "ties",
    "magnitude_prune": "magnitude_prune",
    "svd": "svd",
    "ties_svd": "ties_svd",
    "magnitude_prune_svd": "magnitude_prune_svd",
}
PEFT_OPTIONS = {"density": "density", "majority_sign_method": "majority_sign_method", "svd_rank": "svd_rank"}


def weights_of(method: str, given: str | None, options: dict[str, Any], count: int) -> list[float]:
    """Those given, or what the method makes of its options, or 1/N."""
    if given is not None:
        return [float(weight) for weight in json.loads(given)]
    if method == "lm_cocktail":
        losses = torch.tensor(options["losses"], dtype=torch.float64)
        return torch.softmax(-losses / options.get("temperature", 5.0), 0).tolist()
    if method == "slerp" and options.get("t") is not None:
        return [1 - options["t"], options["t"]]
    return [1 / count] * count if count else []


# ----------------------------------------------------------------------------------------------------------- inputs


def read_calibration(path: Path | None) -> tuple[Term, dict[str, str]]:
    """(tensors in float64, metadata)."""
    if path is None:
        return {}, {}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).double() for name in file.keys()}, file.metadata()  # noqa: SIM118


def of_module(tensors: Term, metadata: dict[str, str], module: str, d: int, k: int) -> Term:
    """The tensors of one module by short name: stored by component, by the shape "{k}x{d}", or by module."""
    keys = (module.rpartition(".")[2], f"{k}x{d}", module)
    term = {name.rpartition(".")[2]: value for name, value in tensors.items() if name.rpartition(".")[0] in keys}
    term["scaling"] = torch.tensor(float(metadata.get("calibration_scaling", "1")), dtype=torch.float64)
    term["k"] = k
    if metadata.get("bias_mode") == "output":
        term["bias"] = term["scaling"] * term["p"]
    return term


def factors_of(module: Any, name: str) -> tuple[Tensor, Tensor]:
    """(a (r, k), b (d, r)) of a module under an adapter; an embedding has k tokens and d outputs."""
    if name in module.lora_embedding_A:
        return module.lora_embedding_A[name], module.lora_embedding_B[name]
    return module.lora_A[name].weight, module.lora_B[name].weight


@torch.no_grad()
def first_of_equals(values: Tensor, k: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """torch.topk with an order among equals, which it does not promise: numbers of 16 bits have many at the border."""
    assert largest
    order = torch.sort(values, descending=True, stable=True).indices[:k]
    return values[order], order


def merge(
    base: Any, method: str, adapters: dict[str, Path], weights: list[float], options: dict, calibration: Path | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(dW, bias) by module path, float32; `base` is left as it was."""
    tensors, metadata = read_calibration(calibration)
    weights = json.loads(metadata["weights"]) if metadata.get("weights") else weights
    deltas: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}

    def put(module: str, parts: list[Factors], d: int, k: int) -> None:
        term = of_module(tensors, metadata, module, d, k) if tensors else {}
        deltas[module] = FORMULAS[method](parts, term).float()
        if "bias" in term:
            biases[module] = term["bias"].float()

    if not adapters:  # a calibration alone changes what it has tensors for
        components = {name.partition(".")[0] for name in tensors}
        for path, module in base.named_modules():
            if path.rpartition(".")[2] in components:
                put(path, [], *module.weight.shape)
        return deltas, biases
    names = [f"adapter{i}" for i in range(len(adapters))]  # PEFT does not take every name
    model = PeftModel.from_pretrained(base, next(iter(adapters.values())), adapter_name=names[0])
    for name, path in list(zip(names, adapters.values(), strict=True))[1:]:
        model.load_adapter(path, adapter_name=name)
    for module in model.modules():
        if hasattr(module, "lora_A"):  # PEFT's own arithmetic in float64 as well
            for factors in (module.lora_A, module.lora_B, module.lora_embedding_A, module.lora_embedding_B):
                factors.double()
    if method in PEFT_TYPES:
        given = {PEFT_OPTIONS[key]: value for key, value in options.items() if value is not None}
        with patch.object(torch, "topk", first_of_equals):
            model.add_weighted_adapter(names, weights, "merged", combination_type=PEFT_TYPES[method], **given)
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        key = path.removeprefix("base_model.model.")
        if method in PEFT_TYPES:
            delta = module.get_delta_weight("merged").float()
            deltas[key] = delta.T if module.lora_embedding_A else delta
            continue
        parts = [
            Factors(*factors_of(module, n), module.scaling[n], w, i)
            for i, (n, w) in enumerate(zip(names, weights, strict=True))
            if n in module.lora_A or n in module.lora_embedding_A
        ]
        put(key, parts, parts[0].b.shape[0], parts[0].a.shape[1])
    model.unload()
    return deltas, biases


# ------------------------------------------------------------------------------------------------------------- runs


def apply(modules: dict[str, Any], deltas: dict[str, Tensor], biases: dict[str, Tensor]) -> None:
    """W + dW in the place of W: no further copy of the model. An adapter of the embedding or of the head changes that
    one alone, also where they share a matrix."""
    tables = [path for path in deltas if path.rpartition(".")[2] in ("embed_tokens", "lm_head")]
    if tables and (head := modules.get("lm_head")) is not None:
        head.weight = torch.nn.Parameter(head.weight.data.clone())
    for path, delta in deltas.items():
        modules[path].weight.data += delta.T if path.endswith("embed_tokens") else delta
    for path, bias in biases.items():
        old = modules[path].bias
        modules[path].bias = torch.nn.Parameter(bias if old is None else old.data + bias)


@torch.no_grad()
def answer(model: Any, ids: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
    """Logits (4, V) at the last positions of `ids` (T,), and the greedy ids with the closing token if it came."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    out = model(ids[None], logits_to_keep=4, use_cache=True)
    last, tokens = out.logits[0].float().clone(), []
    while True:
        tokens.append(int(out.logits[0, -1].argmax()))
        if tokens[-1] in ends or len(tokens) == new_tokens:
            return last, torch.tensor(tokens)
        out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)


def encode(tokenizer: Any, text: str) -> tuple[Tensor, bool]:
    """(ids of a user message, whether it is raw because the base has no chat template)."""
    if not tokenizer.chat_template:
        return torch.tensor(tokenizer(text)["input_ids"]), True
    messages = [{"role": "user", "content": text}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return torch.tensor(encoded["input_ids"]), False


def sampled(modules: dict[str, Any]) -> list[str]:
    """One module per component, from the first layer to the last."""
    chosen = []
    for i, component in enumerate(COMPONENTS):
        paths = [path for path in modules if path.endswith(f".{component}")]
        if paths:
            chosen.append(paths[round(i * (len(paths) - 1) / (len(COMPONENTS) - 1))])
    return chosen


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a reference file for `edgecal verify`.")
    parser.add_argument("--base", type=Path, required=True, help="a Hugging Face directory or a .gguf")
    parser.add_argument("--method", required=True, choices=["zero_shot", *FORMULAS, *PEFT_TYPES])
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--weights", metavar="JSON", help="one number per adapter; 1/N each unless given")
    parser.add_argument("--options", default="{}", metavar="JSON", help="of the method, as in a recipe")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--prompt", action="append", default=[], help="a user message; several are several cases")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--thin", type=int, default=1, help="keep every Nth row of dW and every Nth vocabulary id")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    adapters = {name: Path(path) for name, _, path in (text.partition("=") for text in given.adapter)}
    options = json.loads(given.options)
    weights = weights_of(given.method, given.weights, options, len(adapters))
    source = {"pretrained_model_name_or_path": given.base}
    if given.base.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": given.base.parent, "gguf_file": given.base.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    deltas, biases = merge(model, given.method, adapters, weights, options, given.calibration)
    modules = dict(model.named_modules())
    apply(modules, deltas, biases)

    chosen = sampled(modules)
    tensors = {f"delta/{path}": deltas[path][:: given.thin] for path in chosen if path in deltas}
    cases: dict[str, dict[str, Any]] = {}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # The prompt is the first that comes; the single tokens behind it are not kept
            seen.setdefault(path, (inputs[0][0, -POSITIONS:].detach(), output[0, -POSITIONS:].detach()))

        return hook

    for path in chosen:
        modules[path].register_forward_hook(watch(path))
    for i, text in enumerate(given.prompt):
        case = f"case_{i}"
        ids, raw = encode(tokenizer, text)
        seen.clear()
        logits, greedy = answer(model, ids, given.new_tokens)
        for path, (x, y) in seen.items():
            tensors[f"input/{path}/{case}"], tensors[f"output/{path}/{case}"] = x, y[:, :: given.thin]
        tensors[f"input_ids/{case}"] = ids
        tensors[f"logits_last4/{case}"] = logits[:, :: given.thin]
        tensors[f"greedy_ids/{case}"] = greedy
        said = tokenizer.decode(greedy, skip_special_tokens=True)
        cases[case] = {"text": text, "raw": raw, "greedy_text": said, "n_new_tokens": len(greedy)}

    config = model.config
    base = {"name": config.name_or_path or given.base.name, "model_type": config.model_type}
    base |= {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    metadata = {
        "format": "edgecal-reference",
        "version": "1",
        "method": given.method,
        "adapters": json.dumps(
            [{"name": name, "sha256": sha256(path / "adapter_model.safetensors")} for name, path in adapters.items()]
        ),
        "weights": json.dumps(weights) if given.weights else "",
        "options": given.options if options else "",
        "calibration": given.calibration.name if given.calibration else "",
        "calibration_sha256": sha256(given.calibration) if given.calibration else "",
        "base_model": json.dumps(base),
        "dtype": "float32",
        "thin": str(given.thin),
        "made_with": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "cases": json.dumps(cases),
    }
    partial = given.out.with_name(f".{given.out.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial, metadata)
        os.replace(partial, given.out)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
