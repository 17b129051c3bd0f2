"""`edgecal` in a process of its own: with pipes, and at a terminal that a test plays."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAIN = "from edgecal.cli import main; main()"
# The terminal becomes the controlling one, so that a typed Ctrl-C arrives as a signal
AT_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {MAIN}"
BACKEND = "numpy"  # it starts fastest
PATIENCE = 600.0  # a bound for what hangs, not a measure: a busy machine takes its time


SOURCES = os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels", "weights"))  # of this checkout, all three


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Everything that the command may keep goes to `home`."""
    own = {"EDGECAL_CACHE": str(home), "EDGECAL_BACKEND": BACKEND, "PYTHONPATH": SOURCES, "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "TERM": "dumb", "COLUMNS": "80", **variables}


def edgecal(
    *arguments: str | Path, home: Path, input: str | bytes = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end with `input` on standard input; output is decoded as UTF-8."""
    raw = input.encode() if isinstance(input, str) else input
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        input=raw,
        capture_output=True,
        env=environment(home, **variables),
        timeout=PATIENCE,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def killed_at_the_end(process: subprocess.Popen) -> Iterator[None]:
    """Whatever a test finds, the process does not outlive it."""
    with process:
        try:
            yield
        finally:
            process.kill()


def wait_for_work(process: subprocess.Popen, seconds: float) -> None:
    """Until the process has had `seconds` of CPU time: on a busy machine a clock says nothing about how far it is."""
    stat, deadline = Path(f"/proc/{process.pid}/stat"), time.monotonic() + PATIENCE * 2
    if not stat.exists():  # not Linux
        time.sleep(seconds)
        return
    while time.monotonic() < deadline:
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        if int(user) + int(system) >= seconds * os.sysconf("SC_CLK_TCK"):
            return
        time.sleep(0.05)
    raise AssertionError(f"less than {seconds} s of work in {PATIENCE * 2} s")


def wait_until_asleep(process: subprocess.Popen) -> None:
    """Until the main thread has slept for half a second, as it does when it waits for keys."""
    stat, asleep = Path(f"/proc/{process.pid}/stat"), 0
    deadline = time.monotonic() + PATIENCE
    while asleep < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
        sleeps = not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"
        asleep = asleep + 1 if sleeps else 0


class Terminal:
    """The other side of a terminal: what is typed into it, and what has appeared on it."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor, self.process = descriptor, process
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def interrupt(self, text: str = "") -> None:
        """Type Ctrl-C behind `text`, as late as a person would.

        Python shows the prompt a moment before it waits for keys, and a signal in that moment is noticed with the next
        key only.
        """
        wait_until_asleep(self.process)
        self.type(text + "\x03")

    def end(self) -> None:
        """Type Ctrl-D, as late as `interrupt`: a moment earlier it would end a line that nobody reads."""
        wait_until_asleep(self.process)
        self.type("\x04")

    def expect(self, text: str) -> str:
        """Everything up to and with `text`, from where the last call ended; AssertionError when it does not appear."""
        deadline = time.monotonic() + PATIENCE
        while text not in self._unread:
            left = deadline - time.monotonic()
            ready = select.select([self._descriptor], [], [], max(left, 0))[0]
            try:
                raw = os.read(self._descriptor, 65536) if ready else b""
            except OSError:  # Linux: the process has gone
                raw = b""
            assert raw, f"{text!r} did not appear; unread: {self._unread!r}"
            self._unread += raw.decode(errors="replace").replace("\r\n", "\n")
        before, _, self._unread = self._unread.partition(text)
        return before + text

    def wait(self) -> int:
        """The exit code; nobody reads what is printed meanwhile, so expect the last words first."""
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(*arguments: str | Path, home: Path, **variables: str) -> Iterator[Terminal]:
    """`edgecal` on a terminal of its own; killed at the end if it has not left."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", AT_TERMINAL, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment(home, **variables),
        )
        os.close(theirs)
        with killed_at_the_end(process):
            yield Terminal(ours, process)
    finally:
        os.close(ours)
