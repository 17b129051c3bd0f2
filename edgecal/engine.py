"""Engine: tokenizer + model + adapters; text in, text out.

One engine serves any number of requests, each with its own recipe. The base is loaded once and never changes; a recipe
is compiled to low-rank pairs when first used and kept, so switching the method of the next request swaps a reference.

    engine = Engine.load("model/", adapters={"summarize": "adapters/summarize"})
    for piece in engine.stream("Summarize ...", recipe=Recipe("single", adapters=("summarize",))):
        print(piece.text, end="")
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecal_kernels.dispatch import Backend
from edgecal_kernels.dispatch import backend as find_backend
from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.opening import open_checkpoint

from . import demo
from .adapters.calibration import Calibration
from .adapters.compiled import CompiledAdapter, RunningAdapter
from .adapters.lora import LoraAdapter, find_adapter
from .adapters.recipe import Recipe, compile_recipe, compile_steps
from .architecture import base_facts
from .cache import KVCache
from .completion import Completion, Pass, Piece, Request, Settings, completion, numbered, per_prompt
from .config import ModelConfig
from .decoding.batch import BATCH_SIZE, check_batch_size
from .decoding.generate import check_prompt, drafts_allowed
from .decoding.likelihood import Likelihood
from .decoding.prefix_cache import PrefixCache
from .decoding.sampler import SamplingOptions, advised
from .errors import FileFormatError, OptionError, PromptError, RecipeError
from .fitting import Loading, fit
from .loading import load_model
from .memory import release_free
from .model import Model
from .scheduler import answer_together
from .scoring import TextScorer
from .serving import Runner
from .text.prompts import Prompt, after_examples, messages
from .text.tasks import user_message
from .text.tokenizer import Tokenizer
from .threads import Threads, choose_threads
from .tuned import recall

PREFIX_CACHE = 32 << 20  # bytes of keys and values kept of earlier requests


class Engine:
    """A loaded model with its tokenizer, and the adapters that were loaded for it. Make one with `Engine.load`.

    `advised_sampling` is what the model's generation_config.json says, None where it says nothing. Nothing is sampled
    that way unless `Settings.sampling` is set to it. `note` is what a person should know about how it was loaded.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        base: Mapping[str, Any],
        *,
        cache_dtype: str = "fp16",
        prefix_cache: int | None = None,
        advised_sampling: SamplingOptions | None = None,
    ) -> None:
        kept = _prefix_cache_bytes(prefix_cache, model.ops)
        self.runner = Runner(model, tokenizer, PrefixCache(kept), cache_dtype)
        self.base = dict(base)
        self.advised_sampling = advised_sampling
        self.note = ""
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
        prefix_cache: int | None = None,
        threads: int | None = None,
        prefill_threads: int | None = None,
        context: int | None = None,
        memory_limit: int | None = None,
        revision: str | None = None,
        offline: bool | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Engine:
        """Open a Hugging Face directory, a GGUF, a packed directory, a hub id, or "demo".

        `weights`: "auto" keeps a quantized file's own precision and rounds float weights to int4; "fp32", or the
        name of a packed format ("int8", "int4", "int4_k" ...), asks for a form. `cache_dtype`: "fp16", "fp32", "int8".
        `prefix_cache`: bytes of keys and values to keep of earlier requests for later ones that begin alike; 0 is off,
        None 32 MiB (and off on NumPy, whose last bits depend on how much of a prompt is read at once). `threads` and
        `prefill_threads` are as for `set_threads`; where neither is given, what `tune` found for this machine and model
        serves. `progress(done, total, name)` counts bytes of weights.

        `context`: the most tokens, where the model was trained on more. What does not fit into memory is refused before
        it is loaded: into what is free, or into `memory_limit` bytes of this process in all (0: no check). Where
        `context` is not given it becomes what there is memory for, and `engine.note` says so.

        Raises the errors of edgecal.errors.

        What has to be converted (a GGUF, float weights) is kept packed in the cache folder, so that the next load maps
        it; `engine.note` says so, and edgecal_weights.converted how much is kept at most.
        """
        ops = find_backend(backend)
        asked = threads is not None or prefill_threads is not None
        chosen = choose_threads(ops.NAME, threads, prefill_threads)
        with open_checkpoint(demo.find(str(source)), revision=revision, offline=offline) as checkpoint:
            tokenizer = Tokenizer.from_checkpoint(checkpoint)
            loading = Loading(weights, group_size, cache_dtype, _prefix_cache_bytes(prefix_cache, ops), ops)
            config = ModelConfig.of(checkpoint)
            config, told = fit(checkpoint, config, loading, context, memory_limit)
            model, note = load_model(checkpoint, config, ops, weights=weights, group_size=group_size, progress=progress)
            base, sampling = base_facts(config), _advised_sampling(checkpoint)
        model.threads = chosen if asked else recall(model) or chosen
        engine = cls(
            model, tokenizer, base, cache_dtype=cache_dtype, prefix_cache=prefix_cache, advised_sampling=sampling
        )
        engine.note = "; ".join(filter(None, (told, note)))
        for name, path in (adapters or {}).items():
            engine.add_adapter(path, name)
        release_free()
        return engine

    @property
    def model(self) -> Model:
        return self.runner.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.runner.tokenizer

    @property
    def prefixes(self) -> PrefixCache:
        """Keys and values of earlier requests."""
        return self.runner.prefixes

    @property
    def cache_dtype(self) -> str:
        return self.runner.cache_dtype

    @property
    def threads(self) -> Threads:
        """As `set_threads` left them."""
        return self.model.threads

    def set_threads(self, threads: int | None = None, prefill_threads: int | None = None) -> None:
        """How many threads the compiled kernels take from the next forward pass on, whatever Python thread runs it.

        `threads` decode, by default the physical (big) cores; `prefill_threads` read prompts (passes of more than a few
        tokens), by default as many. The text never depends on them. BackendError for more than this process has,
        OptionError for any on NumPy, whose BLAS has settings of its own.
        """
        self.model.threads = choose_threads(self.model.ops.NAME, threads, prefill_threads)

    # ------------------------------------------------------------------------------------ adapters and recipes

    def add_adapter(self, path: str | Path, name: str | None = None) -> LoraAdapter:
        """Load a PEFT directory (or "demo:summarize") and check that it fits; one of the same name is replaced."""
        adapter = LoraAdapter.load(demo.find(str(path)), name)
        adapter.check_against(self.model.adaptable_shapes)
        self.adapters[adapter.name] = adapter
        self._compiled.clear()
        return adapter

    def remove_adapter(self, name: str) -> None:
        """RecipeError for a name that is not loaded."""
        del self.adapters[find_adapter(name, self.adapters).name]
        self._compiled.clear()

    def merge(self, recipe: Recipe | None) -> list[CompiledAdapter | None]:
        """What the recipe's mathematics gives, float32: one compiled adapter per pass (None: the bare base).

        Not kept. `compile` gives the form in which the model runs it.
        """
        if recipe is None:
            return [None]
        shapes, kernels = self.model.adaptable_shapes, self.model.ops.merging
        if recipe.steps:
            return compile_steps(recipe, self.adapters, shapes, self.base, kernels)
        calibration = self._calibration(recipe.calibration)
        return [compile_recipe(recipe, self.adapters, calibration, shapes, self.base, kernels)]

    def compile(self, recipe: Recipe | None) -> list[RunningAdapter | None]:
        """One adapter per pass (None: the bare base), ready to run; kept, so that a recipe is compiled once."""
        if recipe is None:
            return [None]
        if recipe.key not in self._compiled:
            merged = self.merge(recipe)
            running = {id(adapter): self.model.run_form(adapter) for adapter in merged}  # steps may share an adapter
            self._compiled[recipe.key] = [running[id(adapter)] for adapter in merged]
            del merged, running
            release_free()  # of the factors in float32
        return self._compiled[recipe.key]

    def forget_compiled(self) -> None:
        """Drop what recipes compiled to, and the memory of it; they compile again when next used."""
        self._compiled.clear()
        release_free()

    def _calibration(self, path: str | Path | None) -> Calibration | None:
        if path is None:
            return None
        path = demo.find(str(path))
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
        asked = messages(prompt)
        if not asked or not any(str(message.get("content", "")).strip() for message in asked):
            raise PromptError("the prompt is empty: give some text to answer")
        return self.tokenizer.encode_chat(asked)

    def stream(
        self,
        prompt: Prompt,
        *,
        recipe: Recipe | str | None = None,
        settings: Settings | None = None,
        cache: KVCache | None = None,
        passes: list[Pass] | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Generator[Piece, None, None]:
        """Answer `prompt`, piece by piece. Everything that can be refused is refused before the first piece.

        A multi-step recipe runs its earlier passes first and streams the last; its prompt is the text that the steps
        work on. `passes`, when given, is filled with what each pass cost. The beginning of the prompt is taken from the
        prefix cache as far as it is there. A given `cache` must hold a prefix of this very prompt under this very
        recipe, and is used instead. `recipe` and `options` as for `prepare`.
        """
        request = self.prepare(prompt, recipe=recipe, settings=settings, **options)
        return self.runner.stream(request, [] if passes is None else passes, cache=cache, progress=progress)

    def stream_ids(
        self,
        ids: Sequence[int],
        *,
        recipe: Recipe | None = None,
        settings: Settings | None = None,
        cache: KVCache | None = None,
        passes: list[Pass] | None = None,
        progress: Callable[[int], None] | None = None,
        prefixes: PrefixCache | None = None,
    ) -> Generator[Piece, None, None]:
        """As `stream`, for a prompt that is encoded already.

        `progress` gets the number of tokens read of those that no cache holds. `prefixes` takes the place of the
        engine's prefix cache. RecipeError for multi_step.
        """
        request = self.prepare_ids(ids, recipe=recipe, settings=settings)
        costs = [] if passes is None else passes
        return self.runner.stream(request, costs, cache=cache, prefixes=prefixes, progress=progress)

    def generate(
        self,
        prompt: Prompt,
        *,
        recipe: Recipe | str | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> Completion:
        """The whole answer: `engine.generate("Hi", max_tokens=5, recipe="linear")`. Arguments as for `stream`."""
        passes: list[Pass] = []
        recipe = self.find_recipe(recipe)
        pieces = list(self.stream(prompt, recipe=recipe, settings=settings, passes=passes, **options))
        return completion(pieces, passes, recipe)

    def find_recipe(self, name: Recipe | str | None) -> Recipe | None:
        """A recipe that is named: by a loaded adapter, alone, or by a method, of all loaded adapters in their order.

        Others are returned as they are. RecipeError for an unknown name.
        """
        if not isinstance(name, str):
            return name
        return Recipe("single", (name,)) if name in self.adapters else Recipe(name, tuple(self.adapters))

    def prepare(
        self,
        prompt: Prompt,
        *,
        recipe: Recipe | str | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> Request:
        """A prompt made ready to run: encoded, its recipe compiled, everything refused that can be refused.

        A `recipe` may be named as for `find_recipe`; `options` change single `settings`, as in `Settings.with_options`.
        """
        settings, recipe = (settings or Settings()).with_options(**options), self.find_recipe(recipe)
        compiled = self.compile(recipe)
        if recipe is not None and recipe.steps:
            if not isinstance(prompt, str):
                raise PromptError("a multi-step recipe works on a text: give one string, not messages")
            if not prompt.strip():
                raise PromptError("the prompt is empty: give some text to work on")
            return self._step(prompt, recipe, compiled, 0, settings)
        if recipe is not None and recipe.shots:
            if settings.raw:
                raise PromptError(
                    "in_context puts examples in front as turns of a conversation: that needs the chat template"
                )
            prompt = after_examples(recipe.shots, prompt)
        return self._request(self.encode(prompt, raw=settings.raw), compiled[0], recipe, settings)

    def prepare_ids(
        self, ids: Sequence[int], *, recipe: Recipe | None = None, settings: Settings | None = None
    ) -> Request:
        """As `prepare`, for a prompt that is encoded already. RecipeError for multi_step and in_context."""
        if recipe is not None and (recipe.steps or recipe.shots):
            raise RecipeError(f"{recipe.method} makes prompts of its own: give it a text, not the ids of a prompt")
        return self._request(list(ids), self.compile(recipe)[0], recipe, settings or Settings())

    def _step(
        self,
        text: str,
        recipe: Recipe,
        compiled: Sequence[RunningAdapter | None],
        step: int,
        settings: Settings,
    ) -> Request:
        """A step of a pipeline on `text`, which knows how to make the next one."""
        ids = self.encode(user_message(recipe.steps[step].instruction, text), raw=settings.raw)
        request = self._request(ids, compiled[step], recipe, settings, step)
        if step + 1 < len(recipe.steps):
            request.following = lambda answer: self._step(answer, recipe, compiled, step + 1, settings)
        return request

    def _request(
        self, ids: list[int], adapter: RunningAdapter | None, recipe: Recipe | None, settings: Settings, step: int = 0
    ) -> Request:
        settings.check()
        drafts_allowed(self.model, settings.speculate)
        check_prompt(self.model, len(ids), settings.max_tokens)
        method = "zero_shot" if recipe is None else recipe.method
        return Request(ids, adapter, self._owner(recipe, step), settings, method)

    def _owner(self, recipe: Recipe | None, step: int = 0) -> Hashable:
        """What keys and values depend on beside the tokens, as a key: equal only if they would be equal."""
        base = (weakref.ref(self.model), self.cache_dtype)
        if recipe is None or recipe.method in ("zero_shot", "in_context"):
            return base
        names = (recipe.steps[step].adapter,) if recipe.steps else recipe.adapters
        contents = tuple(self.adapters[name].identity for name in names if name is not None)
        if recipe.steps:
            return (*base, "single", contents) if contents else base
        calibration = self._calibration(recipe.calibration)
        return (*base, recipe.key, contents, weakref.ref(calibration) if calibration is not None else None)

    # ------------------------------------------------------------------------------------------- likelihood

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], *, recipe: Recipe | str | None = None
    ) -> list[Likelihood]:
        """Of each (context, continuation): the sum of the continuation's log-probabilities, in nats, and whether greedy
        decoding would have said it.

        As EleutherAI's harness asks: both are raw texts, encoded together, so that a token may not span them; white
        space at the end of the context belongs to the continuation; an empty context is the beginning of a text. Pairs
        that begin alike share the work. ContextLengthError for a pair that is too long, PromptError for an empty
        continuation, RecipeError for multi_step.
        """
        return self.scorer(recipe).pairs(pairs)

    def loglikelihood_rolling(self, texts: Sequence[str], *, recipe: Recipe | str | None = None) -> list[float]:
        """The sum of the log-probabilities of each whole text, in nats: every token counts once, behind as much of the
        text as the context holds. Errors as for `loglikelihood`."""
        return self.scorer(recipe).rolling(texts)

    def scorer(self, recipe: Recipe | str | None = None) -> TextScorer:
        """For texts that are scored under this recipe; RecipeError for one that makes prompts of its own."""
        recipe = self.find_recipe(recipe)
        if recipe is not None and (recipe.steps or recipe.shots):
            raise RecipeError(f"{recipe.method} makes prompts of its own: a given text has no likelihood under it")
        return TextScorer(self.model, self.tokenizer, self.runner.new_cache(), self.compile(recipe)[0])

    # ----------------------------------------------------------------------------------------- several at once

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        recipes: Recipe | Sequence[Recipe | None] | None = None,
        settings: Settings | Sequence[Settings | None] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[Completion]:
        """Answer many prompts in one loop, at most `batch_size` at a time; in the order of the prompts.

        `recipes` and `settings` are one for all, or one for each. The answers are those that `generate` gives one by
        one (on the compiled kernels bit for bit). All prompts are checked before the first runs; PromptError counts
        them from 1.
        """
        each_recipe, each_settings = per_prompt("recipes", recipes, prompts), per_prompt("settings", settings, prompts)
        requests = []
        for number, (prompt, recipe, chosen) in enumerate(zip(prompts, each_recipe, each_settings, strict=True), 1):
            with numbered(number):
                requests.append(self.prepare(prompt, recipe=recipe, settings=chosen))
        passes: list[list[Pass]] = [[] for _ in requests]
        pieces: list[list[Piece]] = [[] for _ in requests]
        for index, piece in self.stream_batch(requests, batch_size=batch_size, passes=passes):
            pieces[index].append(piece)
        return [completion(*answer) for answer in zip(pieces, passes, each_recipe, strict=True)]

    def stream_batch(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = BATCH_SIZE,
        passes: Sequence[list[Pass]] | None = None,
    ) -> Generator[tuple[int, Piece], None, None]:
        """Pieces of prepared requests as they come, each with the index of its request; see `generate_batch`.

        `passes`, a list for each request, is filled with what they cost.
        """
        check_batch_size(batch_size)
        costs = [[] for _ in requests] if passes is None else passes
        return answer_together(self.runner, requests, batch_size, costs)


def _prefix_cache_bytes(asked: int | None, ops: Backend) -> int:
    if asked is None:
        return PREFIX_CACHE if ops.NAME != "numpy" else 0
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
        raise OptionError(f"prefix_cache must be a number of bytes, 0 or more (0: off), found {asked!r}")
    return asked


def _advised_sampling(checkpoint: Checkpoint) -> SamplingOptions | None:
    try:
        return advised(checkpoint.generation_config)
    except OptionError as error:
        raise FileFormatError(f"{checkpoint.path}: generation_config.json: {error}; correct the file") from error
