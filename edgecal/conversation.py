"""Conversation: messages, and the KV cache that spares reading them again at every turn.

    conversation = Conversation(engine, system="Answer in one sentence.")
    for piece in conversation.reply("Why is the sky blue?"):
        print(piece.text, end="", flush=True)

Each turn the whole conversation is written out by the chat template and encoded, and the cache is cut back to the
longest common prefix of those ids and the ids it was filled with. Nothing else decides what is reused, because
nothing else is safe: a model may have said a word in two tokens that the tokenizer reads back as one, a template may
trim an answer or put the date in front, a user may take turns back. The prefix is right in all these cases, and in
the usual one it covers everything but the new message.

That is the engine's `PrefixCache`, which goes by the content of the adapters, too. A conversation has one of its own,
for a single entry of any size: a long talk must not be read again because other requests needed the engine's budget.

A turn that ends early, by Ctrl-C, an error or a generator that nobody reads to its end, keeps what was said so far:
the next message refers to the answer that the person has seen. Only if nothing was said yet the turn is taken back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgecal_weights.files import read_json, write_json

from .adapters.recipe import Recipe
from .completion import Piece, Settings
from .decoding.generate import FinishReason
from .decoding.prefix_cache import PrefixCache
from .engine import Engine
from .errors import ContextLengthError, PromptError, RecipeError

_LARGEST_FILE = 64 << 20


@dataclass(frozen=True)
class TurnStats:
    """One answer: tokens of the prompt (the whole conversation), those that the cache held, tokens made; seconds.

    `drafted_tokens` were guessed ahead and verified, `accepted_tokens` of them were right. `decode_kernels_s` of the
    time after the first token went into loading kernels that this process had not used before.
    """

    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    first_token_s: float
    total_s: float
    finish_reason: FinishReason | Literal["interrupted"]
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    decode_kernels_s: float = 0.0

    @property
    def decode_s(self) -> float:
        """After the first token, without the loading of kernels."""
        return self.total_s - self.first_token_s - self.decode_kernels_s

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first, without the loading of kernels; 0 when there was only one."""
        seconds = self.decode_s
        return (self.new_tokens - 1) / seconds if seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "decode_tokens_per_s": self.decode_rate}


@dataclass(frozen=True)
class ConversationStats:
    """The last turn and the sums over all turns so far, those since taken back included. Seconds."""

    last: TurnStats | None = None
    turns: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    total_s: float = 0.0
    decode_s: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def decode_rate(self) -> float:
        """Tokens per second over all turns, the first token of each left out."""
        return (self.new_tokens - self.turns) / self.decode_s if self.decode_s > 0 else 0.0

    def plus(self, turn: TurnStats) -> ConversationStats:
        return ConversationStats(
            turn,
            self.turns + 1,
            self.prompt_tokens + turn.prompt_tokens,
            self.reused_tokens + turn.reused_tokens,
            self.new_tokens + turn.new_tokens,
            self.total_s + turn.total_s,
            self.decode_s + turn.decode_s,
            self.drafted_tokens + turn.drafted_tokens,
            self.accepted_tokens + turn.accepted_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "decode_tokens_per_s": self.decode_rate}
        return {**values, "last": self.last.to_dict() if self.last else None}


def refuse_pipeline(recipe: Recipe | None) -> None:
    """RecipeError for multi_step and in_context, which no conversation can have."""
    if recipe is not None and recipe.steps:
        raise RecipeError(
            "multi_step makes a prompt of its own for each step, which leaves nothing to go on talking about; "
            "use generate, or another method"
        )
    if recipe is not None and recipe.shots:
        raise RecipeError("in_context puts its examples in front of one question; use generate, or another method")


