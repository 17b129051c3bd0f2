"""A report as plain rows: what the terminal, Markdown and CSV show.

Markdown and CSV have every figure in its base unit under a stable name; the terminal has the same in units that read
well. Empty cells are figures that were not measured.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ..text.counted import counted
from .results import ProfileReport
from .split import ALL_PARTS, LABELS
from .statistics import median

MIB = 2**20
# so that a spreadsheet that opens the file does not run a name as a formula
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Row = dict[str, Any]


def rows(report: ProfileReport) -> list[Row]:
    """One row per method and measurement, every figure under its name."""
    found = []
    for method in report.methods:
        shared: Row = {
            "method": method.name,
            "n_passes": method.n_passes,
            "rank": method.rank,
            "extra_parameters": method.extra_parameters,
            "extra_bytes": method.extra_bytes,
            "adapter_bytes": method.adapter_bytes,
            "load_s": report.load_s,
            "compile_s": median(method.compile_s) if method.compile_s else None,
            "idle_bytes": report.idle_bytes,
        }
        if method.memory is not None:
            m = method.memory
            shared |= {"peak_bytes": m.peak, "peak_weights_bytes": m.weights, "peak_adapters_bytes": m.adapters}
            shared |= {"peak_kv_cache_bytes": m.kv_cache, "peak_rest_bytes": m.rest, "peak_context": m.context}
        for prompt in method.prompts:
            if prompt.read_s:
                row = shared | {"measured": "read", "tokens": prompt.prompt, "depth": prompt.depth}
                row |= {"threads": prompt.threads, "repeats": len(prompt.read_s), "tokens_per_s": prompt.rate}
                row |= {"first_token_s": median(prompt.first_token_s)}
                found.append(row | _parts(prompt.split.parts))
        for decode in method.decodes:
            latency, point = decode.latency, method.point(report.model, decode, report.reads)
            if latency is None or point is None:
                continue
            row = shared | {"measured": "write", "tokens": decode.new, "depth": decode.depth}
            row |= {"threads": decode.threads, "repeats": len(decode.runs), "tokens_per_s": decode.rate}
            row |= {f"{name}_s": getattr(latency, name) for name in ("p50", "p90", "p95", "p99", "max", "jitter")}
            row |= {"weight_bytes_per_token": point.weight_bytes, "weight_bytes_per_s": point.weight_rate}
            row |= {"plain_read_bytes_per_s": point.bandwidth, "share_of_bandwidth": point.share}
            row |= {"bytes_per_s": point.rate, "operations_per_byte": point.intensity, "clock_cost": decode.clock_cost}
            found.append(row | _parts(decode.split.parts))
    return found


def _parts(parts: Mapping[str, float]) -> Row:
    return {f"part_{name}_s": parts.get(name, 0.0) for name in ALL_PARTS} if parts else {}


def columns(table: Sequence[Row]) -> list[str]:
    """Every name that occurs, in the order of appearance."""
    return list(dict.fromkeys(name for row in table for name in row))


def to_csv(table: Sequence[Row]) -> str:
    """With a header; a text that a spreadsheet would take for a formula gets an apostrophe in front."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(table), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in table)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else round(value, 9) if isinstance(value, float) else value


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A pipe table; the first column is text, the others are numbers."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([line(header), rule, *(line(cells) for cells in body)])


def escape_markdown(text: str) -> str:
    """For one cell: no pipe, no line break, no HTML, no emphasis."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "|", "*", "_", "`", "["):
        flat = flat.replace(mark, f"\\{mark}")
    return flat


# ---------------------------------------------------------------------------------- as people read them


def speed_table(report: ProfileReport) -> tuple[list[str], list[list[str]]]:
    """Decoding: speed, latency, bandwidth."""
    header = ["method", "case", "tok/s", "p50 ms", "p90", "p95", "p99", "max", "jitter", "GB/s", "of read"]
    body = []
    for method in report.methods:
        for case in method.decodes:
            latency, point = case.latency, method.point(report.model, case, report.reads)
            if latency is None or point is None:
                continue
            times = (latency.p50, latency.p90, latency.p95, latency.p99, latency.max, latency.jitter)
            share = "" if point.share is None else f"{100 * point.share:.0f} %"
            body.append(
                [method.name, case_name(report, case.label, case.threads), f"{case.rate:.1f}"]
                + [milliseconds(t) for t in times]
                + [f"{point.weight_rate / 1e9:.1f}", share]
            )
    return header, body


def prompt_table(report: ProfileReport) -> tuple[list[str], list[list[str]]]:
    """Reading prompts, load and compile time."""
    header = ["method", "case", "first token s", "tok/s", "passes", "rank", "compile ms"]
    body = []
    for method in report.methods:
        compiled = f"{1e3 * median(method.compile_s):.1f}" if method.compile_s and method.rank else ""
        for case in method.prompts:
            if case.read_s:
                first = f"{median(case.first_token_s):.3f}"
                named = case_name(report, case.label, case.threads)
                body.append([method.name, named, first, f"{case.rate:.0f}", str(method.n_passes), str(method.rank)])
                body[-1].append(compiled)
    return header, body


def memory_table(report: ProfileReport) -> tuple[list[str], list[list[str]]]:
    """Peak and its parts, MiB."""
    header = ["method", "peak MiB", "weights", "adapters", "KV cache", "rest"]
    body = []
    for method in report.methods:
        m = method.memory
        if m is not None:
            sizes = (m.peak, m.weights, m.adapters, m.kv_cache, m.rest)
            body.append([method.name, *(f"{size / MIB:.1f}" for size in sizes)])
    idle, weights = report.idle_bytes, report.idle_weights
    body.append(["idle, loaded", *(f"{x / MIB:.1f}" for x in (idle, weights, 0, 0, idle - weights))])
    return header, body


def split_table(report: ProfileReport) -> tuple[list[str], list[list[str]]]:
    """Milliseconds of a token by part (rows) and method (columns), of every method's first decoding."""
    chosen = [(m.name, m.decodes[0].split) for m in report.methods if m.decodes and m.decodes[0].split.steps]
    header = ["ms per token", *(name for name, _ in chosen)]
    names = [part for part in ALL_PARTS if any(split.parts.get(part) for _, split in chosen)]
    body = [[LABELS[part], *(f"{1e3 * split.parts.get(part, 0.0):.3f}" for _, split in chosen)] for part in names]
    body.append(["sum of parts", *(f"{1e3 * sum(split.parts.values()):.3f}" for _, split in chosen)])
    body.append(["whole", *(f"{1e3 * split.whole_s:.3f}" for _, split in chosen)])
    return header, body if chosen else []


