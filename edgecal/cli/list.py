"""`edgecal list`: the models on this machine."""

from __future__ import annotations

import click

from ._output import echo, echo_json
from .options import json_option


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """Show the models on this machine that commands know by name: demo, converted files, and those of the hub's cache.

    `edgecal rm NAME` removes one, `edgecal cache` shows what else is kept.
    """
    from ._cached import models, show_kept

    found = models()
    if as_json:
        echo_json([kept.to_dict() for kept in found])
    elif not found:
        echo("no models are here yet; fetch one: edgecal pull demo, edgecal pull ORG/NAME")
    else:
        show_kept(found)