class Conversation:
    """Turns with one engine under one recipe at a time; any number of conversations share an engine, in one thread.

    `settings` may be changed between turns. Raises PromptError for a model without a chat template, RecipeError for
    multi_step (each of its passes has a prompt of its own, so there is no conversation to go on with), and what
    compiling the recipe raises.
    """

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe | None = None,
        settings: Settings | None = None,
        system: str | None = None,
    ) -> None:
        if not engine.tokenizer.template_names:
            raise PromptError(
                f"{engine.tokenizer.origin} has no chat template, so it cannot hold a conversation; give it a raw "
                "prompt (generate --raw)"
            )
        self.engine = engine
        self.settings = settings or Settings()
        self._recipe: Recipe | None = None
        self._system = system or None
        self._turns: list[dict[str, str]] = []
        self._stats = ConversationStats()
        self._prefixes = PrefixCache(max_bytes=None, max_entries=1)
        self._running: weakref.ref[Any] | None = None
        self.set_recipe(recipe)

    @property
    def recipe(self) -> Recipe | None:
        return self._recipe

    @property
    def system(self) -> str | None:
        return self._system

    @property
    def messages(self) -> list[dict[str, str]]:
        """A copy: the system message if there is one, then user and assistant in turn."""
        system = [{"role": "system", "content": self._system}] if self._system is not None else []
        return [*system, *(dict(message) for message in self._turns)]

    @property
    def stats(self) -> ConversationStats:
        return self._stats

    @property
    def cached_tokens(self) -> int:
        """Positions in the KV cache."""
        return self._prefixes.n_tokens

    @property
    def cache_bytes(self) -> int:
        return self._prefixes.nbytes

    # ---------------------------------------------------------------------------------------------- one turn

    def reply(self, text: str, *, progress: Callable[[int], None] | None = None) -> Generator[Piece, None, None]:
        """Answer `text`, piece by piece; both become part of the conversation when the first piece is asked for.

        Refusals come before that and change nothing: PromptError (an empty text, a template that refuses),
        ContextLengthError (the conversation has outgrown the context), RecipeError or AdapterError (an adapter was
        removed from the engine meanwhile). `progress` gets the number of new prompt tokens read. An answer that is
        still running ends here, as it does with every other method that changes the conversation.
        """
        self._settle()
        if self.settings.raw:
            raise PromptError("a conversation goes through the chat template: settings.raw does not go with it")
        if not text.strip():
            raise PromptError("the message is empty: give some text to answer")
        message = {"role": "user", "content": text}
        ids = self.engine.encode([*self.messages, message])
        self._check_room(len(ids))
        stream = self.engine.stream_ids(
            ids, recipe=self._recipe, settings=self.settings, progress=progress, prefixes=self._prefixes
        )
        pieces = self._answer(message, len(ids), stream)
        self._running = weakref.ref(pieces)
        return pieces

    def _answer(
        self, message: dict[str, str], n_prompt: int, stream: Generator[Piece, None, None]
    ) -> Generator[Piece, None, None]:
        answer = {"role": "assistant", "content": ""}
        self._turns += [message, answer]
        tokens = drafted = accepted = 0
        first_token_s = total_s = kernels_s = 0.0
        spent = self.engine.model.ops.preparing_seconds
        reason: FinishReason | Literal["interrupted"] = "interrupted"
        try:
            with closing(stream):  # gives the cache back before anybody wants it again
                for piece in stream:
                    answer["content"] += piece.text
                    tokens, total_s = tokens + 1, piece.token.at_s
                    drafted, accepted = drafted + piece.token.drafted, accepted + piece.token.accepted
                    if not first_token_s:
                        first_token_s, kernels_s = total_s, spent()
                    reason = piece.finish_reason or reason
                    yield piece
        finally:
            if reason == "interrupted" and not answer["content"]:
                del self._turns[-2:]
            else:
                reused = self._prefixes.last_reused
                later = float(spent() - kernels_s) if first_token_s else 0.0
                turn = TurnStats(n_prompt, reused, tokens, first_token_s, total_s, reason, drafted, accepted, later)
                self._stats = self._stats.plus(turn)

    def _check_room(self, n_tokens: int) -> None:
        limit = self.engine.model.config.max_position_embeddings
        if n_tokens < limit:
            return
        advice = "start over with reset (/reset), or take turns back with undo (/undo)" if self._turns else "shorten it"
        raise ContextLengthError(
            f"the conversation with this message has {n_tokens} tokens, the model's context is {limit}: {advice}"
        )

    def _settle(self) -> None:
        running = self._running() if self._running is not None else None
        self._running = None
        if running is not None:
            running.close()

    # ------------------------------------------------------------------------------------------ changes between

    def set_recipe(self, recipe: Recipe | None) -> None:
        """Compile and use `recipe` from the next turn on; if it is refused the one before stays."""
        refuse_pipeline(recipe)
        self.engine.compile(recipe)
        self._settle()
        self._recipe = recipe

    def set_system(self, text: str | None) -> None:
        """The system message from the next turn on; None or "" for none (a template may have its own)."""
        self._settle()
        self._system = text or None

    def undo(self) -> str:
        """Take the last turn back and return what the user had said; PromptError when there is none."""
        self._settle()
        if not self._turns:
            raise PromptError("there is no turn to take back")
        said = self._turns[-2]["content"]
        del self._turns[-2:]
        return said

    def reset(self) -> None:
        """Forget all turns and give the cache's memory back. System message, recipe, settings and stats stay."""
        self._settle()
        self._turns.clear()
        self._prefixes.clear()

    def set_messages(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Put a whole conversation in this one's place: an optional system message, then user and assistant in turn.

        PromptError for anything else.
        """
        turns = [dict(m) if isinstance(m, Mapping) else {} for m in messages]
        for i, message in enumerate(turns):
            if set(message) != {"role", "content"} or not all(isinstance(v, str) for v in message.values()):
                raise PromptError(f"message {i + 1} of the conversation: expected {{role, content}}, both text")
        system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
        wanted = ["user", "assistant"] * (len(turns) // 2)
        if [message["role"] for message in turns] != wanted:
            raise PromptError(
                "a conversation is an optional system message, then user and assistant in turn, ending with the "
                f"assistant; found {', '.join(message['role'][:20] for message in turns[:8])}"
            )
        self._settle()
        self._system, self._turns = system or None, turns

    # ----------------------------------------------------------------------------------------------- as a file

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: messages, and for the record the recipe that answers now."""
        return {"messages": self.messages, "recipe": self._recipe.to_dict() if self._recipe else None}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, complete or not at all; StorageError when the file cannot be written."""
        write_json(path, self.to_dict(), indent=2)

    def load(self, path: str | Path) -> None:
        """Take the messages of a file that `save` wrote, or of a bare JSON list; the recipe in it is not applied.

        PromptError naming the file when it cannot be read or holds something else; nothing has changed then.
        """
        values = read_json(path, _LARGEST_FILE, error=PromptError)
        messages = values.get("messages") if isinstance(values, dict) else values
        if not isinstance(messages, list):
            raise PromptError(f"{path} holds no conversation: expected a list of messages, or one under 'messages'")
        try:
            self.set_messages(messages)
        except PromptError as error:
            raise PromptError(f"{path}: {error}") from error
