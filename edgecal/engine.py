"""Engine: tokenizer + model + adapters; text in, text out.

One engine serves any number of requests, each with its own recipe. The base is loaded once and never changes; a recipe
is compiled to low-rank pairs when first used and kept, so switching the method of the next request swaps a reference.

    engine = Engine.load("model/", adapters={"summarize": "adapters/summarize"})
    for piece in engine.stream("Summarize ...", recipe=Recipe("single", adapters=("summarize",))):
        print(piece.text, end="")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecal_kernels.dispatch import backend as find_backend
from edgecal_weights.checkpoint import open_checkpoint

from .adapters.calibration import Calibration
from .adapters.lora import CompiledAdapter, LoraAdapter
from .adapters.recipe import Recipe, compile_recipe, compile_steps
from .adapters.running import RunningAdapter
from .cache import KVCache
from .config import ModelConfig
from .errors import PromptError, RecipeError
from .generate import PREFILL_CHUNK, FinishReason, TokenRecord, check_prompt, generate
from .loading import load_model
from .memory import release_free
from .model import Model
from .sampler import Sampler, SamplingOptions
from .stopping import StopStrings
from .tasks import user_message
from .tokenizer import TextStream, Tokenizer

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
MAX_TOKENS = 256


@dataclass(frozen=True)
class Pass:
    """What one forward pass over a prompt cost. Seconds; rates in tokens per second."""

    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    total_s: float
    text: str

    @property
    def prefill_rate(self) -> float:
        return self.prompt_tokens / self.first_token_s if self.first_token_s else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first; 0 when there was only one."""
        seconds = self.total_s - self.first_token_s
        return (self.new_tokens - 1) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Piece:
    """One step of a stream: the text that became complete (maybe empty) and the token's own record."""

    text: str
    token: TokenRecord
    finish_reason: FinishReason | None = None


