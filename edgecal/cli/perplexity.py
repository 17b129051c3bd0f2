"""`edgecal perplexity`: how well a model predicts a text, and what rounding or an adapter changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from edgecal_kernels.quant import FORMATS

from ..text.counted import counted
from ._format_choice import FormatChoice
from ._model_argument import model_argument
from ._output import echo, echo_json, tell
from ._progress import progress
from .options import ModelOptions, RecipeOptions, json_option, load_engine, model_options, recipe_options

if TYPE_CHECKING:
    from ..perplexity import Estimate, Perplexity


@click.command("perplexity")
@model_argument
@click.option(
    "-f",
    "--text",
    "text_file",
    required=True,
    metavar="FILE",
    help="Plain text or JSON lines; - is standard input, demo:dialogue the demo's.",
)
@click.option("--field", metavar="NAME", help="Of a JSON line; text, dialogue, prompt or content unless given.")
@click.option("--against", metavar="OTHER", help="A model of the same vocabulary to hold it against.")
@click.option(
    "--against-weights",
    type=FormatChoice(["auto", "fp32", *FORMATS]),
    help="Number format of OTHER (auto unless given); without --against OTHER is MODEL itself.",
)
@click.option("-c", "--context", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens of a window.")
@click.option("--windows", type=click.IntRange(min=1), help="Score so many windows at most.")
@click.option("--max-tokens", type=click.IntRange(min=2), help="Take so many tokens of the text at most.")
@recipe_options
@model_options
@json_option
def command(
    model: str,
    text_file: str,
    field: str | None,
    against: str | None,
    against_weights: str | None,
    context: int,
    windows: int | None,
    max_tokens: int | None,
    chosen: RecipeOptions,
    loading: ModelOptions,
    as_json: bool,
) -> None:
    """Say how well MODEL predicts a text: perplexity, with an error.

    The text is cut into windows that are scored independently, each token but the first of a window. Beside OTHER: KL
    divergence from OTHER's predictions to MODEL's, how often both find the same token most probable, and the ratio of
    perplexities. A recipe is used on both.

    \b
    edgecal perplexity qwen-int4 --text dialogues.jsonl --against qwen/ --against-weights fp32
    edgecal perplexity demo --text notes.txt --adapter demo:summarize
    """
    from ..demo import find
    from ..perplexity import measure
    from ..text.corpus import read_documents

    documents = read_documents(find(text_file), field)
    recipe = chosen.recipe() if chosen.adapters or chosen.given() else None
    engine = load_engine(model, loading, chosen.paths())
    other = None
    if against is not None or against_weights is not None:
        there = replace(loading, weights=against_weights or "auto")
        other = load_engine(against or model, there, chosen.paths())
    limits = [limit for limit in (max_tokens, windows and windows * context) if limit is not None]
    with progress("scoring windows") as report:
        found = measure(
            engine,
            documents,
            against=other,
            recipe=recipe,
            context=context,
            max_tokens=min(limits, default=None),
            progress=report,
        )
    if as_json:
        echo_json({"model": model, "against_model": (against or model) if other else None, **found.to_dict()})
    else:
        _print(found)


def _print(found: Perplexity) -> None:
    echo(f"perplexity      {_said(found.perplexity, '.4f')}")
    compared = found.against
    if compared is not None:
        echo(f"  of the other  {compared.perplexity:.4f}")
        echo(f"  by the other  {_said(compared.ratio, '.5f')}")
        echo(f"KL              {_said(compared.kl, '.5f')} nats")
        echo(f"  median, 99 %  {compared.kl_median:.5f}, {compared.kl_99:.5f}")
        echo(f"same top token  {_said(compared.same_top, '.2%')}")
    tell(f"[{counted(found.tokens, 'token')} scored in {counted(found.windows, 'window')} of {found.context}]")


def _said(of: Estimate, form: str) -> str:
    interval = "" if of.low is None or of.high is None else f"  ({of.low:{form}} to {of.high:{form}})"
    error = "" if of.error is None else f" +- {of.error:{form}}"
    return f"{of.value:{form}}{error}{interval}"
