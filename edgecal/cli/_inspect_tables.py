"""Inspection reports as text: facts in two columns, then tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ._tables import plain, show_table

if TYPE_CHECKING:
    from edgecal_weights.quantize_report import FormatTotal

    from ..adapters.parameter_counts import ParameterCounts
    from ..inspection.report import (
        AdapterReport,
        CalibrationReport,
        ModelReport,
        ReferenceReport,
        Report,
        TensorsReport,
    )

_LISTED = 3  # of a list in a comparison


def show(report: Report, console: Console, *, with_tensors: bool) -> None:
    """Print everything but the tensors, and with `with_tensors` these too. The console must not interpret markup."""
    {
        "model": _model,
        "adapter": _adapter,
        "calibration": _calibration,
        "reference": _reference,
        "tensors": _tensors,
    }[report.what](report, console)  # type: ignore[operator]
    if with_tensors:
        console.print()
        rows = ((t.name, " x ".join(map(str, t.shape)), t.type) for t in report.tensors)
        show_table(console, ("tensor", "shape", "type"), rows, left=("tensor", "shape", "type"))


def size(nbytes: int) -> str:
    """ "86.1 MiB"."""
    value, units = float(nbytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{nbytes:,} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def _facts(console: Console, facts: Iterable[tuple[str, object]]) -> None:
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(style="bold", max_width=22)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, plain(value))
    console.print(grid)


def _formats(console: Console, formats: dict[str, FormatTotal]) -> None:
    numbers = ("tensors", "weights", "size")
    rows = ((name, t.tensors, f"{t.weights:,}", size(t.bytes)) for name, t in formats.items())
    show_table(console, ("format", *numbers), rows)


# --------------------------------------------------------------------------------------------------- the kinds


def _model(report: ModelReport, console: Console) -> None:
    kinds = {"huggingface": "Hugging Face model", "gguf": "GGUF model", "packed": "packed model"}
    kinds["config"] = "configuration"
    entries = report.tokenizer_entries
    facts: list[tuple[str, object]] = [
        (kinds[report.kind], report.path),
        ("architecture", report.architecture),
        *_size_facts(report.sizes),
        ("parameters", f"{report.parameters:,}" if report.parameters else "not known"),
    ]
    if report.kind != "config":
        facts += [
            ("on disk", f"{size(report.nbytes)}, {report.bits_per_weight:.2f} bits per weight"),
            ("tokenizer", f"{entries:,} entries" if entries is not None else "not read"),
            ("chat template", "yes" if report.chat_template else "no"),
        ]
    _facts(console, facts)
    if report.formats:
        console.print()
        _formats(console, report.formats)
    console.print()
    if report.counts is not None:
        _facts(console, _count_facts(report.counts))
        console.print()
    if report.refusal is not None:
        _facts(console, [("edgecal cannot run it", report.refusal)])
    if report.load is None:
        return
    load = report.load
    console.print("edgecal can run it. When it is loaded:")
    numbers = ("tensors", "in memory")
    rows = ((c.stored, c.becomes, c.fidelity, c.tensors, size(c.bytes)) for c in load.conversions)
    show_table(console, ("stored", "becomes", "fidelity", *numbers), rows, left=("stored", "becomes", "fidelity"))
    console.print()
    _facts(
        console,
        [
            ("KV cache, fp16", f"{size(load.kv_bytes_per_token)} per token"),
            (
                "memory",
                f"about {size(load.memory_bytes)} at {load.context:,} tokens: weights {size(load.weight_bytes)}, "
                f"KV cache {size(load.kv_bytes)}, the rest interpreter, libraries and compiled code",
            ),
        ],
    )


def _count_facts(counts: ParameterCounts) -> list[tuple[str, object]]:
    """What a LoRA and the papers' calibrations would have on this model."""

    def extra(title: str, method: str) -> tuple[str, str]:
        return title, f"{getattr(counts, method):,} ({100 * counts.share(method):.2f} % of that LoRA)"

    return [
        (f"LoRA of rank {counts.lora_rank}", f"{counts.lora:,} parameters on all seven components"),
        extra("Learnable Calibration", "learnable_calibration"),
        extra(f"... ++ of rank {counts.rank}", "learnable_calibration_pp"),
        extra(f"projection merge, {counts.rank}", "projection_merge"),
    ]


def _size_facts(sizes: dict[str, Any]) -> list[tuple[str, object]]:
    """One line per subject, of what is known."""

    def some(*parts: tuple[str, str]) -> str:
        return ", ".join(text.format(sizes[key]) for key, text in parts if sizes.get(key) is not None)

    rope = some(("rope_theta", "theta {:,.10g}"), ("rotary_dim", "{} dimensions"))
    scaling = sizes.get("rope_scaling")
    if scaling:
        rope += f", {scaling['rope_type']} scaling"
    tied = sizes.get("tie_word_embeddings")
    head = "" if tied is None else ", head tied" if tied else ", own head"
    lines = [
        ("layers", some(("n_layers", "{}"), ("hidden_size", "hidden {}"), ("intermediate_size", "feed-forward {}"))),
        ("attention", some(("n_heads", "{} heads"), ("n_kv_heads", "{} KV heads"), ("head_dim", "head_dim {}"))),
        ("window", some(("sliding_window", "{:,} tokens"))),
        ("rope", rope),
        ("norm", some(("norm", "{}")) + (", bias on q, k, v" if sizes.get("qkv_bias") else "")),
        ("options", ", ".join(sizes.get("options") or ())),
        ("vocabulary", some(("vocab_size", "{:,}")) + head),
        ("context", some(("max_position_embeddings", "{:,} tokens"))),
    ]
    return [(name, text) for name, text in lines if text]


