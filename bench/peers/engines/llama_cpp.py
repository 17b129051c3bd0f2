"""llama.cpp, by llama-cpp-python."""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any

from .llama_family import LlamaFamily, whole_cells
from .worker import BASE


class LlamaCpp(LlamaFamily):
    """llama.cpp through its C interface, as llama-bench uses it: the wrapper's Llama class copies logits about."""

    name = "llama.cpp"
    install = "pip install llama-cpp-python"

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
        self.deep: dict[tuple[str, int], Any] = {}
        # Room for 1,088 tokens until something longer is asked for: the cache is allocated whole, and counts
        self.size, self.context = 1088, self._context(1088)

    def facts(self) -> dict[str, Any]:
        return {"system_info": self.api.llama_print_system_info().decode().strip()}

    def _context(self, n_tokens: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = whole_cells(n_tokens)
        params.n_batch = params.n_ubatch = self.BATCH
        params.n_threads = params.n_threads_batch = self.threads
        context = self.api.llama_init_from_model(self.native, params)
        if not context:
            raise RuntimeError("llama.cpp made no context")
        return context

    def _ready(self, n_tokens: int) -> Any:
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
            adapters = (api.llama_adapter_lora_p_ctypes * 1)(self._adapter())
            failed = api.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
        if failed:
            raise RuntimeError("llama.cpp refused the adapter")

    def _open_adapter(self, path: str) -> Any:
        return self.api.llama_adapter_lora_init(self.native, path.encode())

    def _run(self, context: Any, ids: list[int], pos: int = 0) -> Any:
        """It counts positions itself, from what the context holds."""
        import numpy as np

        for start in range(0, len(ids), self.BATCH):
            part = ids[start : start + self.BATCH]
            tokens = (self.api.llama_token * len(part))(*part)  # the batch only points to it
            if self.api.llama_decode(context, self.api.llama_batch_get_one(tokens, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(context, -1), (self.n_vocab,))

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
        return self._write(context, n, depth)

    def first_token(self, text: str) -> float:
        context, data = self._ready(256), text.encode()
        ids, piece = (self.api.llama_token * 256)(), ctypes.create_string_buffer(64)
        started = perf_counter()
        n = self.api.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, True)
        token = int(self._run(context, list(ids[:n])).argmax())
        self.api.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
        return perf_counter() - started
