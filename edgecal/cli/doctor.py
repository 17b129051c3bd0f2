"""`edgecal doctor`: what adapters do to a model. Exit code 0 when all is well, 1 when something has no effect or does
not fit."""

from __future__ import annotations

import click

from ._model_argument import model_argument
from ._output import echo_json, screen
from ._progress import progress
from .options import ModelOptions, RecipeOptions, calibration_options, hub_options, json_option, open_model


@click.command("doctor")
@model_argument
@calibration_options
@hub_options
@json_option
def command(model: str, chosen: RecipeOptions, loading: ModelOptions, as_json: bool) -> int:
    """Say what adapters do to MODEL: which modules they reach and how strongly, and what has no effect.

    \b
    edgecal doctor demo --adapter demo:summarize --adapter demo:professional
    edgecal doctor base/ --adapter adapters/a --adapter adapters/b --calibration pair.safetensors

    Strength is |dW| / |W| (Frobenius norms) of a module. Exit code 1: something does not fit or does nothing.
    """
    from ..demo import find
    from ..inspection.diagnosis import diagnose

    if not chosen.adapters and chosen.calibration is None:
        raise click.UsageError("say what to look at: --adapter PATH, or --calibration FILE")
    named = chosen.paths()
    calibration = find(chosen.calibration) if chosen.calibration else None
    with (
        open_model(model, loading) as checkpoint,
        progress("measuring") as report_work,
    ):
        report = diagnose(checkpoint, named, calibration, model=model, progress=lambda module: report_work(note=module))
    if as_json:
        echo_json(report.to_dict())
    else:
        from ._doctor_table import show

        show(report, screen())
    return 0 if report.healthy else 1
