"""The tokenizer of a Hugging Face directory: tokenizer.json, and what the files beside it say about it.

tokenizer.json is the whole pipeline, but not always the whole vocabulary: tokens that a fine-tuner added may be named
in tokenizer_config.json or added_tokens.json only. They are added here as transformers 5 adds them (TokenizersBackend):

1. `added_tokens_decoder` of tokenizer_config.json, in the order of its ids. Directories from before that key have
   added_tokens.json instead, and there special_tokens_map.json goes over tokenizer_config.json; with the key it is not
   looked at;
2. the tokens with a name: `bos_token`, `eos_token`, `pad_token` and every other key that ends in `_token`;
3. `extra_special_tokens`, which was `additional_special_tokens` before version 5 (a list, or an object of names).

The tokens of 2 and 3 are special. A token that tokenizer.json does not know gets the next free id, whatever id the file
asks for. One departure: a token for which the model has no row is left out, because its id could not be looked up.

`add_bos_token` and `add_eos_token` mean nothing beside a tokenizer.json, whose post-processor says what is put around a
text; transformers 5 drops both. Nor is the pipeline rebuilt from the name in `tokenizer_class`, as transformers does
for some classes: it loses the isolated digits of SmolLM ("GPT2Tokenizer") and the space in front of every stretch of
Llama 2's text ("LlamaTokenizer"), which the models were trained with and tokenizer.json has.

Chat templates have lived in four places. Files win over keys: chat_template.jinja is the default one, others lie in
additional_chat_templates/NAME.jinja; then the key in tokenizer_config.json (a text, or a list of named ones); then
chat_template.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import FileFormatError, ModelNotFoundError
from .files import kind_of, read_bytes, read_text
from .hf_config import read_json
from .tokenizer_backend import AddedToken, Tokenizer
from .tokenizer_backend import read as read_backend
from .tokenizer_faults import tokenizer_faults

_MAX_TEMPLATE = 4 << 20
_MAX_TOKENIZER = 256 << 20  # a vocabulary of 262,144 with its merges has 33 MB
_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


def read_tokenizer(directory: Path, vocab_size: int | None, advice: str) -> Tokenizer:
    """The tokenizer with all the tokens that the directory names.

    Args:
        directory: of the model.
        vocab_size: rows of the model's embedding; None if unknown. No token is added beyond it.
        advice: what to do where there is no tokenizer.json, for the message.

    Raises:
        ModelNotFoundError: no tokenizer.json.
        FileFormatError: a file that is not what it should be.
        UnsupportedModelError: what only the tokenizers library serves, which is not installed.
    """
    path = directory / "tokenizer.json"
    try:
        content = read_bytes(path, _MAX_TOKENIZER)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; {advice}") from error
    tokenizer = read_backend(content, path)
    tokens = _tokens_of(directory, tokenizer)
    with tokenizer_faults(path):
        _add_tokens(tokenizer, tokens, vocab_size)
    return tokenizer


def tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from the files around it. All of them are optional.

    Named tokens are plain strings, also those of an object of `extra_special_tokens`, and `extra_special_tokens` is a
    list of strings. `chat_template` is one text, or a list of {"name", "template"} where there are several.
    """
    path = directory / "tokenizer_config.json"
    config = _raw_config(directory)
    named, extra = _named_tokens(config, path), _extra_tokens(config, path)
    for key in _EXTRA:
        config.pop(key, None)
    config.update((key, token.content) for key, token in named.items())
    if extra:
        config["extra_special_tokens"] = [token.content for token in extra]
    template = _chat_template(directory, config.pop("chat_template", None), path)
    if template is not None:
        config["chat_template"] = template
    return config


def _raw_config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / "tokenizer_config.json", optional=True)
    if "added_tokens_decoder" not in config:
        config.update(read_json(directory / "special_tokens_map.json", optional=True))
    return config


def _tokens_of(directory: Path, tokenizer: Tokenizer) -> list[AddedToken]:
    """Everything that the files want added, in the order of the module's docstring; much of it may be there already."""
    path = directory / "tokenizer_config.json"
    config = _raw_config(directory)
    named, extra = _named_tokens(config, path), _extra_tokens(config, path)
    there = tokenizer.get_added_tokens_decoder()
    if "added_tokens_decoder" in config:
        listed = _listed_tokens(config["added_tokens_decoder"], path)
    else:
        special = {token.content for token in (*named.values(), *extra)}
        listed = _legacy_tokens(directory / "added_tokens.json", special) | there
    tokens = [listed[index] for index in sorted(listed)]
    known = {token.content for token in (*there.values(), *tokens)}
    tokens += [token for token in (*named.values(), *extra) if token.content not in known]
    names = {token.content for token in named.values()}
    for token in tokens:
        token.special = token.special or token.content in names
    return tokens


