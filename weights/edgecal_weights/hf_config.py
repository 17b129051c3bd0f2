"""The JSON files of a Hugging Face directory, brought to one spelling.

transformers 4 wrote `rope_theta` and `rope_scaling` (with the key `type` in its first year) and
`torch_dtype`; transformers 5 writes one `rope_parameters` object, which may hold `partial_rotary_factor` as
well, and `dtype`. The rest of edgecal knows the first form with `rope_type` and `dtype`:

    rope_parameters {rope_theta, rope_type: default}        -> rope_theta, rope_scaling None
    rope_parameters {rope_theta, rope_type: llama3, factor} -> rope_theta, rope_scaling {rope_type, factor}
    rope_parameters {full_attention: {...}, sliding_attention: {rope_theta}} -> and rope_local_base_freq
    rope_scaling {type: linear, factor}                     -> rope_scaling {rope_type: linear, factor}

What concerns the tokenizer is in hf_tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import FileFormatError, ModelNotFoundError, UnsupportedModelError
from .files import read_object

_MAX_JSON = 64 << 20  # the index of a large model has 1 MB; tokenizer.json is read by the tokenizers library


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object; {} when `optional` and the file is not there. Of two equal keys the last counts, as in
    transformers."""
    try:
        return read_object(path, _MAX_JSON, unique=False)
    except ModelNotFoundError:
        if optional:
            return {}
        raise


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
    if "rope_scaling" in config:  # a family may have a default of its own
        config["rope_scaling"] = _scaling(config["rope_scaling"], path)
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
