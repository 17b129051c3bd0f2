"""Where edgecal keeps what can be made again: compiled kernels, the demo model, the history of the chat."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ENV = "EDGECAL_CACHE"


def cache_directory() -> Path:
    """$EDGECAL_CACHE, else $XDG_CACHE_HOME/edgecal, else ~/.cache/edgecal. It need not exist."""
    if os.environ.get(CACHE_ENV):
        return Path(os.environ[CACHE_ENV]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgecal"