@dataclass
class Completion:
    """A whole answer. `passes` has one entry per pass; multi-step has several, everything else one."""

    text: str
    finish_reason: FinishReason
    tokens: list[TokenRecord]
    passes: list[Pass]
    method: str

    @property
    def prompt_tokens(self) -> int:
        return sum(p.prompt_tokens for p in self.passes)

    @property
    def first_token_s(self) -> float:
        """Until the first token of the answer itself: earlier passes are waited for in full."""
        return sum(p.total_s for p in self.passes[:-1]) + self.passes[-1].first_token_s

    @property
    def total_s(self) -> float:
        return sum(p.total_s for p in self.passes)

    @property
    def decode_rate(self) -> float:
        return self.passes[-1].decode_rate

    def to_dict(self) -> dict[str, Any]:
        """The answer and its timings as JSON-ready data."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "method": self.method,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.tokens),
            "first_token_s": self.first_token_s,
            "total_s": self.total_s,
            "decode_tokens_per_s": self.decode_rate,
            "passes": [
                {
                    "prompt_tokens": p.prompt_tokens,
                    "new_tokens": p.new_tokens,
                    "first_token_s": p.first_token_s,
                    "total_s": p.total_s,
                    "prefill_tokens_per_s": p.prefill_rate,
                    "decode_tokens_per_s": p.decode_rate,
                    "text": p.text,
                }
                for p in self.passes
            ],
        }


@dataclass
class Settings:
    """How to answer: what `stream` and `generate` take beside the prompt and the recipe."""

    max_tokens: int = MAX_TOKENS
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    raw: bool = False  # the prompt is the model's very input: no chat template
    prefill_chunk: int = PREFILL_CHUNK


class Engine:
    """A loaded model with its tokenizer and a shelf of adapters. Make one with `Engine.load`."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, base: Mapping[str, Any], *, cache_dtype: str = "fp16"
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.base = dict(base)
        self.cache_dtype = cache_dtype
        self.adapters: dict[str, LoraAdapter] = {}
        self._compiled: dict[str, list[RunningAdapter | None]] = {}
        self._calibrations: dict[str, Calibration] = {}

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        weights: str = "auto",
        group_size: int = 32,
        adapters: Mapping[str, str | Path] | None = None,
        backend: str | None = None,
        cache_dtype: str = "fp16",
        revision: str | None = None,
        offline: bool | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Engine:
        """Open a Hugging Face directory, a GGUF, a packed directory or a hub id.

        `weights`: "auto" keeps a quantized file's own precision and rounds float weights to int4; "fp32", "int8",
        "int4", "int4_affine" ask for a format. `cache_dtype`: "fp16" or "fp32". `progress(done, total, name)`
        counts bytes of weights. Raises the errors of edgecal.errors.
        """
        with open_checkpoint(source, revision=revision, offline=offline) as checkpoint:
            config = ModelConfig.from_dict(checkpoint.config)
            tokenizer = Tokenizer.from_checkpoint(checkpoint)
            model = load_model(
                checkpoint, config, find_backend(backend), weights=weights, group_size=group_size, progress=progress
            )
            base = {
                "model_type": config.family,
                "hidden_size": config.hidden_size,
                "num_hidden_layers": config.n_layers,
                "vocab_size": config.vocab_size,
            }
        engine = cls(model, tokenizer, base, cache_dtype=cache_dtype)
        for name, path in (adapters or {}).items():
            engine.add_adapter(path, name)
        release_free()
        return engine

    # ------------------------------------------------------------------------------------ adapters and recipes

    def add_adapter(self, path: str | Path, name: str | None = None) -> LoraAdapter:
        """Load a PEFT directory and check that it fits this model; an adapter of the same name is replaced."""
        adapter = LoraAdapter.load(path, name)
        adapter.check_against(self.model.linear_shapes)
        self.adapters[adapter.name] = adapter
        self._compiled.clear()
        return adapter

    def remove_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise RecipeError(f"no adapter {name!r} is loaded; loaded: {', '.join(self.adapters) or 'none'}")
        del self.adapters[name]
        self._compiled.clear()

    def merge(self, recipe: Recipe | None) -> list[CompiledAdapter | None]:
        """What the recipe's mathematics gives, float32: one compiled adapter per pass (None: the bare base).

        Not kept. `compile` gives the form in which the model runs it.
        """
        if recipe is None:
            return [None]
        shapes = self.model.linear_shapes
        if recipe.steps:
            return compile_steps(recipe, self.adapters, shapes, self.base)
        calibration = self._calibration(recipe.calibration)
        return [compile_recipe(recipe, self.adapters, calibration, shapes, self.base)]

    def compile(self, recipe: Recipe | None) -> list[RunningAdapter | None]:
        """One adapter per pass (None: the bare base), ready to run; kept, so that a recipe is compiled once."""
        if recipe is None:
            return [None]
        if recipe.key not in self._compiled:
            self._compiled[recipe.key] = [self.model.run_form(adapter) for adapter in self.merge(recipe)]
        return self._compiled[recipe.key]

    def forget_compiled(self) -> None:
        """Drop what recipes compiled to, and the memory of it; they compile again when next used."""
        self._compiled.clear()
        release_free()

    def _calibration(self, path: str | Path | None) -> Calibration | None:
        if path is None:
            return None
        key = os.path.abspath(path)
        if key not in self._calibrations:
            self._calibrations[key] = Calibration.load(path)
        return self._calibrations[key]

    # --------------------------------------------------------------------------------------------------- text

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Ids of a prompt: a string (one user message) or messages through the chat template; `raw` as it stands."""
        if raw:
            if not isinstance(prompt, str):
                raise PromptError("a raw prompt is one string; messages need the chat template")
            return self.tokenizer.encode(prompt, add_special_tokens=True)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if not messages or not any(str(m.get("content", "")).strip() for m in messages):
            raise PromptError("the prompt is empty: give some text to answer")
        return self.tokenizer.encode_chat(messages)

    def stream(
        self,
        prompt: Prompt,
        *,
        recipe: Recipe | None = None,
        settings: Settings | None = None,
        cache: KVCache | None = None,
        passes: list[Pass] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Piece]:
        """Answer `prompt`, piece by piece. Everything that can be refused is refused before the first piece.

        A multi-step recipe runs its earlier passes first and streams the last; its prompt is the text that the steps
        work on. `passes`, when given, is filled with what each pass cost. A given `cache` must hold a prefix of this
        very prompt under this very recipe.
        """
        settings = settings or Settings()
        compiled = self.compile(recipe)
        if recipe is not None and recipe.steps:
            if not isinstance(prompt, str):
                raise PromptError("a multi-step recipe works on a text: give one string, not messages")
            if not prompt.strip():
                raise PromptError("the prompt is empty: give some text to work on")
            first = user_message(recipe.steps[0][1], prompt)
            self._prepare(first, settings)
            return self._pipeline(prompt, recipe, compiled, settings, passes)
        ids = self.encode(prompt, raw=settings.raw)
        return self.stream_ids(ids, recipe=recipe, settings=settings, cache=cache, passes=passes, progress=progress)

    def stream_ids(
        self,
        ids: Sequence[int],
        *,
        recipe: Recipe | None = None,
        settings: Settings | None = None,
        cache: KVCache | None = None,
        passes: list[Pass] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Piece]:
        """As `stream`, for a prompt that is encoded already, so that its ids can be compared with a cache's.

        `progress` gets the number of tokens read of those that the cache does not hold. RecipeError for multi_step.
        """
        if recipe is not None and recipe.steps:
            raise RecipeError("multi_step makes a prompt per step: give it a text, not the ids of a prompt")
        settings = settings or Settings()
        compiled = self.compile(recipe)
        check_prompt(self.model, len(ids), settings.max_tokens)
        return self._pass(list(ids), compiled[0], settings, cache, [] if passes is None else passes, progress)

    def generate(
        self, prompt: Prompt, *, recipe: Recipe | None = None, settings: Settings | None = None
    ) -> Completion:
        """The whole answer at once; arguments as for `stream`."""
        passes: list[Pass] = []
        pieces = list(self.stream(prompt, recipe=recipe, settings=settings, passes=passes))
        reason = pieces[-1].finish_reason
        assert reason is not None
        method = recipe.method if recipe is not None else "zero_shot"
        return Completion(passes[-1].text, reason, [p.token for p in pieces], passes, method)

    def _prepare(self, prompt: Prompt, settings: Settings) -> list[int]:
        ids = self.encode(prompt, raw=settings.raw)
        check_prompt(self.model, len(ids), settings.max_tokens)
        return ids

    def _pipeline(
        self,
        text: str,
        recipe: Recipe,
        compiled: Sequence[RunningAdapter | None],
        settings: Settings,
        passes: list[Pass] | None,
    ) -> Iterator[Piece]:
        passes = [] if passes is None else passes
        for index, (adapter, (_, instruction)) in enumerate(zip(compiled, recipe.steps, strict=True)):
            ids = self._prepare(user_message(instruction, text), settings)
            pieces = self._pass(ids, adapter, settings, None, passes, None)
            if index == len(compiled) - 1:
                yield from pieces
            else:
                for _ in pieces:
                    pass
                text = passes[-1].text

    def _pass(
        self,
        ids: list[int],
        adapter: RunningAdapter | None,
        settings: Settings,
        cache: KVCache | None,
        passes: list[Pass],
        progress: Callable[[int], None] | None,
    ) -> Iterator[Piece]:
        cache = KVCache(self.model.config, self.cache_dtype) if cache is None else cache
        sampler = Sampler(settings.sampling, ids)
        decoder, stops = TextStream(self.tokenizer.backend), StopStrings(settings.stop)
        text = ""
        first_token_s = 0.0
        for token in generate(
            self.model,
            ids,
            sampler,
            adapter=adapter,
            cache=cache,
            eos_ids=self.tokenizer.eos_ids,
            max_tokens=settings.max_tokens,
            chunk=settings.prefill_chunk,
            progress=progress,
        ):
            if token.index == 0:
                first_token_s = token.at_s
            new = "" if token.finish_reason == "stop" else decoder.push(token.id)
            if token.finish_reason is not None:
                new += decoder.flush()
            new, stopped = stops.push(new)
            reason: FinishReason | None = "stop" if stopped else token.finish_reason
            if reason is not None and not stopped:
                new += stops.flush()
            text += new
            if reason is not None:
                passes.append(Pass(len(ids), token.index + 1, first_token_s, token.at_s, text))
            yield Piece(new, token, reason)
            if reason is not None:
                return
