"""`edgecal env`: what the machine has, what is used of it, and what would be faster."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from ._output import echo, echo_json
from .options import json_option

_SIZES = "_bytes"
_SPELLED = {"path": "cache folder", "word": "word size"}  # where the name in the JSON says too little


@click.command("env")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine has, which kernels and packages are used and why, and what to do for more speed.

    The output is made to be pasted into a bug report: no names of people, models or tokens are in it.
    """
    from dataclasses import asdict

    from ..environment import environment

    found = environment()
    if as_json:
        echo_json(asdict(found))
        return
    missing = [name for name, version in found.packages.items() if version is None]
    versions = ", ".join(f"{name} {version}" for name, version in found.packages.items() if version is not None)
    for title, facts in (("machine", found.machine), ("used", found.used)):
        echo(title)
        for name, value in facts.items():
            if name == "granted_bytes":
                _show("for edgecal", f"{_mebibytes(value)} {facts['granted_by']}")
            elif name not in ("granted_by", "kernels"):  # `back_end` says which kernels, and why
                _show(name, value)
    echo("packages")
    _show("installed", versions)
    _show("missing", ", ".join(missing) or "none")
    echo("for more speed")
    for text in found.advice or ["nothing comes to mind"]:
        echo(textwrap.fill(text, 78, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False))


def _show(name: str, value: Any) -> None:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, float):
        value = f"{value:.1f}"
    elif name.endswith(_SIZES):
        name, value = name.removesuffix(_SIZES), _mebibytes(value)
    head = f"  {_SPELLED.get(name, name.replace('_', ' '))}: "
    echo(textwrap.fill(head + _anonymous(str(value)), 78, subsequent_indent="    ", break_on_hyphens=False))


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.0f} MiB"


def _anonymous(text: str) -> str:
    """With ~ in the place of the home folder, which is often a person's name."""
    from pathlib import Path

    try:
        home = str(Path.home())
    except RuntimeError:  # there is none
        return text
    return text if home == "/" else text.replace(home, "~")
