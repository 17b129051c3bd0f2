"""`edgecal doctor`: what adapters do to a model. Exit code 0 when all is well, 1 when something has no effect or does
not fit."""

from __future__ import annotations

import json

import click

from .options import adapter_paths, json_option


@click.command("doctor")
@click.argument("model")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="[NAME=]PATH", help="A PEFT directory or demo:NAME."
)
@click.option("--calibration", metavar="FILE", help="A calibration for these adapters in this order, or demo:NAME.")
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--offline", is_flag=True, default=None, help="Use the hub's cache only.")
@json_option
def command(
    model: str,
    adapters: tuple[str, ...],
    calibration: str | None,
    revision: str | None,
    offline: bool | None,
    as_json: bool,
) -> int:
    """Say what adapters do to MODEL: which modules they reach and how strongly, and what has no effect.

    \b
    edgecal doctor demo --adapter demo:summarize --adapter demo:professional
    edgecal doctor base/ --adapter adapters/a --adapter adapters/b --calibration pair.safetensors

    Strength is |dW| / |W| (Frobenius norms) of a module. Exit code 1: something does not fit or does nothing.
    """
    from rich.console import Console

    from edgecal_weights.checkpoint import open_checkpoint

    from ..demo import find
    from ..inspection.diagnosis import diagnose

    if not adapters and calibration is None:
        raise click.UsageError("say what to look at: --adapter PATH, or --calibration FILE")
    named = adapter_paths(adapters)
    status = Console(stderr=True, quiet=as_json).status("reading the model")
    with open_checkpoint(find(model), revision=revision, offline=offline) as checkpoint, status:
        report = diagnose(
            checkpoint,
            named,
            find(calibration) if calibration else None,
            model=model,
            progress=lambda module: status.update(f"measuring {module}"),
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        from ._doctor_table import show

        show(report, Console(markup=False, emoji=False, highlight=False))
    return 0 if report.healthy else 1
