"""A report goes through JSON unchanged; whatever is no report is refused by name."""

from __future__ import annotations

import copy
import json

import pytest

from edgecal.errors import FileFormatError
from edgecal.profile import ProfileReport, load


@pytest.fixture
def values(report):
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_round_trip(report, values, tmp_path):
    again = ProfileReport.from_dict(values).to_dict()
    again.pop("summary"), values.pop("summary")
    assert again == values
    (tmp_path / "a.json").write_text(json.dumps(values))
    read = load(tmp_path / "a.json")
    assert read.methods[1].decodes[0].latency.p50 == pytest.approx(report.methods[1].decodes[0].latency.p50, abs=1e-9)
    assert read.methods[1].memory.rest == report.methods[1].memory.rest


def test_the_summary_is_computed_and_not_believed(values):
    values["summary"] = "nonsense"
    assert ProfileReport.from_dict(values).to_dict()["summary"] != "nonsense"


def at(values, *path):
    for key in path[:-1]:
        values = values[key]
    return values, path[-1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "other", 'expected an object with "schema": "edgecal-profile"'),
        (("schema_version",), 3, "version 3 of the profile's schema, this edgecal reads version 2: measure again"),
        (("schema_version",), "1", "version '1'"),
        (("methods",), {}, "methods is an object, expected a list"),
        (("methods", 0, "decodes", 0, "new"), "x", r"methods\[0\].decodes\[0\].new is \"x\", expected a whole number"),
        (("methods", 0, "decodes", 0, "new"), True, "expected a whole number"),
        (("methods", 0, "decodes", 0, "runs", 0, 1), -1.0, r"runs\[0\]\[1\] is -1.0, expected a number from 0"),
        (("methods", 0, "decodes", 0, "write_s", 0), None, "expected a number"),
        (("methods", 0, "memory", "peak"), -5, r"expected a whole number from 0 to 1e\+18"),
        (("methods", 0, "surprise"), 1, r"methods\[0\].surprise is no part of a profile"),
        (("model", "formats", "int8"), "much", "model.formats.int8"),
        (("load_s",), 1e999, "expected a number"),
        (("interrupted",), "no", "expected true or false"),
        (("when",), 5, "expected text"),
    ],
)
def test_broken_values_are_named(values, path, value, message):
    place, key = at(values, *path)
    place[key] = value
    with pytest.raises(FileFormatError, match=message):
        ProfileReport.from_dict(values, "a.json")


def test_missing_values_are_named(values):
    broken = copy.deepcopy(values)
    del broken["methods"][0]["decodes"][0]["depth"]
    with pytest.raises(FileFormatError, match=r"methods\[0\].decodes\[0\].depth is missing"):
        ProfileReport.from_dict(broken)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema": 3}', b"NaN"])
def test_files_that_are_no_profile(tmp_path, content):
    file = tmp_path / "b.json"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match="b.json is (no profile|not valid JSON|not UTF-8)"):
        load(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        load(tmp_path / "nothing.json")
    with pytest.raises(FileFormatError, match="cannot be read: Is a directory"):
        load(tmp_path)
