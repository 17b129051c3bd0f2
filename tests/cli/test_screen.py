"""What fits a terminal: answers broken between words, tables without a cut number, at 40 to 120 columns."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgecal.cli._answer import CONTROL, AnswerWriter
from edgecal.cli._output import tell
from edgecal.cli._tables import show_table
from tests.cli.shell import edgecal, terminal
from tests.tiny import write_tiny_hf


def wrapped(monkeypatch, capsys, text: str, columns: int, size: int = 3) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    writer = AnswerWriter(at_terminal=True)
    for start in range(0, len(text), size):
        writer.write(text[start : start + size])
    writer.end()
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [20, 60, 80])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_end_between_words(monkeypatch, capsys, columns, size):
    text = (
        "The meeting is on Monday at ten, not on Tuesday.\n\n  - bring the list\tof open points\nand tell everyone. "
        * 3
    )
    shown = wrapped(monkeypatch, capsys, text, columns, size)
    assert max(len(line.expandtabs()) for line in shown.splitlines()) < columns
    assert shown.split() == text.split()
    assert "\n\n  - bring the" in shown  # the model's own lines and indents stay


def test_words_without_an_end_and_languages_without_spaces(monkeypatch, capsys):
    shown = wrapped(monkeypatch, capsys, "see https://example.org/" + "a" * 50 + " there", 30)
    assert "a" * 50 in shown and shown.startswith("see\nhttps")  # a link is not cut by us
    shown = wrapped(monkeypatch, capsys, "会议在星期一十点而不是星期二请告诉大家" * 3, 20)
    assert max(cell_len(line) for line in shown.splitlines()) < 20 and len(shown.splitlines()) >= 6


def test_a_pipe_gets_the_text_as_it_is(capsys):
    text = "a\x1b[31m " + "word " * 60 + "\t\n end "
    writer = AnswerWriter(at_terminal=False)
    for character in text:
        writer.write(character)
    writer.end()
    assert capsys.readouterr().out == text + "\n"


def test_a_terminal_is_not_obeyed(monkeypatch, capsys):
    assert wrapped(monkeypatch, capsys, "a\x1b[31mred\x9b2J", 80) == "a\ufffd[31mred\ufffd2J\n"


def test_generate_at_a_terminal_and_in_a_pipe(tmp_path):
    """On a screen the same text as in a pipe, with its lines broken as `AnswerWriter` does."""
    model = write_tiny_hf(tmp_path / "model", max_position_embeddings=4096)
    arguments = ("generate", model, "hello", "-n", "120", "-q", "--temperature", "1", "--seed", "5")
    piped = edgecal(*arguments, home=tmp_path).stdout
    with terminal(*arguments, home=tmp_path, COLUMNS="24", TERM="xterm") as screen:
        shown = screen.expect("\n")
        assert screen.wait() == 0
    assert "\x1b" in piped and "\x1b" not in shown
    assert "".join(shown.split()) == "".join(piped.translate(CONTROL).split())


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(monkeypatch, text: str, columns: str, stream: io.StringIO) -> str:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stderr", stream)
    tell(text, err=True)
    return stream.getvalue()


SAID = "edgecal: error: no adapter is loaded\n  /method NAME    how to compose the adapters; alone: list\n\nend"


@pytest.mark.parametrize("columns", [24, 40])
def test_what_is_told_ends_between_words(monkeypatch, columns):
    shown = told(monkeypatch, SAID, str(columns), Screen())
    assert max(map(len, shown.splitlines())) <= columns and shown.split() == SAID.split()
    assert "\n  /method NAME    how" in shown and "\n    " in shown and shown.endswith("\n\nend\n")
    path = "/a/very/long/path/that-is/" + "x" * 40
    assert path in told(monkeypatch, f"written to {path}", str(columns), Screen())


def test_what_is_told_to_a_pipe_stays_as_it_is(monkeypatch):
    assert told(monkeypatch, SAID, "24", io.StringIO()) == SAID + "\n"


@pytest.mark.parametrize("arguments", [("genrate",), ("generate", "nothing-of-this-name", "x")])
def test_refusals_at_a_narrow_terminal(tmp_path, arguments):
    piped = edgecal(*arguments, home=tmp_path)
    with terminal(*arguments, home=tmp_path, COLUMNS="50") as screen:
        shown = screen.expect(piped.stderr.split()[-1])
        assert screen.wait() == piped.returncode
    assert shown.split() == piped.stderr.split()
    assert max(map(len, shown.splitlines())) <= 50 < max(map(len, piped.stderr.splitlines()))


# -------------------------------------------------------------------------------------------------- tables


def table(width: int, headers, rows, **options) -> list[str]:
    out = io.StringIO()
    show_table(Console(file=out, width=width, markup=False, emoji=False, highlight=False), headers, rows, **options)
    return [line.rstrip() for line in out.getvalue().splitlines()]


HEADERS = ("method", "passes", "rank", "first token s", "tokens/s", "peak MiB")
ROWS = [
    ("learnable_calibration_pp", "1", "20", "0.27", "379.1", "1,320.5"),
    ("linear", "1", "16", "0.28", "384.0", "1,318.9"),
]


def test_a_wide_screen_has_everything():
    lines = table(80, HEADERS, ROWS)
    assert lines == [
        "method                    passes  rank  first token s  tokens/s  peak MiB",
        "learnable_calibration_pp       1    20           0.27     379.1   1,320.5",
        "linear                         1    16           0.28     384.0   1,318.9",
    ]


def test_spare_columns_go_first():
    assert table(64, HEADERS, ROWS, spare=("passes", "rank"))[0].split() == [
        "method", "rank", "first", "token", "s", "tokens/s", "peak", "MiB",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80])
def test_no_number_is_lost_or_cut(width):
    lines = table(width, HEADERS, ROWS)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for row in ROWS:
        assert all(cell in words for cell in row[1:])
    assert "".join(ROWS[0][0]) in "".join(word for word in words if word in ROWS[0][0]) or width < 30


@given(
    st.integers(20, 120),
    st.lists(
        st.tuples(st.text("abc_", min_size=1, max_size=30), st.integers(0, 10**9), st.integers(0, 10**6)), min_size=1
    ),
)
def test_any_table(width, rows):
    lines = table(width, ("name", "bytes", "n"), [(name, f"{a:,}", f"{b}") for name, a, b in rows])
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert all(f"{a:,}" in words and str(b) in words for _, a, b in rows)
