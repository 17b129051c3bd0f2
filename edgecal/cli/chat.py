"""`edgecal chat`: talk with a model, and change method and adapters on the way.

At a terminal: a prompt, line editing, a history over sessions, answers as they come. Ctrl-C stops an answer and keeps
what was said. From a pipe: one message per line, answers on stdout and everything else on stderr, so that the output
is the model's alone. With --json: one object on stdout for each message or command, errors included.
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..errors import EdgecalError
from ._answer import CONTROL, AnswerWriter
from ._model_argument import model_argument
from ._output import echo_json, tell
from ._progress import while_reading
from ._sampling import SettingsOptions, sampling_options
from .options import ModelOptions, RecipeOptions, answering_options, json_option, load_engine, recipe_options

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..completion import Settings
    from ..conversation import Conversation
    from ..engine import Engine
    from ._chat_commands import Commands
    from ._chat_input import PipeReader, TerminalReader
    from ._composition import Composition

HISTORY_FILE = "chat_history"


@click.command("chat")
@model_argument
@click.option("--system", help="A system message.")
@answering_options
@recipe_options
@sampling_options
@json_option
def command(
    model: str,
    system: str | None,
    loading: ModelOptions,
    chosen: RecipeOptions,
    answering: SettingsOptions,
    as_json: bool,
) -> None:
    """Talk with MODEL: a directory, a GGUF file, a hub id (org/name), or demo.

    \b
    edgecal chat demo --adapter demo:summarize --adapter demo:professional
    printf 'Hello\\nAnd now shorter\\n' | edgecal chat demo

    With --json: one JSON object for each message or command of the input.
    """
    from ..conversation import Conversation, refuse_pipeline
    from ._chat_commands import Commands
    from ._composition import Composition

    recipe = chosen.recipe()
    refuse_pipeline(recipe)
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    engine = load_engine(model, loading, chosen.paths())
    conversation = Conversation(engine, recipe, _settings(answering, engine, recipe), system)
    composition = Composition(conversation, recipe, tuple(engine.adapters))
    commands = Commands(conversation, composition)
    reader = _make_reader(commands, at_terminal)
    if not as_json:
        tell(banner(model, conversation, composition), err=not at_terminal)
    session = _Session(conversation, composition, commands, at_terminal, as_json)
    try:
        session.run(reader)
    finally:
        reader.close()


def _settings(answering: SettingsOptions, engine: Engine, recipe: Recipe) -> Settings:
    """Talk is sampled, the way that the model's makers advise where they do; tasks of adapters are greedy."""
    from ..decoding.sampler import TALK, SamplingOptions

    return answering.settings(SamplingOptions() if recipe.adapter_names else engine.advised_sampling or TALK)


def _make_reader(commands: Commands, at_terminal: bool) -> PipeReader | TerminalReader:
    from edgecal_kernels.paths import cache_directory

    from ._chat_input import PipeReader, TerminalReader

    return TerminalReader(cache_directory() / HISTORY_FILE, commands.complete) if at_terminal else PipeReader()


def banner(model: str, conversation: Conversation, composition: Composition) -> str:
    """Model, method and adapters, and how to go on."""
    from ._inspect_tables import size

    loaded = conversation.engine.model
    return (
        f"{model}: {loaded.config.family}, {size(loaded.weight_bytes)} of weights, "
        f"context {loaded.config.max_position_embeddings:,} tokens\n"
        f"{composition.describe()}\n"
        "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"
    )


class _Session:
    def __init__(
        self,
        conversation: Conversation,
        composition: Composition,
        commands: Commands,
        at_terminal: bool,
        as_json: bool,
    ) -> None:
        self.conversation, self.composition, self.commands = conversation, composition, commands
        self.at_terminal, self.as_json = at_terminal, as_json

    def run(self, reader: PipeReader | TerminalReader) -> None:
        """Until the input ends or /exit. A refusal is told and the next line read."""
        from ._chat_input import read_message

        while not self.commands.finished:
            try:
                typed = read_message(reader)
                if typed is None:
                    return
                if typed.text.lstrip().startswith("/") and not typed.literal:
                    self._command(typed.text)
                elif typed.text.strip():
                    self._message(typed.text)
            except EdgecalError as error:
                self._refuse(error)
            except MemoryError:
                self._refuse(EdgecalError("the memory does not suffice for this; /reset gives that of the cache back"))
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                tell("\n(Ctrl-D or /exit leaves)")

    def _command(self, line: str) -> None:
        said = self.commands.run(line)
        if self.as_json:
            output = said.text if said.data is None else said.data
            self._print({"command": line.strip(), "output": output})
        elif said.text:
            tell(said.text.translate(CONTROL), err=not self.at_terminal)

    def _message(self, text: str) -> None:
        interrupted, turns = False, self.conversation.stats.turns
        answer: list[str] = []
        writer = AnswerWriter(at_terminal=self.at_terminal)
        try:
            with closing(while_reading(lambda read: self.conversation.reply(text, progress=read))) as pieces:
                for piece in pieces:
                    answer.append(piece.text)
                    if not self.as_json:
                        writer.write(piece.text)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if not self.as_json and (answer or interrupted):
                writer.end()
        turn = self.conversation.stats.last if self.conversation.stats.turns > turns else None
        if self.as_json:
            facts = turn.to_dict() if turn else {"finish_reason": "interrupted", "new_tokens": 0}
            method, adapters = self.composition.method, list(self.composition.adapters)
            self._print({"user": text, "text": "".join(answer), "method": method, "adapters": adapters, **facts})
        else:
            self._note(turn.finish_reason if turn else "nothing said")
        if interrupted and not self.at_terminal:
            raise KeyboardInterrupt

    def _note(self, reason: str) -> None:
        """Why an answer is not the whole one."""
        notes = {
            "interrupted": "stopped; what was said stays in the conversation (/undo takes it back)",
            "nothing said": "stopped before the answer; the message is not part of the conversation",
            "length": f"stopped after {self.conversation.settings.max_tokens} tokens; /set max_tokens changes that",
            "context": "stopped: the context is full; /reset starts over",
            "repetition": "stopped: it had begun to repeat itself; /set stop_at_repetition off lets it go on",
        }
        if reason in notes:
            tell(f"[{notes[reason]}]", err=True, dim=True)

    def _refuse(self, error: EdgecalError) -> None:
        if self.as_json:
            self._print({"error": {"type": type(error).__name__, "message": str(error)}})
        else:
            tell(f"error: {error}".translate(CONTROL), err=True, fg="red")

    def _print(self, values: dict[str, Any]) -> None:
        echo_json(values)
