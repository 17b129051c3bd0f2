"""Signs of life: a line at a terminal, a few lines in a log, nothing where nothing was asked for."""

from __future__ import annotations

import io
import re
import sys
import time

import click
import pytest

from edgecal.cli import _progress
from edgecal.cli._progress import progress, while_reading


def show(monkeypatch, *arguments: str, is_terminal: bool, work, **options) -> str:
    """What appears on stderr while a command with these arguments works."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    @click.command()
    @click.option("--quiet", is_flag=True)
    @click.option("--json", "as_json", is_flag=True)
    def command(quiet: bool, as_json: bool) -> None:
        with progress("packing", **options) as report:
            work(report)

    shown = Stream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    command(list(arguments), standalone_mode=False)
    return shown.getvalue()


def some_work(report) -> None:
    report(3_000_000, 12_000_000, "model.norm.weight")
    time.sleep(0.3)


def test_a_terminal_sees_how_far_it_is(monkeypatch):
    shown = show(monkeypatch, is_terminal=True, work=some_work, unit="bytes")
    assert all(part in shown for part in ("packing", "3.0/12.0 MB", "0 s", "model.norm.weight"))
    assert shown.endswith("\r\x1b[1A\x1b[2K")  # and is wiped off at the end
    assert "packing" in show(monkeypatch, "--json", is_terminal=True, work=some_work)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_the_line_fits_the_terminal(monkeypatch, columns):
    """Names give way, numbers do not."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = show(
        monkeypatch,
        is_terminal=True,
        work=lambda report: (report(3_000_000, 12_000_000, "model.layers.11.self_attn." * 9), time.sleep(0.3)),
        unit="bytes",
    )
    lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) < columns
    assert any(line.endswith("…") and "3.0/12.0 MB 0 s model" in line for line in lines)


def test_a_log_gets_a_line_and_then_one_at_intervals(monkeypatch):
    monkeypatch.setattr(_progress, "_FIRST", 0.2)
    lines = show(monkeypatch, is_terminal=False, work=lambda report: (report(2, 5, "b"), time.sleep(0.7)), patience=0.1)
    assert lines.splitlines()[0] == "packing ... 2/5, b"
    assert 2 <= len(lines.splitlines()) <= 4
    at_once = show(monkeypatch, is_terminal=False, work=lambda report: None, patience=0)
    assert at_once == "packing ...\n"
    assert show(monkeypatch, is_terminal=False, work=some_work) == ""  # soon over: not worth a line


def test_nothing_is_drawn_while_something_is_measured(monkeypatch):
    monkeypatch.setattr(_progress, "_FIRST", 0.1)
    quiet = {"patience": 0.1, "still": True}
    assert show(monkeypatch, is_terminal=False, work=lambda report: time.sleep(0.4), **quiet) == ""

    def between(report) -> None:
        time.sleep(0.2)
        report(1, 3, "linear")

    assert show(monkeypatch, is_terminal=False, work=between, **quiet) == "packing ... 1/3, linear\n"


@pytest.mark.parametrize(("options", "is_terminal"), [(["--quiet"], True), (["--quiet"], False), (["--json"], False)])
def test_silence(monkeypatch, options, is_terminal):
    assert show(monkeypatch, *options, is_terminal=is_terminal, work=some_work, patience=0) == ""


def test_answers_go_where_stdout_goes(monkeypatch, capsys):
    """And not to the terminal that the bar is on."""
    shown = show(monkeypatch, is_terminal=True, work=lambda report: (report(1, 2), print("answer"), report(2, 2)))
    assert capsys.readouterr().out == "answer\n" and "answer" not in shown


def test_waiting_ends_with_the_first_piece(capsys):
    told = []

    def pieces(read):
        read(512)
        told.append(512)
        yield "a"
        yield "b"

    assert list(while_reading(pieces)) == ["a", "b"] and told == [512]
    assert list(while_reading(lambda read: (x for x in ()))) == []
    assert capsys.readouterr() == ("", "")


def test_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress("packing", patience=0) as report:
        report(1, 2, "x")
