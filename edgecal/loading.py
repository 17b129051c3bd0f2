"""From a checkpoint to a Model: which weight takes which form in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

from edgecal_kernels.quant import FORMATS, Array, QuantizedTensor
from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.converted import run_form
from edgecal_weights.quantizer import pack_tensor, plan

from .architecture import check_tensors, expected_shapes
from .config import ModelConfig
from .errors import FileFormatError, OptionError
from .model import Model

WEIGHTS = ("auto", "fp32", *FORMATS)


def load_model(
    checkpoint: Checkpoint,
    config: ModelConfig,
    ops: ModuleType,
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
    if weights not in WEIGHTS:
        raise OptionError(f"weights {weights!r} is not known; choose one of {', '.join(WEIGHTS)}")
    check_tensors(checkpoint, config)
    with run_form(checkpoint, weights, group_size, progress) as form:
        model = _read(form.checkpoint, config, ops, weights, group_size, progress)
        model.watch = form.checkpoint.watch()
        return model, form.note


def _read(
    checkpoint: Checkpoint,
    config: ModelConfig,
    ops: ModuleType,
    weights: str,
    group_size: int,
    progress: Callable[[int, int, str], None] | None,
) -> Model:
    shapes = expected_shapes(config)
    decisions = {} if weights == "fp32" else {d.name: d for d in plan(checkpoint, weights, group_size)}
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    sizes |= {name: decisions[name].spec.nbytes(name) for name in shapes if name in decisions}
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
