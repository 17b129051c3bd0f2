"""The page of an evaluation: tables, plots, and all methods' answers to one example side by side.

The answers are in the page as JSON and are put in as text, so that whatever a model wrote stays text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import __version__
from ..pages import plots
from ..pages.page import page, table, text_list
from ..text.counted import counted
from . import tables
from .metrics import FAILURES
from .results import ResultFolder
from .tables import Report

_STYLE = """
.reader { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: end; margin: 8px 0 12px; }
.reader label { display: grid; gap: 2px; font-size: .82rem; color: var(--dim); }
.reader select, .reader button, .reader input { font: inherit; padding: 6px 8px; min-height: 40px; color: var(--text);
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; max-width: 100%; }
.reader button { min-width: 44px; cursor: pointer; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 1px; }
.texts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.texts article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  overflow-wrap: anywhere; }
.texts h3 { font-size: .9rem; margin: 0 0 6px; } .texts p { margin: 0; white-space: pre-wrap; }
.texts small { display: block; margin-top: 8px; color: var(--dim); } .texts .bad { color: var(--c4); font-weight: 600; }
.dim { color: var(--dim); }
"""
_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("answers").textContent);
const pick = name => document.getElementById(name);
let place = 0;
function option(select, value, text) {
  const made = document.createElement("option");
  made.value = value; made.textContent = text; select.append(made);
}
for (const task of Object.keys(data.tasks)) option(pick("task"), task, task);
option(pick("kind"), "", "all answers");
option(pick("kind"), "any", "any failure");
for (const kind of data.failures) option(pick("kind"), kind, kind);
function methods() {
  const before = pick("method").value;
  pick("method").replaceChildren();
  option(pick("method"), "", "all methods");
  for (const method of data.tasks[pick("task").value].methods) option(pick("method"), method, method);
  if ([...pick("method").options].some(one => one.value === before)) pick("method").value = before;
}
function chosen() {
  const task = data.tasks[pick("task").value], kind = pick("kind").value, method = pick("method").value;
  const wanted = answer => (!method || answer.method === method) &&
    (!kind || (kind === "any" ? answer.failure : answer.failure === kind));
  const found = task.examples.filter(example => example.answers.some(wanted));
  const best = example => Math.max(...example.answers.filter(wanted).map(answer => answer.score ?? 0));
  if (pick("order").value === "worst") found.sort((a, b) => best(a) - best(b));
  if (pick("order").value === "best") found.sort((a, b) => best(b) - best(a));
  return [found, answer => !method || answer.method === method];
}
function card(title, text, below, bad) {
  const made = document.createElement("article"), head = document.createElement("h3");
  const body = document.createElement("p"), foot = document.createElement("small");
  head.textContent = title; body.textContent = text || "(nothing)"; made.append(head, body);
  if (bad) {
    const mark = document.createElement("small");
    mark.className = "bad"; mark.textContent = bad; made.append(mark);
  }
  if (below) { foot.textContent = below; made.append(foot); }
  return made;
}
function show() {
  const [found, shown] = chosen();
  place = Math.min(Math.max(place, 0), Math.max(found.length - 1, 0));
  pick("where").textContent = found.length ? `${place + 1} of ${found.length}` : "no such answer";
  pick("texts").replaceChildren();
  if (!found.length) return;
  const example = found[place];
  pick("texts").append(card(`input (${example.id})`, example.input));
  example.references.forEach((text, i) => pick("texts").append(card(`reference ${i + 1}`, text)));
  for (const answer of example.answers.filter(shown))
    pick("texts").append(card(answer.method, answer.text, answer.below, answer.failure));
}
for (const name of ["task", "kind", "method", "order"])
  pick(name).addEventListener("change", () => { if (name === "task") methods(); place = 0; show(); });
pick("back").addEventListener("click", () => { place -= 1; show(); });
pick("next").addEventListener("click", () => { place += 1; show(); });
document.addEventListener("keydown", event => {
  if (event.target.tagName === "SELECT") return;
  if (event.key === "ArrowLeft") { place -= 1; show(); }
  if (event.key === "ArrowRight") { place += 1; show(); }
});
methods();
show();
"""
_READER = """<h2>Answers side by side</h2>
<div class=reader>
<label>task<select id=task></select></label>
<label>answers<select id=kind></select></label>
<label>of<select id=method></select></label>
<label>order<select id=order><option value="">as in the data</option><option value=worst>lowest score first</option>
<option value=best>highest score first</option></select></label>
<button id=back aria-label="previous example">&larr;</button><button id=next aria-label="next example">&rarr;</button>
<span id=where class=dim role=status></span>
</div>
<div id=texts class=texts></div>
"""


def to_html(report: Report, folder: str | Path, against: str = "linear") -> str:
    """The whole page. `folder` is where the answers are; differences are to the method `against`."""
    colours = {method: i for i, method in enumerate(report.methods)}
    parts = [text_list("facts", _facts(report))]
    if notes := _notes(report):
        parts.append("<h2>Notes</h2>" + text_list("notes", notes))
    parts.append(f"<h2>Plots</h2>{plots.legend(list(colours.items()))}")
    parts.append(f"<div class=grid-of-plots>{''.join(_plots(report, colours))}</div>")
    for title in tables.titles(report):
        body = tables.table_rows(report, title)
        parts.append(f"<h2>{escape(title)}</h2><div class=scroll>{table(tables.HEADERS, body)}</div>")
    parts += [_READER, _data(report, Path(folder)), _differences(report, against), _failures(report)]
    parts.append(f"<footer>edgecal {escape(__version__)}</footer>")
    return page(f"edgecal eval: {report.config['model']}", parts, style=_STYLE, script=_SCRIPT)


