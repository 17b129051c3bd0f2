"""What rounding costs: perplexity and KL divergence on real text, beside fp32 and beside llama.cpp.

    python -m bench.quality MODEL --text dialogues.jsonl --text code.txt --work FOLDER [--formats int4,int4_affine]
        [--calibrated int4,int4_affine,int6/128] [--llama-cpp ORIGINAL.gguf] [--noise 0.3] [--json FILE]
    python -m bench.quality MODEL --text dialogues.jsonl --cache

MODEL is a Hugging Face directory of float weights; every row is made from them, and scored by `edgecal.perplexity` on
the same windows of 512 tokens: KL is of fp32's next-token distribution to the row's. Calibrated rows see the text that
ships with edgecal (--calibrate FILE: another), and so does llama.cpp's importance matrix: mean squares of the inputs of
every matrix in fp32, which is what `llama-imatrix` gathers. int6/128 is int6 in groups of 128. What is made is kept in
FOLDER, and used again.

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
import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from edgecal import Engine, ModelConfig
from edgecal.perplexity import CONTEXT, Perplexity, Scorer, TokenScores, summarize, token_scores
from edgecal.quantization import quantize_calibrated
from edgecal.quantization.calibrate import DEFAULT_TEXT
from edgecal.quantization.layerwise import Layerwise
from edgecal.text.corpus import read_documents, windows
from edgecal_kernels.quant import STEP
from edgecal_weights.opening import open_checkpoint

from .machine import facts

OURS = ("int8", "int6", "int4_affine", "int4_k", "int4", "int4_f16")
LLAMA_CPP = (("Q4_0", False), ("Q4_K_M", False), ("Q4_K_M", True), ("Q3_K_M", True))
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
    """The packed form `name`, a format and perhaps the size of its groups."""
    out = folder / f"calibrated-{name.replace('/', '-')}"
    if not out.exists():
        format, _, size = name.partition("/")
        with open_checkpoint(model) as checkpoint:
            quantize_calibrated(
                checkpoint, out, documents=read_documents(text), format=format, group_size=int(size or STEP)
            )
    return out


def mean_squares(model: Path, text: Path) -> dict[str, np.ndarray]:
    """Of the inputs of every matrix, in fp32, by tensor name."""
    found: dict[str, np.ndarray] = {}

    def watch(weights: Any, gram: np.ndarray) -> Any:
        found.update(dict.fromkeys(weights, np.diagonal(gram) / n_tokens))
        return weights

    engine = Engine.load(model, weights="fp32")
    chosen = [ids for ids in windows(engine.tokenizer, read_documents(text), CONTEXT) if len(ids) == CONTEXT][:24]
    n_tokens = sum(map(len, chosen))
    with open_checkpoint(model) as checkpoint:
        config = ModelConfig.from_dict(checkpoint.config)
        pass_, table = Layerwise(config, checkpoint.read, CONTEXT), checkpoint.read("model.embed_tokens.weight")
        states = [table[ids] * np.float32(config.embedding_scale) for ids in chosen]
        for layer in track(range(config.n_layers), "importance matrix"):
            states = pass_.run(layer, states, watch)
    return found


# ---------------------------------------------------------------------------------------------------- llama.cpp


class LlamaCpp:
    """A GGUF in llama.cpp, scored in pieces of `step` positions."""

    def __init__(self, path: Path, step: int) -> None:
        import llama_cpp

        self._step = step
        n = len(os.sched_getaffinity(0))  # its default, all cores, waits where there are fewer
        self._peer = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT,
            n_batch=CONTEXT,
            n_threads=n,
            n_threads_batch=n,
            logits_all=True,
            verbose=False,
        )

    def __call__(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._peer.reset()
        self._peer.eval(ids.tolist())
        for start in range(0, len(ids) - 1, self._step):
            stop = min(start + self._step, len(ids) - 1)
            yield np.array(self._peer.scores[start:stop], np.float32), ids[start + 1 : stop + 1]


def llama_cpp_files(model: Path, original: Path, text: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """llama.cpp's own formats of the same weights, by their names."""
    import llama_cpp

    from edgecal_weights.families import BY_ARCHITECTURE
    from edgecal_weights.gguf_config import gguf_name

    source, squares = folder / "bf16.gguf", folder / "mean_squares.npz"
    if not source.exists():
        write_bf16_gguf(model, original, source)
    if not squares.exists():
        np.savez(squares, **mean_squares(model, text))
    family = BY_ARCHITECTURE[_architecture(original)]
    given = {(gguf_name(name, family) or "").encode(): values for name, values in np.load(squares).items()}
    held = {name: np.ascontiguousarray(values, np.float32) for name, values in given.items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(held) + 1))()
    for entry, (name, values) in zip(entries, held.items(), strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    for format, weighed in LLAMA_CPP:
        target = folder / f"{format}{'-imatrix' if weighed else ''}.gguf"
        if not target.exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{format}"), 1
            if weighed:
                params.imatrix = ctypes.cast(entries, type(params.imatrix))
            if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
                raise SystemExit(f"llama.cpp could not quantize the model to {format}")
        yield f"llama.cpp {format}{' + imatrix' if weighed else ''}", target


def _architecture(original: Path) -> str:
    import gguf

    return str(gguf.GGUFReader(original).fields["general.architecture"].contents())


def gguf_bytes(path: Path) -> int:
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


def write_bf16_gguf(model: Path, original: Path, out: Path) -> None:
    """The weights of the Hugging Face directory `model` as BF16 GGUF, with the metadata of `original`."""
    import gguf

    from edgecal_weights.families import BY_ARCHITECTURE
    from edgecal_weights.gguf_config import gguf_name

    reader = gguf.GGUFReader(original)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    with open_checkpoint(model) as checkpoint, open_checkpoint(original) as named:
        for name in checkpoint.names():
            values = checkpoint.read(name)
            if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
                heads = checkpoint.config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            theirs = gguf_name(name, BY_ARCHITECTURE[architecture])
            if values.ndim == 1:
                writer.add_tensor(theirs, values)
            else:
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(theirs, gguf.quants.quantize(values, kind), raw_dtype=kind)
        assert set(named.names()) == set(checkpoint.names())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    folder.mkdir(parents=True, exist_ok=True)
    exact = Engine.load(model, weights="fp32", cache_dtype="fp32", backend="numpy")  # whose BLAS is fastest there
    n_weights = exact.model.weight_bytes // 4
    engines = {name: Engine.load(model, weights=name) for name in arguments.formats}
    for name in arguments.calibrated:
        engines[f"{name} calibrated"] = Engine.load(calibrated(model, name, arguments.calibrate, folder))
    sizes = {name: engine.model.weight_bytes for name, engine in engines.items()}
    reference = Scorer(exact)
    scorers: dict[str, Pieces] = {name: Scorer(engine) for name, engine in engines.items()}
    if arguments.llama_cpp:
        for name, file in llama_cpp_files(model, arguments.llama_cpp, arguments.calibrate, folder):
            sizes[name], scorers[name] = gguf_bytes(file), LlamaCpp(file, reference.step)
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
        result = {"machine": facts("llama_cpp_python"), "window": CONTEXT, "noise": arguments.noise, "texts": made}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
