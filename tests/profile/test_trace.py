"""The trace keeps to the trace event format, and slices lie within each other."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from edgecal.profile.split import LABELS
from edgecal.profile.trace import trace

SLACK = 0.002  # microseconds: three digits behind the point are written


@pytest.fixture(scope="module")
def events(measurement):
    values = json.loads(json.dumps(trace(measurement.spans, title="a <title>"), allow_nan=False))
    assert set(values) == {"traceEvents", "displayTimeUnit", "otherData"} and values["displayTimeUnit"] == "ms"
    return values["traceEvents"]


def test_every_event_is_well_formed(events):
    for event in events:
        assert {"name", "ph", "pid", "tid", "ts"} <= set(event) and isinstance(event["name"], str)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["args"], dict)
    names = {e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert names == {"base", "linear", "lcpp", "two"}
    assert any(e["name"] == "process_name" and e["args"]["name"] == "a <title>" for e in events)


def test_the_phases_are_there(events):
    found = {event["name"] for event in events}
    assert {"compile", "read 24", "read 24 @ 16", "write 12", "prefill 24", "token 0", "token 11"} <= found
    assert {LABELS["qkv"], LABELS["lora"], LABELS["head"], "forward", "sampling"} <= found


def test_slices_are_nested(events):
    """Perfetto drops slices of a track that overlap without one holding the other."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["tid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
    for slices in tracks.values():
        open_ends = []
        for start, end, name in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_ends and open_ends[-1] <= start + SLACK:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + SLACK, name
            open_ends.append(end)


def test_the_operations_of_a_forward_fill_it(events):
    forwards = [e for e in events if e["ph"] == "X" and e["name"] == "forward"]
    operations = [e for e in events if e.get("cat") == "operation" and e["name"] != "sampling"]
    for forward in forwards[:20]:
        end = forward["ts"] + forward["dur"]
        inside = [
            o
            for o in operations
            if o["tid"] == forward["tid"] and forward["ts"] - SLACK <= o["ts"] and o["ts"] + o["dur"] <= end + SLACK
        ]
        assert sum(o["dur"] for o in inside) == pytest.approx(forward["dur"], abs=0.05)


def test_no_spans_no_slices():
    assert [e["ph"] for e in trace([])["traceEvents"]] == ["M"]
