"""`edgecal list`: the models on this machine."""

from __future__ import annotations

import click

from ._inspect_tables import size
from ._output import echo, echo_json, screen
from ._tables import show_table
from .options import json_option


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """Show the models on this machine that commands know by name: demo, converted files, and those of the hub's cache.

    `edgecal rm NAME` removes one, `edgecal cache` shows what else is kept.
    """
    from ._cached import models

    found = models()
    if as_json:
        echo_json([kept.to_dict() for kept in found])
    elif not found:
        echo("no models are here yet; fetch one: edgecal pull demo, edgecal pull ORG/NAME")
    else:
        rows = [(kept.name, kept.kind, size(kept.bytes), kept.age, kept.path) for kept in found]
        headers = ("name", "kind", "size", "last used", "where")
        show_table(screen(), headers, rows, left=("name", "kind", "where"), spare=("where", "last used"))
