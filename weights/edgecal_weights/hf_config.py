"""The JSON files of a Hugging Face directory, brought to one spelling.

transformers 4 wrote `rope_theta` and `rope_scaling` (with the key `type` in its first year) and
`torch_dtype`; transformers 5 writes one `rope_parameters` object, which may hold `partial_rotary_factor` as
well, and `dtype`. The rest of edgecal knows the first form with `rope_type` and `dtype`:

    rope_parameters {rope_theta, rope_type: default}        -> rope_theta, rope_scaling None
    rope_parameters {rope_theta, rope_type: llama3, factor} -> rope_theta, rope_scaling {rope_type, factor}
    rope_parameters {full_attention: {...}, sliding_attention: {rope_theta}} -> and rope_local_base_freq
    rope_scaling {type: linear, factor}                     -> rope_scaling {rope_type: linear, factor}

Chat templates have lived in three places: a file chat_template.jinja (which transformers prefers where it
exists), the key in tokenizer_config.json (a string, or a list of named ones), and chat_template.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .binary_file import BinaryFile
from .errors import FileFormatError, ModelNotFoundError, UnsupportedModelError

_MAX_JSON = 64 << 20  # the index of a large model has 1 MB; tokenizer.json is read by the tokenizers library
_MAX_TEMPLATE = 4 << 20
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_text(path: Path, limit: int) -> str:
    """The file as UTF-8 text; ModelNotFoundError, or FileFormatError for a directory, a giant or other
    bytes."""
    with BinaryFile(path) as file:
        if file.size > limit:
            raise FileFormatError(f"{path} is larger than {limit >> 20} MiB, which no file of its kind is")
        raw = file.read(0, file.size, "the text")
    try:
        return raw.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object; {} when `optional` and the file is not there."""
    try:
        value = json.loads(read_text(path, _MAX_JSON))
    except ModelNotFoundError:
        if optional:
            return {}
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def normalize_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A copy of a config.json in the one spelling of the module docstring. `path` is for messages only."""
    config = dict(config)
    parameters = config.pop("rope_parameters", None)
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise FileFormatError(f"{path}: rope_parameters is {parameters!r}, expected an object")
        scaling = _by_layer_type(parameters, config, path)
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in scaling:
                config[key] = scaling.pop(key)
        config["rope_scaling"] = scaling
    config["rope_scaling"] = _scaling(config.get("rope_scaling"), path)
    if "partial_rotary_factor" not in config and "rope_pct" in config:
        config["partial_rotary_factor"] = config["rope_pct"]
    dtype = config.pop("torch_dtype", None)
    dtype = config.get("dtype") or dtype
    if isinstance(dtype, str):
        config["dtype"] = dtype.removeprefix("torch.")
    return config


def _by_layer_type(parameters: dict[str, Any], config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The parameters of layers that see everything; those of layers with a window are one key in transformers 4's
    spelling, `rope_local_base_freq`, which goes into `config`."""
    if not any(isinstance(value, dict) for value in parameters.values()):
        return dict(parameters)
    local, full = parameters.get("sliding_attention") or {}, parameters.get("full_attention") or {}
    unknown = set(parameters) - {"sliding_attention", "full_attention"}
    if unknown or local.get("rope_type", "default") != "default":
        raise UnsupportedModelError(
            f"{path}: rope_parameters by layer type are served for full_attention and a plain sliding_attention; "
            f"found {', '.join(sorted(unknown)) or local!r}"
        )
    if "rope_theta" in local:
        config["rope_local_base_freq"] = local["rope_theta"]
    return dict(full)


def _scaling(scaling: Any, path: Path) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if not isinstance(scaling, dict):
        raise FileFormatError(f"{path}: rope_scaling is {scaling!r}, expected an object or null")
    scaling = dict(scaling)
    old = scaling.pop("type", None)
    kind = scaling.setdefault("rope_type", "default" if old is None else old)
    return None if kind == "default" else scaling


def tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json completed from special_tokens_map.json and the chat template's other places.

    Special tokens are plain strings. `chat_template` is the default one; a list of named templates also
    appears as `chat_templates` {name: text}. All files are optional.
    """
    path = directory / "tokenizer_config.json"
    config = read_json(path, optional=True)
    for key, value in read_json(directory / "special_tokens_map.json", optional=True).items():
        if config.get(key) is None:
            config[key] = value
    for key in _TOKENS:
        if isinstance(config.get(key), dict):
            config[key] = config[key].get("content")
        if not isinstance(config.get(key, ""), (str, type(None))):
            raise FileFormatError(f"{path}: {key} is {config[key]!r}, expected a string")
    template = _chat_template(directory, config.pop("chat_template", None))
    if isinstance(template, list):
        named = _named_templates(template, path)
        config["chat_templates"] = named
        template = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
    if template is not None:
        if not isinstance(template, str):
            raise FileFormatError(f"{path}: chat_template is a {type(template).__name__}, expected text")
        config["chat_template"] = template
    return config


def _chat_template(directory: Path, inline: Any) -> Any:
    if (directory / "chat_template.jinja").exists():
        return read_text(directory / "chat_template.jinja", _MAX_TEMPLATE)
    if inline is not None:
        return inline
    return read_json(directory / "chat_template.json", optional=True).get("chat_template")


def _named_templates(entries: list[Any], path: Path) -> dict[str, str]:
    try:
        named = {entry["name"]: entry["template"] for entry in entries}
    except (KeyError, TypeError):
        named = {"": None}
    if not all(isinstance(part, str) for pair in named.items() for part in pair):
        raise FileFormatError(f"{path}: chat_template is a list, expected of objects with name and template")
    return named
