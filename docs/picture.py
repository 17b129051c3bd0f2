"""Draws docs/architecture.svg: the two streams, and how they meet in Linear. Run it after a change of BOXES or ARROWS.

    python docs/picture.py

Everything that the picture says is in these two tables; the rest is where things go. Sizes are for a phone held
upright, where the picture is as wide as the screen. Colours follow the reader's preference for light or dark.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).with_name("architecture.svg")
TITLE = "Two streams meet in Linear: a prompt on its way to an answer, and files on their way to one pair per module"


class Box(NamedTuple):
    """In `row`, from `column` on, of 4; `lines` are what it does. `kind` is a class of the style sheet."""

    row: int
    column: float
    columns: float
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "token"


class Arrow(NamedTuple):
    """From one box to another. `at` is where, in columns from the left edge; `label` stands beside its end."""

    start: str
    end: str
    at: float
    label: str = ""
    before: bool = False  # the label is on its left


BOXES = {
    "prompt": Box(0, 0, 1, "prompt"),
    "answer": Box(0, 1, 1, "answer"),
    "files": Box(0, 2, 2, "files", kind="files"),
    "text": Box(1, 0, 2, "edgecal/text", ("chat template, tokenizer,", "stop strings")),
    "weights": Box(1, 2, 2, "edgecal_weights", ("GGUF, safetensors, PEFT:", "files in, arrays out"), "files"),
    "decoding": Box(2, 0, 2, "serving, decoding", ("prefill, decode, drafts,", "sampler, KV caches")),
    "lora": Box(2, 2, 1.8, "adapters/lora", ("A and B of a module,", "in the base's shape"), "files"),
    "model": Box(3, 0, 2, "model", ("embedding, layers, head:", "one file, every family")),
    "merge": Box(3, 2, 1.8, "adapters/merge", ("whatever the method:", "one pair per module"), "files"),
    "linear": Box(4, 0, 4, "Linear", ("h = W x + B* (A* x)",), "meeting"),
    "kernels": Box(
        5, 0, 4, "edgecal_kernels", ("packed weights, int8 dot products, attention;", "NumPy is the reference")
    ),
}
ARROWS = (
    Arrow("prompt", "text", 0.5, "text"),
    Arrow("text", "answer", 1.5, "text"),
    Arrow("text", "decoding", 0.5, "ids"),
    Arrow("decoding", "text", 1.5, "id"),
    Arrow("decoding", "model", 0.5, "ids"),
    Arrow("model", "decoding", 1.5, "logits"),
    Arrow("model", "linear", 0.5, "x"),
    Arrow("linear", "model", 1.5, "h"),
    Arrow("linear", "kernels", 0.5, "x in int8"),
    Arrow("kernels", "linear", 1.5, "float32"),
    Arrow("files", "weights", 2.9),
    Arrow("weights", "lora", 2.9, "adapters"),
    Arrow("lora", "merge", 2.9, "A, B, ..."),
    Arrow("merge", "linear", 2.9, "A*, B*"),
    Arrow("weights", "linear", 3.9, "W", before=True),
)

COLUMN, GAP, MARGIN = 92, 16, 8
BETWEEN = 40  # rows: room for an arrow and its label
HEAD, LINE, PADDING = 18, 17, 10
STYLE = """
svg { color-scheme: light dark; }
text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1b2330; text-anchor: middle; }
.title { font-family: ui-monospace, monospace; font-size: 14px; font-weight: 600; }
.label { font-size: 12.5px; fill: #4a5568; text-anchor: start; }
.before { text-anchor: end; }
rect { stroke-width: 1.5; }
.paper { fill: #ffffff; stroke: none; }
.token { fill: #e3effc; stroke: #3a74b8; }
.files { fill: #fdf0d8; stroke: #a8771a; }
.meeting { fill: #e2f4e4; stroke: #2f8544; stroke-width: 2.5; }
.arrow { stroke: #4a5568; stroke-width: 1.5; fill: none; }
.tip { fill: #4a5568; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8edf4; }
  .label { fill: #b6c0ce; }
  .paper { fill: #14181f; }
  .token { fill: #17304c; stroke: #6ca6e8; }
  .files { fill: #40300f; stroke: #dba94a; }
  .meeting { fill: #173a20; stroke: #63c27b; }
  .arrow { stroke: #b6c0ce; }
  .tip { fill: #b6c0ce; }
}
"""


def height(box: Box) -> int:
    return 2 * PADDING + HEAD + LINE * len(box.lines)


def tops() -> list[int]:
    """Where each row begins, and where the picture ends."""
    edges = [MARGIN]
    for row in range(1 + max(box.row for box in BOXES.values())):
        edges.append(edges[-1] + BETWEEN + max(height(box) for box in BOXES.values() if box.row == row))
    return edges


def left(column: float) -> float:
    """The x of a place in columns; there is a gap between the streams, in the middle."""
    return MARGIN + column * COLUMN + (GAP if column >= 2 else 0)


def draw() -> str:
    """The picture as SVG."""
    rows = tops()
    width, tall = round(left(4) + MARGIN), rows[-1] - BETWEEN + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * 5 // 4}" viewBox="0 0 {width} {tall}" role="img">',
        f"<title>{escape(TITLE)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{tall}" rx="8"/>',
    ]
    for arrow in ARROWS:
        parts += draw_arrow(arrow, rows)
    for box in BOXES.values():
        parts += draw_box(box, rows)
    return "\n".join([*parts, "</svg>", ""])


def draw_box(box: Box, rows: list[int]) -> list[str]:
    x, y = left(box.column), rows[box.row]
    inset = 4 if box.columns == 1 else 0
    across = left(box.column + box.columns) - x - (GAP if box.column < 2 == box.column + box.columns else 0)
    middle, inner = x + across / 2, across - 2 * inset
    parts = [
        f'<rect class="{box.kind}" x="{x + inset:g}" y="{y}" width="{inner:g}" height="{height(box)}" rx="8"/>',
        f'<text class="title" x="{middle:g}" y="{y + PADDING + 13}">{escape(box.title)}</text>',
    ]
    for i, line in enumerate(box.lines):
        parts.append(f'<text x="{middle:g}" y="{y + PADDING + HEAD + LINE * i + 13}">{escape(line)}</text>')
    return parts


def draw_arrow(arrow: Arrow, rows: list[int]) -> list[str]:
    start, end, x = BOXES[arrow.start], BOXES[arrow.end], left(arrow.at)
    down = start.row < end.row
    upper, lower = (start, end) if down else (end, start)
    top, bottom = rows[upper.row] + height(upper) + 3, rows[lower.row] - 3
    y, tip = (bottom, bottom - 8) if down else (top, top + 8)
    parts = [
        f'<path class="arrow" d="M{x:g} {top if down else bottom} V{tip}"/>',
        f'<path class="tip" d="M{x:g} {y} L{x - 5:g} {tip} H{x + 5:g} Z"/>',
    ]
    if arrow.label:
        side, beside = ("label before", x - 9) if arrow.before else ("label", x + 9)
        y = bottom - (BETWEEN - 6) // 2 + 4 if down else top + (BETWEEN - 6) // 2 + 4
        parts.append(f'<text class="{side}" x="{beside:g}" y="{y}">{escape(arrow.label)}</text>')
    return parts


if __name__ == "__main__":
    TARGET.write_text(draw())
