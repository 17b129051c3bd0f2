"""What an evaluation leaves behind: a folder with every answer, appended as they come.

    config.json      what was asked
    examples.jsonl   task, id, text, references of every example that was used
    answers.jsonl    one line per answer: task, method, id, text, scores, timings, fingerprint; or `error`
    costs.jsonl      per method and task: passes, parameters, bytes, and for each chunk seconds and peak memory
    verdicts.jsonl   what judges said of the answers, where they were asked
    notes.json       what was left out, and why

An answer counts once its line is whole: a process that is killed loses what it was computing and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgecal_weights.files import parse_json, read_object, write_json

from ..errors import BenchmarkError
from .lines import wrong_line, wrong_notes

_LARGEST_JSON = 64 << 20
Line = dict[str, Any]


class ResultFolder:
    """Opened for one configuration: BenchmarkError where the folder holds answers of another one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def begin(self, config: Line, fingerprint: str) -> None:
        """Make the folder, or go on in it. `fingerprint` is that of everything that makes an answer what it is."""
        if (self.path / "config.json").exists() and "tasks" not in self.config():
            raise BenchmarkError(f"{self.path} holds a config.json of something else: choose another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchmarkError(f"{self.path} cannot be made: {error.strerror or error}") from error
        for name in ("answers.jsonl", "costs.jsonl", "examples.jsonl"):
            self.mend(name)
        other = next((line for line in self.answers() if line.get("fingerprint") != fingerprint), None)
        if other is not None:
            raise BenchmarkError(
                f"{self.path} holds answers of another model, prompt set or setting (fingerprint "
                f"{other.get('fingerprint')}, not {fingerprint}): choose another --out, or remove it"
            )
        write_json(self.path / "config.json", config, indent=1)

    def mend(self, name: str) -> None:
        """Cut off a last line that a killed process left without its end."""
        file = self.path / name
        if not file.exists():
            return
        with file.open("rb+") as opened:
            size = opened.seek(0, os.SEEK_END)
            at = size
            while at > 0:
                start = max(0, at - (1 << 16))
                opened.seek(start)
                found = opened.read(at - start).rfind(b"\n")
                if found >= 0:
                    opened.truncate(start + found + 1)
                    return
                at = start
            opened.truncate(0)

    def append(self, name: str, lines: Iterable[Line]) -> None:
        """Whole lines, on disk when this returns."""
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        try:
            with (self.path / name).open("ab") as opened:
                opened.write(text.encode("utf-8", "surrogatepass"))
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise BenchmarkError(f"{self.path / name} cannot be written: {error.strerror or error}") from error

    def read(self, name: str) -> Iterator[Line]:
        """BenchmarkError names the file and the line."""
        file = self.path / name
        if not file.exists():
            return
        with file.open("rb") as opened:
            for number, raw in enumerate(opened, 1):
                try:
                    line = parse_json(raw)
                except ValueError as error:
                    raise BenchmarkError(f"{file}, line {number}: not valid JSON: {error}") from error
                if not isinstance(line, dict):
                    raise BenchmarkError(f"{file}, line {number}: expected an object")
                if (wrong := wrong_line(name, line)) is not None:
                    raise BenchmarkError(f"{file}, line {number}: {wrong}")
                yield line

    def answers(self) -> Iterator[Line]:
        return self.read("answers.jsonl")

    def config(self) -> Line:
        """BenchmarkError where this is no folder of results."""
        file = self.path / "config.json"
        if not file.exists():
            raise BenchmarkError(f"{self.path} holds no results: expected the config.json of `edgecal eval`")
        return read_object(file, _LARGEST_JSON, error=BenchmarkError)

    def keep_notes(self, notes: Line) -> None:
        write_json(self.path / "notes.json", notes, indent=1)

    def notes(self) -> Line:
        """BenchmarkError names the file and the key."""
        file = self.path / "notes.json"
        notes = read_object(file, _LARGEST_JSON, error=BenchmarkError) if file.exists() else {}
        if (wrong := wrong_notes(notes)) is not None:
            raise BenchmarkError(f"{file}: {wrong}")
        return notes
