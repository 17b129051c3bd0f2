"""transformers and PEFT on float weights."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from .worker import LORA, Worker, thin


class Transformers(Worker):
    """PyTorch. Once an adapter is attached, "base" runs with it disabled, through PEFT's wrappers."""

    install = "pip install torch transformers peft"

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
        return thin(self._run(self.ids[:128])[0].float().numpy())
