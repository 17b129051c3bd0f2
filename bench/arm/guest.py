"""edgecal's side of `python -m bench.arm count`, which runs it in the emulator: guest.py MODEL PROMPT DECODE.

One thread: PROMPT tokens at once, then DECODE tokens one at a time, with a mark (getpriority) before, between and
after. The tokens are those of llama_count.c. The round before the first mark is for whatever is done once.
"""

from __future__ import annotations

import os
import sys


def main(model: str, prompt: int, decode: int) -> None:
    from edgecal import Engine, KVCache
    from edgecal.decoding import generate

    engine = Engine.load(model, threads=1)
    config = engine.model.config
    ids = [(1000 + 7 * i) % config.vocab_size for i in range(prompt + decode)]
    cache = KVCache(config, engine.cache_dtype)
    generate.prefill(engine.model, ids[:prompt], cache, None)
    generate.decode(engine.model, ids[0], cache, None)
    cache.truncate(0)
    os.getpriority(os.PRIO_PROCESS, 0)
    generate.prefill(engine.model, ids[:prompt], cache, None)
    os.getpriority(os.PRIO_PROCESS, 0)
    for token in ids[prompt:]:
        logits = generate.decode(engine.model, token, cache, None)
    os.getpriority(os.PRIO_PROCESS, 0)
    print(int(logits.argmax()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
