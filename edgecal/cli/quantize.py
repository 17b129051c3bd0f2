"""`edgecal quantize`: any model in, a packed directory out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecal_kernels.quant import SPECS
from edgecal_weights.quantizer import EMBEDDING_FORMATS, QUANTIZE_FORMATS, quantize_checkpoint

from ._completion import complete_model
from ._output import echo, echo_json, screen
from ._progress import progress
from ._tables import show_table
from .options import ModelOptions, hub_options, json_option, open_model

if TYPE_CHECKING:
    from edgecal_weights.quantize_report import QuantizeReport


@click.command("quantize")
@click.argument("source", shell_complete=complete_model)
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--format",
    "weight_format",
    type=click.Choice(QUANTIZE_FORMATS),
    default="auto",
    show_default=True,
    help="Form of the linear layers. keep: a GGUF's own, not rounded again. auto: keep, or int4 of floats. "
    "Bits per weight: " + ", ".join(f"{name} {spec.bits_per_weight():g}" for name, spec in SPECS.items()) + ".",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="32",
    show_default=True,
    help="Columns that share a scale.",
)
@click.option(
    "--embedding",
    type=click.Choice(EMBEDDING_FORMATS),
    default="auto",
    show_default=True,
    help="Form of the embedding and the head. auto: as stored where that is kept, int8 beside int8, else int6.",
)
@hub_options
@click.option("--force", is_flag=True, help="Replace a packed model at OUT.")
@click.option("--errors", is_flag=True, help="Measure and show what rounding did to each tensor.")
@json_option
def command(
    source: str,
    out: str,
    weight_format: str,
    group_size: str,
    embedding: str,
    loading: ModelOptions,
    force: bool,
    errors: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE to edgecal's packed form in the directory OUT.

    SOURCE is a Hugging Face directory, a .gguf file, a packed directory, a hub id (org/name,
    org/name:QUANT), or demo. The conversion streams: it needs little memory, whatever the size of the model.
    """
    with open_model(source, loading) as checkpoint, progress("quantizing", unit="bytes") as report_work:
        report = quantize_checkpoint(
            checkpoint,
            out,
            format=weight_format,
            group_size=int(group_size),
            embedding_format=embedding,
            progress=report_work,
            overwrite=force,
            measure_errors=errors,
        )
    if as_json:
        values = report.to_dict()
        values["total_s"] = values.pop("seconds")  # the name that every command has for it
        echo_json(values)
    else:
        _print(report)


def _print(report: QuantizeReport) -> None:
    rows = [
        _row(name, total.tensors, total.weights, total.bytes, 8 * total.bytes / total.weights)
        for name, total in report.formats.items()
    ]
    n_tensors = sum(total.tensors for total in report.formats.values())
    rows.append(_row("all", n_tensors, report.n_weights, report.packed_bytes, report.bits_per_weight))
    show_table(screen(), ("format", "tensors", "weights", "MB", "bits/weight"), rows)
    if report.errors:
        ranked = sorted(report.errors.items(), key=lambda item: -item[1].relative)
        worst = [(name, f"{error.relative:.2e}", f"{error.largest:.2e}") for name, error in ranked[:10]]
        headers = ("tensor", "relative RMS error", "largest error")
        show_table(screen(), headers, worst, title="the ten tensors that lost most")
    fidelity = ", ".join(f"{count} {kind}" for kind, count in sorted(report.fidelity.items()))
    echo(f"{report.source}: {report.source_bytes / 1e6:.1f} MB; tensors: {fidelity}")
    echo(f"written to {report.path} in {report.seconds:.1f} s")


def _row(name: str, n_tensors: int, n_weights: int, n_bytes: int, bits: float) -> tuple[str, ...]:
    return name, f"{n_tensors}", f"{n_weights:,}", f"{n_bytes / 1e6:.1f}", f"{bits:.2f}"
