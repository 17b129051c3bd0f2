"""Counters for Prometheus, under the names of llama.cpp's server where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from ..completion import Pass


class Metrics:
    """`running` and `waiting` say how many requests are."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=self._registry)

        self._prompt_tokens = counter("llamacpp:prompt_tokens", "Tokens of prompts that were read")
        self._prompt_s = counter("llamacpp:prompt_seconds", "Time spent on reading prompts")
        self._predicted = counter("llamacpp:tokens_predicted", "Tokens that were generated")
        self._predicted_s = counter("llamacpp:tokens_predicted_seconds", "Time spent on generating")
        self._cached = counter("edgecal:cached_tokens", "Tokens of prompts that the prefix cache held")
        self._drafted = counter("edgecal:drafted_tokens", "Tokens that were guessed ahead")
        self._accepted = counter("edgecal:accepted_tokens", "Tokens that were guessed right")
        self._requests = counter("edgecal:requests", "Requests that were let in")
        self._unfinished = counter("edgecal:unfinished_requests", "Requests that were cancelled or failed")
        for name, text, function in (
            ("llamacpp:requests_processing", "Requests that are being answered", running),
            ("llamacpp:requests_deferred", "Requests that wait", waiting),
        ):
            Gauge(name, text, registry=self._registry).set_function(function)

    def began(self) -> None:
        self._requests.inc()

    def ended(self, passes: Sequence[Pass]) -> None:
        """`passes` are those that were completed."""
        if not passes:
            self._unfinished.inc()
        for one in passes:
            self._prompt_tokens.inc(one.prompt_tokens - one.reused_tokens)
            self._prompt_s.inc(one.first_token_s)
            self._predicted.inc(one.new_tokens)
            self._predicted_s.inc(one.total_s - one.first_token_s)
            self._cached.inc(one.reused_tokens)
            self._drafted.inc(one.drafted_tokens)
            self._accepted.inc(one.accepted_tokens)

    def text(self) -> bytes:
        return generate_latest(self._registry)
