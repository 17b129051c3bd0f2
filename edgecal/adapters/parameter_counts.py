"""The papers' parameter counts for any model, from its config.json alone: no weights, no adapters.

    counts = parameter_counts("config.json")                     # or a directory, a GGUF, a hub id, a mapping
    counts.learnable_calibration_pp, counts.share("learnable_calibration_pp")

One LoRA of rank r on all seven components of every layer has sum r (d + k) parameters. What a calibration adds is
shared by the layers: p in R^d per component (Learnable Calibration, Eq. 6), P1 (s, k) and P2 (d, s) per component
(Learnable Calibration++, Eq. 7), P1 (s, d) and P2 (d, s) per distinct shape (projection merge, paper 2's Eq. 2). Both
papers take r = 32 and s = 4. Only sizes count, so that models which edgecal cannot run are counted too, as long as
their layers consist of the same seven linear modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgecal_weights.file_kind import MODEL_CONFIG
from edgecal_weights.hf_config import normalize_config, read_json
from edgecal_weights.hub import download_config
from edgecal_weights.opening import locate, open_checkpoint

from ..architecture import linear_shapes
from ..config import FAMILIES, ModelConfig
from ..errors import OptionError, UnsupportedModelError
from .calibration import calibration_parameters, lora_parameters

RANK, LORA_RANK = 4, 32
_FREE = (("zero_shot", 1), ("linear", 1), ("multi_step", 2))  # method, passes
METHODS = ("learnable_calibration", "learnable_calibration_pp", "projection_merge")
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# model_type of decoders with the seven components of Llama in every layer, beside those that edgecal runs. The second
# kind has a head_dim that is not hidden_size / heads, so that it must be said.
_ALIKE = ("granite", "olmo2", "smollm3")
_ALIKE_WITH_HEAD_DIM = ("gemma", "gemma2", "ministral")
_LARGEST_RANK = 16_384


class MethodCount(NamedTuple):
    """A line of paper 1's Table 3. `parameters` beside the adapters of the tasks, `share` of one LoRA's."""

    method: str
    n_passes: int
    parameters: int
    share: float


@dataclass(frozen=True)
class ParameterCounts:
    """`lora` of one LoRA of `lora_rank` on all components, the calibrations' of rank `rank` (s of the papers)."""

    model_type: str
    rank: int
    lora_rank: int
    lora: int
    learnable_calibration: int
    learnable_calibration_pp: int
    projection_merge: int

    def share(self, method: str) -> float:
        """The calibration's parameters over one LoRA's."""
        return float(getattr(self, method)) / self.lora

    def table(self) -> list[MethodCount]:
        """Paper 1's Table 3: passes and additional parameters by method. A joint expert is one more LoRA."""
        free = [MethodCount(name, passes, 0, 0.0) for name, passes in _FREE]
        trained = [MethodCount(method, 1, getattr(self, method), self.share(method)) for method in METHODS]
        return [*free, MethodCount("joint_expert", 1, self.lora, 1.0), *trained]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "shares": {method: self.share(method) for method in METHODS}}


def parameter_counts(
    config: ModelConfig | Mapping[str, Any] | str | Path,
    rank: int = RANK,
    lora_rank: int = LORA_RANK,
    *,
    revision: str | None = None,
    offline: bool | None = None,
) -> ParameterCounts:
    """Parameters of a LoRA and of the papers' calibrations for a model.

    Args:
        config: what config.json holds, or where it is: the file, a model's directory (weights need not be there), a
            GGUF, a packed directory, or a hub id, of which config.json alone is downloaded.
        rank: s, of Learnable Calibration++ and of projection merge.
        lora_rank: r.
        revision, offline: of a hub id.

    Raises OptionError for a rank out of range, ModelNotFoundError, FileFormatError or HubError for what cannot be
    read, UnsupportedModelError for a model whose layers are others.
    """
    for name, value in (("rank", rank), ("lora_rank", lora_rank)):
        if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
            raise OptionError(f"{name} must be a whole number from 1 to {_LARGEST_RANK}, found {value!r}")
    if isinstance(config, (str, Path)):
        config = read_config(config, revision=revision, offline=offline)
    sizes = config if isinstance(config, ModelConfig) else _sizes(config)
    model_type = sizes.family if isinstance(config, ModelConfig) else str(config["model_type"])
    shapes = linear_shapes(sizes)
    calibrations = {method: calibration_parameters(method, shapes, rank) for method in METHODS}
    return ParameterCounts(model_type, rank, lora_rank, lora_parameters(shapes, lora_rank), **calibrations)


def read_config(source: str | Path, *, revision: str | None = None, offline: bool | None = None) -> Mapping[str, Any]:
    """config.json's content for a model that is here or on the hub; its weights are neither read nor needed.

    Raises ModelNotFoundError, FileFormatError or HubError.
    """
    fetch = partial(download_config, revision=revision, offline=offline)
    path = locate(source, fetch, certain=revision is not None)
    if (path / MODEL_CONFIG).is_file():
        path = path / MODEL_CONFIG
    if path.suffix == ".json":
        return normalize_config(read_json(path), path)
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config


def _sizes(config: Mapping[str, Any]) -> ModelConfig:
    """A configuration that has the sizes of this one, and none of the options that only matter when it runs."""
    kind = config.get("model_type")
    if kind not in (*FAMILIES, *_ALIKE, *_ALIKE_WITH_HEAD_DIM):
        known = ", ".join(sorted((*FAMILIES, *_ALIKE, *_ALIKE_WITH_HEAD_DIM)))
        raise UnsupportedModelError(
            f"config.json: model_type {str(kind)[:80]!r} is not known to have Llama's seven linear modules in every "
            f"layer, so that nothing can be counted; known: {known}"
        )
    given = {key: value for key, value in config.items() if value is not None}
    if kind in FAMILIES:
        given = {**FAMILIES[kind].defaults, **given}
        needed = set(_SIZES) - {"num_key_value_heads"}  # as many as heads, unless it says otherwise
    else:
        needed = {*_SIZES, *(["head_dim"] if kind in _ALIKE_WITH_HEAD_DIM else [])}
    missing = [key for key in (*_SIZES, "head_dim") if key in needed and key not in given]
    if missing:
        raise UnsupportedModelError(f"config.json: {missing[0]} is not there, and {kind} models differ in it")
    sizes = {key: given[key] for key in (*_SIZES, "head_dim") if key in given}
    return ModelConfig.from_dict({"model_type": "llama", "vocab_size": 1, **sizes})
