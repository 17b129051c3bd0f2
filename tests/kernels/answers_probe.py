"""What a tiny model answers on a back end, alone and with merged adapters.

`python -m tests.kernels.answers_probe BACK_END MODEL ADAPTER` prints the texts, and whether Numba was imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgecal import Engine, Recipe, Settings


def answers(backend: str, model: str | Path, lora: str | Path) -> list[str]:
    found = []
    for weights in ("int4", "int8"):
        engine = Engine.load(model, weights=weights, adapters={"a": lora, "b": lora}, backend=backend)
        for recipe in (None, Recipe("linear", ("a", "b"))):
            answer = engine.generate("The weather is " * 9, recipe=recipe, settings=Settings(max_tokens=24))
            found.append(answer.text)
    return found


if __name__ == "__main__":
    texts = answers(*sys.argv[1:])
    print(json.dumps([texts, any(sys.modules.get(name) for name in ("numba", "llvmlite"))]))
