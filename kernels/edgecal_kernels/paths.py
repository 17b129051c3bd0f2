"""Where edgecal keeps what can be made again: compiled kernels, the demo model, the history of the chat."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

CACHE_ENV = "EDGECAL_CACHE"


def cache_directory() -> Path:
    """$EDGECAL_CACHE, else $XDG_CACHE_HOME/edgecal, else ~/.cache/edgecal. It need not exist."""
    if os.environ.get(CACHE_ENV):
        return Path(os.environ[CACHE_ENV]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgecal"


def private_temporary_directory() -> Path | None:
    """A folder for temporary files that is this user's alone; None where there is no such thing.

    What was compiled is code: a folder that another user has made, or may write to, is not taken.
    """
    try:
        user = os.getuid() if hasattr(os, "getuid") else 0  # elsewhere the place itself is the user's own
        folder = Path(tempfile.gettempdir()) / f"edgecal-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(facts.st_mode) and (
        not hasattr(os, "getuid") or (facts.st_uid == user and not facts.st_mode & 0o077)
    )
    return folder if private else None
