"""Rows out of data files: JSON lines, a JSON array, CSV with a header, or TSV without one.

A row that cannot be read is left out and counted, with its file and line; the others go on. A file that cannot be read
at all is an error.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecal_weights.files import expand, kind_of, parse_json, read_bytes

from ...errors import BenchmarkError

LARGEST_FILE = 1 << 30
LONGEST_ROW = 1 << 20  # bytes; a dialogue has some thousand


@dataclass(frozen=True)
class Row:
    """`place` is "file, line 3"; `values` by column."""

    place: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """What was not used, and why."""

    place: str
    reason: str


def read_rows(path: str | Path) -> Iterator[Row | LeftOut]:
    """The rows of a file, by its ending: .csv, .tsv, else JSON (lines, or one array). BenchmarkError names the file."""
    path = expand(path, BenchmarkError)
    raw = read_bytes(path, LARGEST_FILE, error=BenchmarkError)
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _table(path, raw, kind)
    elif raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        yield from _array(path, raw)
    else:
        yield from _lines(path, raw)


def _lines(path: Path, raw: bytes) -> Iterator[Row | LeftOut]:
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        if len(line) > LONGEST_ROW:
            yield LeftOut(place, f"{len(line):,} bytes in a line, at most {LONGEST_ROW:,} are read")
            continue
        try:
            values = parse_json(line)
        except ValueError as error:
            yield LeftOut(place, f"not valid JSON in UTF-8: {error}"[:300])
            continue
        yield _row(place, number, values)


def _array(path: Path, raw: bytes) -> Iterator[Row | LeftOut]:
    try:
        values = parse_json(raw.decode("utf-8-sig"), unique=False)
    except ValueError as error:
        raise BenchmarkError(f"{path} is not valid JSON in UTF-8: {error}") from error
    for number, item in enumerate(values, 1):
        yield _row(f"{path}, item {number}", number, item)


def _row(place: str, number: int, values: Any) -> Row | LeftOut:
    if not isinstance(values, dict):
        return LeftOut(place, f"{kind_of(values)}, expected an object")
    return Row(place, number, values)


def _table(path: Path, raw: bytes, kind: str) -> Iterator[Row | LeftOut]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BenchmarkError(f"{path}, line {line}: not UTF-8 ({error.reason}); convert it first") from error
    if kind == ".tsv":  # no quoting: a quotation mark is a quotation mark
        for number, written in enumerate(text.split("\n"), 1):
            if written.strip():
                values = written.rstrip("\r").split("\t")
                yield Row(f"{path}, line {number}", number, {str(i): value for i, value in enumerate(values)})
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="\0more")
    try:
        for number, found in enumerate(reader, 1):
            place = f"{path}, line {reader.line_num}"
            missing = [name for name, value in found.items() if value is None]
            if missing or "\0more" in found:
                yield LeftOut(place, "fewer columns than the header" if missing else "more columns than the header")
            else:
                yield Row(place, number, dict(found))
    except csv.Error as error:
        raise BenchmarkError(f"{path}, line {reader.line_num}: {error}") from error
