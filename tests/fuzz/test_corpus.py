"""Every target deals with its good inputs, with those that once did harm, and with a few hundred new ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .judge import Judge
from .mutate import json_text, raw, safetensors
from .target import CORPUS, Target, corpus, find, names


@pytest.mark.parametrize("name", names())
def test_nothing_of_the_corpus_does_harm(name: str, tmp_path: Path) -> None:
    judge = Judge(find(name), tmp_path)
    verdicts = [judge(data) for data in judge.seeds]
    assert "accepted" in {verdict.outcome for verdict in verdicts}, "the good inputs are not good"
    for path in corpus(name):
        verdicts.append(judge(path.read_bytes()))
    faults = [f"{verdict.fault}\n{verdict.details}" for verdict in verdicts if verdict.fault]
    assert not faults, faults[0]


def test_every_corpus_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(names())


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda data: {}["key"], "KeyError"),
        (lambda data: bytearray(b"x") * (100 << 20), "MB of memory"),
        (lambda data: [None for _ in iter(int, 1)], "four times its time"),
    ],
)
def test_the_judge_sees_what_goes_wrong(harm, fault: str, tmp_path: Path) -> None:
    target = Target(lambda data, folder: harm(data), lambda folder: [], raw, seconds=0.1, megabytes=50)
    verdict = Judge(target, tmp_path)(b"")
    assert verdict.fault is not None and fault in verdict.fault


def test_mutators_depend_on_their_random_numbers_alone() -> None:
    data = (8).to_bytes(8, "little") + b'{"a": 1}' + b"body"
    for mutate in (raw, json_text, safetensors):
        made = [mutate(data, random.Random(seed)) for seed in range(50)]
        assert made == [mutate(data, random.Random(seed)) for seed in range(50)]
        assert len(set(made)) > 25
