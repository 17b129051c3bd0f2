"""Disks that are full or read-only, a home that is nowhere, and no place to write at all.

Mounts are made in a namespace of the child's own, which takes rights that not everybody has: skipped without.
"""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny_adapter, write_tiny_hf

from .children import edgecal, environment, hidden, python

_FULL = "mount -t tmpfs -o size=48k tmpfs {folder}"
_READ_ONLY = "mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
_NOWHERE = "mount -o remount,bind,ro / && mount -t tmpfs -o ro tmpfs /dev/shm"
NUMPY = ("--backend", "numpy")


def mounted(mount: str, folder: Path, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """The command line with `mount` done before; skips the test where it cannot be."""
    script = f"({mount.format(folder=folder)}) 2>/dev/null || exit 77; cd {folder}; exec \"$@\""
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "edgecal", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(**changes))
    if done.returncode in (1, 77) and ("unshare" in done.stderr or done.returncode == 77):
        pytest.skip("mounting is not allowed here")
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    root = tmp_path_factory.mktemp("made")
    write_tiny_hf(root / "hf")
    for seed, name in enumerate("ab"):
        write_tiny_adapter(root / name, root / "hf", seed=seed)
    (root / "out").mkdir()
    return root


def test_a_limit_of_file_sizes_stops_quantizing_like_a_full_disk(tmp_path: Path) -> None:
    model = write_tiny_hf(tmp_path / "hf")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = edgecal("quantize", model, tmp_path / "packed", preexec=limited)
    assert done.returncode == 1 and "could not be written: File too large" in done.stderr
    assert not (tmp_path / "packed").exists() and hidden(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("mount", [_FULL, _READ_ONLY], ids=["full", "read-only"])
def test_what_writes_says_that_it_could_not(made: Path, mount: str) -> None:
    out, hf = made / "out", made / "hf"
    reason = "No space left on device" if mount == _FULL else "Read-only file system"
    pair = ("--adapter", f"a={made / 'a'}", "--adapter", f"b={made / 'b'}")
    commands = (
        ("quantize", hf, out / "packed"),
        ("merge", *pair, "--method", "concat", "--out", out / "merged", "--base", hf),
    )
    for command in commands:
        done = mounted(mount, out, *command)
        assert done.returncode == 1 and "could not be written" in done.stderr, (command, done.stderr)
        assert reason in done.stderr, done.stderr
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_nothing_writable_at_all(made: Path) -> None:
    for command in (
        ("generate", made / "hf", "-p", "Hello", "--raw", "-n", "3", *NUMPY),
        ("inspect", made / "hf"),
        ("doctor", made / "hf", "--adapter", f"a={made / 'a'}", "--adapter", f"b={made / 'b'}"),
        ("list",),
        ("cache",),
    ):
        done = mounted(_NOWHERE, made, *command)
        assert done.returncode == 0, (command, done.stderr)
    for command in (("quantize", made / "hf", made / "packed"), ("warmup",)):
        done = mounted(_NOWHERE, made, *command, EDGECAL_CACHE=str(made / "cache"))
        assert done.returncode == 1 and done.stderr.startswith("edgecal: error: "), (command, done.stderr)


@pytest.mark.slow
def test_a_home_that_is_nowhere(made: Path) -> None:
    """No HOME, one that is no folder, and one that cannot be made."""
    for home in (None, "/dev/null", "/proc/nothing"):
        for command in (("list",), ("generate", made / "hf", "-p", "Hello", "--raw", "-n", "2", *NUMPY)):
            done = edgecal(*command, HOME=home, XDG_CACHE_HOME=None, EDGECAL_CACHE=None)
            assert done.returncode == 0 and "Traceback" not in done.stderr, (home, command, done.stderr)


@pytest.mark.slow
def test_an_evaluation_goes_on_when_there_is_room_again(made: Path) -> None:
    """The disk is full in the middle; what was answered stays, and the next run does the rest."""
    rows = "".join(f'{{"id": "e{i}", "input": "Ann: text {i}", "reference": "Ann says {i}."}}\n' for i in range(60))
    (made / "rows.jsonl").write_text(rows)
    (made / "eval.yaml").write_text(
        f"model: {made / 'hf'}\ntasks: [summarize]\ndata: {made / 'rows.jsonl'}\n"
        f"adapters: {{summarize: {made / 'a'}}}\n"
        "methods: [zero_shot, main_adapter]\nmax_new_tokens: 4\nbatch: 4\n"
    )
    results = made / "results"

    command = ("eval", made / "eval.yaml", "--out", results)
    first = python(
        """
        import resource, signal, sys
        from edgecal.benchmark.metrics import language_of
        from edgecal.cli import main
        language_of("its library unpacks a model of some MB into a temporary file")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        main()
        """,
        *command,
        EDGECAL_BACKEND="numpy",
    )
    assert first.returncode == 1 and "cannot be written: File too large" in first.stderr, first.stderr
    answered = (results / "answers.jsonl").read_bytes().count(b"\n")
    assert answered > 4
    second = edgecal(*command, EDGECAL_BACKEND="numpy")
    assert second.returncode == 0, second.stderr
    assert (results / "answers.jsonl").read_bytes().count(b"\n") == 120
