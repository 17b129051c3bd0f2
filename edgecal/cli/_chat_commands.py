"""The slash commands of `edgecal chat`: each a method that returns what to show, or raises an EdgecalError."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecal_weights.nearest import did_you_mean

from ..adapters.merge.registry import method_names, methods
from ..decoding.generate import drafts_allowed
from ..errors import OptionError
from ..text.counted import counted
from ._chat_input import paths
from ._names import calibration_path
from ._sampling import NOTHING, OPTIONS, values_of
from .options import split_adapter

if TYPE_CHECKING:
    from ..conversation import Conversation
    from ._composition import Composition

MIB = 2**20
COMMANDS = {  # name: (arguments, line of /help)
    "/help": ("", "this list"),
    "/method": ("NAME", "how to compose the adapters; alone: list"),
    "/adapter": ("[add PATH|remove NAME]", "load (or NAME=PATH), drop; alone: list"),
    "/use": ("NAME...", "which adapters compose, in order; or none"),
    "/calibration": ("FILE", "or demo:NAME: use it, or none"),
    "/system": ("TEXT", "the system message, or none; alone: show"),
    "/set": ("NAME VALUE", "temperature, max_tokens ...; alone: list"),
    "/stats": ("", "what the last answer and all of them cost"),
    "/history": ("", "the conversation so far"),
    "/undo": ("", "take the last message and its answer back"),
    "/reset": ("", "forget the conversation"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a conversation that was saved"),
    "/exit": ("", "leave; Ctrl-D does too"),
}


# What people type who come from another chat
_ALIASES = {
    "/?": "/help",
    "/h": "/help",
    "/bye": "/exit",
    "/quit": "/exit",
    "/q": "/exit",
    "/clear": "/reset",
    "/new": "/reset",
    "/adapters": "/adapter",
    "/methods": "/method",
}


@dataclass(frozen=True)
class Said:
    """What a command answers: text for people, data (where there is more to it than text) for --json."""

    text: str
    data: Any = None


class Commands:
    """Runs `/name arguments` on one conversation. `finished` is set by /exit."""

    def __init__(self, conversation: Conversation, composition: Composition) -> None:
        self.conversation, self.composition = conversation, composition
        self.finished = False

    def run(self, line: str) -> Said:
        """OptionError lists the commands for an unknown one."""
        name, _, rest = line.strip().partition(" ")
        name = _ALIASES.get(name, name)
        if name not in COMMANDS:
            hint = did_you_mean(name[:40], [*COMMANDS, *_ALIASES])
            raise OptionError(
                f"unknown command {name[:40]}{hint}; commands: {', '.join(COMMANDS)} (text that begins with a slash "
                'goes between """ and """)'
            )
        command: Callable[[str], str | Said] = getattr(self, name.replace("/", "_"))
        said = command(rest.strip())
        return Said(said) if isinstance(said, str) else said

    def complete(self, line: str) -> list[str]:
        """Words and paths that may end the line."""
        name, separator, rest = line.partition(" ")
        if not separator:
            return list(COMMANDS)
        word = rest.rpartition(" ")[2]
        loaded = list(self.conversation.engine.adapters)
        if name == "/adapter":
            first = rest.split(" ")[0]
            if first == rest:
                return ["add", "remove"]
            return loaded if first == "remove" else paths(word)
        words = {"/method": list(method_names()), "/use": loaded, "/set": list(OPTIONS)}
        return words.get(name) or (paths(word) if name in ("/calibration", "/save", "/load") else [])

    # ------------------------------------------------------------------------------------------------ commands

    def _help(self, rest: str) -> str:
        usages = {f"{name} {arguments}": text for name, (arguments, text) in COMMANDS.items()}
        width = max(map(len, usages))
        lines = [f"  {usage:{width}}  {text}" for usage, text in usages.items()]
        return "\n".join([*lines, '  A line that ends with \\ goes on; """ begins and ends a block of lines.'])

    def _method(self, rest: str) -> str:
        if rest:
            return self.composition.set_method(rest)
        lines = []
        for entry in methods():
            mark = "*" if entry.name == self.composition.method else " "
            needs = " (needs a calibration)" if entry.needs_calibration else ""
            if entry.passes == 1:
                lines.append(f"{mark} {entry.name}: {entry.title}{needs}")
        return "\n".join(lines)

    def _adapter(self, rest: str) -> str:
        engine = self.conversation.engine
        words = _split(rest)
        if not words:
            rows = [
                f"{'*' if a.name in self.composition.adapters else ' '} {a.name}: rank {', '.join(map(str, a.ranks))}, "
                f"{counted(len(a.shapes), 'module')}, {a.nbytes / MIB:.1f} MiB, {a.path}"
                for a in engine.adapters.values()
            ]
            return "\n".join(rows) or "no adapters; load one with /adapter add PATH (or demo:summarize)"
        if words[0] == "add" and len(words) == 2:
            _check_path(words[1].rpartition("=")[2])
            name, path = split_adapter(words[1])
            adapter = engine.add_adapter(path, name)
            return f"loaded {name} (rank {', '.join(map(str, adapter.ranks))})\n{self.composition.added(name)}"
        if words[0] == "remove" and len(words) == 2:
            engine.remove_adapter(words[1])
            return f"removed {words[1]}\n{self.composition.removed(words[1])}"
        raise OptionError("expected /adapter, /adapter add [NAME=]PATH or /adapter remove NAME")

    def _use(self, rest: str) -> str:
        names = tuple(_split(rest))
        if not names:
            raise OptionError(
                f"expected /use NAME...; loaded: {', '.join(self.conversation.engine.adapters) or 'none'}; /use none "
                "for the base alone"
            )
        loaded = self.conversation.engine.adapters
        return self.composition.use(() if names[0] in NOTHING and names[0] not in loaded else names)

    def _calibration(self, rest: str) -> str:
        if not rest:
            return self.composition.describe()
        (path,) = _words(rest, 1, "/calibration FILE, /calibration demo:NAME or /calibration none")
        _check_path(path)
        return self.composition.set_calibration(None if path in NOTHING else calibration_path(path))

    def _system(self, rest: str) -> str:
        if rest:
            self.conversation.set_system(None if rest in NOTHING else rest)
        return f"system: {self.conversation.system or 'none'}"

    def _set(self, rest: str) -> Said:
        words = _split(rest)
        name = words[0].replace("-", "_") if words else None
        if name is not None:
            self._change(name, words[1:])
        values = values_of(self.conversation.settings)
        options = {key: value for key, value in values.items() if name in (None, key)}
        return Said("\n".join(f"{name} {_shown(value)}" for name, value in options.items()), options)

    def _stats(self, rest: str) -> Said:
        stats, conversation = self.conversation.stats, self.conversation
        context = conversation.engine.model.config.max_position_embeddings
        lines = []
        for name, turn in (("last answer", stats.last), (f"all {counted(stats.turns, 'answer')}", stats)):
            if turn is not None and (turn is stats.last or stats.turns > 1):
                lines.append(
                    f"{name}: {turn.prompt_tokens} prompt tokens, {turn.reused_tokens} of them from the cache; "
                    f"{turn.new_tokens} new tokens at {turn.decode_rate:.1f}/s; {turn.total_s:.2f} s"
                    + (f", the first token after {turn.first_token_s:.2f} s" if turn is stats.last else "")
                    + (
                        f"; {turn.accepted_tokens} of {turn.drafted_tokens} drafted tokens accepted"
                        * bool(turn.drafted_tokens)
                    )
                )
        lines.append(
            f"KV cache: {conversation.cached_tokens} of {context} tokens, {conversation.cache_bytes / MIB:.1f} MiB"
        )
        cache = {"tokens": conversation.cached_tokens, "context": context, "bytes": conversation.cache_bytes}
        return Said("\n".join(lines), {**stats.to_dict(), "cache": cache})

    def _history(self, rest: str) -> Said:
        messages = self.conversation.messages
        return Said("\n".join(f"{m['role']}: {m['content']}" for m in messages) or "nothing was said yet", messages)

    def _undo(self, rest: str) -> str:
        return f"taken back: {self.conversation.undo()}"

    def _reset(self, rest: str) -> str:
        self.conversation.reset()
        return "the conversation begins anew"

    def _save(self, rest: str) -> str:
        (path,) = _words(rest, 1, "/save FILE")
        self.conversation.save(path)
        return f"saved {counted(len(self.conversation.messages), 'message')} in {path}"

    def _load(self, rest: str) -> str:
        (path,) = _words(rest, 1, "/load FILE")
        self.conversation.load(path)
        return f"loaded {counted(len(self.conversation.messages), 'message')}; {self.composition.describe()}"

    def _exit(self, rest: str) -> str:
        self.finished = True
        return ""

    # ------------------------------------------------------------------------------------------------- options

    def _change(self, name: str, words: list[str]) -> None:
        if name not in OPTIONS:
            raise OptionError(f"unknown option {name!r}{did_you_mean(name, OPTIONS)}; options: {', '.join(OPTIONS)}")
        value = OPTIONS[name].parse(words)
        if name == "speculate":
            drafts_allowed(self.conversation.engine.model, value)
        self.conversation.settings = self.conversation.settings.with_options(**{name: value})


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(shlex.quote, value)) or "none"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}"


def _split(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise OptionError(f"{rest[:80]!r} cannot be split into words: {error}") from error


def _check_path(text: str) -> None:
    """OptionError for what cannot be a path at all: too long, a NUL in it, the home of nobody."""
    try:
        Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise OptionError(f"{text[:80]!r} is no path: {getattr(error, 'strerror', None) or error}") from error


def _words(rest: str, count: int, usage: str) -> list[str]:
    words = _split(rest)
    if len(words) != count:
        raise OptionError(f"expected {usage}")
    return words
