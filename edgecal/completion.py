"""What is asked for and what comes back: Settings in; pieces, passes and whole completions out.

`Answer` turns the tokens of one pass into text as they come and keeps count; every way to run a model (one request at a
time, a batch) makes its pieces here, so that stop strings and torn characters are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from .adapters.compiled import RunningAdapter
from .adapters.recipe import Recipe
from .decoding.generate import PREFILL_CHUNK, FinishReason, TokenRecord
from .decoding.logprobs import MOST as MOST_LOGPROBS
from .decoding.repetition import RepetitionDetector
from .decoding.sampler import SamplingOptions
from .decoding.speculation import Speculate, check_speculate
from .errors import OptionError, PromptError
from .text.counted import counted
from .text.stopping import StopStrings
from .text.tokenizer import TextStream, Tokenizer

MAX_TOKENS = 256
T = TypeVar("T")


@dataclass
class Settings:
    """How to answer: what `stream` and `generate` take beside the prompt and the recipe.

    `speculate` is "auto" (guess tokens ahead where it pays, on the compiled kernels), "off", or the length of every
    guess; it changes the speed and never the text.
    """

    max_tokens: int = MAX_TOKENS
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    raw: bool = False  # the prompt is the model's very input: no chat template
    prefill_chunk: int = PREFILL_CHUNK
    speculate: Speculate = "auto"
    stop_at_repetition: bool = True  # end an answer that has run into a loop, with finish_reason "repetition"
    logprobs: int | None = None  # keep each token's log-probability, and of so many alternatives (0 to 20)

    def with_options(self, **options: Any) -> Settings:
        """These settings with some fields changed, those of SamplingOptions by their own names.

        OptionError for a name that neither has, and for a value that no model could be asked.
        """
        of_sampling = {f.name for f in fields(SamplingOptions)}
        own = {name: options.pop(name) for name in {f.name for f in fields(Settings)} & options.keys()}
        if unknown := options.keys() - of_sampling:
            known = sorted({f.name for f in fields(Settings)} | of_sampling)
            raise OptionError(f"there is no option {sorted(unknown)[0]!r}; options: {', '.join(known)}")
        if isinstance(own.get("stop"), str):
            own["stop"] = (own["stop"],)
        changed = replace(self, **own)
        if options:
            changed = replace(changed, sampling=replace(changed.sampling, **options))
        changed.check()
        return changed

    def check(self) -> None:
        """OptionError for what no model could be asked."""
        if self.max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, found {self.max_tokens}")
        check_speculate(self.speculate)
        n = self.logprobs
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= MOST_LOGPROBS):
            raise OptionError(f"logprobs must be None or a number of alternatives, 0 to {MOST_LOGPROBS}, found {n!r}")
        StopStrings(self.stop)


@dataclass(eq=False)
class Request:
    """A prompt made ready to run by `Engine.prepare`: its ids, what its recipe compiled to, how to answer.

    `owner` says what its keys and values depend on beside the ids (see `prefix_cache`), `method` is the recipe's.
    `following` makes the next pass of a pipeline from the text of this one; None for the last, which is the answer.
    """

    ids: list[int]
    adapter: RunningAdapter | None
    owner: Hashable
    settings: Settings
    method: str = "zero_shot"
    following: Callable[[str], Request] | None = None


@dataclass(frozen=True)
class Pass:
    """What one forward pass over a prompt cost. Seconds; rates in tokens per second.

    `reused_tokens` of the prompt were in the KV cache from an earlier request. `drafted_tokens` were guessed ahead and
    verified, `accepted_tokens` of them were right and are part of the answer. `kernels_s` of `first_token_s` went into
    loading kernels that this process had not used before, `decode_kernels_s` of the time after it.
    """

    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    total_s: float
    text: str
    reused_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    kernels_s: float = 0.0
    decode_kernels_s: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Of the tokens that were read, not of those that were in the cache, and without the loading of kernels."""
        seconds = self.first_token_s - self.kernels_s
        return (self.prompt_tokens - self.reused_tokens) / seconds if seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first, without the loading of kernels; 0 when there was only one."""
        seconds = self.total_s - self.first_token_s - self.decode_kernels_s
        return (self.new_tokens - 1) / seconds if seconds > 0 else 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafted tokens that were right; None where nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "new_tokens": self.new_tokens,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "acceptance_rate": self.acceptance_rate,
            "first_token_s": self.first_token_s,
            "kernels_s": self.kernels_s,
            "decode_kernels_s": self.decode_kernels_s,
            "total_s": self.total_s,
            "prefill_tokens_per_s": self.prefill_rate,
            "decode_tokens_per_s": self.decode_rate,
            "text": self.text,
        }


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
    def reused_tokens(self) -> int:
        return sum(p.reused_tokens for p in self.passes)

    @property
    def drafted_tokens(self) -> int:
        return sum(p.drafted_tokens for p in self.passes)

    @property
    def accepted_tokens(self) -> int:
        return sum(p.accepted_tokens for p in self.passes)

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
        drafted, accepted = self.drafted_tokens, self.accepted_tokens
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "method": self.method,
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "new_tokens": len(self.tokens),
            "drafted_tokens": drafted,
            "accepted_tokens": accepted,
            "acceptance_rate": accepted / drafted if drafted else None,
            "first_token_s": self.first_token_s,
            "total_s": self.total_s,
            "decode_tokens_per_s": self.decode_rate,
            "passes": [p.to_dict() for p in self.passes],
        }


class Answer:
    """The text of one pass, from its tokens; `cost` says what they took once the last has come."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings, prompt_tokens: int) -> None:
        self._decoder = TextStream(tokenizer.backend)
        self._stops = StopStrings(settings.stop, self._decoder.skipped.values())
        self._loops = RepetitionDetector() if settings.stop_at_repetition else None
        self._prompt_tokens = prompt_tokens
        self._first_token_s = 0.0
        self._drafted = self._accepted = 0
        self._last: TokenRecord | None = None
        self.text = ""
        self.finish_reason: FinishReason | None = None

    def push(self, token: TokenRecord) -> Piece:
        """The text that is certain with this token. After a piece with a finish reason there is no more."""
        if token.index == 0:
            self._first_token_s = token.at_s
        self._drafted += token.drafted
        self._accepted += token.accepted
        self._last = token
        new = "" if token.finish_reason == "stop" else self._decoder.push(token.id)
        special = self._decoder.skipped.get(token.id, "")
        if self._stops.watches(special):
            new += self._decoder.settle()
        if token.finish_reason is not None:
            new += self._decoder.flush()
        new, stopped = self._stops.push(new, special)
        self.finish_reason = "stop" if stopped else token.finish_reason
        if self.finish_reason is None and self._loops is not None and self._loops.push(new):
            self.finish_reason = "repetition"
        if self.finish_reason is not None and not stopped:
            new += self._stops.flush()
        self.text += new
        return Piece(new, token, self.finish_reason)

    def cost(self, reused_tokens: int, kernels_s: float, decode_kernels_s: float) -> Pass:
        assert self._last is not None
        return Pass(
            self._prompt_tokens,
            self._last.index + 1,
            self._first_token_s,
            self._last.at_s,
            self.text,
            reused_tokens,
            self._drafted,
            self._accepted,
            kernels_s,
            decode_kernels_s,
        )


