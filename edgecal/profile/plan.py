"""What is measured: lengths, depths, repeats, threads, as a person writes them and checked against a model.

    -p 128,512   prompts to read        -n 64      tokens to write       -d 0,1024  behind so many tokens of context
    -r 5         repeats                -t 1,2     threads

As in llama-bench, reading a prompt and writing tokens are separate measurements, each at every depth, so that a
figure of one does not depend on the length of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import ModelConfig
from ..decoding.sampler import SamplingOptions
from ..errors import ContextLengthError, OptionError

MOST_REPEATS = 10_000
_LISTED = 16  # lengths in one list; the run takes their product


def parse_lengths(text: str, option: str, *, least: int = 0) -> tuple[int, ...]:
    """Whole numbers between commas, each once, in order. OptionError names the option."""
    numbers: list[int] = []
    for word in text.split(","):
        digits = word.strip()
        if not digits.isdecimal() or len(digits) > 12:
            raise OptionError(f"{option} {text!r}: expected whole numbers between commas, such as 128,512")
        number = int(digits)
        if number < least:
            raise OptionError(f"{option} {text!r}: {number} is below {least}")
        if number not in numbers:
            numbers.append(number)
    if len(numbers) > _LISTED:
        raise OptionError(f"{option} lists {len(numbers)} lengths, at most {_LISTED} are measured in one run")
    return tuple(numbers)


@dataclass(frozen=True)
class Plan:
    """The measurements of one run. A length of 0 in `prompts` or `new` leaves that measurement out.

    `threads` empty: the number in use. `seed` makes the prompts' ids, and sampling where `temperature` is above 0.
    Raises OptionError for values outside their range.
    """

    prompts: tuple[int, ...] = (128, 512)
    new: tuple[int, ...] = (64,)
    depths: tuple[int, ...] = (0,)
    repeats: int = 5
    threads: tuple[int, ...] = ()
    seed: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("prompts", 0), ("new", 0), ("depths", 0), ("threads", 1)):
            values = tuple(getattr(self, name))
            if any(not isinstance(v, int) or isinstance(v, bool) or v < least for v in values):
                raise OptionError(f"{name} are whole numbers of at least {least}, found {values!r}")
            object.__setattr__(self, name, values)
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise OptionError(f"repeats must be from 1 to {MOST_REPEATS}, found {self.repeats}")
        if not self.depths:
            raise OptionError("give at least one depth (0: an empty context)")
        if not self.prompt_lengths and not self.new_lengths:
            raise OptionError("nothing to measure: the lengths of prompts (-p) and of answers (-n) are all 0")
        self.sampling.greedy  # noqa: B018 (the options check themselves when they are made)

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        return tuple(n for n in self.prompts if n)

    @property
    def new_lengths(self) -> tuple[int, ...]:
        return tuple(n for n in self.new if n)

    @property
    def sampling(self) -> SamplingOptions:
        return SamplingOptions(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed)

    @property
    def longest(self) -> int:
        """Positions that the longest measurement fills."""
        return max(self.depths) + max((*self.prompt_lengths, *self.new_lengths))

    def cases(self) -> Iterator[tuple[str, int, int]]:
        """("prompt" or "decode", length, depth), shallow ones first."""
        for depth in sorted(self.depths):
            for length in self.prompt_lengths:
                yield "prompt", length, depth
            for length in self.new_lengths:
                yield "decode", length, depth

    def check(self, config: ModelConfig) -> None:
        """ContextLengthError when the model's context is too short."""
        limit = config.max_position_embeddings
        for kind, length, depth in self.cases():
            if depth + length > limit:
                what = f"a prompt of {length}" if kind == "prompt" else f"{length} new tokens"
                raise ContextLengthError(
                    f"{what} at depth {depth} needs a context of {depth + length} tokens, the model has {limit}: "
                    f"take a smaller {'-p' if kind == 'prompt' else '-n'} or -d"
                )
