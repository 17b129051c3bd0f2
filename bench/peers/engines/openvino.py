"""OpenVINO GenAI, on an IR that optimum-intel made of the float weights (conversions.py)."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from .worker import BASE, Worker


class OpenVino(Worker):
    """OpenVINO's pipeline as it comes, but for its prefix cache, which would skip a prompt that it has seen.

    It gives tokens and no logits, so it decodes its own greedy choice, timed by its own clock per token. Adapters are
    layers that it adds to the graph, so "base" and "lora" are a pipeline each: one without those layers, one with them.
    A pipeline that cannot place an adapter says so in a line of its log and runs without it, so the answers of the two
    are compared.
    """

    install = "pip install openvino-genai"
    TOKENS = 64  # of the answers that are compared

    def imports(self) -> None:
        import openvino
        import openvino_genai

        self.core, self.api = openvino, openvino_genai

    def load(self) -> None:
        self.pipelines = {BASE: self._pipeline()}

    def _pipeline(self, **options: Any) -> Any:
        scheduler = self.api.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = 0  # grows as it is needed
        scheduler.max_num_batched_tokens = len(self.ids)  # a prompt in one piece, which is the pipeline's own default
        options = {"INFERENCE_NUM_THREADS": self.threads, "scheduler_config": scheduler, **options}
        return self.api.LLMPipeline(self.model["ir"], "CPU", **options)

    def facts(self) -> dict[str, Any]:
        names = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        device = self.core.Core()
        capabilities = [str(name) for name in device.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
        properties = {name.lower(): str(device.get_property("CPU", name)) for name in names}
        return {"version": self.core.__version__, "capabilities": capabilities, **properties}

    def use(self, variant: str) -> None:
        self.variant = variant
        if variant not in self.pipelines:
            adapter = self.api.Adapter(f"{self.job['adapters']['peft'][0]}/adapter_model.safetensors")
            self.pipelines[variant] = self._pipeline(adapters=self.api.AdapterConfig(adapter, 1.0))
            prompt = self._prompt(128)
            without, adapted = (
                self._generate(prompt, self.TOKENS, name).tokens[0] for name in (BASE, variant)
            )
            if without == adapted:
                del self.pipelines[variant]
                raise RuntimeError("OpenVINO left the adapter out: the answers with and without it are the same")

    def _prompt(self, n: int) -> Any:
        import numpy as np

        return self.core.Tensor(np.array([self.ids[:n]], np.int64))

    def _generate(self, prompt: Any, n: int, variant: str | None = None) -> Any:
        pipeline = self.pipelines[variant or self.variant]
        config = pipeline.get_generation_config()
        config.max_new_tokens, config.ignore_eos, config.do_sample = n, True, False
        config.apply_chat_template = False
        return pipeline.generate(prompt, config)

    def prefill(self, n: int) -> float:
        prompt = self._prompt(n)
        started = perf_counter()
        self._generate(prompt, 1)
        return perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        times = self._generate(self._prompt(max(depth, 1)), n + 1).perf_metrics.raw_metrics.m_durations
        if len(times) != n:
            raise RuntimeError(f"OpenVINO timed {len(times)} tokens after the first, {n} were asked for")
        return float(sum(times)) / 1e6

    def first_token(self, text: str) -> float:
        started = perf_counter()
        self._generate(text, 1)
        return perf_counter() - started
