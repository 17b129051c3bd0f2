"""The papers' benchmark: 4 compositional tasks with 14 sub-tasks, every method, any model, one command.

    from edgecal.benchmark import EvalConfig, Evaluation, read_report
    evaluation = Evaluation(EvalConfig.from_file("eval.yaml"), "results")
    evaluation.run()
    report = read_report("results")

docs/evaluation.md has the configuration, the data sets and the metrics. Needs the extra `edgecal[eval]`.
"""

from __future__ import annotations

from .config import EvalConfig, quick
from .datasets import DATASETS, Example, load_examples
from .prompts import PromptSet, load_prompts
from .run import Evaluation
from .tables import Report, between_methods, between_runs, read_report
from .tasks import SUB_TASKS, Task
from .trend import trend

__all__ = [
    "DATASETS",
    "SUB_TASKS",
    "EvalConfig",
    "Evaluation",
    "Example",
    "PromptSet",
    "Report",
    "Task",
    "between_methods",
    "between_runs",
    "load_examples",
    "load_prompts",
    "quick",
    "read_report",
    "trend",
]
