"""`edgecal tune`: which numbers of threads are fastest here, for one model, from now on."""

from __future__ import annotations

import click

from ._model_argument import model_argument
from ._output import echo_json, screen, tell
from ._progress import progress
from ._tables import show_table
from .options import ModelOptions, json_option, load_engine, model_options_but_threads


@click.command("tune")
@model_argument
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="About how long to measure.",
)
@click.option("--forget", is_flag=True, help="Measure nothing: go back to the default for this model.")
@model_options_but_threads
@json_option
def command(model: str, seconds: float, forget: bool, loading: ModelOptions, as_json: bool) -> None:
    """Find the numbers of threads that read prompts and write tokens fastest, and keep them for MODEL.

    Every command and Engine.load take them then, on this machine and for this model and number format,
    unless --threads or --threads-prefill say otherwise.
    """
    from edgecal_kernels import cpu

    from .. import tuned
    from ..tuning import tune

    engine = load_engine(model, loading)
    if forget:
        known = tuned.forget(engine.model)
        if as_json:
            echo_json({"model": model, "path": str(tuned.tuned_file()), "forgotten": known})
        else:
            tell(f"{model}: {'the default number of threads again' if known else 'nothing was kept'}")
        return
    with progress("measuring") as report:
        found = tune(engine, seconds=seconds, progress=report)
    path = tuned.remember(engine.model, found.threads)
    if as_json:
        echo_json(
            {
                "model": model,
                "cpu": cpu.cpu_model(),
                "instructions": engine.model.ops.INSTRUCTIONS,
                "threads": {"decode": found.threads.decode, "prefill": found.threads.prefill},
                "measured": [vars(one) for one in found.measured],
                "rounds": found.rounds,
                "path": str(path),
                "total_s": round(found.total_s, 3),
            }
        )
        return
    rows = [(m.threads, f"{m.prefill_tokens_per_s:.0f}", f"{m.decode_tokens_per_s:.1f}") for m in found.measured]
    show_table(screen(), ["threads", "read tokens/s", "write tokens/s"], rows, left=())
    reading, writing = found.threads.prefill, found.threads.decode
    tell(f"from now on, for this model here: {reading} to read, {writing} to write")
    tell("--forget goes back to the default")
