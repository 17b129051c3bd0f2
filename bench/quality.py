"""What rounding costs: perplexity and KL divergence on real text, beside fp32 and beside llama.cpp.

    python -m bench.quality MODEL --text dialogues.jsonl --text code.txt --work FOLDER [--formats int4,int4_affine]
        [--calibrated int4,int4_affine+int8,int6/128,int3] [--llama-cpp ORIGINAL.gguf] [--noise 0.3] [--json FILE]
    python -m bench.quality MODEL --text dialogues.jsonl --cache

MODEL is a Hugging Face directory of float weights; every row is made from them, and scored by `edgecal.perplexity` on
the same windows of 512 tokens: KL is of fp32's next-token distribution to the row's. Calibrated rows see the text that
ships with edgecal (--calibrate FILE: another), and so does llama.cpp's importance matrix (`bench.llama_formats`).
int6/128 is int6 in groups of 128, int4_affine+int8 has an embedding in int8; int3 and int3_affine are not served, and
simulated (`bench.three_bits`). What is made is kept in FOLDER, and used again.

With --llama-cpp (needs the packages llama-cpp-python and gguf) the same weights go through llama.cpp's own quantizer;
the argument is a GGUF of the same model, whose metadata is used for the files that are quantized. Bits per weight count
all tensors of the model, without the tokenizer.

--noise SIZE adds Gaussian noise to every matrix first, SIZE of the step that 4 bits have in its groups of 32. The
models at hand come from files of 4 bits, which flatters formats of that kind; moved off their grid they do not.

With --cache keys and values are rounded instead: MODEL is anything that loads, its weights stay as they are, and KV
caches in fp16 and int8 are held against one in fp32.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from edgecal import Engine
from edgecal.perplexity import CONTEXT, Perplexity, Scorer, TokenScores, summarize, token_scores
from edgecal.quantization import quantize_calibrated
from edgecal.quantization.calibrate import DEFAULT_TEXT
from edgecal.text.corpus import read_documents, windows
from edgecal_kernels.quant import STEP
from edgecal_weights.opening import open_checkpoint

from . import llama_formats
from .machine import facts
from .three_bits import bytes_saved, container

OURS = ("int8", "int6", "int4_affine", "int4_k", "int4", "int4_f16")
Pieces = Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]  # a window's ids: logits, and what follows


def measure(reference: Pieces, scorers: dict[str, Pieces], texts: list[np.ndarray]) -> dict[str, Perplexity]:
    """The reference is read once for all."""
    scores: dict[str, list[TokenScores]] = {name: [] for name in scorers}
    for ids in track(texts, "windows"):
        exact = np.concatenate([logits for logits, _ in reference(ids)])
        for name, scorer in scorers.items():
            parts, at = [], 0
            for logits, targets in scorer(ids):
                parts.append(token_scores(logits, targets, exact[at : at + len(logits)]))
                at += len(logits)
            joined: list[Any] = [np.concatenate(part) for part in zip(*parts, strict=True)]
            scores[name].append(TokenScores(*joined))
    return {name: summarize(found) for name, found in scores.items()}


# --------------------------------------------------------------------------------------------------- the models


def noisy(model: Path, size: float, folder: Path) -> Path:
    """The model with noise of `size` steps on every matrix, rounded to bf16."""
    import torch
    from safetensors.torch import save_file

    out = folder / "off-grid"
    if (out / "model.safetensors").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    for file in model.glob("*.json"):
        shutil.copy(file, out)
    for file in model.glob("*.jinja"):
        shutil.copy(file, out)
    rng, tensors = np.random.default_rng(16), {}
    with open_checkpoint(model) as checkpoint:
        for name in sorted(checkpoint.names()):
            w = checkpoint.read(name)
            if w.ndim == 2:
                groups = w.reshape(len(w), -1, 32)
                step = np.ptp(groups, axis=2, keepdims=True) / 15
                w = (groups + size * step * rng.standard_normal(groups.shape, np.float32)).reshape(w.shape)
            tensors[name] = torch.from_numpy(w).to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def calibrated(model: Path, name: str, text: Path, folder: Path) -> Path:
    """The packed form `name`: a format, perhaps the size of its groups, perhaps another format for the embedding."""
    out = folder / f"calibrated-{name.replace('/', '-')}"
    if not out.exists():
        layers, _, embedding = name.partition("+")
        format, _, size = layers.partition("/")
        with open_checkpoint(model) as checkpoint, container(format) as served:
            quantize_calibrated(
                checkpoint,
                out,
                documents=read_documents(text),
                format=served,
                group_size=int(size or STEP),
                embedding_format=embedding or "auto",
            )
    return out


# ------------------------------------------------------------------------------------------------------ results


def row(found: Perplexity, size: int | None, weights: int) -> dict[str, Any]:
    assert found.against is not None
    kl, top = found.against.kl, found.against.same_top
    return {
        "bytes": size,
        "bits_per_weight": None if size is None else 8 * size / weights,
        "perplexity": found.perplexity.value,
        "kl": kl.value,
        "kl_error": kl.error,
        "kl_99": found.against.kl_99,
        "same_top": top.value,
    }


def of_caches(arguments: argparse.Namespace) -> dict[str, Any]:
    engine = Engine.load(arguments.model)
    scorers: dict[str, Pieces] = {f"{kind} cache": Scorer(engine, cache_dtype=kind) for kind in ("fp16", "int8")}
    reference = Scorer(engine, cache_dtype="fp32")
    return tables(arguments, engine, reference, scorers, {}, 0)


def of_weights(arguments: argparse.Namespace) -> dict[str, Any]:
    folder, model = arguments.work, arguments.model
    if arguments.noise:
        folder /= f"noise-{arguments.noise:g}"
        model = noisy(model, arguments.noise, folder)
    if arguments.calibrate != DEFAULT_TEXT:
        folder /= arguments.calibrate.stem
    folder.mkdir(parents=True, exist_ok=True)
    exact = Engine.load(model, weights="fp32", cache_dtype="fp32", backend="numpy")  # whose BLAS is fastest there
    n_weights = exact.model.weight_bytes // 4
    engines = {name: Engine.load(model, weights=name) for name in arguments.formats}
    sizes = {name: engine.model.weight_bytes for name, engine in engines.items()}
    for name in arguments.calibrated:
        packed, label = calibrated(model, name, arguments.calibrate, folder), f"{name} calibrated"
        engines[label] = Engine.load(packed)
        sizes[label] = engines[label].model.weight_bytes - bytes_saved(name, packed)
    reference = Scorer(exact)
    scorers: dict[str, Pieces] = {name: Scorer(engine) for name, engine in engines.items()}
    if arguments.llama_cpp:
        for name, file in llama_formats.files(model, arguments.llama_cpp, arguments.calibrate, folder):
            sizes[name] = llama_formats.gguf_bytes(file)
            scorers[name] = llama_formats.LlamaCpp(file, reference.step)
    return tables(arguments, exact, reference, scorers, sizes, n_weights)


def tables(
    arguments: argparse.Namespace,
    engine: Engine,
    reference: Scorer,
    scorers: dict[str, Pieces],
    sizes: dict[str, int],
    n_weights: int,
) -> dict[str, Any]:
    """Of each text. `sizes`: bytes of all tensors, of the rows whose weights are rounded; `n_weights` of the model."""
    made = {}
    for text in arguments.text:
        texts = windows(engine.tokenizer, read_documents(text), CONTEXT, arguments.tokens)
        found = measure(reference, scorers, texts)
        first = next(iter(found.values()))
        assert first.against is not None
        rows = {"fp32": {"bits_per_weight": 32.0 if sizes else None, "perplexity": first.against.perplexity, "kl": 0.0}}
        rows["fp32"]["same_top"] = 1.0
        rows |= {name: row(one, sizes.get(name), n_weights) for name, one in found.items()}
        made[text.name] = {"tokens": first.tokens, "windows": first.windows, "table": rows}
        show(text.name, made[text.name])
    return made


def show(name: str, made: dict[str, Any]) -> None:
    print(f"\n{name}: {made['tokens']:,} tokens in {made['windows']} windows\n")
    print("| weights | MB | bits per weight | perplexity | KL to fp32 | same top token |\n|---|---|---|---|---|---|")
    for weights, row in made["table"].items():
        bits = "-" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}"
        error = f" +- {row['kl_error']:.5f}" if row.get("kl_error") else ""
        top = f"{100 * row['same_top']:.1f} %"
        size = f"{row['bytes'] / 1e6:.1f}" if row.get("bytes") else "-"
        print(f"| {weights} | {size} | {bits} | {row['perplexity']:.3f} | {row['kl']:.5f}{error} | {top} |", flush=True)


def names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where what is made is kept")
    parser.add_argument("--formats", type=names, default=OURS)
    parser.add_argument("--calibrated", type=names, default=())
    parser.add_argument("--calibrate", type=Path, default=DEFAULT_TEXT, metavar="TEXT")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--cache", action="store_true", help="round keys and values, not weights")
    parser.add_argument("--llama-cpp", type=Path, metavar="ORIGINAL.gguf")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.work is None and not arguments.cache:
        parser.error("say where to keep what is made: --work FOLDER")
    made = of_caches(arguments) if arguments.cache else of_weights(arguments)
    if arguments.json:
        result = {"machine": facts("llama_cpp_python"), "window": CONTEXT, "noise": arguments.noise}
        result |= {"calibrated_on": arguments.calibrate.name, "texts": made}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
