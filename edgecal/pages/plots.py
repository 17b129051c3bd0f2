"""Plots as SVG text, for a page that needs no network and no script.

Every plot is 420 units wide, the width of a phone: a wide screen puts several side by side, so that letters keep their
size. Colours are classes (s0, s1, ... for series), which the page's style sheet fills for light and dark. All text is
escaped here, at the one place where it becomes markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 420
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 34
COLOURS = 13  # classes s0 .. s12


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one line."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int


@dataclass
class Axis:
    """One axis: its range in data, in the plot, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    ticks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.logarithmic:
            self.low, self.high = max(self.low, 1e-12), max(self.high, 2e-12)
        if self.high <= self.low:
            self.high = self.low * 2 if self.logarithmic else self.low + 1
        self.ticks = log_ticks(self.low, self.high) if self.logarithmic else linear_ticks(self.low, self.high)

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            value, low, high = math.log(max(value, 1e-12)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        share = min(max((value - low) / (high - low), -0.02), 1.02)
        return self.start + share * (self.end - self.start)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within the range."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade; only the decades where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low * 0.999 <= m * 10.0**d <= high * 1.001]
        if len(found) <= 7:
            break
    return found


def number(value: float) -> str:
    """Short: three digits, k and M for tens of thousands and for millions."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / limit * (1 if unit == 'M' else 10):.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'


def figure(title: str, height: float, body: Sequence[str], description: str = "") -> str:
    """The plot with its title, for the page's grid."""
    label = escape(f"{title}. {description}", quote=True)
    image = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    caption = f"<p>{escape(description)}</p>" if description else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{image}{caption}</figure>"


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Names with their colours, as HTML, so that they wrap."""
    items = "".join(f'<li><i class="s{colour % COLOURS}"></i>{escape(name)}</li>' for name, colour in entries)
    return f'<ul class="legend">{items}</ul>'


def frame(x: Axis, y: Axis, x_name: str, y_name: str) -> list[str]:
    """Grid lines, ticks and names."""
    out = []
    for tick in y.ticks:
        at = y(tick)
        out.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(text(x.start - 5, at + 4, number(tick), anchor="end", kind="tick"))
    for tick in x.ticks:
        out.append(text(x(tick), y.start + 15, number(tick), anchor="middle", kind="tick"))
    out.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    out.append(text((x.start + x.end) / 2, y.start + 30, x_name, anchor="middle", kind="name"))
    out.append(f'<g transform="rotate(-90 11 {(y.start + y.end) / 2:.0f})">')
    out.append(text(11, (y.start + y.end) / 2, y_name, anchor="middle", kind="name") + "</g>")
    return out


def axes(height: float, xs: Sequence[float], ys: Sequence[float], **log: bool) -> tuple[Axis, Axis]:
    """Axes that hold all values; the y axis begins at 0 unless it is logarithmic."""
    x = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log.get("log_x", False))
    low = min(ys) * 0.8 if log.get("log_y") else 0.0
    return x, Axis(low, max(ys) * 1.08, height - BOTTOM, TOP, log.get("log_y", False))


def lines(title: str, series: Sequence[Series], x_name: str, y_name: str, description: str, *, dots: bool) -> str:
    """One line per series."""
    height = 230
    points = [p for s in series for p in s.points]
    if not points:
        return ""
    x, y = axes(height, [p[0] for p in points], [p[1] for p in points])
    out = frame(x, y, x_name, y_name)
    for s in series:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in s.points)
        name = escape(s.name)
        out.append(f'<polyline class="l s{s.colour % COLOURS}" points="{path}"><title>{name}</title></polyline>')
        if dots:
            out += [
                f'<circle class="s{s.colour % COLOURS}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5">'
                f"<title>{name}: {number(b)}</title></circle>"
                for a, b in s.points
            ]
    return figure(title, height, out, description)


def histograms(title: str, rows: Sequence[tuple[str, Sequence[float], int]], x_name: str, description: str) -> str:
    """One histogram per row under each other, on the same axis, with p50, p95 and p99 as marks."""
    values = sorted(v for _, row, _ in rows for v in row)
    if not values:
        return ""
    each, bins = 46, 56
    height = each * len(rows) + BOTTOM + 4
    high = values[min(len(values) - 1, int(0.995 * len(values)))] * 1.02
    x = Axis(values[0] * 0.98, high, 8, WIDTH - RIGHT)
    out = []
    for tick in x.ticks:
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - BOTTOM}"/>')
        out.append(text(x(tick), height - BOTTOM + 15, number(tick), anchor="middle", kind="tick"))
    out.append(text(WIDTH / 2, height - 4, x_name, anchor="middle", kind="name"))
    width = (x.end - x.start) / bins
    for i, (name, row, colour) in enumerate(rows):
        base, counts = each * (i + 1), [0] * bins
        for value in row:
            counts[min(bins - 1, max(0, int((value - x.low) / (x.high - x.low) * bins)))] += 1
        most = max(counts) or 1
        out.append(text(x.end, base - each + 15, name, anchor="end", kind="label"))
        for j, count in enumerate(counts):
            if count:
                tall = max(1.0, (each - 20) * count / most)
                out.append(
                    f'<rect class="s{colour % COLOURS}" x="{x.start + j * width:.1f}" y="{base - tall:.1f}" '
                    f'width="{width - 0.6:.1f}" height="{tall:.1f}"><title>{count}</title></rect>'
                )
        ordered = sorted(row)
        for share, label in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
            value = ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
            at = x(value)
            out.append(
                f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{base - each + 20}" y2="{base}">'
                f"<title>{label}: {number(value)}</title></line>"
            )
    return figure(title, height, out, description)


def stacks(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, int]]]], x_name: str, description: str
) -> str:
    """A stacked bar per row: (name, [(part, value, colour), ...]). The name stands above its bar."""
    if not rows:
        return ""
    each = 40
    height = each * len(rows) + BOTTOM
    x = Axis(0, max(sum(v for _, v, _ in parts) for _, parts in rows) * 1.02, 8, WIDTH - RIGHT)
    out = []
    for tick in x.ticks:
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - BOTTOM}"/>')
        out.append(text(x(tick), height - BOTTOM + 15, number(tick), anchor="middle", kind="tick"))
    out.append(text(WIDTH / 2, height - 3, x_name, anchor="middle", kind="name"))
    for i, (name, parts) in enumerate(rows):
        top, at = each * i + 17, 0.0
        out.append(text(x.start, top - 4, f"{name}: {number(sum(v for _, v, _ in parts))}", kind="label"))
        for part, value, colour in parts:
            wide = x(at + value) - x(at)
            out.append(
                f'<rect class="s{colour % COLOURS}" x="{x(at):.1f}" y="{top}" width="{wide:.2f}" height="17">'
                f"<title>{escape(part)}: {number(value)}</title></rect>"
            )
            at += value
    used = sorted({(part, colour) for _, parts in rows for part, value, colour in parts if value}, key=lambda e: e[1])
    return figure(title, height, out, description).replace("</svg>", f"</svg>{legend(used)}", 1)


def roofline(
    title: str,
    points: Sequence[tuple[str, float, float, int]],
    bandwidth: float,
    peak: float | None,
    description: str,
) -> str:
    """(name, operations per byte, 10^9 operations per second, colour) under min(bandwidth * x, peak), both in 10^9."""
    if not points or bandwidth <= 0:
        return ""
    height = 250
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    ridge = peak / bandwidth if peak else max(xs) * 8
    x_low, x_high = min(*xs, ridge) / 2, max(*xs, ridge) * 4
    top = peak or bandwidth * x_high
    x, y = axes(height, [x_low, x_high], [*ys, bandwidth * x_low * 1.5, top * 1.3], log_x=True, log_y=True)
    out = frame(x, y, "operations per byte", "Gop/s")
    corner = (ridge, top)
    y_left = max(bandwidth * x_low, y.low)
    roof = [(y_left / bandwidth, y_left), corner] + ([(x_high, peak)] if peak else [])
    out.append('<polyline class="roof" points="' + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in roof) + '"/>')
    out.append(text(x.end - 3, y(top) - 6, f"{number(bandwidth)} GB/s plain read", anchor="end", kind="label"))
    for name, a, b, colour in points:
        out.append(
            f'<circle class="s{colour % COLOURS}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="5">'
            f"<title>{escape(name)}: {number(b)} Gop/s, {number(b / a)} GB/s</title></circle>"
        )
    return figure(title, height, out, description)


def intervals(
    title: str, rows: Sequence[tuple[str, float, float, float, int]], x_name: str, description: str
) -> str:
    """A bar per row with its interval: (name, value, low, high, colour). The name stands above its bar."""
    if not rows:
        return ""
    each = 36
    height = each * len(rows) + BOTTOM
    x = Axis(0, max(high for _, _, _, high, _ in rows) * 1.04, 8, WIDTH - RIGHT)
    out = []
    for tick in x.ticks:
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - BOTTOM}"/>')
        out.append(text(x(tick), height - BOTTOM + 15, number(tick), anchor="middle", kind="tick"))
    out.append(text(WIDTH / 2, height - 3, x_name, anchor="middle", kind="name"))
    for i, (name, value, low, high, colour) in enumerate(rows):
        top = each * i + 17
        out.append(text(x.start, top - 4, f"{name}: {number(value)}", kind="label"))
        told = f"{escape(name)}: {number(value)}, from {number(low)} to {number(high)}"
        out.append(
            f'<rect class="s{colour % COLOURS}" x="{x.start}" y="{top}" width="{x(value) - x.start:.2f}" height="13">'
            f"<title>{told}</title></rect>"
        )
        if high > low:
            middle = top + 6.5
            out.append(f'<line class="mark" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"/>')
            out += [
                f'<line class="mark" x1="{x(end):.1f}" x2="{x(end):.1f}" y1="{middle - 4}" y2="{middle + 4}"/>'
                for end in (low, high)
            ]
    return figure(title, height, out, description)


def scatter(
    title: str, points: Sequence[tuple[str, float, float, int]], x_name: str, y_name: str, description: str
) -> str:
    """A dot per row: (name, x, y, colour); the names are in the legend of the page and under the pointer."""
    if not points:
        return ""
    height = 230
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    x, y = axes(height, [0.0, max(xs) * 1.05], ys)
    out = frame(x, y, x_name, y_name)
    out += [
        f'<circle class="s{colour % COLOURS}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="6">'
        f"<title>{escape(name)}: {number(b)} at {number(a)}</title></circle>"
        for name, a, b, colour in points
    ]
    return figure(title, height, out, description)
