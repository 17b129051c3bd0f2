"""`edgecal cache`: everything that is kept on this machine, and what of it nobody needs."""

from __future__ import annotations

import click

from ._inspect_tables import size
from ._output import echo_json, tell
from .options import json_option


@click.command("cache")
@click.option("--clean", is_flag=True, help="Remove the kernels of other checkouts and versions; they compile again.")
@json_option
def command(clean: bool, as_json: bool) -> None:
    """Show what edgecal keeps: models, converted files, compiled kernels, each with its size.

    "old kernels" were compiled by another checkout, an earlier version or with another Numba; --clean removes them.
    EDGECAL_CACHE says where the folder is.
    """
    from edgecal_kernels.paths import cache_directory

    from ._cached import everything, remove, show_kept

    kept = everything()
    removed = [entry for entry in kept if clean and entry.kind == "old kernels"]
    for entry in removed:
        remove(entry)
    kept = [entry for entry in kept if entry not in removed]
    if as_json:
        entries = [entry.to_dict() for entry in kept]
        folder = str(cache_directory())
        echo_json({"path": folder, "entries": entries, "removed": [entry.to_dict() for entry in removed]})
        return
    if kept:
        show_kept(kept)
        tell(f"in all {size(sum(entry.bytes for entry in kept))}")
    if removed:
        folders = f"{len(removed)} folder{'' if len(removed) == 1 else 's'}"
        tell(f"removed {folders} of old kernels: {size(sum(entry.bytes for entry in removed))}")
    elif any(entry.kind == "old kernels" for entry in kept):
        tell("edgecal cache --clean removes the old kernels")
    tell(f"in {cache_directory()}, and the hub's own cache")
