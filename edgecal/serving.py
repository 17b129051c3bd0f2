"""Serving: prepared requests in, pieces of text out, alone or several in a batch.

What `decoding` does is ids only. Around it, a pass of a request takes a KV cache on lease when its turn comes, its
tokens become text, a stop string ends it, the cache goes back to where it came from, and the next pass of a pipeline is
made from the text of this one. All of that is `Run`, whoever drives it: `Runner.stream` one request, `scheduler` any
number of them in one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Protocol

from .cache import KVCache
from .completion import Answer, Pass, Piece, Request
from .decoding.batch import Job
from .decoding.generate import TokenRecord, drafts_allowed, generate
from .decoding.prefix_cache import Lease, PrefixCache
from .decoding.sampler import Sampler
from .decoding.speculation import StepCosts
from .model import Model
from .observer import ForwardObserver
from .text.tokenizer import Tokenizer


class Observer(ForwardObserver, Protocol):
    """Told of forward passes and of requests, in the thread that runs them. Several requests may run at a time."""

    def request_began(self, request: Request) -> object:
        """It is about to read its prompt. What is returned stands for it in the calls below."""

    def token_chosen(self, running: object, token: TokenRecord, last_pass: bool) -> None:
        """From the logits of the latest forward. `last_pass`: it is of the answer, not of a pipeline's earlier pass."""

    def request_ended(self, running: object) -> None:
        """Complete, or broken off."""


class Runner:
    """Runs requests on one model. `prefixes` lends the KV caches, `costs` is what drafting has learned of all requests.

    Threads may share it, each with requests of its own.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, prefixes: PrefixCache, cache_dtype: str) -> None:
        self.model, self.tokenizer, self.prefixes, self.cache_dtype = model, tokenizer, prefixes, cache_dtype
        self.costs = StepCosts()
        self.observer: Observer | None = None

    def new_cache(self) -> KVCache:
        """An empty one for a request."""
        return KVCache(self.model.config, self.cache_dtype)

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Tell `observer` of every request and every forward pass while the block runs; see `Model.observed`."""
        with self.model.observed(observer):
            self.observer = observer
            try:
                yield
            finally:
                self.observer = None

    def stream(
        self,
        request: Request,
        passes: list[Pass],
        *,
        cache: KVCache | None = None,
        prefixes: PrefixCache | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Piece, None, None]:
        """Answer one request, piece by piece; the passes before a pipeline's last run with the first piece.

        `passes` is filled with what each pass cost. `cache`, `prefixes` and `progress` are as in `Engine.stream_ids`.
        """
        run = Run(self, request, passes, self.prefixes if prefixes is None else prefixes, cache)
        try:
            while True:
                settings, last_pass = run.request.settings, run.last_pass
                for token in generate(
                    self.model,
                    run.request.ids,
                    Sampler(settings.sampling, run.request.ids, settings.logprobs),
                    adapter=run.request.adapter,
                    cache=run.open(),
                    eos_ids=self.tokenizer.eos_ids,
                    max_tokens=settings.max_tokens,
                    chunk=settings.prefill_chunk,
                    progress=progress if last_pass else None,
                    speculate=settings.speculate,
                    costs=self.costs,
                ):
                    piece = run.push(token)
                    if last_pass:
                        yield piece
                    if piece.finish_reason is not None:
                        break
                if last_pass:
                    return
                run.go_on()
        finally:
            run.close()


class Run:
    """A request on its way, pass by pass: `open`, `push` every token; behind the last one of a pass `go_on`, or not.

    `close` may be called at any time. A given `cache` is used by the last pass and stays with whoever gave it.
    """

    def __init__(
        self,
        runner: Runner,
        request: Request,
        passes: list[Pass],
        prefixes: PrefixCache,
        cache: KVCache | None = None,
    ) -> None:
        self.request = request
        self._runner, self._passes, self._prefixes, self._given = runner, passes, prefixes, cache
        self._answer = self._new_answer()
        self._lease: Lease | None = None
        self._kernels_s = self._kernels_at_first = 0.0
        self._observer: Observer | None = None
        self._observed: object = None

    def _new_answer(self) -> Answer:
        return Answer(self._runner.tokenizer, self.request.settings, len(self.request.ids))

    @property
    def last_pass(self) -> bool:
        return self.request.following is None

    def job(self, *, drafts: bool = False) -> Job:
        """The pass as a batch takes it; with `drafts` it guesses ahead while it is alone, as its settings say."""
        request, settings, runner = self.request, self.request.settings, self._runner
        drafts = drafts and drafts_allowed(runner.model, settings.speculate)
        return Job(
            request.ids,
            Sampler(settings.sampling, request.ids, settings.logprobs),
            self.open,
            request.adapter,
            settings.max_tokens,
            settings.prefill_chunk,
            settings.speculate,
            runner.costs if drafts else None,
        )

    def open(self) -> KVCache:
        """The pass begins: its KV cache, with as much of its prompt as is known."""
        if self._observer is None and self._runner.observer is not None:
            self._observer = self._runner.observer
            self._observed = self._observer.request_began(self.request)
        self._kernels_s = -self._kernels_spent()
        ids = self.request.ids
        if self._given is not None and self.last_pass:
            self._lease = Lease(None, self._given, list(ids), min(self._given.length, len(ids) - 1))
        else:
            self._lease = self._prefixes.lease(self.request.owner, ids, self._runner.new_cache)
        return self._lease.cache

    def push(self, token: TokenRecord) -> Piece:
        """The text that is certain with this token. With a finish reason in it the pass is over and its cost known."""
        assert self._lease is not None
        self._lease.tokens.append(token.id)
        if token.index == 0:
            self._kernels_at_first = self._kernels_spent()
            self._kernels_s += self._kernels_at_first
        piece = self._answer.push(token)
        if self._observer is not None:
            self._observer.token_chosen(self._observed, token, self.last_pass)
        if piece.finish_reason is not None:
            later = self._kernels_spent() - self._kernels_at_first
            self._passes.append(self._answer.cost(self._lease.reused, self._kernels_s, later))
            self._release()
            if self.last_pass:
                self.close()
        return piece

    def _kernels_spent(self) -> float:
        """What loading kernels has taken in this process so far."""
        return float(self._runner.model.ops.preparing_seconds())

    def go_on(self) -> None:
        """To the next pass, made from the text of this one. Raises what makes its prompt impossible."""
        assert self.request.following is not None
        self.request = self.request.following(self._answer.text)
        self._answer = self._new_answer()

    def close(self) -> None:
        self._release()
        if self._observer is not None:
            self._observer.request_ended(self._observed)
            self._observer = None

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None and lease.cache is not self._given:
            self._prefixes.release(lease)