def _adapter(report: AdapterReport, console: Console) -> None:
    writers = {"PEFT": "PEFT", "GGUF": "llama.cpp (GGUF)", "MLX": "mlx-lm"}
    _facts(
        console,
        [
            ("adapter", report.path),
            ("kind", f"LoRA, as {writers[report.format]} writes it"),
            ("base model", report.base_model_name or "not named"),
            ("rank", ", ".join(map(str, report.ranks))),
            ("scaling", ", ".join(f"{s:g}" for s in report.scalings)),
            ("modules", f"{report.n_modules} in {report.n_layers} layers"),
            ("parameters", f"{report.parameters:,}"),
            ("on disk", f"{size(report.nbytes)}, {', '.join(report.dtypes)}"),
            ("sha256", report.sha256),
        ],
    )
    console.print()
    numbers = ("modules", "rank", "scaling")
    rows = ((g.component, g.layers, f"{g.d} x {g.k}", g.n_modules, g.rank, f"{g.scaling:g}") for g in report.groups)
    show_table(console, ("component", "layers", "shape", *numbers), rows, left=("component", "layers", "shape"))
    match = report.match
    if match is None:
        return
    console.print()
    facts: list[tuple[str, object]] = [
        ("against", match.model),
        ("fits", "yes" if match.fits else "no"),
        ("modules that match", f"{match.matched} (the model has {match.of_the_model})"),
    ]
    if match.missing:
        facts.append(("not in the model", f"{len(match.missing)}: {_some(match.missing)}"))
    if match.misshapen:
        shown = [f"{name} is {theirs} there, {own} here" for name, theirs, own in match.misshapen]
        facts.append(("other shapes", f"{len(shown)}: {_some(shown)}"))
    if match.absent:
        facts.append(("asked for, not in file", f"{len(match.absent)}: {_some(match.absent)}"))
    if match.refusal is not None:
        facts.append(("edgecal refuses it", match.refusal))
    _facts(console, facts)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return "; ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _calibration(report: CalibrationReport, console: Console) -> None:
    base = report.base_model
    base_sizes = f"{base.num_hidden_layers} layers, hidden {base.hidden_size}, vocabulary {base.vocab_size:,}"
    facts: list[tuple[str, object]] = [("calibration", report.path), ("method", report.method)]
    if report.rank is not None:
        facts.append(("rank", report.rank))
    if report.bias_mode is not None:
        facts.append(("bias mode", report.bias_mode))
    facts += [
        ("scaling", f"{report.calibration_scaling:g}"),
        ("base model", base.name),
        ("", f"{base.model_type}, {base_sizes}"),
        ("tensors for", ", ".join(report.groups)),
        ("parameters", f"{report.parameters:,}"),
        ("on disk", size(report.nbytes)),
    ]
    for i, (reference, weight) in enumerate(zip(report.adapters, report.weights, strict=True), 1):
        facts += [(f"adapter {i}", f"{reference.name}, weight {weight:g}"), ("", reference.sha256)]
    for references in report.shared_with:
        facts.append(("shared with", ", ".join(f"{r.name} ({r.sha256[:12]}...)" for r in references)))
    _facts(console, facts)
    if report.match is None:
        return
    console.print()
    _facts(
        console,
        [
            ("against", report.match.model),
            ("fits", "yes" if report.match.fits else "no"),
            *(
                (d.field, f"{d.calibration} in the calibration, {d.model} in the model")
                for d in report.match.differences
            ),
            *([("tensors", _some(report.match.problems))] if report.match.problems else []),
        ],
    )


def _reference(report: ReferenceReport, console: Console) -> None:
    _facts(
        console,
        [
            ("reference file", report.path),
            ("method", report.method),
            ("adapters", ", ".join(report.adapters) or "none"),
            ("calibration", report.calibration or "none"),
            ("base model", report.base_model),
            ("computed in", report.dtype),
            ("cases", ", ".join(report.cases) or "none"),
            ("dW of", ", ".join(report.deltas) or "none"),
            ("on disk", size(report.nbytes)),
        ],
    )


def _tensors(report: TensorsReport, console: Console) -> None:
    _facts(
        console,
        [
            ("safetensors file", report.path),
            ("note", report.hint),
            *((f"metadata {key[:20]}", value[:200]) for key, value in list(report.metadata.items())[:20]),
        ],
    )
    console.print()
    _formats(console, report.formats)
