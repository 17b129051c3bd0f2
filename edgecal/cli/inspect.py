"""`edgecal inspect`: what a file is, and what it goes with."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import click

from ._completion import adapters, calibrations, complete_model, complete_paths, models
from ._names import model_named
from ._output import echo_json, screen
from ._progress import progress
from .options import ModelOptions, hub_options, json_option

_CONFIGS = ("config.json", "adapter_config.json", "edgecal-packed.safetensors")
_ALONE = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".pkl")  # files that are looked at themselves
_SHARD = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors")


@click.command("inspect")
@click.argument("path", shell_complete=complete_paths(lambda: [*models(), *adapters(), *calibrations()]))
@click.option(
    "--against",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Compare an adapter or a calibration with this model.",
)
@click.option("--tensors", is_flag=True, help="List every tensor (--json always does).")
@click.option("--rank", type=int, default=4, show_default=True, help="Of the calibrations counted for a model.")
@click.option("--lora-rank", type=int, default=32, show_default=True, help="Of the LoRA counted for a model.")
@hub_options
@json_option
def command(
    path: str, against: str | None, tensors: bool, rank: int, lora_rank: int, loading: ModelOptions, as_json: bool
) -> int:
    """Say what PATH is: a model, GGUF, packed directory, adapter, calibration, reference file or hub id.

    \b
    edgecal inspect model/
    edgecal inspect config.json --rank 8
    edgecal inspect adapters/summarize --against model/
    edgecal inspect demo:learnable_calibration_pp --against demo

    Only headers are read, no weights; a hub id is downloaded first. A file of a model's or an adapter's directory
    stands for the whole. Exit code 1: --against, and it does not fit.
    """
    from ..inspection.report import AdapterReport, CalibrationReport, inspect

    with ExitStack() as names, progress("reading", unit="bytes") as report_download:
        model = names.enter_context(model_named(against)) if against is not None else None
        report = inspect(
            _whole(names.enter_context(model_named(path))),
            model,
            rank=rank,
            lora_rank=lora_rank,
            revision=loading.revision,
            offline=loading.offline,
            progress=report_download,
        )
    if as_json:
        values = report.to_dict()
        for part in (values, *values["tensors"]):
            part["bytes"] = part.pop("nbytes")  # the name that every command has for it
        echo_json(values)
    else:
        from ._inspect_tables import show

        show(report, screen(), with_tensors=tensors)
    match = report.match if isinstance(report, (AdapterReport, CalibrationReport)) else None
    return 1 if match is not None and not match.fits else 0


def _whole(name: str) -> str:
    """The directory, where a file of a model or an adapter is named that says nothing alone: its config.json, a shard.

    PATH may be a hub id; anything else stays as it is.
    """
    path = Path(name).expanduser()
    try:
        if not path.is_file() or not any((path.parent / config).is_file() for config in _CONFIGS):
            return name
    except OSError:
        return name
    is_part = path.suffix.lower() not in _ALONE or _SHARD.fullmatch(path.name)
    return str(path.parent) if is_part else name
