"""Synthetic-Persona-Chat (Jandaghi et al. 2023): pairs of consecutive turns, as paper 1 builds them.

1,000 pairs for validation and 1,000 for test, drawn by a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..tasks import Task
from .dataset import Dataset, Example, Values, text_of

_TAKEN = 1000
_SPEAKER = re.compile(r"^User [12]: *")


def _examples(values: Values, task: Task) -> Iterable[Example]:
    turns = [_SPEAKER.sub("", line).strip() for line in text_of(values, "Best Generated Conversation").splitlines()]
    for number, (turn, reply) in enumerate(pairwise(turns), 1):
        if turn and reply:
            yield Example(str(number), turn, (reply,))


def _take(examples: Sequence[Example], split: str, seed: int) -> list[Example]:
    if split == "train" or len(examples) <= _TAKEN:
        return list(examples)
    return random.Random(f"{split} {seed}").sample(examples, _TAKEN)


PERSONA_CHAT = Dataset(
    "persona_chat",
    "Synthetic-Persona-Chat: pairs of consecutive turns, 1,000 by a seed",
    "CC BY 4.0",
    lambda task: task == Task("reply"),
    _examples,
    {name: f"Synthetic-Persona-Chat_{file}.csv" for name, file in
     (("train", "train"), ("validation", "valid"), ("test", "test"))},
    take=_take,
)  # fmt: skip
