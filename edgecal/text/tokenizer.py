"""Text to ids and back, and conversations to prompts: the only place in the engine where both live.

The arithmetic of tokenization is the tokenizers library's, or plain Python's with the same ids where that is not
installed; what this file adds are the conventions around it that transformers keeps in Python and that decide which
ids a model sees:

* what is put around a raw text is the post-processor's business; `add_bos_token` and `add_eos_token` of
  tokenizer_config.json are not looked at, as in transformers 5 wherever there is a tokenizer.json;
* a token has a name (`bos_token`, `eos_token` ...) only if the tokenizer's own files give it one. An id in config.json
  names nothing: 1 and 2, LlamaConfig's defaults, are `"` and `#` in a byte-level vocabulary;
* a truncation or padding saved in tokenizer.json (leftovers of training) does not apply to inference;
* the text of a chat template carries its own special tokens, so a conversation is encoded without adding
  any: this is what keeps a beginning-of-text token from being doubled;
* the end of generation is spelled in up to three places (generation_config, config, tokenizer) that often
  disagree. All of them end generation here: a turn that a base model's config does not end would run on
  into an invented one. But an id of config.json (or of a generation_config.json that was made from it) that stands for
  ordinary text is a leftover of defaults and ends nothing.

`clean_up_tokenization_spaces` is ignored, as transformers does for BPE: it corrupts text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecal_weights.files import kind_of
from edgecal_weights.tokenizer_backend import AddedToken
from edgecal_weights.tokenizer_backend import Tokenizer as Backend
from edgecal_weights.tokenizer_faults import tokenizer_faults

from ..errors import FileFormatError, PromptError
from .chat_template import ChatTemplate
from .text_stream import TextStream

if TYPE_CHECKING:
    from edgecal_weights.checkpoint import Checkpoint

__all__ = ["TextStream", "Tokenizer"]


class Tokenizer:
    """A model's tokenizer with its chat template.

    Args:
        backend: owned from here on (truncation, padding and special tokens are set on it).
        tokenizer_config: in the spelling of tokenizer_config.json; `chat_template` may be one text, a dict
            by name, or a list of `{"name", "template"}`.
        config, generation_config: read for `eos_token_id` only.
        origin: the model's path or name, for messages.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer_config: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        origin: str = "the model",
    ) -> None:
        self.backend = backend
        self.origin = origin
        options = tokenizer_config or {}
        backend.no_truncation()
        backend.no_padding()
        self.named_tokens = _find_named_tokens(options)
        self._mark_special()
        self._templates = self._read_templates(options.get("chat_template"))
        self.bos_id = self._id_of("bos_token")
        self.eos_ids = self._find_eos_ids(config or {}, generation_config or {})

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """The tokenizer that an opened model source carries. Raises what reading its files raises."""
        return cls(
            checkpoint.tokenizer(),
            checkpoint.tokenizer_config(),
            checkpoint.config,
            checkpoint.generation_config,
            origin=str(checkpoint.path),
        )

    @property
    def vocab_size(self) -> int:
        """Ids that stand for text; the model's logits may have more columns."""
        return self.backend.get_vocab_size()

    @property
    def template_names(self) -> list[str]:
        """Names of the chat templates; empty for a model that has none."""
        return sorted(self._templates)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of a raw text; special tokens written out in it are recognized.

        Args:
            add_special_tokens: also put in front (or behind) what the model expects around a raw text,
                usually the beginning-of-text token.

        Raises:
            PromptError: the text is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is not valid Unicode at character {error.start} (half of a surrogate pair, as "
                "undecodable bytes of a command line or a file leave behind)"
            ) from error
        with tokenizer_faults(self.origin):
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids; ids outside the vocabulary stand for nothing, malformed UTF-8 becomes U+FFFD."""
        with tokenizer_faults(self.origin):
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A fresh incremental decoder."""
        return TextStream(self.backend, skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation, as transformers' method of the same name makes it.

        Args:
            messages: dicts with `role` and `content`.
            add_generation_prompt: end with the opening of the assistant's turn.
            template: name of one of several templates; `default` if there is one (`tool_use` when `tools`
                are given).
            variables: passed on to the template (`tools`, `documents`, switches of the model).

        Raises:
            PromptError: no template, an unknown name, or a template that refuses or fails.
        """
        chosen = self._choose_template(template, variables.get("tools") is not None)
        given: dict[str, Any] = {"tools": None, "documents": None, **self.named_tokens, **variables}
        return chosen.render(messages, add_generation_prompt=add_generation_prompt, **given)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Ids of `apply_chat_template`; the template writes its own special tokens, so none are added."""
        return self.encode(self.apply_chat_template(messages, add_generation_prompt, **variables))

    def _mark_special(self) -> None:
        """Named tokens are special even where tokenizer.json lists them as ordinary pieces."""
        added = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        pieces = {token for token in self.named_tokens.values() if self.backend.token_to_id(token) is not None}
        self.backend.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in sorted(pieces - added)]
        )

    def _find_eos_ids(self, config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> frozenset[int]:
        told, copied = self._ids_in(generation_config, "eos_token_id"), self._ids_in(config, "eos_token_id")
        if generation_config.get("_from_model_config"):
            told, copied = [], told + copied
        added = self.backend.get_added_tokens_decoder()
        meant = [index for index in copied if index in added or self.backend.id_to_token(index) is None]
        eos = self._id_of("eos_token")
        return frozenset([*told, *meant] if eos is None else [*told, *meant, eos])

    def _ids_in(self, source: Mapping[str, Any], key: str) -> list[int]:
        value = source.get(key)
        values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in values):
            raise FileFormatError(f"{self.origin}: {key} must be a token id or a list of token ids, found {value!r}")
        return [index for index in values if 0 <= index < 1 << 32]  # -1 is how some say "none"

    def _id_of(self, name: str) -> int | None:
        token = self.named_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def _read_templates(self, value: Any) -> dict[str, ChatTemplate]:
        if value is None:
            return {}
        if isinstance(value, str):
            value = {"default": value}
        elif isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
            value = {entry.get("name"): entry.get("template") for entry in value}
        if not isinstance(value, Mapping) or not all(
            isinstance(name, str) and isinstance(source, str) for name, source in value.items()
        ):
            raise FileFormatError(
                f"{self.origin}: chat_template must be a text or named texts, found {kind_of(value)}"
            )
        return {name: ChatTemplate(source, self.origin) for name, source in value.items()}

    def _choose_template(self, name: str | None, with_tools: bool) -> ChatTemplate:
        if not self._templates:
            raise PromptError(f"{self.origin} has no chat template; give it a raw prompt (text to continue; --raw)")
        if name is None:
            name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise PromptError(
                f"{self.origin} has no chat template named {name!r}; choose one of {', '.join(self.template_names)}"
            )
        return self._templates[name]


def _find_named_tokens(options: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and the like by name, as text, for templates and for decoding. A model may have names of its own."""
    found = {}
    for name, value in options.items():
        if isinstance(value, Mapping):  # transformers writes plain texts or whole AddedToken records
            value = value.get("content")
        if name.endswith("_token") and isinstance(value, str):
            found[name] = value
    return found