def depth_table(report: ProfileReport) -> tuple[list[str], list[list[str]]]:
    """Median latency in ms by depth; empty when there is one depth only."""
    depths = sorted({case.depth for m in report.methods for case in m.decodes})
    if len(depths) < 2:
        return [], []
    body = []
    for method in report.methods:
        cells = []
        for depth in depths:
            found = [case.latency for case in method.decodes if case.depth == depth and case.latency]
            cells.append(f"{1e3 * found[0].p50:.2f}" if found else "")
        body.append([method.name, *cells])
    return ["p50 ms at depth", *map(str, depths)], body


def milliseconds(seconds: float) -> str:
    """Two digits behind the point below a second, none above."""
    return f"{1e3 * seconds:.2f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def case_name(report: ProfileReport, label: str, threads: int) -> str:
    """With the threads, where there is more than one number of them."""
    return f"{label}, {threads} t" if len(report.settings.get("threads", [])) > 1 else label


def facts(report: ProfileReport) -> list[str]:
    """Lines about model, machine and run."""
    model, machine = report.model, report.machine
    formats = " + ".join(f"{name} {size / MIB:.1f} MiB" for name, size in model.formats.items())
    cores = f"{counted(machine.get('physical_cores', 0), 'core')} ({machine.get('cores')} usable)"
    lines = [
        f"{model.source}: {model.family}, {model.n_layers} layers, {formats}",
        f"a token reads {model.read_bytes / MIB:.1f} MiB of weights; {model.backend} kernels, KV cache "
        f"{model.cache_dtype}",
        f"{machine.get('cpu')}, {cores}, kernels for {machine.get('instructions')}",
    ]
    where = [f"{key.replace('_', ' ')}: {machine[key]}" for key in ("board", "governor", "container") if key in machine]
    if "virtual_machine" in machine:
        where.append(
            "virtual machine" + ("" if machine["virtual_machine"] == "yes" else f": {machine['virtual_machine']}")
        )
    state = report.disturbance
    if state.get("mhz"):
        where.append(f"{state['mhz'][1]:.0f} MHz")
    if state.get("degrees"):
        where.append(f"{max(state['degrees'][1].values()):.0f} °C")
    if where:
        lines.append(", ".join(where))
    threads = report.settings.get("threads", [])
    reads = [f"{rate / 1e9:.1f} GB/s by {counted(n, 'thread')}" for n in threads if (rate := report.bandwidth(n))]
    if reads:
        lines.append(f"plain read of memory: {', '.join(reads)}")
    kernels = f", kernels compiled in {report.kernels_s:.1f} s" if report.kernels_s else ""
    lines.append(f"loaded in {report.load_s:.2f} s{kernels}; {counted(report.settings.get('repeats', 0), 'repeat')}")
    if report.clock_cost is not None:
        lines.append(f"the clock of the split costs {100 * report.clock_cost:+.1f} % of a token; speeds are without it")
    return lines


TABLES = {
    "Writing: one token at a time": speed_table,
    "Reading a prompt, and the first token": prompt_table,
    "Latency by depth of context": depth_table,
    "Where the time of a token goes": split_table,
    "Memory": memory_table,
}


def to_markdown(report: ProfileReport) -> str:
    """Everything, as a page."""
    parts = ["# edgecal profile" + (" (interrupted)" if report.interrupted else "")]
    parts.append("\n".join(f"- {escape_markdown(line)}" for line in facts(report)))
    for title, make in TABLES.items():
        header, body = make(report)
        if body:
            parts.append(f"## {title}\n\n{markdown_table(header, body)}")
    if report.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {escape_markdown(note)}" for note in report.notes))
    return "\n\n".join(parts) + "\n"
