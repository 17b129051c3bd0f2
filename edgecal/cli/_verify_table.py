"""A verification as text: one row per tensor, then what a reader should know."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ._tables import plain, show_table

if TYPE_CHECKING:
    from ..verification.comparison import TensorComparison
    from ..verification.verify import Verification

_KINDS = {"delta": "dW", "logits_last4": "logits", "greedy_ids": "greedy", "input_ids": "prompt"}


def show(report: Verification, console: Console) -> None:
    """The console must not interpret markup: names come from files."""
    made = f", {report.made_with}" if report.made_with else ""
    thin = f", every {report.thin}th row" if report.thin > 1 else ""
    console.print(plain(f"{report.reference}{made}{thin}"))
    what = f"{report.method} of {', '.join(report.adapters)}" if report.adapters else report.method
    console.print(plain(f"{what} on {report.model}"))
    console.print()
    rows = [
        (_short(row.tensor), *_numbers(row), Text("pass" if row.passed else "FAIL", _style(row)))
        for row in report.comparisons
    ]
    show_table(console, ("tensor", "max abs", "max rel", "1 - cos", "worst at", ""), rows, spare=("1 - cos",))
    console.print()
    for row in report.comparisons:
        if row.note and not row.passed:
            console.print(plain(f"{_short(row.tensor)}: {row.note}"))
    for note in report.notes:
        console.print(plain(f"note: {note}"))
    t = report.tolerances
    console.print(f"tolerances: dW {t.delta:.0e} and outputs {t.output:.0e} relative, logits {t.logits:.0e} absolute")
    failed = sum(not row.passed for row in report.comparisons)
    count = len(report.comparisons)
    console.print(f"all {count} pass" if not failed else f"{failed} of {count} FAIL")


def _numbers(row: TensorComparison) -> tuple[str, str, str, str]:
    if row.measure == "equal":
        where = f"id {row.worst[0]}" if row.worst else ""
        return "equal" if row.passed else "differ", "", "", where
    where = ",".join(map(str, row.worst)) if row.worst and not math.isnan(row.found) else ""
    return _number(row.max_abs), _number(row.max_rel), _number(max(0.0, 1 - row.cosine)), where


def _number(value: float) -> str:
    return "-" if math.isnan(value) else "0" if value == 0 else f"{value:.1e}"


def _style(row: TensorComparison) -> str:
    return "green" if row.passed else "bold red"


def _short(tensor: str) -> str:
    """Module paths without what all of them have."""
    kind, _, rest = tensor.partition("/")
    shown = rest.replace("model.layers.", "").replace("self_attn.", "").replace("mlp.", "")
    return f"{_KINDS.get(kind, kind)} {shown}"
