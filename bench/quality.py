"""What rounding costs: perplexity and KL divergence on real text, beside fp32 and beside llama.cpp.

    python -m bench.quality MODEL --data dialogues.jsonl [--llama-cpp ORIGINAL.gguf] [--json bench/results/quality.json]
    python -m bench.quality MODEL --data dialogues.jsonl --cache

MODEL is a Hugging Face directory of float weights; every format is made from them. The text is the `dialogue` field of
the file's lines, one behind the other, cut into windows of 512 tokens that are scored independently. KL is of fp32's
next-token distribution to the format's, mean over all positions. With --llama-cpp (needs the packages llama-cpp-python
and gguf) the same weights go through llama.cpp's own quantizer to Q4_0 and are scored on the same windows; the
argument is a GGUF of the same model, whose metadata is used for the file that is quantized.

With --cache keys and values are rounded instead: MODEL is anything that loads, its weights stay as they are, and KV
caches in fp16 and int8 are held against one in fp32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from edgecal import Engine, KVCache

from .machine import facts

WINDOW = 512
OURS = ("int8", "int6", "int4_affine", "int4", "int4_f16")
Scorer = Callable[[np.ndarray], np.ndarray]  # ids (T,) -> logits (T, V)


def windows(engine: Engine, data: Path, n_tokens: int) -> list[np.ndarray]:
    """The first `n_tokens` tokens of the dialogues in `data`, in windows of 512."""
    ids: list[int] = []
    for line in data.read_text("utf-8").splitlines():
        ids += engine.encode(json.loads(line)["dialogue"] + "\n\n", raw=True)
        if len(ids) >= n_tokens:
            break
    if len(ids) < n_tokens:
        raise SystemExit(f"{data} has {len(ids)} tokens of dialogue, fewer than {n_tokens}")
    flat = np.array(ids[:n_tokens])
    return [flat[i : i + WINDOW] for i in range(0, n_tokens, WINDOW)]


def ours(engine: Engine, cache_dtype: str | None = None) -> Scorer:
    def score(ids: np.ndarray) -> np.ndarray:
        cache = KVCache(engine.model.config, cache_dtype or engine.cache_dtype)
        return engine.model.forward(ids, cache, all_logits=True)

    return score


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def measure(reference: Scorer, scorers: dict[str, Scorer], texts: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Perplexity of all, and KL(reference || scorer) and the share of equal top tokens of each scorer."""
    names = ["fp32", *scorers]
    loss, kl, top = (dict.fromkeys(names, 0.0) for _ in range(3))
    count = 0
    for ids in track(texts, "windows"):
        exact = log_softmax(reference(ids))[:-1]
        rows = np.arange(len(ids) - 1)
        count += len(rows)
        for name in names:
            found = exact if name == "fp32" else log_softmax(scorers[name](ids))[:-1]
            loss[name] -= float(found[rows, ids[1:]].sum(dtype=np.float64))
            kl[name] += float((np.exp(exact) * (exact - found)).sum(dtype=np.float64))
            top[name] += int((exact.argmax(axis=1) == found.argmax(axis=1)).sum())
    return {
        name: {
            "perplexity": float(np.exp(loss[name] / count)),
            "kl": kl[name] / count,
            "same_top": top[name] / count,
        }
        for name in names
    }


def llama_cpp_q4_0(model: Path, original: Path, folder: Path) -> tuple[Scorer, float]:
    """llama.cpp's Q4_0 of the same weights; a scorer and its bits per weight."""
    import llama_cpp

    source, target = folder / "bf16.gguf", folder / "q4_0.gguf"
    write_bf16_gguf(model, original, source)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise SystemExit("llama.cpp could not quantize the model")
    peer = llama_cpp.Llama(str(target), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)

    def score(ids: np.ndarray) -> np.ndarray:
        peer.reset()
        peer.eval(ids.tolist())
        return np.array(peer.scores[: len(ids)], np.float32)

    return score, 8 * target.stat().st_size


def write_bf16_gguf(model: Path, original: Path, out: Path) -> None:
    """The weights of the Hugging Face directory `model` as BF16 GGUF, with the metadata of `original`."""
    import gguf

    from edgecal_weights.families import BY_ARCHITECTURE
    from edgecal_weights.gguf_config import gguf_name
    from edgecal_weights.opening import open_checkpoint

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


def stored_bits(engine: Engine) -> float:
    return 8 * engine.model.weight_bytes


def of_caches(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    engine = Engine.load(arguments.model)
    texts = windows(engine, arguments.data, arguments.tokens)
    scorers = {f"{dtype} cache": ours(engine, dtype) for dtype in ("fp16", "int8")}
    for name, row in measure(ours(engine, "fp32"), scorers, texts).items():
        yield name if name in scorers else "fp32 cache", row


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    exact = Engine.load(arguments.model, weights="fp32", cache_dtype="fp32")
    texts = windows(exact, arguments.data, arguments.tokens)
    sizes, scorers = {"fp32": stored_bits(exact)}, {}
    n_weights = exact.model.weight_bytes / 4
    for format in OURS:
        engine = Engine.load(arguments.model, weights=format)
        sizes[format], scorers[format] = stored_bits(engine), ours(engine)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.llama_cpp:
            scorer, size = llama_cpp_q4_0(arguments.model, arguments.llama_cpp, Path(folder))
            sizes["llama.cpp Q4_0"], scorers["llama.cpp Q4_0"] = size, scorer
        table = measure(ours(exact), scorers, texts)
    for name, row in table.items():
        yield name, {"bits_per_weight": sizes[name] / n_weights, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--cache", action="store_true", help="round keys and values, not weights")
    parser.add_argument("--llama-cpp", type=Path, metavar="ORIGINAL.gguf")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = dict(of_caches(arguments) if arguments.cache else results(arguments))
    print("| weights | bits per weight | perplexity | KL to fp32 | same top token |")
    print("|---|---|---|---|---|")
    for name, row in table.items():
        bits = f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else "-"
        print(f"| {name} | {bits} | {row['perplexity']:.3f} | {row['kl']:.5f} | {100 * row['same_top']:.1f} % |")
    if arguments.json:
        result = {"machine": facts("llama_cpp_python"), "tokens": arguments.tokens, "window": WINDOW, "table": table}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
