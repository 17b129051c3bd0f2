"""Pages in one file, to send to a colleague: nothing is fetched from anywhere, in light and dark, at phone width.

Names and texts come from whoever made them, and are text here and nothing else: everything is escaped where it becomes
markup, and a content security policy forbids the browser whatever the page does not need. A page with a script names
the script's digest there, so that no other one runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from . import plots

STYLE = """
:root { --back: #fff; --text: #1b1f24; --dim: #5b6572; --line: #d9dee4; --card: #f6f8fa; --strong: #000;
  --c0: #2a6fdb; --c1: #d9622b; --c2: #2f9e57; --c3: #8a4fd3; --c4: #c22f5c; --c5: #178a9c; --c6: #b58900;
  --c7: #6b7785; --c8: #5fa8f5; --c9: #f09a64; --c10: #78c48f; --c11: #c29bf0; --c12: #a9b2bd; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e4e8ec; --dim: #98a3af; --line: #323a43; --card: #1b2026; --strong: #fff;
  --c0: #5b9bff; --c1: #ff8f57; --c2: #56c983; --c3: #b283ff; --c4: #ff6b93; --c5: #43c0d4; --c6: #e0b93b;
  --c7: #8e9aa8; --c8: #2f68b8; --c9: #a85a2c; --c10: #2f7d4b; --c11: #6f48ab; --c12: #545f6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1320px; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 8px; } h2 { font-size: 1.05rem; margin: 26px 0 8px; }
ul.facts, ul.notes { margin: 0; padding-left: 18px; color: var(--dim); overflow-wrap: anywhere; }
ul.notes { color: var(--text); }
.grid-of-plots { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 350px), 1fr));
  margin-top: 16px; }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: 4px; }
figure p { margin: 6px 0 0; color: var(--dim); font-size: .82rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font-size: 11.5px; } svg text.label { fill: var(--text); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--dim); stroke-width: 1; }
.l { fill: none !important; stroke-width: 1.6; stroke-linejoin: round; }
svg:hover .l { opacity: .3; } svg .l:hover { opacity: 1; stroke-width: 3; }
.roof { fill: none; stroke: var(--strong); stroke-width: 2; }
.mark { stroke: var(--strong); stroke-width: 1.2; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 3px 12px; padding: 0; margin: 6px 0 0;
  font-size: .82rem; color: var(--dim); overflow-wrap: anywhere; }
ul.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
.name { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 110px; max-width: 220px; }
th { color: var(--dim); font-weight: 600; }
footer { margin-top: 24px; color: var(--dim); font-size: .82rem; }
"""
_COLOURS = "".join(
    f".s{i} {{ fill: var(--c{i}); stroke: none; }} .l.s{i} {{ stroke: var(--c{i}); }} "
    f"i.s{i} {{ background: var(--c{i}); }}\n"
    for i in range(plots.COLOURS)
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, body: Sequence[str], *, style: str = "", script: str = "") -> str:
    """The whole file: `body` and `style` are markup, `script` JavaScript that runs when the page is there."""
    policy, end = _POLICY, ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy, end = f"{policy}; script-src 'sha256-{digest}'", f"<script>{script}</script>"
    return "".join(
        (
            "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
            '<meta name=viewport content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title><style>{STYLE}{_COLOURS}{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            end,
            "</body></html>\n",
        )
    )


def text_list(kind: str, lines: Sequence[str]) -> str:
    """A list of the class `kind`."""
    return f"<ul class={kind}>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(header: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Cells are texts; those of the first `left` columns are names, and aligned as such."""
    names = " class=name"
    head = "".join(f"<th{names * (i < left)}>{escape(cell)}</th>" for i, cell in enumerate(header))
    rows = "".join(
        "<tr>" + "".join(f"<td{names * (i < left)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
