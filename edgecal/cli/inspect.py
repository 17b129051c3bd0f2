"""`edgecal inspect`: what a file is, and what it goes with."""

from __future__ import annotations

import click

from ._output import echo_json, screen
from ._progress import progress
from .options import ModelOptions, hub_options, json_option


@click.command("inspect")
@click.argument("path")
@click.option("--against", metavar="MODEL", help="Compare an adapter or a calibration with this model.")
@click.option("--tensors", is_flag=True, help="List every tensor (--json always does).")
@hub_options
@json_option
def command(path: str, against: str | None, tensors: bool, loading: ModelOptions, as_json: bool) -> None:
    """Say what PATH is: a model, GGUF, packed directory, adapter, calibration, reference file or hub id.

    \b
    edgecal inspect model/
    edgecal inspect adapters/summarize --against model/
    edgecal inspect demo:learnable_calibration_pp --against demo

    Only headers are read, no weights; a hub id is downloaded first.
    """
    from ..demo import find
    from ..inspection.report import inspect

    with progress("reading", unit="bytes") as report_download:
        report = inspect(
            find(path),
            find(against) if against is not None else None,
            revision=loading.revision,
            offline=loading.offline,
            progress=report_download,
        )
    if as_json:
        echo_json(report.to_dict())
        return

    from ._inspect_tables import show

    show(report, screen(), with_tensors=tensors)
