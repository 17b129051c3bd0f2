"""From samples to medians, ratios, a table, JSON and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .engines.worker import BASE
from .models import Material, Row
from .protocol import DECODED, Figures, measures

MIB = 2**20
RATES = {measure.name: measure.tokens for measure in measures() if measure.tokens}
COLUMNS = ("load", "start", "first_token", *sorted((n for n in RATES if n.startswith("p")), key=RATES.__getitem__))
COLUMNS += tuple(name for name in RATES if name.startswith("decode"))
Samples = Sequence[float | None]


def spread(values: Samples) -> dict[str, Any] | None:
    """Median, p10, p90 and the number of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, middle, high = np.percentile(known, (10, 50, 90))
    return {"median": float(middle), "p10": float(low), "p90": float(high), "n": len(known)}


def divided(above: Samples, below: Samples) -> list[float | None]:
    """Round by round; None where one side is missing."""
    return [a / b if a and b else None for a, b in zip(above, below, strict=False)]


def build(material: Material, figures: Figures) -> dict[str, Any]:
    """Everything as JSON-ready data; see bench/README.md for the shape."""
    rows = [row for row in material.rows if (row.label, BASE) in figures.samples or row.label in figures.remarks]
    return {
        "model": material.name,
        "rows": [_row(row, figures) for row in rows],
        "ratios": [ratio for row in rows for ratio in _ratios(row, figures)],
        "adapter_cost": [cost for row in rows for cost in _adapter_costs(row, figures)],
        "memory_bandwidth": [_bandwidth(row, figures) for row in rows if row.label in figures.reads],
        "agreement": [_agreement(row, v, figures) for row in rows for v in _variants(row, figures) if row.against],
    }


def _variants(row: Row, figures: Figures) -> list[str]:
    return [variant for label, variant in figures.samples if label == row.label]


def _row(row: Row, figures: Figures) -> dict[str, Any]:
    variants = {}
    for variant in _variants(row, figures):
        samples = figures.samples[row.label, variant]
        variants[variant] = {
            "memory_bytes": figures.memory.get((row.label, variant)),
            "measures": {
                name: {"unit": "tok/s" if name in RATES else "s", **(spread(_figure(name, values)) or {}),
                       "seconds": list(values)}
                for name, values in samples.items()
            },
        }
    return {
        "label": row.label,
        "engine": row.engine,
        "detail": row.detail,
        "against": row.against,
        "remarks": sorted(set(figures.remarks.get(row.label, []))),
        "facts": figures.facts.get(row.label, {}),
        "processor_share_while_waiting": figures.idle.get(row.label),
        "variants": variants,
    }


def _figure(name: str, seconds: Samples) -> Samples:
    return [RATES[name] / s if s else None for s in seconds] if name in RATES else seconds


def _ratios(row: Row, figures: Figures) -> list[dict[str, Any]]:
    """How many times as fast as the llama.cpp row: its seconds by ours. LC++ beside llama.cpp's one LoRA."""
    found = []
    for variant in _variants(row, figures) if row.against else []:
        theirs = figures.samples.get((str(row.against), variant if variant == BASE else "lora"), {})
        for name, ours in figures.samples[row.label, variant].items():
            ratio = spread(divided(theirs.get(name, []), ours))
            if ratio:
                found.append({"row": row.label, "variant": variant, "measure": name, "against": row.against, **ratio})
    return found


def _adapter_costs(row: Row, figures: Figures) -> list[dict[str, Any]]:
    """Time with an adapter by time without, within a round."""
    base = figures.samples.get((row.label, BASE), {})
    costs = []
    for variant in _variants(row, figures):
        for name, samples in figures.samples[row.label, variant].items() if variant != BASE else ():
            cost = spread(divided(samples, base.get(name, [])))
            if cost:
                costs.append({"row": row.label, "variant": variant, "measure": name, **cost})
    return costs


def _bandwidth(row: Row, figures: Figures) -> dict[str, Any]:
    """Bytes of weights per second of decode at depth 0, beside a plain read of the same file's pages."""
    size = figures.facts.get(row.label, {}).get("read_per_token", 0)
    decode = [size * DECODED / s if s else None for s in figures.samples[row.label, BASE].get("decode_0", [])]
    read = figures.reads[row.label]
    share = spread(divided(decode, read))
    return {"row": row.label, "decode": spread(decode), "plain_read": spread(read), "share": share}


def _agreement(row: Row, variant: str, figures: Figures) -> dict[str, Any]:
    """Correlation of the logits after 128 tokens with those of the llama.cpp row: the same model, or a mistake."""
    ours, theirs = figures.probes.get((row.label, variant)), figures.probes.get((str(row.against), variant))
    value = None
    if ours and theirs and len(ours) == len(theirs):
        value = float(np.corrcoef(ours, theirs)[0, 1])
    return {"row": row.label, "variant": variant, "against": row.against, "correlation": value}


