"""One engine in a process of its own: `python -m bench.peers.workers`, requests and answers as JSON lines.

Between requests the process waits in a read of stdin and does nothing; every answer says how much processor time it
used while waiting, so that a spinning thread pool shows. Each engine is one class with the same methods:

    load()                     the model ready for its first token
    use(variant)               "base", "lora" (one rank-32 adapter on all seven components) or "lc++" (edgecal only)
    prefill(n)                 seconds for n prompt tokens into an empty cache, logits of the last one included
    decode(n, depth)           seconds for n tokens, one at a time, behind `depth` tokens that are in the cache already
    first_token(text)          seconds from a text to the text of the first token of the answer
    probe()                    some logits, to compare the engines' arithmetic

The tokens that decode runs are given (the prompt's own), not sampled: all engines do the same work, and none gains by
guessing its own output. Choosing the next token (argmax) is part of every step. Only mistral.rs, which takes text and
returns text, decodes what it sampled; its own clock is used, in milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

PROBED = 512  # logits of every k-th token that `probe` returns
BASE, LORA, LCPP = "base", "lora", "lc++"


def status(field: str) -> int:
    """VmHWM (peak resident), VmRSS ... of this process in bytes; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class Worker(ABC):
    """What the engines share. `job` is the request that made the process: model, threads, ids, adapters."""

    variants: tuple[str, ...] = (BASE, LORA)

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.threads, self.ids = job, int(job["threads"]), [int(i) for i in job["ids"]]
        self.model: dict[str, Any] = job["model"]
        self.variant = BASE

    @abstractmethod
    def imports(self) -> None:
        """What has to be imported before a model can be loaded."""

    @abstractmethod
    def load(self) -> None:
        """The model ready for its first token."""

    def facts(self) -> dict[str, Any]:
        return {}

    def use(self, variant: str) -> None:
        self.variant = variant


