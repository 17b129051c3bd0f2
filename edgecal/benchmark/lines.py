"""What has to stand in the files of an evaluation: the keys that tables and pages read, and the kinds of their values.

Results are handed from one to another, and a line that is not what it should be is refused by its place instead of
failing in the middle of a table. Keys that nobody reads may be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgecal_kernels.errors import shown
from edgecal_weights.files import is_number

_MOST = 1e18  # of any figure
_WORDS = ("failure", "language")  # among the scores

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return is_number(value) and 0 <= value <= _MOST


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _mapping(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _scores(value: Any) -> bool:
    if not isinstance(value, dict) or not all(_text(value.get(name)) for name in _WORDS):
        return False
    return all(_number(item) for name, item in value.items() if name not in _WORDS)


_WHAT = {"task": _text, "method": _text, "id": _text}
_REFUSED = {**_WHAT, "error": _text}
_ANSWER = {**_WHAT, "text": _text, "scores": _scores, "new_tokens": _whole}
_COSTS = ("n_passes", "adapter_parameters", "adapter_bytes", "extra_parameters", "extra_bytes", "answered")
_LINES: dict[str, Mapping[str, Check]] = {
    "costs.jsonl": {
        "task": _text,
        "method": _text,
        "total_s": _number,
        "peak_bytes": _or_none(_number),
        **dict.fromkeys(_COSTS, _whole),
    },
    "examples.jsonl": {"task": _text, "id": _text, "input": _text, "references": _texts},
    "verdicts.jsonl": {**_WHAT, "judge": _text, "verdict": lambda value: value is None or value in (0, 1)},
}
_NOTES: Mapping[str, Check] = {
    "fingerprint": _text,
    "n_parameters": _number,
    "n_left_out": _mapping(_whole),
    "lacking": _mapping(_mapping(_text)),
}


def wrong_line(file: str, line: Mapping[str, Any]) -> str | None:
    """What is wrong with a line of a file of this name; None where nothing is."""
    if file == "answers.jsonl":
        return _wrong(_REFUSED if "error" in line else _ANSWER, line)
    return _wrong(_LINES.get(file, {}), line)


def wrong_notes(notes: Mapping[str, Any]) -> str | None:
    """As `wrong_line`, for notes.json, in which everything may be missing."""
    return _wrong({key: check for key, check in _NOTES.items() if key in notes}, notes)


def _wrong(checks: Mapping[str, Check], values: Mapping[str, Any]) -> str | None:
    for key, check in checks.items():
        if key not in values:
            return f"{key!r} is missing"
        if not check(values[key]):
            return f"{key!r} is {shown(values[key])}, which it cannot be"
    return None
