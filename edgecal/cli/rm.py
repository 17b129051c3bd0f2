"""`edgecal rm`: remove models from this machine."""

from __future__ import annotations

import click

from edgecal_weights.nearest import did_you_mean

from ..errors import ModelNotFoundError
from ._inspect_tables import size
from ._output import echo, echo_json
from .options import json_option


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from ._cached import models

    return [kept.name for kept in models() if kept.name.startswith(incomplete)]


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_names)
@json_option
def command(names: tuple[str, ...], as_json: bool) -> None:
    """Remove models that `edgecal list` shows. Those of the hub's cache are gone for other programs, too."""
    from ._cached import models, remove

    here = {kept.name: kept for kept in models()}
    for name in names:  # all are looked up before the first is removed
        if name not in here:
            raise ModelNotFoundError(f"no model {name!r} is kept here{did_you_mean(name, here)}; see edgecal list")
    chosen = [here[name] for name in dict.fromkeys(names)]
    for kept in chosen:
        remove(kept)
        if not as_json:
            echo(f"removed {kept.name}: {size(kept.bytes)}")
    if as_json:
        echo_json([kept.to_dict() for kept in chosen])
