"""The page is one file without a network or a script, whatever the names in it; tables escape as well."""

from __future__ import annotations

import copy
import csv
import io
import math
import re
from html.parser import HTMLParser

import pytest

from edgecal.pages.plots import Axis, linear_ticks, log_ticks, number
from edgecal.profile import tables
from edgecal.profile.page import to_html
from edgecal.profile.roofline import Read

EVIL = "</script><img src=x onerror=alert(1)>\"'&<b>"
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def named(report):
    """The report with names that would do harm."""
    again = copy.deepcopy(report)
    again.methods[1].name = EVIL
    again.model = again.model.__class__(**{**vars(again.model), "source": EVIL, "formats": {EVIL: 5}})
    again.machine["cpu"] = EVIL
    again.notes = [EVIL]
    again.when = EVIL
    return again


def test_one_file_that_fetches_and_runs_nothing(report):
    text = to_html(report)
    page = Page(text)
    assert page.open == [] and text.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name in names) and not {"src", "href"} & names
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert page.tags.count("svg") == 6
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    for title in ("Latency per token", "Distribution", "Latency by depth", "Where the time goes", "Roofline", "Peak"):
        assert title in text


def test_names_are_text_and_nothing_else(named):
    text = to_html(named)
    page = Page(text)
    assert "<img" not in text and "<b>" not in text and "</script>" not in text
    assert any(EVIL in words for words in page.words)


def test_a_report_of_nothing_is_a_page_as_well(report):
    empty = copy.deepcopy(report)
    for method in empty.methods:
        method.decodes, method.prompts, method.memory = [], [], None
    empty.reads = []
    page = Page(to_html(empty))
    assert page.open == [] and "svg" not in page.tags
    assert "nan" not in to_html(report).lower().replace("nano", "")


def test_csv_is_read_back_and_runs_no_formula(named):
    named.methods[0].name = "=HYPERLINK(1)"
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(tables.rows(named)))))
    assert {row["method"] for row in rows} == {"'=HYPERLINK(1)", EVIL, "lcpp", "two"}
    case = named.methods[0].decodes[0]
    row = next(r for r in rows if r["measured"] == "write")
    assert float(row["p95_s"]) == pytest.approx(case.latency.p95, abs=1e-9)
    assert int(row["weight_bytes_per_token"]) == named.model.read_bytes
    memory = [int(row[f"peak_{part}_bytes"]) for part in ("weights", "adapters", "kv_cache", "rest")]
    assert sum(memory) == int(row["peak_bytes"])


def test_markdown_keeps_its_columns(named):
    named.methods[2].name = "a|b\nc"
    page = tables.to_markdown(named)
    assert "a\\|b c" in page and "<img" not in page
    block: list[int] = []
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.replace("\\|", "").count("|"))
        else:
            assert len(set(block)) <= 1
            block = []


def test_the_split_table_ends_with_the_whole(report):
    """Whether the parts are the whole is asked in test_measure, in the median: one interruption shows in a column."""
    header, body = tables.split_table(report)
    assert header == ["ms per token", "base", "linear", "lcpp", "two"]
    parts = [[float(row[i]) for row in body] for i in range(1, 5)]
    for column, method in zip(parts, report.methods, strict=True):
        split = method.decodes[0].split
        assert sum(column[:-2]) == pytest.approx(column[-2], abs=0.01)
        assert column[-2:] == pytest.approx([1e3 * sum(split.parts.values()), 1e3 * split.whole_s], abs=0.001)


def test_a_step_lies_in_the_roofline_where_it_was_measured(report):
    """The dots' titles have the figures of the table, and their places are inside of the frame."""
    made = copy.deepcopy(report)
    made.methods, made.reads = made.methods[:1], [Read(2, 10_000_000_000, 1.0)]
    case = made.methods[0].decodes[0]
    made.methods[0].decodes = [case]
    text = to_html(made)
    roof = text[text.index("Roofline") :]
    point = made.methods[0].point(made.model, case, made.reads)
    dot = re.search(r'<circle class="s0" cx="([0-9.]+)" cy="([0-9.]+)" r="5"><title>(.*?)</title>', roof)
    assert dot is not None and 46 <= float(dot[1]) <= 410 and 0 <= float(dot[2]) <= 220
    rates = f"{number(point.operations / point.step_s / 1e9)} Gop/s, {number(point.rate / 1e9)} GB/s"
    assert dot[3] == f"base, write 12: {rates}" and "10 GB/s plain read" in roof


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.003), (3, 3.0001), (0, 12345)])
def test_ticks_are_few_and_within(low, high):
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low - 1e-9 <= t <= high * (1 + 1e-9) for t in ticks)


def test_logarithmic_ticks_and_axes():
    assert log_ticks(0.9, 60) == [1, 2, 5, 10, 20, 50]
    assert len(log_ticks(1e-3, 1e6)) >= 7
    axis = Axis(1, 100, 0, 200, logarithmic=True)
    assert axis(10) == pytest.approx(100) and math.isfinite(axis(0))
    flat = Axis(5, 5, 0, 100)
    assert math.isfinite(flat(5))
    assert [number(x) for x in (0.01234, 5, 1234, 12345, 2.5e6)] == ["0.0123", "5", "1234", "12.3k", "2.5M"]
