"""`edgecal warmup`: compile the kernels now, so that the first answer does not wait for it."""

from __future__ import annotations

import click

from ._output import echo_json, tell
from .options import compile_kernels, json_option


@click.command("warmup")
@json_option
def command(as_json: bool) -> None:
    """Compile the kernels for this machine and keep them on disk. Needed once per machine and version."""
    from edgecal_kernels import cpu, dispatch

    ops = dispatch.backend()
    if ops.NAME == "ready":
        from edgecal_kernels.ready_ops import library

        size = library.path.stat().st_size
        facts = {"cpu": cpu.cpu_model(), "instructions": library.isa, "path": str(library.path), "bytes": size}
        if as_json:
            echo_json({**facts, "total_s": 0, "back_end": dispatch.serving()})
            return
        tell(f"kernels for {facts['cpu']} ({library.isa}) are ready: {size / 2**20:.1f} MiB, {library.path}")
        tell(dispatch.serving())
        return
    dispatch.backend("numba")  # says what is missing
    from edgecal_kernels import isa
    from edgecal_kernels.jit import can_keep, kernel_cache
    from edgecal_kernels.warmup import warm_up

    if not can_keep():
        warm_up()  # says what is the matter
    seconds = compile_kernels("numba")
    folder = kernel_cache()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    facts = {"cpu": cpu.cpu_model(), "instructions": isa.active_name(), "path": str(folder), "bytes": size}
    if as_json:
        echo_json({**facts, "total_s": round(seconds, 3), "back_end": dispatch.serving()})
        return
    done = f"compiled in {seconds:.1f} s" if seconds else "were compiled already"
    tell(f"kernels for {facts['cpu']} ({facts['instructions']}) {done}: {size / 2**20:.1f} MiB in {folder}")
    tell(dispatch.serving())