# -------------------------------------------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    """Markdown: medians with p10-p90 below, then ratios."""
    lines = ["", "Median of the rounds (p10-p90). Times in s, speeds in tokens/s, peak memory in MiB.", ""]
    lines += _head("engine", "adapter", *COLUMNS, "peak")
    for row in result["rows"]:
        for variant, data in row["variants"].items():
            cells = [_cell(data["measures"].get(name), name) for name in COLUMNS]
            memory = data["memory_bytes"]
            cells.append(f"{memory['peak'] / MIB:.0f}" if memory else "-")
            lines.append(_line(row["label"], "-" if variant == BASE else variant, *cells))
        if not row["variants"]:
            lines.append(_line(row["label"], "; ".join(row["remarks"]), *("" for _ in COLUMNS), ""))
    lines += ["", "Times as fast as llama.cpp: medians of the ratios within a round (p10-p90).", ""]
    lines += _head("row", "adapter", "against", *COLUMNS)
    for (label, variant, against), found in _grouped(result["ratios"], "row", "variant", "against").items():
        cells = [_cell(found.get(name), "ratio") for name in COLUMNS]
        lines.append(_line(label, "-" if variant == BASE else variant, against, *cells))
    lines += ["", "What an adapter costs: time with by time without, within a round (p10-p90).", ""]
    speeds = [name for name in COLUMNS if name in RATES]
    lines += _head("row", "adapter", *speeds)
    for (label, variant), found in _grouped(result["adapter_cost"], "row", "variant").items():
        lines.append(_line(label, variant, *(_cell(found.get(name), "ratio") for name in speeds)))
    lines += ["", *_notes(result)]
    return "\n".join(lines)


def _notes(result: dict[str, Any]) -> list[str]:
    notes = []
    for item in result["memory_bandwidth"]:
        if item["decode"] and item["share"]:
            notes.append(
                f"{item['row']}: decode reads {item['decode']['median'] / 1e9:.1f} GB/s of weights, a plain read "
                f"{item['plain_read']['median'] / 1e9:.1f} GB/s; share {_cell(item['share'], 'ratio')}"
                + ("; a share above 1 cannot be: the read was disturbed, measure again" * (item["share"]["p90"] > 1))
            )
    for item in result["agreement"]:
        if item["correlation"] is not None:
            notes.append(
                f"{item['row']} ({item['variant']}): correlation of logits with {item['against']} "
                f"{item['correlation']:.4f}"
            )
    for row in result["rows"]:
        notes += [f"{row['label']}: {remark}" for remark in row["remarks"]]
        share = row["processor_share_while_waiting"]
        if share is not None and share > 0.01:
            notes.append(f"{row['label']}: used {100 * share:.1f} % of a core while the others were measured")
    return notes


def _grouped(items: list[dict[str, Any]], *keys: str) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(tuple(item[key] for key in keys), {})[item["measure"]] = item
    return groups


def _cell(found: dict[str, Any] | None, name: str) -> str:
    if not found or "median" not in found:
        return "-"
    digits = 1 if name in RATES else 2
    middle, low, high = (f"{found[key]:.{digits}f}" for key in ("median", "p10", "p90"))
    return middle if found["n"] == 1 else f"{middle} ({low}-{high})"


def _head(*cells: str) -> list[str]:
    return [_line(*(cell.replace("_", " ") for cell in cells)), "|" + "---|" * len(cells)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


# --------------------------------------------------------------------------------------------------- plot


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars per row with p10-p90, a panel per measure. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"prefill_512": "prefill 512, tokens/s", "decode_0": "decode at 0, tokens/s"}
    panels |= {"decode_1024": "decode at 1,024, tokens/s", "first_token": "first token of a prompt of 128, s"}
    panels |= {"start": "process start to first token, s", "memory": "peak resident memory, MiB"}
    bars = [(row, variant) for row in result["rows"] for variant in row["variants"]]
    if not bars:
        return
    labels = [row["label"] + ("" if variant == BASE else f" + {variant}") for row, variant in bars]
    engines = list(dict.fromkeys(row["engine"] for row, _ in bars))
    colours = [f"C{engines.index(row['engine'])}" for row, _ in bars]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 1.5 + 0.5 * len(bars)), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, panels.items(), strict=True):
        for place, (row, variant) in enumerate(bars):
            data = row["variants"][variant]
            if name == "memory":
                middle = low = high = data["memory_bytes"]["peak"] / MIB
            else:
                found = data["measures"].get(name)
                if not found or "median" not in found:
                    continue
                middle, low, high = found["median"], found["p10"], found["p90"]
            axis.barh(place, middle, color=colours[place], alpha=1.0 if variant == BASE else 0.55)
            axis.plot([low, high], [place, place], color="black", linewidth=1)
            axis.annotate(f" {float(f'{middle:.3g}'):,g}", (max(middle, high), place), va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(bars)), labels, fontsize=8)
        axis.margins(x=0.18)
    axes.flat[0].invert_yaxis()
    figure.suptitle(f"{result['model']}, {result['settings']['threads']} threads, {result['machine']['cpu']}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
