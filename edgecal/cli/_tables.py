"""Tables that fit the terminal, from the 60 columns of a phone on: never by cutting a number.

What is too wide loses the columns that matter least, then its names are folded, then it is split into several tables
of fewer columns, each with the first column in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_FOLDED = 14  # so narrow a column of names may become
Cell = str | Text


def plain(text: object) -> str:
    """Names come from files of strangers: what a terminal would obey is shown as U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def show_table(
    console: Console,
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    left: Sequence[str | int] = (0,),
    spare: Sequence[str] = (),
) -> None:
    """Print the rows. `left` are the columns of text (headers, or their numbers), which may be folded; `spare` those
    that are left out first, in this order, where there is no room."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    columns = [i for i, _ in enumerate(headers)]
    widths = [max(_width(header), *(_width(row[i]) for row in cells), 0) for i, header in enumerate(headers)]
    text = {i for i in columns if i in left or headers[i] in left}
    for name in spare:
        if _total(widths, columns) > console.width and name in headers:
            columns.remove(headers.index(name))
    for i in sorted(text & set(columns), key=lambda i: -widths[i]):
        excess = _total(widths, columns) - console.width
        if excess > 0:
            widths[i] = max(min(widths[i], _FOLDED), widths[i] - excess)
    widest = max((widths[i] for i in columns[1:]), default=0)
    widths[0] = max(1, min(widths[0], console.width - widest - 1))  # beside the first there is room for any other
    gap = 2 if _total(widths, columns) + len(columns) - 1 <= console.width else 1
    for number, block in enumerate(_blocks(widths, columns, console.width)):
        if title or number:
            console.print()
        if title and not number:
            console.print(Text(plain(title), "italic"))
        console.print(_block(headers, cells, block, widths, text, gap))


def _blocks(widths: Sequence[int], columns: Sequence[int], width: int) -> list[list[int]]:
    """The columns, a screen's width at a time, each time behind the first."""
    first, *rest = columns
    blocks: list[list[int]] = [[first]]
    for i in rest:
        if len(blocks[-1]) > 1 and _total(widths, [*blocks[-1], i]) > width:
            blocks.append([first])
        blocks[-1].append(i)
    return blocks


def _block(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    columns: Sequence[int],
    widths: Sequence[int],
    text: set[int],
    gap: int,
) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for i in columns:
        side: Any = "left" if i in text else "right"
        table.add_column(
            headers[i], justify=side, width=widths[i], no_wrap=i not in text, overflow="fold", vertical="top"
        )
    for row in rows:
        table.add_row(*(row[i] for i in columns))
    return table


def _total(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[i] for i in columns) + len(columns) - 1


def _cell(value: object) -> Cell:
    return value if isinstance(value, Text) else plain(value)


def _width(cell: object) -> int:
    lines = cell.plain.split("\n") if isinstance(cell, Text) else str(cell).split("\n")
    return max(cell_len(line) for line in lines)


def choose_glyphs(console: Console, glyphs: str, ascii_glyphs: str) -> str:
    """Drawing characters, or ones that a console without Unicode has."""
    return ascii_glyphs if console.options.ascii_only else glyphs
