"""llama.cpp on the weights that edgecal has: its own quantizer, with and without an importance matrix, and its logits.

Needs the packages llama-cpp-python and gguf. The importance matrix has what `llama-imatrix` gathers, the mean squares
of the inputs of every matrix, here of edgecal's fp32 model. llama.cpp's messages are dropped, but for errors.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from edgecal import Engine, ModelConfig
from edgecal.perplexity import CONTEXT
from edgecal.quantization.layerwise import Layerwise
from edgecal.text.corpus import read_documents, windows
from edgecal_weights.opening import open_checkpoint

FORMATS = (("Q4_0", False), ("Q4_K_M", False), ("Q4_K_M", True), ("Q3_K_M", True))  # with the matrix?
_ERROR = 4  # ggml's level
_held: list[Any] = []


def silence() -> None:
    """Of what llama.cpp prints from here on, errors stay."""
    import llama_cpp

    def only_errors(level: int, text: bytes, data: Any) -> None:
        if level == _ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    _held[:] = [llama_cpp.llama_log_callback(only_errors)]  # which llama.cpp does not keep alive
    llama_cpp.llama_log_set(_held[0], ctypes.c_void_p(0))


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


def files(model: Path, original: Path, text: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """llama.cpp's own formats of the same weights, by their names."""
    import llama_cpp

    from edgecal_weights.families import BY_ARCHITECTURE
    from edgecal_weights.gguf_config import gguf_name

    silence()
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
    for format, weighed in FORMATS:
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
