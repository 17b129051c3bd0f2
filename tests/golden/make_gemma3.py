"""What llama.cpp says of a real Gemma 3 file: gemma3-270m.json, the reference of tests/parity/test_gemma3_file.py.

In an environment with `pip install ik-llama-cpp-python==0.1.5` (a fork of llama.cpp with a wheel):

    python -m tests.golden.make_gemma3 gemma-3-270m-q4_k_m.gguf tests/golden/gemma3-270m.json

The text is longer than the window of 512 positions, so that layers with a window see less of it than the others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SENTENCE = "In the small town by the river, the market opens at seven; fish, bread and 17 kinds of apples are sold. "
TEXT = SENTENCE * 30
PLACES = (5, 100, 510, 511, 512, 513, 600, 699)
TOP = 64


def main() -> None:
    import numpy as np
    from ik_llama_cpp._internals import IkContext, IkModel, make_batch

    model = IkModel(sys.argv[1])
    context = IkContext(model, n_ctx=1024, n_threads=2)
    vocab_size = 262144

    def log_probabilities(ids: list[int]):
        context.kv_cache_clear()
        assert context.decode(make_batch(ids)) == 0
        logits = np.array(context.get_logits(-1)[:vocab_size], np.float64)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    ids = model.tokenize(TEXT, add_bos=True)[: max(PLACES) + 1]
    prompt = model.tokenize("The capital of France is", add_bos=True)
    answer: list[int] = []
    for _ in range(8):
        answer.append(int(log_probabilities([*prompt, *answer]).argmax()))
    places = {}
    for place in PLACES:
        found = log_probabilities(ids[: place + 1])
        top = np.argsort(found)[::-1][:TOP]
        places[place] = {"ids": top.tolist(), "log_probabilities": [round(float(found[i]), 5) for i in top]}
    result = {"prompt": prompt, "answer": answer, "ids": ids, "places": places}
    Path(sys.argv[2]).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
