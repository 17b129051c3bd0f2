"""A program for children: kill -9 at every step that an action takes on the disk, one after the other.

    kill_everywhere(folder, action, check)

`action` runs in forked children. Each is killed in front of one more event of the interpreter (a file opened, renamed,
removed, a library called) that comes after the first one about `folder`; then `check(n)` looks at what is there, and
the next one begins. Returns how many were killed before the action came to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_MOST = 2000
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "ctypes.dlsym")


def kill_everywhere(folder: Path, action: Callable[[], object], check: Callable[[int], None]) -> int:
    for n in range(1, _MOST):
        child = os.fork()
        if child == 0:
            _kill_at(n, str(folder))
            action()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return n - 1
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the action failed: {status}"
        check(n)
    raise AssertionError(f"not at an end after {_MOST} steps")


def _kill_at(n: int, folder: str) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and (seen or any(folder in str(argument) for argument in arguments)):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
