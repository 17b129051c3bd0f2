"""Chat templates: messages in, one prompt string out, character for character what transformers makes.

A chat template is a Jinja program that travels with the model. transformers defines the dialect: blocks
trimmed (`trim_blocks`, `lstrip_blocks`), `break` and `continue`, `{% generation %}` (marks the assistant's
part for training, transparent here), and the names `raise_exception`, `strftime_now`, `namespace`, `dict`
and a `tojson` that does not escape HTML. The template runs in the sandbox of template_sandbox; what it sees
is plain data, so that no method of a caller's object is within its reach.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace

from ..errors import PromptError
from .template_budget import MAX_CHARS, BudgetExceeded, metered
from .template_sandbox import MeteredEnvironment, metered_filter

_MAX_SOURCE = 256 * 1024  # templates with all the tricks of tool calls have about ten KiB


class _Refusal(jinja2.TemplateError):
    """The template itself called raise_exception."""


class _GenerationTag(Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _PlainNamespace(Namespace):
    """`namespace()` without private names, and with a repr that cannot be nested into a bomb."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No named `self`, as in Jinja's own class: a template may well call namespace(self=...).
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the private name {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> None:
    raise _Refusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if len(str(indent)) > 64 or (isinstance(indent, int) and indent > 64):
        raise BudgetExceeded("tojson indents by more than 64")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None and separators is None:
        return encoder.encode(x)
    # Indentation multiplies with depth, so the text is measured while it grows.
    parts, size = [], 0
    for part in encoder.iterencode(x):
        parts.append(part)
        size += len(part)
        if size > MAX_CHARS:
            raise BudgetExceeded(f"tojson makes more than {MAX_CHARS:,} characters")
    return "".join(parts)


def _environment() -> MeteredEnvironment:
    environment = MeteredEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = metered_filter("tojson", _tojson)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_make_dict,
        namespace=_PlainNamespace,
    )
    return environment


class ChatTemplate:
    """One template of a model. Compiled at first use: a broken one does not stand in the way of raw prompts.

    Args:
        source: the Jinja text.
        origin: the model it belongs to, for messages.
    """

    def __init__(self, source: str, origin: str = "the model") -> None:
        self.source = source
        self.origin = origin

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if len(self.source) > _MAX_SOURCE:
            raise PromptError(
                f"{self.origin}: the chat template has {len(self.source):,} characters, more than "
                f"{_MAX_SOURCE:,}; use a raw prompt"
            )
        try:
            with metered():
                return _environment().compile_template(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(
                f"{self.origin}: line {error.lineno} of the chat template is not valid: {error.message}; "
                "use a raw prompt"
            ) from error
        except Exception as error:  # foreign code: whatever the compiler trips over is the template's fault
            raise PromptError(
                f"{self.origin}: the chat template does not compile ({_describe(error)}); use a raw prompt"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt for the messages.

        Args:
            messages: in order, each with `role` and `content` (text, or a list of parts if the template
                takes them).
            variables: whatever else the template reads (`add_generation_prompt`, `bos_token`, `tools` ...).

        Raises:
            PromptError: the messages are not JSON-like, the template refuses them (with its own words),
                fails, or takes more time or space than a prompt can need.
        """
        if isinstance(messages, (str, Mapping)) or not all(isinstance(message, Mapping) for message in messages):
            raise PromptError('messages must be a list of dicts like {"role": "user", "content": "Hello"}')
        conversation = _plain(messages, "messages")
        given = {name: _plain(value, name) for name, value in variables.items()}
        compiled = self._compiled
        parts, size = [], 0
        try:
            with metered():
                for part in compiled.generate(messages=conversation, **given):
                    parts.append(part)
                    size += len(part)
                    if size > MAX_CHARS:
                        raise BudgetExceeded(f"it writes more than {MAX_CHARS:,} characters")
        except _Refusal as error:
            raise PromptError(f"{self.origin}: the chat template refuses these messages: {error.message}") from error
        except BudgetExceeded as error:
            raise PromptError(f"{self.origin}: the chat template was stopped: {error.message}") from error
        except Exception as error:  # foreign code: see above
            raise PromptError(
                f"{self.origin}: the chat template fails on these messages: {_describe(error)}"
            ) from error
        return "".join(parts)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _plain(value: Any, where: str) -> Any:
    """A copy of JSON-like data made of the exact built-in types."""
    if value is None or isinstance(value, bool):
        return value
    # Not str(value): an enumeration's members print their name, but the template should get their text.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise PromptError(
        f"{where} is a {type(value).__name__}; chat templates take text, numbers, lists and dicts of these"
    )
