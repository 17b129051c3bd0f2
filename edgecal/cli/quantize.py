"""`edgecal quantize`: any model in, a packed directory out."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import click

from edgecal_kernels.quant import SPECS
from edgecal_weights.quantizer import EMBEDDING_FORMATS, QUANTIZE_FORMATS, quantize_checkpoint

from ._completion import complete_model
from ._format_choice import FormatChoice
from ._output import echo_json, note, screen, tell
from ._progress import progress
from ._tables import show_table
from .options import ModelOptions, hub_options, json_option, open_model

if TYPE_CHECKING:
    from edgecal_weights.checkpoint import Checkpoint
    from edgecal_weights.quantize_report import OutputError, QuantizeReport


@click.command("quantize")
@click.argument("source", shell_complete=complete_model)
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--format",
    "weight_format",
    type=FormatChoice(QUANTIZE_FORMATS),
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
    help="Columns that share a scale; 32 in the formats _k.",
)
@click.option(
    "--embedding",
    type=FormatChoice(EMBEDDING_FORMATS),
    default="auto",
    show_default=True,
    help="Form of the embedding and the head. auto: as stored where that is kept, int8 beside int8, else int6.",
)
@hub_options
@click.option(
    "--calibrate",
    metavar="[TEXT]",
    is_flag=False,
    flag_value="",
    help="Round for the inputs that a text makes (GPTQ): minutes, and much closer to the source. TEXT is plain text "
    "or JSON lines, - standard input; edgecal's own text unless given. Last, or as --calibrate=TEXT.",
)
@click.option("--field", metavar="NAME", help="Of TEXT's JSON lines; text, dialogue, prompt or content unless given.")
@click.option(
    "--calibrate-tokens", type=click.IntRange(min=512), default=36_864, show_default=True, help="Taken from TEXT."
)
@click.option("--importance", is_flag=True, help="With --calibrate: search scales only; columns make nothing good.")
@click.option("--imatrix", metavar="FILE", help="Search scales under llama.cpp's importance matrix (GGUF), no text.")
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
    calibrate: str | None,
    field: str | None,
    calibrate_tokens: int,
    importance: bool,
    imatrix: str | None,
    force: bool,
    errors: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE to edgecal's packed form in the directory OUT.

    SOURCE is a Hugging Face directory, a .gguf file, a packed directory, a hub id (org/name,
    org/name:QUANT), or demo. The conversion streams: it needs little memory, whatever the size of the model.

    \b
    edgecal quantize Qwen/Qwen2.5-0.5B-Instruct qwen-int4
    edgecal quantize Qwen/Qwen2.5-0.5B-Instruct qwen-int4 --calibrate

    A calibration that was interrupted goes on behind the last finished layer when the same command is given again.
    """
    if imatrix is not None and (calibrate is not None or importance):
        raise click.UsageError("--imatrix takes the place of a text: give it without --calibrate and --importance")
    if importance and calibrate is None:
        raise click.UsageError("--importance says how to calibrate: give it with --calibrate")
    options: dict[str, Any] = {
        "format": weight_format,
        "group_size": int(group_size),
        "embedding_format": embedding,
        "overwrite": force,
        "measure_errors": errors,
    }
    with open_model(source, loading) as checkpoint:
        if calibrate is None and imatrix is None:
            with progress("quantizing", unit="bytes") as report_work:
                report = quantize_checkpoint(checkpoint, out, progress=report_work, **options)
        else:
            options |= {"tokens": calibrate_tokens, "feedback": not importance}
            report = _calibrated(checkpoint, out, calibrate or None, field, imatrix, options)
    if as_json:
        values = report.to_dict()
        values["total_s"] = values.pop("seconds")  # the name that every command has for it
        echo_json(values)
    else:
        _print(report)


def _calibrated(
    checkpoint: Checkpoint, out: str, text: str | None, field: str | None, imatrix: str | None, options: dict[str, Any]
) -> QuantizeReport:
    from ..config import ModelConfig
    from ..quantization import quantize_calibrated, rounded_before
    from ..text.corpus import read_documents

    stored = rounded_before(checkpoint)
    if stored is not None:
        note(f"the weights of {checkpoint.path} are rounded already ({stored}); their float32 values are rounded again")
    documents = read_documents(text, field) if text is not None else None
    importances = None
    if imatrix is not None:
        from edgecal_weights.imatrix_file import read_imatrix

        importances = read_imatrix(imatrix, ModelConfig.of(checkpoint).spec)
    with progress("calibrating") as report_work:
        return quantize_calibrated(
            checkpoint, out, documents=documents, importances=importances, progress=report_work, **options
        )


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
    if report.output_errors:
        _print_output_errors(report)
    fidelity = ", ".join(f"{count} {kind}" for kind, count in sorted(report.fidelity.items()))
    tell(f"{report.source}: {report.source_bytes / 1e6:.1f} MB; tensors: {fidelity}")
    tell(f"written to {report.path} in {report.seconds:.1f} s")


def _print_output_errors(report: QuantizeReport) -> None:
    """By kind of module: the mean over layers of the squared errors of outputs."""
    kinds: dict[str, list[OutputError]] = {}
    for name, error in report.output_errors.items():
        kinds.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(error)
    rows = []
    for kind, errors in kinds.items():
        plain, calibrated = (sum(values) / len(errors) for values in zip(*map(astuple, errors), strict=True))
        rows.append((kind, f"{plain:.2e}", f"{calibrated:.2e}", f"{calibrated / plain:.2f}" if plain else "-"))
    headers = ("squared error of outputs", "rounded", "calibrated", "ratio")
    show_table(screen(), headers, rows, title="on the calibrating text, means over layers")


def _row(name: str, n_tensors: int, n_weights: int, n_bytes: int, bits: float) -> tuple[str, ...]:
    return name, f"{n_tensors}", f"{n_weights:,}", f"{n_bytes / 1e6:.1f}", f"{bits:.2f}"