def _facts(report: Report) -> list[str]:
    config = report.config
    counts = sorted({cell.answered + cell.refused for cell in report.cells.values()})
    examples = counted(counts[-1], "example")
    if counts[0] != counts[-1]:
        examples = f"{counts[0]:,} to {examples}"
    stemmed = "stemmed" if config["stemmer"] else "not stemmed"
    most, prompts = config["max_new_tokens"], config["prompts"]
    return [
        f"{counted(len(report.tasks), 'task')}, {counted(len(report.methods), 'method')}, {examples} of each",
        f"weights {config['weights']}, greedy, at most {most} new tokens, prompts: {prompts}",
        "data: " + ", ".join(f"{task or 'all tasks'}: {source}" for task, source in config["data"].items()),
        f"F-measure, {stemmed}. {tables.LEGEND}",
        f"fingerprint {report.notes.get('fingerprint', 'unknown')}",
    ]


def _notes(report: Report) -> list[str]:
    notes = [f"{task}: {n} rows of the data were left out" for task, n in report.notes.get("n_left_out", {}).items()]
    for task, lacking in report.notes.get("lacking", {}).items():
        notes += [f"{task}: no {name}: {why}" for name, why in lacking.items()]
    for cell in report.cells.values():
        if cell.refused:
            notes.append(f"{cell.task}, {cell.method}: {counted(cell.refused, 'example')} could not be asked")
    return notes


def _plots(report: Report, colours: dict[str, int]) -> list[str]:
    found = []
    for task in report.tasks:
        rows, points = [], []
        for method, colour in colours.items():
            cell = report.cells.get((task, method))
            one = cell.estimate("weighted_rouge") if cell is not None else None
            if cell is None or one is None:
                continue
            rows.append((method, 100 * one.mean, 100 * one.low, 100 * one.high, colour))
            if cell.seconds is not None:
                points.append((method, cell.seconds, 100 * one.mean, colour))
        note = "Marks: 95 % intervals over the examples."
        found.append(plots.intervals(f"{task}: weighted ROUGE", rows, "percent", note))
        cost = "Up is better, left is cheaper; every method as it was batched here."
        found.append(plots.scatter(f"{task}: quality by cost", points, "s per example", "weighted ROUGE", cost))
    return found


def _differences(report: Report, against: str) -> str:
    rows = []
    for d in tables.between_methods(report, against):
        figures = (f"{100 * x:+.2f}" for x in (d.estimate.mean, d.estimate.low, d.estimate.high))
        rows.append([d.task, d.method, *figures, str(d.estimate.n)])
    if not rows:
        return ""
    header = ["task", "method", "difference", "from", "to", "examples"]
    title = f"Minus {against}: weighted ROUGE, paired, 95 % interval"
    return f"<h2>{escape(title)}</h2><div class=scroll>{table(header, rows, left=2)}</div>"


def _failures(report: Report) -> str:
    rows = [
        [cell.task, cell.method, str(cell.answered), *(str(cell.failures.get(kind, 0)) for kind in FAILURES)]
        for cell in report.cells.values()
    ]
    header = ["task", "method", "answers", *FAILURES]
    return f"<h2>Failures</h2><div class=scroll>{table(header, rows, left=2)}</div>"


def _data(report: Report, folder: Path) -> str:
    """The answers, for the script."""
    results = ResultFolder(folder)
    tasks: dict[str, dict[str, Any]] = {task: {"methods": [], "examples": []} for task in report.tasks}
    place: dict[tuple[str, str], dict[str, Any]] = {}
    for line in results.read("examples.jsonl"):
        task = tasks.get(line["task"])
        if task is not None:
            made = {"id": line["id"], "input": line["input"], "references": line["references"], "answers": []}
            place[line["task"], line["id"]] = made
            task["examples"].append(made)
    for name, method in report.cells:
        tasks[name]["methods"].append(method)
    for line in results.answers():
        example = place.get((line["task"], line["id"]))
        if example is not None:
            example["answers"].append(_answer(line))
    for found in tasks.values():
        order = {method: i for i, method in enumerate(found["methods"])}
        for example in found["examples"]:
            example["answers"].sort(key=lambda answer: order.get(answer["method"], len(order)))
    text = json.dumps({"tasks": tasks, "failures": list(FAILURES)}, ensure_ascii=False)
    # "<" cannot occur in the markup around it then, whatever the texts say
    return f'<script type="application/json" id=answers>{text.replace("<", chr(92) + "u003c")}</script>'


def _answer(line: dict[str, Any]) -> dict[str, Any]:
    if "error" in line:
        return {"method": line["method"], "text": "", "failure": "not asked", "below": line["error"], "score": None}
    scores = line["scores"]
    figures: Sequence[str] = [
        f"{label} {100 * scores[name]:.1f}"
        for name, label in (("rouge1", "R-1"), ("rouge2", "R-2"), ("rougeL", "R-L"), ("weighted_rouge", "WR"))
        if name in scores
    ]
    below = ", ".join([*figures, f"language {scores['language'] or 'none'}", f"{line['new_tokens']} tokens"])
    said = {"method": line["method"], "text": line["text"], "below": below}
    return {**said, "failure": scores["failure"], "score": scores.get("weighted_rouge")}
