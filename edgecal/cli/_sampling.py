"""How to answer, as options of a command, as `/set` in a chat and as keys of a line of --prompts: one table for all.

The sampler's options are the fields of SamplingOptions, with their defaults and help; three more belong to an answer as
a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import click

from ..completion import Settings
from ..decoding.sampler import SamplingOptions
from ..errors import OptionError
from .options import Decorator, group_of

NOTHING = ("none", "off")
_SWITCH = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True)
class Option:
    """One of them. `kind` is int, float, bool, "texts" (any number of them) or "speculate"."""

    name: str
    kind: Any
    default: Any
    help: str = ""
    optional: bool = False  # may be None
    spellings: tuple[str, ...] = ()  # beside --its-name

    def parse(self, words: list[str]) -> Any:
        """The value that the words behind `/set NAME` mean; OptionError."""
        if not words:
            raise OptionError(f"expected /set {self.name} VALUE" + ("... (or none)" if self.kind == "texts" else ""))
        if self.kind == "texts":
            if "" in words:
                raise OptionError("a stop string needs at least one character")
            return () if words[0] in NOTHING else tuple(words)
        if len(words) > 1:
            raise OptionError(f"{self.name} takes one value")
        if self.kind == "speculate":
            return speculate(words[0])
        if self.kind is bool:
            if words[0] not in _SWITCH:
                raise OptionError(f"{self.name} takes on or off, found {words[0]!r}")
            return _SWITCH[words[0]]
        if self.optional and words[0] in NOTHING:
            return None
        try:
            return self.kind(words[0])
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise OptionError(f"{self.name} takes {what}, found {words[0]!r}") from None

    def of_json(self, value: Any) -> Any:
        """The value that a line of --prompts has under this name; OptionError."""
        if self.kind == "texts":
            if not isinstance(value, (str, list)):
                raise OptionError(f"{self.name!r} must be a text or a list of texts, found {value!r}")
            return (value,) if isinstance(value, str) else tuple(value)
        if self.kind is bool and not isinstance(value, bool):
            raise OptionError(f"{self.name!r} must be true or false, found {value!r}")
        if self.kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise OptionError(f"{self.name!r} must be a whole number, found {value!r}")
        return value

    def click_option(self, **changed: Any) -> Decorator[Any]:
        """The same on a command line; `changed` are arguments of click.option."""
        arguments: dict[str, Any] = {"default": self.default, "show_default": self.default is not None}
        if self.kind == "texts":
            arguments = {"multiple": True, "metavar": "TEXT"}
        elif self.kind == "speculate":
            arguments |= {"metavar": "auto|off|N", "callback": lambda context, parameter, value: speculate(value)}
        elif self.kind is bool:
            arguments["is_flag"] = True
        else:
            arguments["type"] = self.kind
        if self.help:
            arguments["help"] = self.help
        long = "--" + self.name.replace("_", "-")
        if self.kind is bool:
            long = f"{long}/--no-{long[2:]}"
        return click.option(*self.spellings, long, self.name, **(arguments | changed))


def speculate(text: str) -> str | int:
    """ "auto", "off" or a number; OptionError."""
    from ..decoding.speculation import check_speculate

    value = int(text) if text.isascii() and text.isdecimal() else text
    check_speculate(value)
    return value


def _of_sampler() -> dict[str, Option]:
    table = {}
    for f in fields(SamplingOptions):
        assert f.default is not MISSING
        kind = int if "int" in str(f.type) else float
        spellings = tuple(f.metadata.get("spellings", ()))
        table[f.name] = Option(f.name, kind, f.default, f.metadata["help"], f.default is None, spellings)
    return table


SAMPLING = _of_sampler()
MAX_TOKENS = Option("max_tokens", int, Settings.max_tokens, "The most to write.", spellings=("-n",))
STOP = Option("stop", "texts", (), "End the answer before this text; repeatable.")
SPECULATE = Option(
    "speculate",
    "speculate",
    "auto",
    "Guess tokens ahead from the text so far: where it pays, never, or N at a time. The answer is the same.",
)
STOP_AT_REPETITION = Option(
    "stop_at_repetition", bool, True, "End an answer that has begun to say the same again and again."
)
OPTIONS = {**SAMPLING, **{option.name: option for option in (MAX_TOKENS, STOP, STOP_AT_REPETITION, SPECULATE)}}


def values_of(settings: Settings) -> dict[str, Any]:
    """What `settings` says of OPTIONS, in their order, JSON-ready."""
    values = {name: getattr(settings.sampling if name in SAMPLING else settings, name) for name in OPTIONS}
    return {**values, "stop": list(settings.stop)}


@dataclass(frozen=True)
class SettingsOptions:
    """What the command line says of an answer. Sampling that it leaves open is settled when the model is known."""

    given: Mapping[str, Any]

    def settings(self, sampling: SamplingOptions | None) -> Settings:
        """With `sampling` (None: greedy) where nothing was said; OptionError for a value that cannot be.

        Who asks for temperature 0 wants plain greedy decoding: nothing is added to it.
        """
        if sampling is None or self.given.get("temperature") == 0:
            sampling = SamplingOptions()
        return Settings(sampling=sampling).with_options(**self.given)


def _given(**values: Any) -> SettingsOptions:
    values["stop"] = tuple(values["stop"])
    return SettingsOptions({name: value for name, value in values.items() if value is not None})


sampling_options = group_of(
    "answering",
    _given,
    MAX_TOKENS.click_option(type=click.IntRange(min=1)),
    *(option.click_option(default=None, show_default=False) for option in SAMPLING.values()),
    STOP.click_option(),
    STOP_AT_REPETITION.click_option(),
    SPECULATE.click_option(),
)
