"""`tune` chooses the fewest threads that are as fast as any, and `Engine.load` takes them from then on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecal import Engine, tuned, tuning
from edgecal.errors import OptionError, StorageError
from edgecal.threads import Threads
from edgecal.tuning import candidates
from edgecal_kernels import cpu
from tests.tiny import write_tiny_hf

several = pytest.mark.skipif(cpu.usable_cores() < 2, reason="this process has one core")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "cache_directory", lambda: tmp_path / "cache")
    return write_tiny_hf(tmp_path / "model")


def load(model: Path, **options: object) -> Engine:
    return Engine.load(model, **{"weights": "int4", "backend": "numba", **options})


@pytest.mark.parametrize(
    ("usable", "physical", "expected"),
    [(1, 1, [1]), (4, 4, [1, 2, 4]), (8, 6, [1, 2, 4, 6, 8]), (3, 8, [1, 2, 3]), (12, 6, [1, 2, 4, 6, 8, 12])],
)
def test_the_numbers_that_are_tried(usable, physical, expected):
    assert candidates(usable, physical) == expected


@several
def test_the_fewest_as_good_as_the_best_are_taken(model, monkeypatch):
    """Reading is faster with two, writing as good as the same: by the times that are given here."""
    times = {1: (2.0, 1.02), 2: (1.0, 1.0)}
    monkeypatch.setattr(tuning, "candidates", lambda usable, physical: [1, 2])
    monkeypatch.setattr(tuning, "_once", lambda engine, ids, answer: times[engine.threads.decode])
    engine, seen = load(model, threads=2), []
    found = tuning.tune(engine, progress=lambda *what: seen.append(what))
    assert found.threads == engine.threads == Threads(decode=1, prefill=2)
    assert [one.threads for one in found.measured] == [1, 2] and found.rounds >= 2
    reads = [one.prefill_tokens_per_s for one in found.measured]
    assert reads[1] == pytest.approx(2 * reads[0])
    assert seen[-1] == (found.rounds * 2, found.rounds * 2, "2 threads")


def test_a_real_run_measures_every_number(model):
    engine = load(model)
    found = tuning.tune(engine, seconds=1e-9)
    assert [one.threads for one in found.measured] == candidates(cpu.usable_cores(), cpu.physical_cores())
    assert all(one.prefill_tokens_per_s > 0 and one.decode_tokens_per_s > 0 for one in found.measured)
    assert found.rounds == 2 and engine.threads == found.threads


@several
def test_what_was_found_serves_this_model_until_it_is_forgotten(model, tmp_path):
    engine = load(model)
    default, other = engine.threads, Threads(decode=1, prefill=2)
    tuned.remember(engine.model, other)
    assert load(model).threads == other
    assert load(model, threads=2).threads == Threads(2, 2), "what is asked for comes first"
    assert load(model, prefill_threads=1).threads == Threads(default.decode, 1)
    assert load(model, weights="int8").threads == default, "another number format is another model"
    assert tuned.forget(engine.model) and not tuned.forget(engine.model)
    assert load(model).threads == default


@pytest.mark.parametrize(
    "content", ["", "[]", '{"threads": 3}', '{"threads": {"KEY": {"decode": 0, "prefill": 1}}}',
                '{"threads": {"KEY": {"decode": 1, "prefill": 100000}}}', '{"threads": {"KEY": {"decode": true}}}',
                '{"threads": {"KEY": 1}}', "[" * 100_000]
)  # fmt: skip
def test_a_file_of_something_else_counts_as_none(model, content):
    engine = load(model)
    tuned.tuned_file().parent.mkdir()
    tuned.tuned_file().write_text(content.replace("KEY", tuned.key_of(engine.model)))
    assert tuned.recall(engine.model) is None
    tuned.remember(engine.model, Threads(1, 1))
    assert tuned.recall(engine.model) == Threads(1, 1)
    assert json.loads(tuned.tuned_file().read_text())["schema_version"] == 1


def test_an_interrupted_measurement_leaves_the_threads_alone(model, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    engine = load(model, threads=1)
    monkeypatch.setattr(tuning, "_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(engine)
    assert engine.threads == Threads(1, 1)


def test_what_is_refused(model, tmp_path):
    with pytest.raises(OptionError, match="NumPy back end has no threads to tune"):
        tuning.tune(load(model, backend="numpy"))
    with pytest.raises(OptionError, match="seconds must be a positive number, found 0"):
        tuning.tune(load(model), seconds=0)
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(StorageError, match="EDGECAL_CACHE"):
        tuned.remember(load(model).model, Threads(1, 1))
