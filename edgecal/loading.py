"""From a checkpoint to a Model: which weight takes which form in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from edgecal_kernels.dispatch import Backend
from edgecal_kernels.quant import FORMATS, Array, QuantizedTensor
from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.converted import run_form
from edgecal_weights.quantizer import Decision, pack_tensor, plan

from .architecture import check_tensors, expected_shapes
from .config import ModelConfig
from .errors import FileFormatError, OptionError
from .model import Model

WEIGHTS = ("auto", "fp32", *FORMATS)


def load_model(
    checkpoint: Checkpoint,
    config: ModelConfig,
    ops: Backend,
    *,
    weights: str = "auto",
    group_size: int = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Model, str]:
    """The model with every weight in the asked form (see `Engine.load` for `weights`), and what a person should know.

    Weights that have to be converted are kept so for the next time (see edgecal_weights.converted), which is what there
    is to know; else the text is empty. `progress` counts bytes of what they become. Raises OptionError for an unknown
    form, FileFormatError for missing, misshapen or non-finite tensors.
    """
    sizes = weight_sizes(checkpoint, config, weights, group_size)
    with run_form(checkpoint, weights, group_size, progress) as form:
        decisions = _decisions(form.checkpoint, weights, group_size)
        model = _read(form.checkpoint, config, ops, decisions, sizes, progress)
        model.watch = form.checkpoint.watch()
        return model, form.note


def weight_sizes(checkpoint: Checkpoint, config: ModelConfig, weights: str, group_size: int) -> dict[str, int]:
    """Bytes of each weight in memory, by name; nothing is read. Errors as for `load_model`."""
    if weights not in WEIGHTS:
        raise OptionError(f"weights {weights!r} is not known; choose one of {', '.join(WEIGHTS)}")
    check_tensors(checkpoint, config)
    decisions = _decisions(checkpoint, weights, group_size)
    sizes = {name: 4 * math.prod(shape) for name, shape in expected_shapes(config).items()}
    return sizes | {name: decisions[name].spec.nbytes(name) for name in sizes if name in decisions}


def _decisions(checkpoint: Checkpoint, weights: str, group_size: int) -> dict[str, Decision]:
    """What becomes of each tensor that is rounded or taken over as it is."""
    return {} if weights == "fp32" else {d.name: d for d in plan(checkpoint, weights, group_size)}


def _read(
    checkpoint: Checkpoint,
    config: ModelConfig,
    ops: Backend,
    decisions: Mapping[str, Decision],
    sizes: Mapping[str, int],
    progress: Callable[[int, int, str], None] | None,
) -> Model:
    total, done = sum(sizes.values()), 0

    def load(name: str) -> QuantizedTensor | Array:
        nonlocal done
        if progress is not None:
            progress(done, total, name)
            done += sizes[name]
        if name in decisions:
            return pack_tensor(checkpoint, decisions[name])
        value = checkpoint.read(name)
        if not np.isfinite(value).all():
            place = np.argwhere(~np.isfinite(value))[0].tolist()
            raise FileFormatError(f"{checkpoint.path}: {name} is not finite at {place}; fetch the checkpoint again")
        return value

    model = Model(config, load, ops)
    if progress is not None:
        progress(total, total, "")
    return model