def completion(pieces: Sequence[Piece], passes: list[Pass], recipe: Recipe | None) -> Completion:
    """The whole of an answer that has come to its end."""
    reason = pieces[-1].finish_reason
    assert reason is not None, "the answer has not ended"
    method = recipe.method if recipe is not None else "zero_shot"
    return Completion(passes[-1].text, reason, [p.token for p in pieces], passes, method)


def token_dicts(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """A record per token with its text, JSON-ready."""
    return [_without_none(asdict(piece.token), "logprobs") | {"text": piece.text} for piece in pieces]


def _without_none(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key or value is not None}


def per_prompt(name: str, values: T | Sequence[T | None] | None, prompts: Sequence[Any]) -> list[T | None]:
    """`values` for each prompt: a list as it is, one value for all. OptionError for a list of another length."""
    if not isinstance(values, (list, tuple)):
        return [values] * len(prompts)  # type: ignore[list-item]
    if len(values) != len(prompts):
        prompted = counted(len(prompts), "prompt")
        raise OptionError(f"{len(values)} {name} for {prompted}: give one for all, or one for each")
    return list(values)


@contextmanager
def numbered(number: int) -> Iterator[None]:
    """What is wrong with a prompt, with the prompt's number (from 1) in front."""
    try:
        yield
    except PromptError as error:
        raise type(error)(f"prompt {number}: {error}") from error
