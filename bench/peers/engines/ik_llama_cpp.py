"""ik_llama.cpp, by ik-llama-cpp-python."""

from __future__ import annotations

import ctypes
from time import perf_counter
from typing import Any

from .llama_family import LlamaFamily, whole_cells
from .worker import BASE


class IkLlamaCpp(LlamaFamily):
    """ik_llama.cpp by the C interface in its package, with tensors repacked when they are loaded, as its kernels want
    them. Flash attention only where it was built for VNNI, since without VNNI it ends the process (says the package),
    and only without an adapter, since it refuses both together: the two have a context each."""

    name = "ik_llama.cpp"
    install = "pip install ik-llama-cpp-python, which is for AVX2; for this machine see bench/README.md"

    def imports(self) -> None:
        from ik_llama_cpp import _ctypes_api, _internals

        self.api, self.parts, self.library = _ctypes_api, _internals, _ctypes_api._lib

    def load(self) -> None:
        plain = self.api.llama_model_default_params

        def repacking() -> Any:
            params = plain()
            params.repack_tensors = True
            return params

        self.api.llama_model_default_params = repacking
        self.native = self.parts.IkModel(self.model["gguf"])
        self.library.llama_print_system_info.restype = ctypes.c_char_p
        self.system_info = self.library.llama_print_system_info().decode().strip()
        self.flash = "AVX512_VNNI = 1" in self.system_info
        self.contexts: dict[bool, tuple[int, Any]] = {}  # with flash attention or without it: room, context
        self._ready(1088)

    def facts(self) -> dict[str, Any]:
        return {"system_info": self.system_info, "flash_attention": self.flash}

    def _ready(self, n_tokens: int) -> Any:
        flash = self.flash and self.variant == BASE
        size, context = self.contexts.pop(flash, (0, None))
        if n_tokens > size:
            size = whole_cells(n_tokens)
            context = self.parts.IkContext(self.native, n_ctx=size, n_threads=self.threads, flash_attn=flash)
        self.contexts[flash] = size, context
        context.kv_cache_clear()
        self._attach(context)
        return context

    def _attach(self, context: Any) -> None:
        """The package binds no functions for adapters; its library has them."""
        pointer = ctypes.c_void_p
        self.library.llama_lora_adapter_clear(pointer(context.ctx))
        if self.variant == BASE:
            return
        attach = self.library.llama_lora_adapter_set
        if attach(pointer(context.ctx), pointer(self._adapter()), ctypes.c_float(1.0)):
            raise RuntimeError("ik_llama.cpp refused the adapter")

    def _open_adapter(self, path: str) -> Any:
        load = self.library.llama_lora_adapter_init
        load.restype = ctypes.c_void_p
        return load(ctypes.c_void_p(self.native.model), path.encode())

    def _run(self, context: Any, ids: list[int], pos: int = 0) -> Any:
        import numpy as np

        for start in range(0, len(ids), self.BATCH):
            part = ids[start : start + self.BATCH]
            batch = self.parts.make_batch_range(part, pos_start=pos + start, logits_last=True)
            failed = context.decode(batch)
            self.api.llama_batch_free(batch)
            if failed:
                raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(context.ctx, -1), (self.native.n_vocab,))

    def decode(self, n: int, depth: int) -> float:
        context = self._ready(depth + n)
        if depth:
            self._run(context, self.ids[:depth])
        return self._write(context, n, depth)

    def first_token(self, text: str) -> float:
        context = self._ready(256)
        started = perf_counter()
        token = int(self._run(context, self.native.tokenize(text, special=True)).argmax())
        self.native.detokenize([token])
        return perf_counter() - started