def _add_tokens(tokenizer: Tokenizer, tokens: Iterable[AddedToken], vocab_size: int | None) -> None:
    there = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    wanted = list({token.content: token for token in tokens if there.get(token.content) != token}.values())
    new = [token.content for token in wanted if tokenizer.token_to_id(token.content) is None]
    if new and isinstance(vocab_size, int):
        free = vocab_size - 1 - max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        without_row = set(new[max(free, 0) :])
        wanted = [token for token in wanted if token.content not in without_row]
    tokenizer.add_tokens(wanted)


def _listed_tokens(value: Any, path: Path) -> dict[int, AddedToken]:
    if not isinstance(value, dict) or not all(key.isdecimal() for key in value):
        raise FileFormatError(f"{path}: added_tokens_decoder is {value!r:.80}, expected an object from id to token")
    return {int(key): _token(fields, f"{path}: added_tokens_decoder[{key}]") for key, fields in value.items()}


def _legacy_tokens(path: Path, special: set[str]) -> dict[int, AddedToken]:
    listed = {}
    for content, index in read_json(path, optional=True).items():
        if type(index) is not int or index < 0:
            raise FileFormatError(f"{path}: {content!r} has the id {index!r}, expected a token id")
        fields = {"content": content, "normalized": content not in special, "special": content in special}
        listed[index] = _token(fields, str(path))
    return listed


def _named_tokens(config: Mapping[str, Any], path: Path) -> dict[str, AddedToken]:
    own = [key for key in config if key not in _STANDARD and key.endswith("_token") and _is_token(config[key])]
    named = {key: config.get(key) for key in (*_STANDARD, *own)}
    for key in _EXTRA:
        if isinstance(config.get(key), dict):
            named.update(config[key])
    return {key: _token(value, f"{path}: {key}") for key, value in named.items() if value not in (None, "")}


def _extra_tokens(config: Mapping[str, Any], path: Path) -> list[AddedToken]:
    for key in _EXTRA:
        value = config.get(key)
        if value:
            if not isinstance(value, (list, dict)):
                raise FileFormatError(f"{path}: {key} is {value!r:.80}, expected a list of tokens")
            tokens = [] if isinstance(value, dict) else value
            return [_token(token, f"{path}: {key}") for token in tokens if token != ""]
    return []


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _token(value: Any, where: str) -> AddedToken:
    """A token from its text or from its record; special unless the record says no."""
    fields = {"content": value} if isinstance(value, str) else value
    try:
        flags = {key: fields[key] for key in _FLAGS if key in fields}
        return AddedToken(fields["content"], **{"special": True, **flags})
    except Exception as error:  # not a record, wrong types, half a surrogate pair
        raise FileFormatError(f"{where} is {value!r:.80}, expected a string or the record of a token") from error


def _chat_template(directory: Path, inline: Any, path: Path) -> str | list[dict[str, str]] | None:
    """One text, or the named ones in the spelling of tokenizer_config.json."""
    value: Any = {}
    if (directory / "chat_template.jinja").exists():
        value["default"] = read_text(directory / "chat_template.jinja", _MAX_TEMPLATE)
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        value[file.stem] = read_text(file, _MAX_TEMPLATE)
    if not value:
        value = inline
    if value is None:
        value = read_json(directory / "chat_template.json", optional=True).get("chat_template")
    if value is None or isinstance(value, str):
        return value
    named = _named_templates(value, path)
    if len(named) == 1:
        return next(iter(named.values()))
    return [{"name": name, "template": template} for name, template in named.items()]


def _named_templates(value: Any, path: Path) -> dict[str, str]:
    try:
        named = value if isinstance(value, dict) else {entry["name"]: entry["template"] for entry in value}
    except (KeyError, TypeError):
        named = {}
    if not named or not all(isinstance(part, str) for pair in named.items() for part in pair):
        raise FileFormatError(
            f"{path}: chat_template is {kind_of(value)}, expected text or a list of objects with a name and a "
            "template"
        )
    return named