class Edgecal(Worker):
    variants = (BASE, LORA, LCPP)

    def imports(self) -> None:
        from edgecal import Engine, KVCache  # noqa: F401
        from edgecal_kernels.dispatch import backend

        backend(self.model.get("backend"))

    def load(self) -> None:
        from edgecal import Engine

        self.engine = Engine.load(self.model["packed"], threads=self.threads, backend=self.model.get("backend"))
        self.recipes: dict[str, Any] = {BASE: None}
        self.compiled: dict[str, Any] = {BASE: None}
        self.deep: dict[tuple[str, int], Any] = {}

    def facts(self) -> dict[str, Any]:
        model = self.engine.model
        head = 0 if model.config.tie_word_embeddings else model.embed_tokens.nbytes
        ranks = {name: compiled.rank for name, compiled in self.compiled.items() if compiled is not None}
        # A step reads one row of an untied embedding, and everything else whole
        return {"read_per_token": model.weight_bytes - head, "instructions": model.ops.INSTRUCTIONS, "ranks": ranks}

    def use(self, variant: str) -> None:
        if variant not in self.compiled:
            self._compile(variant)
        self.variant = variant

    def _compile(self, variant: str) -> None:
        from edgecal import Recipe
        from edgecal.adapters.recipe import compile_recipe

        engine, paths = self.engine, self.job["adapters"]["peft"]
        names = ("first", "second")[: 1 if variant == LORA else 2]
        for name, path in zip(names, paths, strict=False):
            if name not in engine.adapters:
                engine.add_adapter(path, name)
        if variant == LORA:
            recipe, calibration = Recipe("single", names), None
        else:
            recipe = Recipe("learnable_calibration_pp", names, calibration="in memory")
            calibration = self._calibration([engine.adapters[name] for name in names])
        self.recipes[variant] = recipe
        shapes, kernels = engine.model.linear_shapes, engine.model.ops.merging
        merged = compile_recipe(recipe, engine.adapters, calibration, shapes, engine.base, kernels)
        self.compiled[variant] = engine.model.run_form(merged)

    def _calibration(self, adapters: list[Any]) -> Any:
        """A random LC++ calibration for these adapters; s = 4 as in the paper."""
        import numpy as np

        from edgecal.adapters.calibration import Calibration
        from edgecal_weights.calibration_file import AdapterReference, BaseModelFacts, CalibrationFile

        rng, groups = np.random.default_rng(5), dict[str, dict[str, Any]]()
        for module, (d, k) in self.engine.model.linear_shapes.items():
            p1, p2 = rng.standard_normal((4, k), np.float32), rng.standard_normal((d, 4), np.float32)
            groups.setdefault(module.rsplit(".", 1)[1], {"P1": p1 / np.float32(k**0.5), "P2": p2 * np.float32(0.02)})
        base = self.engine.base
        facts = [base[key] for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")]
        references = tuple(AdapterReference(adapter.name, adapter.sha256) for adapter in adapters)
        weights = (1 / len(adapters),) * len(adapters)
        return Calibration(
            CalibrationFile(
                "learnable_calibration_pp", references, weights, BaseModelFacts("bench", *facts), groups, rank=4
            )
        )

    def _prefill(self, n: int) -> tuple[Any, Any]:
        from edgecal import KVCache
        from edgecal.decoding.generate import prefill

        cache = KVCache(self.engine.model.config, self.engine.cache_dtype)
        return prefill(self.engine.model, self.ids[:n], cache, self.compiled[self.variant]), cache

    def prefill(self, n: int) -> float:
        started = perf_counter()
        logits, _ = self._prefill(n)
        logits.argmax()
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        from edgecal import KVCache
        from edgecal.decoding.generate import decode

        model, adapter = self.engine.model, self.compiled[self.variant]
        if depth == 0:
            cache = KVCache(model.config, self.engine.cache_dtype)
        else:
            if (self.variant, depth) not in self.deep:
                self.deep[self.variant, depth] = self._prefill(depth)[1]
            cache = self.deep[self.variant, depth]
            cache.truncate(depth)
        started = perf_counter()
        for token in self.ids[depth : depth + n]:
            decode(model, token, cache, adapter).argmax()
        return perf_counter() - started

    def first_token(self, text: str) -> float:
        from edgecal import KVCache
        from edgecal.engine import Settings

        cache = KVCache(self.engine.model.config, self.engine.cache_dtype)
        settings = Settings(max_tokens=1, raw=True)
        started = perf_counter()
        next(iter(self.engine.stream(text, recipe=self.recipes[self.variant], settings=settings, cache=cache)))
        return perf_counter() - started

    def probe(self) -> list[float]:
        return _thin(self._prefill(128)[0])

    def read_weights(self, passes: int) -> dict[str, float]:
        """A plain read of the memory that the weights lie in, by as many threads: what a step is held against."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        from edgecal_kernels.bandwidth import plain_read
        from edgecal_weights.file_kind import PACKED_FILE

        if not hasattr(self, "parts"):
            path = Path(self.model["packed"], PACKED_FILE)
            words = np.asarray(np.memmap(path, np.uint64, "c", shape=(path.stat().st_size // 8,)))
            self.parts, self.read = np.array_split(words, self.threads), plain_read()
            self.readers = ThreadPoolExecutor(self.threads)
            list(self.readers.map(self.read, self.parts))
        started = perf_counter()
        for _ in range(passes):
            list(self.readers.map(self.read, self.parts))
        return {"bytes": float(passes * sum(part.nbytes for part in self.parts)), "seconds": perf_counter() - started}


class LlamaCpp(Worker):
    """llama.cpp through its C interface, as llama-bench uses it: the wrapper's Llama class copies logits about."""

    BATCH = 512

    def imports(self) -> None:
        import llama_cpp

        self.api = llama_cpp

    def load(self) -> None:
        api = self.api
        self._silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._silence, ctypes.c_void_p(0))
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.use_mmap = True
        params.n_gpu_layers = 0
        self.native = api.llama_model_load_from_file(self.model["gguf"].encode(), params)
        if not self.native:
            raise RuntimeError(f"llama.cpp cannot load {self.model['gguf']}")
        self.vocab = api.llama_model_get_vocab(self.native)
        self.n_vocab = api.llama_vocab_n_tokens(self.vocab)
        self.adapter: Any = None
        self.deep: dict[tuple[str, int], Any] = {}
        # Room for 1,088 tokens until something longer is asked for: the cache is allocated whole, and counts
        self.size, self.context = 1088, self._context(1088)

    def facts(self) -> dict[str, Any]:
        return {"system_info": self.api.llama_print_system_info().decode().strip()}

    def _context(self, n_tokens: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = -(-n_tokens // 256) * 256
        params.n_batch = params.n_ubatch = self.BATCH
        params.n_threads = params.n_threads_batch = self.threads
        context = self.api.llama_init_from_model(self.native, params)
        if not context:
            raise RuntimeError("llama.cpp made no context")
        return context

    def _ready(self, n_tokens: int) -> Any:
        """An empty context with room for so many, under the variant in use."""
        if n_tokens > self.size:
            self.api.llama_free(self.context)
            self.size, self.context = n_tokens, self._context(n_tokens)
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        self._attach(self.context)
        return self.context

    def _attach(self, context: Any) -> None:
        api = self.api
        if self.variant == BASE:
            failed = api.llama_set_adapters_lora(context, None, 0, None)
        else:
            if self.adapter is None:
                path = self.job["adapters"]["gguf"]
                self.adapter = api.llama_adapter_lora_init(self.native, path.encode())
                if not self.adapter:
                    raise RuntimeError(f"llama.cpp cannot load the adapter {path}")
            adapters = (api.llama_adapter_lora_p_ctypes * 1)(self.adapter)
            failed = api.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
        if failed:
            raise RuntimeError("llama.cpp refused the adapter")

    def _run(self, context: Any, ids: list[int]) -> Any:
        """Logits of the last token, float32 (V,), a view of llama.cpp's memory."""
        import numpy as np

        for start in range(0, len(ids), self.BATCH):
            part = ids[start : start + self.BATCH]
            tokens = (self.api.llama_token * len(part))(*part)  # the batch only points to it
            if self.api.llama_decode(context, self.api.llama_batch_get_one(tokens, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(context, -1), (self.n_vocab,))

    def prefill(self, n: int) -> float:
        context = self._ready(n)
        started = perf_counter()
        self._run(context, self.ids[:n]).argmax()
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        if depth == 0:
            context = self._ready(n)
        else:
            if (self.variant, depth) not in self.deep:
                self.deep[self.variant, depth] = context = self._context(depth + 256)
                self._attach(context)
                self._run(context, self.ids[:depth])
            context = self.deep[self.variant, depth]
            self.api.llama_memory_seq_rm(self.api.llama_get_memory(context), 0, depth, -1)
        started = perf_counter()
        for token in self.ids[depth : depth + n]:
            self._run(context, [token]).argmax()
        return perf_counter() - started

    def first_token(self, text: str) -> float:
        context, data = self._ready(256), text.encode()
        ids, piece = (self.api.llama_token * 256)(), ctypes.create_string_buffer(64)
        started = perf_counter()
        n = self.api.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, True)
        token = int(self._run(context, list(ids[:n])).argmax())
        self.api.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
        return perf_counter() - started

    def probe(self) -> list[float]:
        return _thin(self._run(self._ready(128), self.ids[:128]))


class IkLlamaCpp(Worker):
    """ik_llama.cpp by the C interface in its package, with tensors repacked when they are loaded, as its kernels want
    them. No adapters, and no flash attention: on processors without VNNI it ends the process (says the package)."""

    variants = (BASE,)
    BATCH = 512

    def imports(self) -> None:
        from ik_llama_cpp import _ctypes_api, _internals

        self.api, self.parts = _ctypes_api, _internals

    def load(self) -> None:
        plain = self.api.llama_model_default_params

        def repacking() -> Any:
            params = plain()
            params.repack_tensors = True
            return params

        self.api.llama_model_default_params = repacking
        self.native = self.parts.IkModel(self.model["gguf"])
        self.size, self.context = 0, None
        self._ready(1088)

    def _ready(self, n_tokens: int) -> Any:
        """An empty context with room for so many."""
        if n_tokens > self.size:
            self.size = -(-n_tokens // 256) * 256
            self.context = self.parts.IkContext(
                self.native, n_ctx=self.size, n_threads=self.threads, flash_attn=False
            )
        self.context.kv_cache_clear()
        return self.context

    def _run(self, context: Any, ids: list[int], pos: int = 0) -> Any:
        """Logits of the last token, float32 (V,), a view of the engine's memory."""
        import numpy as np

        for start in range(0, len(ids), self.BATCH):
            part = ids[start : start + self.BATCH]
            batch = self.parts.make_batch_range(part, pos_start=pos + start, logits_last=True)
            failed = context.decode(batch)
            self.api.llama_batch_free(batch)
            if failed:
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(context.ctx, -1), (self.native.n_vocab,))

    def prefill(self, n: int) -> float:
        context = self._ready(n)
        started = perf_counter()
        self._run(context, self.ids[:n]).argmax()
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        context = self._ready(depth + n)
        if depth:
            self._run(context, self.ids[:depth])
        started = perf_counter()
        for i, token in enumerate(self.ids[depth : depth + n]):
            self._run(context, [token], depth + i).argmax()
        return perf_counter() - started

    def first_token(self, text: str) -> float:
        context = self._ready(256)
        started = perf_counter()
        token = int(self._run(context, self.native.tokenize(text, special=True)).argmax())
        self.native.detokenize([token])
        return perf_counter() - started

    def probe(self) -> list[float]:
        return _thin(self._run(self._ready(128), self.ids[:128]))


class Transformers(Worker):
    """PyTorch. Once an adapter is attached, "base" runs with it disabled, through PEFT's wrappers."""

    def imports(self) -> None:
        import torch
        import transformers

        self.torch, self.library = torch, transformers

    def load(self) -> None:
        torch, transformers = self.torch, self.library
        torch.set_num_threads(self.threads)
        torch.set_num_interop_threads(1)
        torch.set_grad_enabled(False)
        self.adapted = False
        dtype = getattr(torch, self.job["torch_dtype"])
        if "config" in self.model:
            config = transformers.LlamaConfig(**self.model["config"], tie_word_embeddings=True)
            with torch.device("meta"):
                model = transformers.LlamaForCausalLM(config).to(dtype)
            model = model.to_empty(device="cpu")
            for module in model.modules():
                if hasattr(module, "inv_freq"):  # not a parameter: to_empty left it unset
                    module.inv_freq.copy_(type(module)(config).inv_freq)
            for parameter in model.parameters():
                parameter.uniform_(-0.03, 0.03)
        elif "hf" in self.model:
            model = transformers.AutoModelForCausalLM.from_pretrained(self.model["hf"], dtype=dtype)
        else:
            path = Path(self.model["gguf"])
            model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
        self.net: Any = model.eval()
        self.deep: dict[tuple[str, int], Any] = {}

    def use(self, variant: str) -> None:
        if variant == LORA and not self.adapted:
            import peft

            self.net, self.adapted = peft.PeftModel.from_pretrained(self.net, self.job["adapters"]["peft"][0]), True
        if self.adapted:
            tuner = self.net.base_model
            (tuner.enable_adapter_layers if variant == LORA else tuner.disable_adapter_layers)()
        self.variant = variant

    def _run(self, ids: list[int], cache: Any = None) -> tuple[Any, Any]:
        tokens = self.torch.tensor([ids])
        out = self.net(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1], out.past_key_values

    def prefill(self, n: int) -> float:
        started = perf_counter()
        int(self._run(self.ids[:n])[0].argmax())
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        cache = None
        if depth:
            if (self.variant, depth) not in self.deep:
                self.deep[self.variant, depth] = self._run(self.ids[:depth])[1]
            cache = self.deep[self.variant, depth]
            if cache.get_seq_length() > depth:
                cache.crop(depth - cache.get_seq_length())
        started = perf_counter()
        for token in self.ids[depth : depth + n]:
            logits, cache = self._run([token], cache)
            int(logits.argmax())
        return perf_counter() - started

    def first_token(self, text: str) -> float:
        from tokenizers import Tokenizer

        if not hasattr(self, "tokenizer"):
            self.tokenizer = Tokenizer.from_file(self.model["tokenizer"])
        started = perf_counter()
        token = int(self._run(self.tokenizer.encode(text).ids)[0].argmax())
        self.tokenizer.decode([token])
        return perf_counter() - started

    def probe(self) -> list[float]:
        return _thin(self._run(self.ids[:128])[0].float().numpy())


class MistralRs(Worker):
    """mistral.rs counts the tokens of a text itself; a text of n tokens may come back as n plus or minus a few."""

    variants = (BASE,)

    def imports(self) -> None:
        self.api = import_module("mistralrs")

    def load(self) -> None:
        path = Path(self.model["gguf"])
        which = self.api.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        self.runner = self.api.Runner(which=which, prefix_cache_n=0, max_seqs=1)
        self.texts: dict[int, str] = {}

    def _usage(self, text: str, n: int) -> Any:
        request = self.api.CompletionRequest(
            prompt=text, model="default", max_tokens=n, temperature=0.0, ignore_eos=True
        )
        return self.runner.send_completion_request(request).usage

    def _text(self, n: int) -> str:
        if n not in self.texts:
            from tokenizers import Tokenizer

            self.texts[n] = Tokenizer.from_file(self.model["tokenizer"]).decode(self.ids[:n])
        return self.texts[n]

    def prefill(self, n: int) -> float:
        usage = self._usage(self._text(n), 1)
        return float(usage.total_prompt_time_sec) * n / usage.prompt_tokens

    def decode(self, n: int, depth: int) -> float:
        usage = self._usage(self._text(max(depth, 1)), n + 1)
        return float(usage.total_completion_time_sec) * n / (usage.completion_tokens - 1)

    def first_token(self, text: str) -> float:
        started = perf_counter()
        self._usage(text, 1)
        return perf_counter() - started


ENGINES: dict[str, type[Worker]] = {
    "edgecal": Edgecal,
    "llama.cpp": LlamaCpp,
    "ik_llama.cpp": IkLlamaCpp,
    "transformers": Transformers,
    "mistral.rs": MistralRs,
}


def _thin(logits: Any) -> list[float]:
    return [float(x) for x in logits[:: max(1, len(logits) // PROBED)]]


def answer(worker: Worker, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if call == "load":
        worker.imports()
        imported = status("VmRSS")
        started = perf_counter()
        worker.load()
        seconds = perf_counter() - started
        return {"seconds": seconds, "variants": worker.variants, "imported": imported, "loaded": status("VmRSS")}
    worker.use(arguments.pop("variant", BASE))
    if call == "facts":
        return worker.facts()
    if call == "memory":
        return {"peak": status("VmHWM"), "now": status("VmRSS")}
    gc.collect()
    value = getattr(worker, call)(**arguments)
    return value if isinstance(value, dict) else {"value": value}


def main() -> None:
    # Libraries that print must not print into the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker: Worker | None = None
    waiting = time.process_time(), perf_counter()
    for line in sys.stdin:
        idle = time.process_time() - waiting[0], perf_counter() - waiting[1]
        request = json.loads(line)
        try:
            if worker is None:
                worker = ENGINES[request["engine"]](request)
                result: dict[str, Any] = {}
            else:
                result = answer(worker, request.pop("call"), request)
        except ImportError as error:
            result = {"error": f"not installed ({error.name or error})"}
        except Exception as error:  # whatever an engine raises becomes its row's remark, and the others go on
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps({**result, "idle_cpu": idle[0], "idle": idle[1]}) + "\n")
        waiting = time.process_time(), perf_counter()
    # llama.cpp and mistral.rs free their threads in destructors that may wait for each other
    os._exit(0)


if __name__ == "__main__":
    main()
